"""Files of the Hugging Face hub: fetched once, checked, known by their hash, and errors in words one can act on."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfFileMetadata, constants
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from mergekit_lite.cache import Written, file_digest, move_folder_aside, written
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import pins
from mergekit_lite.suites.clip.looking import user_is_offline
from mergekit_lite.suites.clip.pins import Pin
from mergekit_lite.suites.clip.trouble import Answer, explained, lacks_the_file, retried

INSTEAD = {"open_clip_model.safetensors": "open_clip_pytorch_model.bin"}
"""File -> the one to take where a repository has no such file. open_clip knows these two names and reads the second
one, a pickle, with `weights_only`: tensors and containers, nothing that runs."""


@dataclass(frozen=True)
class Source:
    """Which bytes a file of the hub is.

    Attributes:
        commit: of the repository.
        sha256: all 64 digits.
        now: the repository's name on the hub if it was moved, else "".
    """

    repo: str
    filename: str
    commit: str
    sha256: str
    now: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}/{self.filename}" + (f" (the hub has it as {self.now})" if self.now else "")


def downloaded(repo: str, filename: str) -> Path:
    """Return the file `filename` of the model `repo` (or what is taken `INSTEAD`), in the hub's own cache.

    It is fetched unless it is there, of the commit that is pinned, and pins the commit from then on (see `pins`). What
    is there is taken without asking the hub whether the repository has moved on, so that results stay what they are and
    no network is needed. Its SHA-256 is compared with the one that the hub lists, once per process: if it is another
    one the file is fetched anew.

    Raises:
        KitError: it cannot be fetched, or arrived damaged (it is deleted then); it is damaged, and may not be fetched.
    """
    found, what = cached(repo, filename), f"{repo}/{filename}"
    if found is not None:
        listed = _listed_sha256(found)
        if listed is None or has_digest(found, listed):
            return found
        discard(found, what)
    print(f"Fetching {what}.", flush=True)
    commit = pins.pinned(repo)

    def fetch(name: str) -> Path:
        return fetched(lambda: huggingface_hub.hf_hub_download(repo, name, revision=commit))

    try:
        with bars_in_a_terminal_only():
            path, name = _or_instead(filename, fetch)
    except Exception as error:
        raise explained(error, what) from error
    listed = _listed_sha256(path)
    if listed is not None and not has_digest(path, listed):
        remove(path)
        raise KitError(
            f"{what} arrived damaged: its SHA-256 is not the {listed[:16]}... that the hub lists. It was deleted. "
            "Run the same again; if that does not help, look for a proxy that changes what passes it."
        )
    pins.keep(Pin(repo, _commit(path, name), pins.name_now(repo)))
    return path


def _or_instead(filename: str, call: Callable[[str], Answer]) -> tuple[Answer, str]:
    """Return `call(filename)` and the name; if the repository lacks it, both for the file that is taken instead."""
    try:
        return call(filename), filename
    except Exception as error:
        if filename not in INSTEAD or not lacks_the_file(error):
            raise
    return call(INSTEAD[filename]), INSTEAD[filename]


def fetched(call: Callable[[], str]) -> Path:
    """Return the file that `call` gets from the hub; a folder in its place, which the hub's library takes, goes aside.

    In trouble it is repeated: see `retried`.
    """
    path = Path(retried(call))
    if path.is_dir():
        remove(path)
        path = Path(retried(call))
    return path


def has_digest(path: Path, digest: str) -> bool:
    """Return whether a file has this SHA-256 (64 digits) or this SHA-1 as a blob of git (40 digits).

    It is read whole once per process, and again when it was written to.
    """
    try:
        return _digest(path, written(path), len(digest)) == digest
    except OSError:  # a folder, or unreadable
        return False


def discard(path: Path, what: str) -> None:
    """Say that `path`, which is `what` of the hub, is damaged, and remove it so that it is fetched anew.

    Raises:
        KitError: it may not be fetched, so it stays; or it cannot be removed.
    """
    if constants.HF_HUB_OFFLINE and not user_is_offline():
        raise KitError(
            f"{path} is damaged: it is not what the hub lists for {what}. `mergekit-lite fetch SUITE` brings it anew."
        )
    if constants.HF_HUB_OFFLINE:
        raise KitError(
            f"{path} is damaged: it is not what the hub lists for {what}, and HF_HUB_OFFLINE forbids to fetch it anew. "
            f"Delete {path.resolve()}, unset HF_HUB_OFFLINE and run `mergekit-lite fetch SUITE`."
        )
    print(f"{path} is damaged: it is fetched anew.", flush=True)
    remove(path)


def remove(path: Path) -> None:
    """Remove a file from the hub's cache: the name, and the content that several commits may share.

    Raises:
        KitError: it cannot be removed.
    """
    for one in (path.resolve(), path):
        try:
            cleared(one)
        except OSError as error:
            raise KitError(
                f"{one} is damaged and cannot be removed ({error.strerror}). Delete it, or have its owner do it."
            ) from error


def cleared(path: Path) -> None:
    """Remove what stands at `path`; a folder, which may hold what is somebody's, is moved aside, and that is said."""
    move_folder_aside(path)
    path.unlink(missing_ok=True)


