"""The cache directory, and writing into it so that nothing half-written is ever found there."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from mergekit_lite.errors import KitError

LEDGER = "MERGEKIT_LITE_LEDGER"
"""Environment variable with the file in which `study.run` notes the records it returned; the runner sets it."""

VARIABLE = "MERGEKIT_LITE_CACHE"


def cache_dir(*parts: str) -> Path:
    """Return a folder of the cache, created if need be: ``$MERGEKIT_LITE_CACHE``, or the user's own cache folder.

    Raises:
        KitError: the folder cannot be created or written to.
    """
    chosen = os.environ.get(VARIABLE)
    folder = (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("mergekit-lite")).joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a try cannot lie: os.access says yes to root on a read-only disk
            pass
    except OSError as error:
        raise KitError(
            f"The cache folder {folder} cannot be written to ({error.strerror}). "
            f"Make it writable, or set {VARIABLE} to a folder that is."
        ) from error
    return folder


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it takes the place of `path` in one step, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
