"""A folder that comes to be whole or not at all: written beside its place under a hidden name, moved at the end."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from mergekit_lite.cache import existing
from mergekit_lite.errors import KitError
from mergekit_lite.suites.words import spelt


def check_free(folder: Path, sources: Mapping[str, tuple[Path, ...]]) -> None:
    """Check that a new folder may be made at `folder`.

    Args:
        folder: that does not exist, or is empty.
        sources: what a model is called -> its files; the new folder must not lie beside or below them.

    Raises:
        KitError: something is there, or it lies inside the folder of a model that is read.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise KitError(f"{spelt(folder)} is a file or a link. Name a folder that does not exist yet.")
    there = existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is a file"
        raise KitError(f"{spelt(folder)} cannot be made, since {spelt(there)} {reason}. Choose another folder.")
    place = folder.resolve()
    for what, files in sources.items():
        for parent in {file.absolute().parent.resolve() for file in files if _is_model_folder(file)}:
            if place == parent or parent in place.parents:
                raise KitError(
                    f"The output {spelt(folder)} lies inside the folder of {what}, {spelt(parent.name)}. Choose a "
                    "folder elsewhere, so that models stay apart."
                )
    if folder.is_dir() and any(folder.iterdir()):
        raise KitError(
            f"The folder {spelt(folder)} exists and is not empty. Choose another one; nothing is written over."
        )


def check_space(folder: Path, wanted: int) -> None:
    """Check that `wanted` bytes fit on the disk that `folder` will be on.

    Raises:
        KitError: they do not.
    """
    free = shutil.disk_usage(existing(folder)).free
    if wanted > free:
        raise _full(folder, f"The merged model takes {wanted / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")


def _is_model_folder(file: Path) -> bool:
    """Return whether a file's folder is one model's own: it lies there under a name that libraries give."""
    return file.name.startswith(("model", "open_clip_", "pytorch_model"))


@contextmanager
def new_folder(path: Path, wanted: int = 0) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to write into; at the end it becomes `path`, on any error it is removed.

    What processes that were killed have left of the same folder is removed first.

    Args:
        path: a folder that does not exist, or is empty; see `check_free`.
        wanted: bytes that will be written, for the error.

    Raises:
        KitError: the disk is full, or the folder cannot be written to.
    """
    path = path.absolute()
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    made = [one for one in path.parents if not one.exists()]
    done = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        hidden.mkdir()
        yield hidden
        with suppress(FileNotFoundError):
            path.rmdir()  # it may be there, and empty
        hidden.rename(path)
        done = True
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path, f"It filled up while the model was written ({wanted / 1e9:.2f} GB)") from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise KitError(f"{spelt(path)} was filled by somebody else meanwhile. Choose another folder.") from error
        raise KitError(
            f"{spelt(path)} cannot be written ({error.strerror or error}). Make its folder writable, or choose another."
        ) from error
    finally:
        if not done:
            shutil.rmtree(hidden, ignore_errors=True)
            for folder in made:  # the innermost first
                with suppress(OSError):
                    folder.rmdir()


def _full(path: Path, what: str) -> KitError:
    return KitError(
        f"The disk of {spelt(path)} is full: {what[0].lower()}{what[1:]}. Nothing was left behind: free some space, or "
        "choose a folder on another disk."
    )


def _sweep(path: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.tmp")
    for left in path.parent.iterdir():
        match = pattern.fullmatch(left.name)
        if match and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(left, ignore_errors=True)
