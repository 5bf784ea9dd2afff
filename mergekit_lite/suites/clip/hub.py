"""Files of the Hugging Face hub: fetched once, checked, known by their hash, and errors in words one can act on."""

import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from mergekit_lite.cache import Written, cache_dir, file_digest, move_folder_aside, written
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.words import spelt

Answer = TypeVar("Answer")

PAUSES = (2.0, 8.0, 30.0)
"""Seconds to wait before trying again. huggingface_hub repeats some requests by itself, with pauses of 1 to 8 seconds,
but neither a download that ends in a server error nor the listings and tables of data sets."""

_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp", "ssl", "socket")  # who raises when nobody answers


@dataclass(frozen=True)
class Source:
    """Which bytes a file of the hub is: `sha256` are all 64 digits, `commit` is what the branch `main` stood for."""

    repo: str
    filename: str
    commit: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}/{self.filename}"


def downloaded(repo: str, filename: str) -> Path:
    """Return the file `filename` of the model `repo`, fetched into the hub's own cache unless it is there.

    What is there is taken without asking the hub whether the repository has moved on, so that results stay what they
    are and no network is needed. Its SHA-256 is compared with the one that the hub lists, once per process: if it is
    another one the file is fetched anew.

    Raises:
        KitError: it cannot be fetched, or arrived damaged (it is deleted then); it is damaged, and may not be fetched.
    """
    found, what = _cached(repo, filename), f"{repo}/{filename}"
    if found is not None:
        listed = _listed_sha256(found)
        if listed is None or has_digest(found, listed):
            return found
        discard(found, what)
    print(f"Fetching {what}.", flush=True)
    try:
        with bars_in_a_terminal_only():
            path = fetched(lambda: huggingface_hub.hf_hub_download(repo, filename))
    except Exception as error:
        raise explained(error, what) from error
    listed = _listed_sha256(path)
    if listed is not None and not has_digest(path, listed):
        remove(path)
        raise KitError(
            f"{what} arrived damaged: its SHA-256 is not the {listed[:16]}... that the hub lists. It was deleted. "
            "Run the same again; if that does not help, look for a proxy that changes what passes it."
        )
    return path


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


def source(repo: str, filename: str) -> Source:
    """Return commit and hash of a file: of the fetched one, or else what the hub says of it, without fetching it.

    Raises:
        KitError: it is not there, and the hub cannot be asked.
    """
    found = _cached(repo, filename)
    if found is not None:
        commit = found.parents[len(Path(filename).parts) - 1].name  # .../snapshots/<commit>/<filename>
        return Source(repo, filename, commit, _listed_sha256(found) or _digest(found, written(found), 64))
    return _announced(repo, filename)


@cache  # a study asks for the same twenty files once per cell
def _announced(repo: str, filename: str) -> Source:
    what = f"{repo}/{filename}"
    url = huggingface_hub.hf_hub_url(repo, filename)
    try:
        facts = retried(lambda: huggingface_hub.get_hf_file_metadata(url))
    except Exception as error:
        raise explained(error, what) from error
    if not facts.commit_hash or not facts.etag:
        raise KitError(
            f"The answer for {what} lacks the commit and hash that the Hugging Face hub gives. Unset HF_ENDPOINT, or "
            "set it to a mirror that passes them on; behind a proxy, check that it lets the hub through."
        )
    return Source(repo, filename, facts.commit_hash, facts.etag)


def retried(call: Callable[[], Answer], pauses: tuple[float, ...] = PAUSES) -> Answer:
    """Return what `call` returns; after a rate limit (429) or a server error (5xx) wait and call again.

    Longer pauses that the hub asks for (Retry-After) are kept, up to five minutes. Other errors are not repeated.
    """
    for pause in pauses:
        try:
            return call()
        except Exception as error:
            response = _response(error)
            if response is None or (response.status_code != 429 and response.status_code < 500):
                raise
            asked = str(response.headers.get("Retry-After", ""))
            time.sleep(min(max(pause, float(asked) if asked.isdecimal() else 0), 300))
    return call()


