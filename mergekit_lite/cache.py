"""The cache directory, and writing into it so that nothing half-written is ever found there."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import platformdirs
from filelock import FileLock

from mergekit_lite.errors import KitError

LEDGER = "MERGEKIT_LITE_LEDGER"
"""Environment variable with the file in which `study.run` notes the records it returned; the runner sets it."""

VARIABLE = "MERGEKIT_LITE_CACHE"


def cache_dir(*parts: str) -> Path:
    """Return a folder of the cache, as a whole path: ``$MERGEKIT_LITE_CACHE``, or the user's own cache folder.

    It is created by who writes into it, so that a cache which can only be read serves as long as it holds everything.

    Raises:
        KitError: the variable names the home of somebody who does not exist.
    """
    chosen = os.environ.get(VARIABLE)
    try:
        root = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("mergekit-lite")
    except RuntimeError as error:  # ~nobody: there is no such user, or the user has no home
        raise KitError(f"{VARIABLE} is '{chosen}': {error} Name the folder by its whole path.") from error
    return root.absolute().joinpath(*parts)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it takes the place of `path` in one step, on failure it is removed.

    What takes its place is on the disk, not only on its way there, and as readable for others as their files are for us
    (umask). A folder in its place is moved aside, and that is said.

    Raises:
        KitError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        if path.is_dir() and not path.is_symlink():
            aside = path.with_name(f"{path.name}.aside-{os.getpid()}")
            os.replace(path, aside)
            print(f"The folder {path} stands where a file belongs: it was moved to {aside.name}.", flush=True)
        os.replace(temporary, path)
    except OSError as error:
        raise KitError(
            f"{path} cannot be written ({error.strerror or error}). "
            f"Free some space or make its folder writable; the cache can be elsewhere: set {VARIABLE}."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make `folder` if need be, and try whether a file can be written there: before hours of work, not after them.

    Raises:
        KitError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # a ValueError is a name with a zero byte
        words = error.strerror if isinstance(error, OSError) else error
        raise KitError(f"Nothing can be written to {folder} ({words}). Choose another folder.") from error


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


@contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """As `written_whole`, and beside the file its SHA-256, by which `intact` knows it (and ``sha256sum --check``)."""
    seal = seal_of(path)
    with written_whole(path) as temporary:
        yield temporary
        digest = file_digest(temporary)
        seal.unlink(missing_ok=True)  # killed between the two, the file counts as unfinished
    with written_whole(seal) as temporary:
        temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def seal_of(path: Path) -> Path:
    """Return the file that holds the SHA-256 of `path`."""
    return path.with_name(f"{path.name}.sha256")


_known: set[tuple[str, int, int, int, str]] = set()  # what this process has read whole and found intact


def intact(path: Path) -> bool:
    """Return whether `path` is, to the bit, what was `sealed`; say so if it is there but is not.

    The file is read whole once per process, and again when it was written to.
    """
    try:
        words = seal_of(path).read_text(encoding="ascii").split()
        state = path.stat()
        known = (str(path), state.st_ino, state.st_size, state.st_mtime_ns, words[0])
        if known in _known:
            return True
        if file_digest(path) == words[0]:
            _known.add(known)
            return True
    except FileNotFoundError:
        return False  # it was never made, or its making was interrupted
    except (OSError, ValueError, IndexError):  # a folder, a loop of links, unreadable, or a seal that is none
        pass
    print(f"{path} is damaged: it is made anew.", flush=True)
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to `path`, so that of two runs on one cache one computes and the other waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def content_hash(content: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `content` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, all 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
