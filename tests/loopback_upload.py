"""The small hub of `loopback_hub`, which one can also write to: what huggingface_hub asks when it uploads a folder.

Files go there as git files inside the commit, or, if they are large, by git's large file storage: a batch tells where
to put each, and the commit then names their SHA-256. (hf_xet, which huggingface_hub prefers where it is installed,
speaks to a storage of its own; with `HF_HUB_DISABLE_XET` set it is left out.)
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from loopback_hub import LARGE, LoopbackHub, _Handler, _served

TOKEN = "hf_loopback"


@dataclass
class WritableHub(LoopbackHub):
    """A hub that keeps what is uploaded.

    Attributes:
        private: repository -> whether it was made private.
        stored: SHA-256 -> content of what was put into the large file storage.
        cards: the cards whose metadata was asked to be checked.
        messages: of the commits.
    """

    private: dict[str, bool] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def writable_hub() -> Iterator[WritableHub]:
    """Serve a hub, empty at first, on a free port of this machine; TOKEN may write there."""
    hub = WritableHub()

    class Handler(_Writing):
        pass

    Handler.hub = hub
    with _served(Handler) as hub.endpoint, _served(Handler) as hub.store:
        yield hub


class _Writing(_Handler):
    hub: WritableHub

    def do_POST(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        actions = {"repos/create": self._create, "validate-yaml": self._check_card}
        name = path.removeprefix("api/")
        parts = name.split("/")
        batch = path.endswith(".git/info/lfs/objects/batch")
        writes = batch or name in actions or (parts[0] == "models" and parts[3:4] in (["preupload"], ["commit"]))
        if not writes:
            super().do_POST()
            return
        content = self._content()
        self.hub.asked.append(("POST", path, None))
        fault = self.hub.fault("POST", path)
        if fault and fault.status:
            self._say(fault.status, {"error": "as the test wants it"}, fault.headers)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, {"error": "Invalid user token."})
        elif batch:
            self._batch(json.loads(content))
        elif name in actions:
            actions[name](json.loads(content))
        elif parts[3] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                for file in json.loads(content)["files"]
            ]
            self._say(200, {"files": [{**file, "shouldIgnore": False} for file in files]})
        else:
            self._commit("/".join(parts[1:3]), [json.loads(line) for line in content.splitlines()])

    def do_PUT(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        content = self._content()
        self.hub.asked.append(("PUT", path, None))
        fault = self.hub.fault("PUT", path)
        if fault and fault.status:
            self._say(fault.status, {"error": "as the test wants it"}, fault.headers)
            return
        self.hub.stored[path.removeprefix("put/")] = content
        self._say(200, {})

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if ("model", name) in self.hub.repositories:
            self._say(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"})
            return
        self.hub.put("model", name, {})
        self.hub.private[name] = asked.get("visibility") == "private"
        self._say(200, {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": "1"})

    def _check_card(self, asked: dict[str, Any]) -> None:
        self.hub.cards.append(asked["content"])
        self._say(200, {"errors": [], "warnings": []})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.store}/put/{one['oid']}"}}} for one in asked["objects"]
        ]
        self._say(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.content("model", name))
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        commit = self.hub.put("model", name, files)
        self._say(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit})
