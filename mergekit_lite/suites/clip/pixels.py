"""From an encoded image to pixels as open_clip's models take them, and chunks of them into their place of a file."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.sources import CHANGED

if TYPE_CHECKING:  # optional, and takes seconds to import
    import datasets


@dataclass(frozen=True)
class Preprocessing:
    """What turns a PIL image into (3, side, side) uint8; `steps` are open_clip's, which scale and cut."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        """Return the pixels of a PIL image of any mode."""
        image = image.convert("RGB")
        for step in self.steps:
            image = step(image)
        return np.asarray(image).transpose(2, 0, 1)


def preprocessing(side: int) -> Preprocessing:
    """Return open_clip's preprocessing without its end: division by 255 and normalisation happen on the device.

    The image is made RGB first, as FusionBench does: open_clip would scale a palette by its nearest entries and convert
    then. For RGB and grey images it is the same.

    Raises:
        KitError: this version of open_clip does something else.
    """
    from open_clip.transform import image_transform

    steps = image_transform(side, is_train=False).transforms
    names = [type(step).__name__ for step in steps]
    if names != ["Resize", "CenterCrop", "MaybeConvertMode", "MaybeToTensor", "Normalize"]:
        raise KitError(
            f"open_clip's preprocessing is not the one that is known here, but {', '.join(names)}. "
            f"Install open_clip_torch 3.2 or 3.3."
        )
    return Preprocessing(tuple(steps[:2]))


@dataclass
class Work:
    """What a worker process decodes from, and the unfinished file (N, 3, side, side) it decodes to."""

    task: str
    dataset: "datasets.Dataset"
    order: NDArray[np.int64]
    part: Path
    pixels: Preprocessing


def handed_over(work: Work) -> Work:
    """Return `work`: what a worker process is set up with."""
    return work


def decode_rows(work: Work, rows: tuple[int, int]) -> str:
    """Decode the rows from the first to before the second into their place of the file; return their SHA-256."""
    places = work.order[slice(*rows)]
    file = np.load(work.part, mmap_mode="r")
    chunk = np.empty((len(places), *file.shape[1:]), np.uint8)
    for row, place in enumerate(places.tolist()):
        try:
            chunk[row] = work.pixels(work.dataset[place]["image"])
        except (OSError, ValueError, SyntaxError, AttributeError) as error:  # AttributeError: there is no image
            raise KitError(f"Task '{work.task}': image {place} cannot be decoded ({error}). {CHANGED}") from error
    # Written, not mapped: on a full disk a mapped page would end the process without a word.
    try:
        with work.part.open("r+b") as stream:
            stream.seek(file.offset + rows[0] * chunk[0].nbytes)
            stream.write(chunk.data)
            os.fsync(stream.fileno())
    except OSError as error:
        raise KitError(
            f"Task '{work.task}': decoded images cannot be written to {work.part.parent} ({error.strerror}). "
            f"Free some space and run the same again: what was decoded is kept."
        ) from error
    return hashlib.sha256(chunk.data).hexdigest()
