"""Images that a user has in one file of numpy: what is in it, and its images as an array that is mapped."""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mergekit_lite.cache import check_room
from mergekit_lite.errors import KitError
from mergekit_lite.suites.suite import Which
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three


@dataclass(frozen=True)
class ArrayPictures:
    """Images in a .npy file, which each process maps for itself; see `clip.pixels.Pictures`."""

    path: Path
    key: str

    @cached_property
    def _images(self) -> NDArray[np.uint8]:
        images: NDArray[np.uint8] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[3] != 3 else images

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Return the image under `image`: RGB, or grey."""
        from PIL import Image

        return {"image": Image.fromarray(np.ascontiguousarray(self._images[place]))}

    def name(self, place: int) -> str:
        """Return the number in the array."""
        return f"{place} of {self.key}"

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the pixels."""
        return {"path": self.path, "key": self.key}


def npz_keys(which: Which) -> tuple[str, str]:
    """Return the names of the arrays of images and of labels."""
    split = "test" if which == "test" else "train"
    return f"{split}_images", f"{split}_labels"


def npz_shapes(task: str, path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of each array in a .npz file; no array is read.

    Raises:
        KitError: there is no such file, or it is damaged.
    """
    found = {}
    with _readable(task, path), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
                shape, _, kind = read(stream)
                found[name.removesuffix(".npy")] = shape, kind
    return found


def check_npz(task: str, path: Path, which: Which) -> int:
    """Check that a .npz file has images and labels of one split, and return how many.

    Raises:
        KitError: it has not.
    """
    shapes = npz_shapes(task, path)
    images, labels = npz_keys(which)
    for key in (images, labels):
        if key not in shapes:
            there = ", ".join(map(spelt, shapes)) or "nothing"
            raise KitError(f"Task '{task}': {spelt(str(path))} has no array '{key}', but {there}. Add it.")
    shape, kind = shapes[images]
    fits = len(shape) == 3 or (len(shape) == 4 and 3 in (shape[1], shape[3]))
    if kind != np.uint8 or not fits or 0 in shape:
        raise KitError(
            f"Task '{task}': {images} in {spelt(str(path))} is {shape} {kind}. Images must be uint8 from 0 to 255: "
            "(N, H, W), (N, H, W, 3) or (N, 3, H, W)."
        )
    rows, numbers = shapes[labels]
    if rows != shape[:1] or numbers.kind not in "iub":
        raise KitError(
            f"Task '{task}': {labels} in {spelt(str(path))} is {rows} {numbers}, but there are {shape[0]} images. Give "
            "one whole number for each image."
        )
    return shape[0]


def npz_labels(task: str, path: Path, which: Which, classnames: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the labels (N,) of one split of a .npz file.

    Raises:
        KitError: a number that is no class's, a class without an image, or a damaged file.
    """
    key = npz_keys(which)[1]
    with _readable(task, path), np.load(path, allow_pickle=False) as content:
        labels = np.asarray(content[key]).astype(np.int64)
    last = len(classnames) - 1
    if labels.min() < 0 or labels.max() > last:
        raise KitError(
            f"Task '{task}': {key} in {spelt(str(path))} holds numbers from {labels.min()} to {labels.max()}, but the "
            f"classes are 0 to {last}. A label is the place of its class in `classnames`, from 0."
        )
    there = set(np.unique(labels).tolist())
    empty = [spelt(name) for place, name in enumerate(classnames) if place not in there]
    if empty:
        raise KitError(
            f"Task '{task}': classes without an image in {key} of {spelt(str(path))}: {first_three(empty)}. Add some, "
            "or leave the class out."
        )
    return labels


@contextmanager
def npz_pictures(task: str, path: Path, which: Which, unpacked: Path) -> Iterator[ArrayPictures]:
    """Yield the images of one split of a .npz file, for now unpacked to a file, so that no process holds them all.

    Raises:
        KitError: there is no room to unpack them, or the file is damaged.
    """
    key = npz_keys(which)[0]
    try:
        with _readable(task, path), zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{key}.npy").file_size
            check_room(unpacked.parent, size, f"unpacking {path.name}")
            with archive.open(f"{key}.npy") as packed, unpacked.open("wb") as stream:
                shutil.copyfileobj(packed, stream, 2**24)
        yield ArrayPictures(unpacked, key)
    finally:
        unpacked.unlink(missing_ok=True)


@contextmanager
def _readable(task: str, path: Path) -> Iterator[None]:
    """Turn what goes wrong when a .npz file is read into words."""
    try:
        yield
    except KitError:
        raise
    except Exception as error:  # of zipfile, zlib and numpy, which reads headers as Python
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise KitError(
            f"Task '{task}': {spelt(str(path))} is not there or no whole file of numpy.savez ({spelt(reason)}). Write "
            "it with test_images, test_labels, train_images and train_labels."
        ) from error
