"""The cache directory, and writing into it so that nothing half-written is ever found there."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
import psutil
from filelock import FileLock, Timeout

from mergekit_lite import leases
from mergekit_lite.errors import KitError, shown

LEDGER = "MERGEKIT_LITE_LEDGER"
"""Environment variable with the file in which `study.run` notes the records it returned; the runner sets it."""

SHARD = "MERGEKIT_LITE_SHARD"
"""Environment variable ``i/n``: `study.run` computes shard i of n, counted from 1; `run --shard` sets it."""

ENGINE = "MERGEKIT_LITE_ENGINE"
"""Environment variable that names what computes cells, see `study.engines`; the runner sets it for its notebooks."""

VARIABLE = "MERGEKIT_LITE_CACHE"

LOCKS = "MERGEKIT_LITE_LOCKS"
"""Environment variable: ``lease`` where locks of the file system do not reach other machines, see `leases`."""

_LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # such as NFS without its lock service


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
        move_folder_aside(path)
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
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
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _unwritable(folder, error) from error
    except ValueError as error:  # a name with a zero byte
        raise KitError(f"{folder} is no name of a folder ({error}). Choose another.") from error


def check_room(folder: Path, wanted: int, what: str) -> None:
    """Check that `wanted` bytes fit on the disk of `folder`.

    Raises:
        KitError: they do not.
    """
    free = shutil.disk_usage(existing(folder)).free
    if wanted > free:
        raise KitError(
            f"There is no room for {what}: it takes {wanted / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free, "
            f"{(wanted - free) / 1e9:.2f} GB too few. Choose fewer tasks, or set {VARIABLE} (decoded images) or "
            f"HF_HOME (downloads) to a folder on a larger disk."
        )


def _unwritable(path: Path, error: OSError) -> KitError:
    place = error.filename and Path(error.filename)
    where = f": {place}" if place in path.parents else ""  # a file where a folder belongs
    return KitError(
        f"{path} cannot be written ({error.strerror or error}{where}). "
        f"Free some space or make its folder writable; the cache can be elsewhere: set {VARIABLE}."
    )


def move_folder_aside(path: Path) -> None:
    """Rename a folder that stands where a file belongs, since it may hold what is somebody's, and say so."""
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f"{path.name}.aside-{os.getpid()}")
        os.replace(path, aside)
        print(f"The folder {path} stands where a file belongs: it was moved to {aside.name}.", flush=True)


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
        move_folder_aside(seal)
        seal.unlink(missing_ok=True)  # killed between the two, the file counts as unfinished
    with written_whole(seal) as temporary:
        temporary.write_text(_seal(path, digest), encoding="utf-8")


def seal_of(path: Path) -> Path:
    """Return the file that holds the SHA-256 of `path`."""
    return path.with_name(f"{path.name}.sha256")


def _seal(path: Path, digest: str) -> str:
    return f"{digest}  {path.name}\n"


Written = tuple[int, int, int]


def written(path: Path) -> Written:
    """Return what changes when a file is written to or replaced: inode, size, and time in nanoseconds."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def existing(folder: Path) -> Path:
    """Return `folder`, or the first of those it is to be made in that is there already."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())


_known: set[tuple[str, Written, str]] = set()  # what this process has read whole and found intact


def intact(path: Path, *, say: bool = True) -> bool:
    """Return whether `path` is, to the bit, what was `sealed` under its name; if asked to, `say` so if it is not.

    The file is read whole once per process, and again when it was written to.
    """
    try:
        seal = seal_of(path).read_text(encoding="utf-8")
        known = (str(path), written(path), seal)
        if known in _known:
            return True
        if path.is_file() and seal == _seal(path, file_digest(path)):  # a pipe would never end
            _known.add(known)
            return True
    except FileNotFoundError:
        return False  # it was never made, or its making was interrupted
    except (OSError, ValueError):  # a folder, a loop of links, unreadable, or a seal that is no text
        pass
    if say:
        print(f"{path} is damaged: it is made anew.", flush=True)
    return False


def ensure(make: Callable[[], object], *paths: Path) -> None:
    """Have `make` make all of `paths`, each `sealed`, unless they are intact; of two runs one makes them.

    What is intact is only read, so that a cache which cannot be written to serves. What is damaged is said, once.

    Raises:
        KitError: they must be made, and their folder cannot be written to or locked.
    """
    if all(intact(path, say=False) for path in paths):
        return
    with locked(*paths):
        if not all([intact(path) for path in paths]):
            make()


class Held(KitError):
    """Another process holds the lock."""


def free(path: Path) -> bool:
    """Return whether nobody holds the lock of `path` now."""
    try:
        with locked(path, wait=False):
            return True
    except Held:
        return False


@contextmanager
def locked(path: Path, *others: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock that belongs to `path`, so that of two runs on one cache one computes and the other waits.

    It stands for `others` too. What a process that was killed left half-written of any of them is removed.

    Raises:
        Held: another process holds it, and `wait` is not set.
        KitError: the folder cannot be written to.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            got = stack.enter_context(_lock(path, wait=wait))
        except OSError as error:
            raise _unwritable(path, error) from error
        if not got:
            raise Held(f"{path.name} is being made by another process.")
        _sweep({one.parent for one in (path, *others)}, tuple(f".{one.name}." for one in (path, *others)))
        yield


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock of the file system, which frees that of a process that ended; where it has none, a lease."""
    kind = os.environ.get(LOCKS, "")
    if kind not in ("", "lease"):
        raise KitError(f"{LOCKS} is {shown(kind)}. Set it to lease, for a file that shows who holds it, or not at all.")
    if not kind:
        lock = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as error:
            if error.errno not in _LOCKLESS:
                raise
        else:
            try:
                yield True
            finally:
                lock.release()
            return
    with leases.held(path, wait=wait) as got:
        yield got


def _sweep(folders: set[Path], starts: tuple[str, ...]) -> None:
    """Remove files that were being written when their process ended; their lock is held, so that nobody writes them."""
    for folder in folders:
        for left in [one for one in folder.iterdir() if one.suffix == ".tmp" and one.name.startswith(starts)]:
            with suppress(OSError):
                left.unlink()


def sweep_dead(folder: Path, pattern: str = r"\..*\.(\d+)\.tmp") -> None:
    """Remove unfinished files in `folder` whose processes are gone: for folders that nobody locks.

    Args:
        folder: to look in.
        pattern: of the files' names, its first group the process; by default that of `written_whole`.
    """
    for path in folder.iterdir():
        left = re.fullmatch(pattern, path.name)
        if left and not psutil.pid_exists(int(left[1])):
            path.unlink(missing_ok=True)


def content_hash(content: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `content` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, all 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
