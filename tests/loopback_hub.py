"""A small hub on the loopback device: what huggingface_hub and datasets ask of the real one, and faults on demand.

Repositories are dictionaries from path to content; every `put` is a new commit, and `main` is the last one. Large
files are handed out as the real hub does: a redirect to another server that announces the SHA-256, then the content
from there, in ranges if asked.
A repository that was moved answers under its old name with a redirect to the new one.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["model", "dataset"]
LARGE = (".parquet", ".safetensors", ".tar", ".bin", ".pt")


@dataclass
class Fault:
    """What happens to the next `times` requests whose path contains `part`, with one of `methods`.

    `status` answers with that error; `cut` sends so many bytes and hangs up; `spoil` sends other bytes.
    """

    part: str
    times: int = 1
    status: int = 0
    cut: int = -1
    spoil: bool = False
    methods: tuple[str, ...] = ("GET", "HEAD", "POST")
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class LoopbackHub:
    """The hub's content, its faults, and what was asked of it: (method, path, range) in order."""

    endpoint: str = ""
    store: str = ""
    """Address of the other server, which hands out the large files."""
    repositories: dict[tuple[Kind, str], dict[str, dict[str, bytes]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """File -> the size that is announced for it, wrongly."""

    def put(self, kind: Kind, repository: str, files: Mapping[str, bytes]) -> str:
        """Make a commit that holds `files` alone, and return its number."""
        commits = self.repositories.setdefault((kind, repository), {})
        listed = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in files.items())
        commit = hashlib.sha1(json.dumps([kind, repository, len(commits), listed]).encode()).hexdigest()
        commits[commit] = dict(files)
        return commit

    def content(self, kind: Kind, repository: str) -> dict[str, bytes]:
        """Return the files of the last commit, to be changed in place."""
        return list(self.repositories[kind, repository].values())[-1]

    def forget(self, kind: Kind, repository: str) -> None:
        """Drop all commits but the last one, as when a history is rewritten."""
        commits = self.repositories[kind, repository]
        for commit in list(commits)[:-1]:
            del commits[commit]

    def move(self, kind: Kind, old: str, new: str) -> None:
        """Give a repository another name; under the old one the hub points to it."""
        self.repositories[kind, new] = self.repositories.pop((kind, old))
        self.moved[old] = new

    def fail(self, part: str, **what: Any) -> None:
        """Have requests whose path contains `part` fail: see `Fault`."""
        self.faults.append(Fault(part, **what))

    def fault(self, method: str, path: str) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        sends = method == "GET" and (path.startswith("cdn/") or not path.endswith(LARGE))
        for fault in self.faults:
            if (fault.cut >= 0 or fault.spoil) and not sends:
                continue
            if fault.part in path and method in fault.methods and fault.times > 0:
                fault.times -= 1
                return fault
        return None


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Serve a hub, empty at first, on a free port of this machine."""
    hub = LoopbackHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with _served(Handler) as hub.endpoint, _served(Handler) as hub.store:
        yield hub


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port of this machine, and yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest(path: str, content: bytes) -> str:
    """Return what the hub announces as a file's ETag: the SHA-256 of a large file, git's blob number of a small one."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes, size: int | None = None) -> dict[str, Any]:
    size = len(content) if size is None else size
    entry = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LARGE):
        return entry | {"lfs": {"oid": digest(path, content), "size": size, "pointerSize": 130}}
    return entry | {"oid": digest(path, content)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((method, path, self.headers.get("Range")))
        fault = self.hub.fault(method, path)
        moved = next((one for one in self.hub.moved if f"/{one}/" in f"/{path}/"), None)
        if fault and fault.status:
            self._say(fault.status, {"error": "as the test wants it"}, fault.headers)
        elif moved:
            self._say(307, {}, {"Location": self.path.replace(moved, self.hub.moved[moved], 1)})
        elif path.startswith("api/"):
            self._api(path.removeprefix("api/"), parse_qs(url.query), body)
        elif "/resolve/" in path or path.startswith("cdn/"):
            self._file(method, path, fault)
        else:
            self._say(404, {"error": "unknown"})

    def _found(self, kind: Kind, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.hub.repositories.get((kind, repository))
        if commits is None:
            self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = list(commits)[-1] if revision in ("main", "") else revision
        if commit not in commits:
            self._say(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, commits[commit]

    def _api(self, path: str, query: Mapping[str, list[str]], body: bytes) -> None:
        parts = path.split("/")
        kind: Kind = "dataset" if parts[0] == "datasets" else "model"
        repository = "/".join(parts[1:3])
        action, revision, inside = (*parts[3:4], "revision")[0], (*parts[4:5], "main")[0], "/".join(parts[5:])
        found = self._found(kind, repository, revision)
        if found is None:
            return
        commit, files = found
        if action == "revision":
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self._say(200, {"id": repository, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        elif action == "commits":
            self._commits(kind, repository, commit, query)
        elif action == "tree":
            prefix = f"{inside}/" if inside else ""
            below = {name: content for name, content in files.items() if name.startswith(prefix)}
            entries: dict[str, dict[str, Any]] = {}
            for name, content in below.items():
                folders = name.removeprefix(prefix).split("/")[:-1]
                for depth in range(1, len(folders) + 1):
                    folder = prefix + "/".join(folders[:depth])
                    entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
                entries[name] = _entry(name, content, self.hub.sizes.get(name))
            if "true" not in [value.lower() for value in query.get("recursive", [])]:
                entries = {name: entry for name, entry in entries.items() if "/" not in name.removeprefix(prefix)}
            if not entries:
                self._say(404, {"error": "not there"}, {"X-Error-Code": "EntryNotFound"})
            else:
                self._say(200, list(entries.values()))
        elif action == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            asked = [asked] if isinstance(asked, str) else asked
            wanted = [_entry(name, files[name], self.hub.sizes.get(name)) for name in asked if name in files]
            folders_asked = [name for name in asked if any(file.startswith(f"{name}/") for file in files)]
            wanted += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders_asked]
            self._say(200, wanted)
        else:
            self._say(404, {"error": "unknown"})

    def _commits(self, kind: Kind, repository: str, last: str, query: Mapping[str, list[str]]) -> None:
        """List two commits a page, the newest first, and say where the next page is."""
        commits = list(self.hub.repositories[kind, repository])
        commits = commits[: commits.index(last) + 1][::-1]
        first = 2 * int(query.get("p", ["0"])[0])
        following = f"{self.hub.endpoint}{urlsplit(self.path).path}?p={first // 2 + 1}"
        facts = {"title": "a commit", "message": "", "authors": [], "date": "2024-12-12T12:00:00.000Z"}
        headers = {"Link": f'<{following}>; rel="next"'} if first + 2 < len(commits) else {}
        self._say(200, [{"id": commit, **facts} for commit in commits[first : first + 2]], headers)

    def _file(self, method: str, path: str, fault: Fault | None) -> None:
        elsewhere = path.startswith("cdn/")
        address, _, rest = path.removeprefix("cdn/").partition("/resolve/")
        kind: Kind = "dataset" if address.startswith("datasets/") else "model"
        revision, _, name = rest.partition("/")
        found = self._found(kind, address.removeprefix("datasets/"), revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content, etag = files[name], f'"{digest(name, files[name])}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE) and not elsewhere:
            location = f"{self.hub.store}/cdn/{address}/resolve/{commit}/{name}"
            size = self.hub.sizes.get(name, len(content))
            linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(size), "Location": location}
            self._say(302, {}, headers | linked)
            return
        if fault and fault.spoil:
            content = bytes(255 - byte for byte in content)
        status, first, asked = 200, 0, self.headers.get("Range")
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end), len(content) - 1) if end else len(content) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if method != "HEAD":
            if fault and fault.cut >= 0:
                self.wfile.write(content[: fault.cut])
                self.close_connection = True
            else:
                self.wfile.write(content)

    def _say(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)