def explained(error: BaseException, what: str) -> KitError:
    """Return why `what` could not be fetched, and what to do; `error` is what a library of the hub raised."""
    if isinstance(error, KitError):
        return error
    response, chain = _response(error), list(_chain(error))
    status = None if response is None else response.status_code
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    words = " ".join(str(one) for one in chain)
    fetch = "run `mergekit-lite fetch SUITE`"
    if numbers & {errno.ENOSPC, errno.EDQUOT} or "No space left on device" in words:
        reason, then = f"the disk of {constants.HF_HUB_CACHE} is full", "Free some space or set HF_HOME to another disk"
    elif numbers & {errno.EACCES, errno.EPERM, errno.EROFS} or any(isinstance(one, PermissionError) for one in chain):
        reason = f"the folder {constants.HF_HUB_CACHE} cannot be written to"
        then = "Make it writable or set HF_HOME to a folder that is"
    elif any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        reason = "it is not in the cache, and the hub may not be asked (HF_HUB_OFFLINE is set)"
        then = f"Unset HF_HUB_OFFLINE and {fetch}, or copy {constants.HF_HUB_CACHE} from where it was fetched"
    elif any(isinstance(one, GatedRepoError) for one in chain):
        reason = "it is gated: its owner lets in only those who ask"
        then = "Ask for access on its page of the hub, then set HF_TOKEN to your token"
    elif any(isinstance(one, RepositoryNotFoundError) for one in chain):
        reason = "the hub has no such repository, or it is private"
        then = "Check the name on the hub; if it is private, set HF_TOKEN to a token that may read it"
    elif any(isinstance(one, RevisionNotFoundError) for one in chain):
        reason = "the repository no longer has the commit that is pinned here"
        then = f"Delete the folder {cache_dir('sources', 'clip')}, so that its present state is asked for"
    elif status in (401, 403):
        reason = f"the hub refused it ({status})"
        then = "Set HF_TOKEN to a valid token that may read it, or unset HF_TOKEN: public files need none"
    elif status == 404:
        reason, then = "the repository has no such file (404)", "Look at its files on the hub: it may have been renamed"
    elif status == 429:
        reason = "the hub's limit of requests is reached (429)"
        then = f"Wait some minutes and {fetch} again: it resumes where it stopped. A token in HF_TOKEN raises the limit"
    elif status is not None and status >= 500:
        reason = f"the hub has trouble ({status})"
        then = f"Look at status.huggingface.co, then {fetch} again: it resumes where it stopped"
    elif "Consistency check failed" in words:
        reason, then = "it arrived incomplete", f"Look at the network, then {fetch} again"
    elif any(isinstance(one, ConnectionError | TimeoutError) or _module(one).startswith(_NETWORK) for one in chain):
        reason = f"it is not in the cache, and {constants.ENDPOINT} does not answer"
        then = (
            f"Look at the network and proxy, or set HF_ENDPOINT to a mirror, then {fetch}. Without a network, copy the "
            f"folder {constants.HF_HUB_CACHE} from a machine where it was fetched"
        )
    else:
        reason, then = spelt(f"{type(error).__name__}: {error}").rstrip(". "), f"If this may pass, {fetch} again"
    return KitError(f"{spelt(what)} could not be fetched: {reason}. {then}.")


def _cached(repo: str, filename: str) -> Path | None:
    try:
        found = huggingface_hub.try_to_load_from_cache(repo, filename)
    except (ValueError, OSError) as error:
        raise explained(error, f"{repo}/{filename}") from error
    return Path(found) if isinstance(found, str) else None


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


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it and so on: the hub's own errors often only say that "an error happened"."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _response(error: BaseException) -> Any:
    """Return the hub's answer that led to `error`, with `status_code` and `headers`; None if it gave none."""
    answers = (getattr(one, "response", None) for one in _chain(error))
    return next((answer for answer in answers if getattr(answer, "status_code", None) is not None), None)


def _module(error: BaseException) -> str:
    return type(error).__module__
