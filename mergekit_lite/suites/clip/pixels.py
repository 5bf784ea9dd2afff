"""From an encoded image to pixels as a CLIP takes them, and chunks of them into their place of a file."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.benchmark import CHANGED

if TYPE_CHECKING:  # optional, and takes seconds to import
    import datasets


Crop = Literal["transformers", "open_clip"]
"""Whose cut of the middle it is. Both scale alike, until the shorter side fits, and then cut as much off either end of
the longer side. Where that is an odd number of pixels, transformers' processor, with which FusionBench's experts were
tuned and tested, rounds the first margin down. open_clip, used for the experts of the task-vectors authors, rounds to
the even number: of 111 pixels (a picture of 640 x 427) the one takes 55 off the left, the other one 56."""


@dataclass(frozen=True)
class FlooredCrop:
    """Cuts the middle out of an image whose sides are `side` pixels or more; an odd margin is rounded down."""

    side: int

    def __call__(self, image: Any) -> Any:
        """Return the middle (side, side) of a PIL image."""
        left, top = ((length - self.side) // 2 for length in image.size)
        return image.crop((left, top, left + self.side, top + self.side))


@dataclass(frozen=True)
class Preprocessing:
    """What turns a PIL image into (3, side, side) uint8; `steps` scale and cut."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        """Return the pixels of a PIL image of any mode."""
        image = image.convert("RGB")
        for step in self.steps:
            image = step(image)
        return np.asarray(image).transpose(2, 0, 1)


def preprocessing(side: int, crop: Crop) -> Preprocessing:
    """Return open_clip's preprocessing without its end: division by 255 and normalisation happen on the device.

    The image is made RGB first, as FusionBench does: open_clip would scale a palette by its nearest entries and convert
    then. For RGB and grey images it is the same. With the crop of transformers, the pixels are those of its
    `CLIPImageProcessor` that works with PIL, the one that FusionBench gets from every transformers 4; the one that
    works with tensors, the default of transformers 5, scales a little differently.

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
    scale, cut = steps[:2]
    return Preprocessing((scale, cut if crop == "open_clip" else FlooredCrop(side)))


@dataclass
class Work:
    """What a worker process decodes from, and the unfinished file (N, 3, side, side) it decodes to.

    Attributes:
        task: whose images they are.
        dataset: gives for a number a dictionary with a PIL image under `image`.
        order: the numbers of the images that are wanted.
        part: the unfinished file.
        pixels: from an image to its pixels.
        remedy: what to do about an image that cannot be decoded.
    """

    task: str
    dataset: "datasets.Dataset | Pictures"
    order: NDArray[np.int64]
    part: Path
    pixels: Preprocessing
    remedy: str = CHANGED


class Pictures(Protocol):
    """Images that are no data set of the hub."""

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Return a dictionary with the PIL image under `image`."""

    def name(self, place: int) -> str:
        """Return what an image is called, for errors."""


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
            called = getattr(work.dataset, "name", str)(place)
            raise KitError(f"Task '{work.task}': image {called} cannot be decoded ({error}). {work.remedy}") from error
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
