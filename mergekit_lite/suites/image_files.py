"""A changed copy of a split's images in a file of the cache: made chunk by chunk, since 224 x 224 outgrow the memory.

Worker processes make chunks side by side, and each writes its own into its place: no pixel goes from one process to
another. Written, not mapped: on a full disk a mapped page ends the process without a word (SIGBUS).
"""

import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.cache import check_room, sealed
from mergekit_lite.errors import KitError
from mergekit_lite.workers import side_by_side

Pixels = NDArray[np.uint8]
CHUNK = 2**25  # bytes: 222 images of 224 x 224 pixels, and more than the miniature has: no process is started for those
QUIET = 5.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Work:
    """What a process makes chunks from, `change` of `clean`, and from which byte of the file `part` on they lie."""

    clean: Pixels
    change: Callable[[Pixels], Pixels]
    part: Path
    begin: int


def write_changed(path: Path, clean: Pixels, change: Callable[[Pixels], Pixels], *, workers: int, what: str) -> None:
    """Write ``change(clean)`` to the .npy file `path`, whole or not at all, and its hash beside it.

    Args:
        path: of the new file.
        clean: images (N, 3, H, W) uint8, most often memory-mapped.
        change: picklable; makes of some images as many of the same size, each by itself: chunks make no difference.
        workers: processes that change chunks.
        what: the images are, for what is said.

    Raises:
        KitError: there is no room (nothing was written), the file cannot be written, or a worker process was ended.
    """
    check_room(path.parent, clean.nbytes, what)
    with sealed(path) as part:
        with part.open("wb") as stream:
            header = {"descr": clean.dtype.str, "fortran_order": False, "shape": clean.shape}
            np.lib.format.write_array_header_1_0(stream, header)
            begin = stream.tell()
        setup = partial(_work, _handed_over(clean), change, part, begin)
        each = max(1, CHUNK // clean[0].nbytes)
        chunks = [(first, min(first + each, len(clean))) for first in range(0, len(clean), each)]
        started = said = time.monotonic()
        done = 0
        for (first, last), outcome in side_by_side(setup, _write_chunk, chunks, workers):
            try:
                outcome()
            except BrokenProcessPool as error:
                raise KitError(
                    f"{what}: a worker process ended abruptly, most often because the memory ran out. Splits that were "
                    "finished are kept: run the same again. "
                    'A script of your own must start the study under `if __name__ == "__main__":`.'
                ) from error
            done += last - first
            if time.monotonic() - said > QUIET or (done == len(clean) and len(chunks) > 1):
                said = time.monotonic()
                print(f"{what}: {done} of {len(clean)}, {said - started:.0f} s", flush=True)


def _handed_over(images: Pixels) -> Callable[[], Pixels]:
    """Return what makes `images` anew in another process; of a mapped file it holds the place and not the pixels."""
    if isinstance(images, np.memmap) and isinstance(images.base, mmap):  # all that is mapped, not a part of it
        return partial(np.memmap, images.filename, images.dtype, "r", images.offset, images.shape)
    return partial(np.asarray, images)


def _work(clean: Callable[[], Pixels], change: Callable[[Pixels], Pixels], part: Path, begin: int) -> Work:
    return Work(clean(), change, part, begin)


def _write_chunk(work: Work, rows: tuple[int, int]) -> None:
    """Write the images from the first of `rows` to before the second, changed, into their place of the file."""
    chunk = np.ascontiguousarray(work.change(work.clean[slice(*rows)]))
    with work.part.open("r+b") as stream:
        stream.seek(work.begin + rows[0] * chunk[0].nbytes)
        stream.write(chunk.data)