def source(repo: str, filename: str, commit: str | None = None) -> Source:
    """Return commit and hash of a file: of the fetched one, or else what the hub says of it, without fetching it.

    Args:
        repo: of a model.
        filename: in it.
        commit: by default the one that is pinned, see `cached`.

    Raises:
        KitError: it is not there, and the hub cannot be asked.
    """
    found = cached(repo, filename, commit)
    if found is None:
        return announced(repo, filename, commit or pins.pinned(repo))[0]
    pin, name = pins.kept(repo), filename if found.name == Path(filename).name else INSTEAD[filename]
    sha256 = _listed_sha256(found) or _digest(found, written(found), 64)
    return Source(repo, name, _commit(found, name), sha256, pin.now if pin else "")


@cache  # a study asks for the same twenty files once per cell
def announced(repo: str, filename: str, commit: str | None) -> tuple[Source, int]:
    """Return what the hub says of a file at a commit (None: of `main`), and its size in bytes; it is not fetched.

    Raises:
        KitError: the hub cannot be asked, or has no such repository, commit or file.
    """
    what = f"{repo}/{filename}"

    def ask(name: str) -> HfFileMetadata:
        url = huggingface_hub.hf_hub_url(repo, name, revision=commit)
        return retried(lambda: huggingface_hub.get_hf_file_metadata(url))

    try:
        facts, name = _or_instead(filename, ask)
    except Exception as error:
        raise explained(error, what) from error
    if not facts.commit_hash or not facts.etag:
        raise KitError(
            f"The answer for {what} lacks the commit and hash that the Hugging Face hub gives. Unset HF_ENDPOINT, or "
            "set it to a mirror that passes them on; behind a proxy, check that it lets the hub through."
        )
    return Source(repo, name, facts.commit_hash, facts.etag), facts.size or 0


def cached(repo: str, filename: str, commit: str | None = None) -> Path | None:
    """Return the file, or what is taken `INSTEAD`, where the hub's cache has it, not looking into it; None without it.

    Args:
        repo: of a model.
        filename: in it.
        commit: by default the one that is pinned, and if none is, `main` as it was fetched. Where that is unknown too,
            as in a cache that was copied from elsewhere, the only state that is there.
    """
    try:
        commit = commit or pins.pinned(repo)
        for name in filter(None, (filename, INSTEAD.get(filename))):
            found = huggingface_hub.try_to_load_from_cache(repo, name, revision=commit)
            if isinstance(found, str):
                return Path(found)
            states = [] if commit else [one / name for one in pins.snapshots(repo, "model") if (one / name).is_file()]
            if len(states) == 1:
                return states[0]
    except (ValueError, OSError) as error:
        raise explained(error, f"{repo}/{filename}") from error
    return None


def _commit(path: Path, filename: str) -> str:
    return path.parents[len(Path(filename).parts) - 1].name  # .../snapshots/<commit>/<filename>


def _listed_sha256(path: Path) -> str | None:
    """Return the hash under which the hub's cache keeps the file behind the link `path`; None where there is no link.

    The hub names large files by their SHA-256. One step only: behind the first link may lie another one, into a store
    that several caches share and that names its files otherwise.
    """
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if len(name) == 64 else None


@cache
def _digest(path: Path, _: Written, digits: int) -> str:
    if digits == 64:
        return file_digest(path)
    as_blob = partial(hashlib.sha1, b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, as_blob).hexdigest()


@contextmanager
def bars_in_a_terminal_only() -> Iterator[None]:
    """Keep the hub's progress bars out of log files and notebooks, where each becomes a widget that does not last."""
    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
