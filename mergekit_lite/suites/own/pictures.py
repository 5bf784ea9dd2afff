"""Images that a user has: a folder for each class, or one file of numpy. What they are, and what their hash is."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mergekit_lite.cache import cache_dir, content_hash, file_digest, intact, sealed, written
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.labels import plain
from mergekit_lite.suites.own.schema import Images
from mergekit_lite.suites.suite import Which
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""Ends of the names of images; other files in a class's folder are left out, and that is said."""


class Listed(NamedTuple):
    """The images of one split in their order, and the number of each one's class."""

    files: tuple[Path, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class FolderPictures:
    """Images in files, opened when they are asked for; see `clip.pixels.Pictures`."""

    files: tuple[Path, ...]

    def __getitem__(self, place: int) -> dict[str, Any]:
        from PIL import Image

        return {"image": Image.open(self.files[place])}

    def name(self, place: int) -> str:
        """Return the file."""
        return str(self.files[place])


@dataclass(frozen=True)
class NpzPictures:
    """Images in an array of a .npz file, which each process reads once."""

    path: Path
    key: str

    @cached_property
    def _images(self) -> NDArray[np.uint8]:
        with np.load(self.path, allow_pickle=False) as content:
            images: NDArray[np.uint8] = content[self.key]
        return images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[1] == 3 != images.shape[3] else images

    def __getitem__(self, place: int) -> dict[str, Any]:
        from PIL import Image

        return {"image": Image.fromarray(self._images[place])}

    def name(self, place: int) -> str:
        """Return the number in the array."""
        return f"{place} of {self.key}"

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the pixels."""
        return {"path": self.path, "key": self.key}


def split_folder(images: Images, which: Which) -> Path:
    """Return the folder of a split of images that lie in folders."""
    assert images.folder is not None
    named = images.test if which == "test" else images.train
    return Path(images.folder) / (named or ("test" if which == "test" else "train"))


def listed(task: str, images: Images, which: Which, classnames: Sequence[str]) -> Listed:
    """Return the files of one split, class by class and by name, with their labels.

    Args:
        task: whose they are.
        images: that lie in folders.
        which: "test", or anything else for the training images.
        classnames: in the order of labels; folders are called as they are, but for case, blanks and punctuation.

    Raises:
        KitError: the folder is not there, its subfolders are not the classes, or a class has no image.
    """
    root = split_folder(images, which)
    if not root.is_dir():
        raise KitError(f"Task '{task}': there is no folder {root}. Make it, with a folder of images for each class.")
    folders = {one.name: one for one in sorted(root.iterdir()) if one.is_dir() and not one.name.startswith(".")}
    found = _matched(classnames, folders)
    lost = [name for name in classnames if name not in found]
    strange = sorted(set(folders) - {one.name for one in found.values()})
    if lost or strange:
        raise KitError(
            f"Task '{task}': the folders in {root} are not its classes. Classes without a folder: "
            f"{first_three(lost) or 'none'}. Folders that are no class: {first_three(strange) or 'none'}. Call each "
            "folder as its class, or list the classes in `classnames`."
        )
    files: list[Path] = []
    labels: list[int] = []
    others: list[str] = []
    for label, name in enumerate(classnames):
        there = sorted(one for one in found[name].rglob("*") if one.is_file() and not one.name.startswith("."))
        pictures = [one for one in there if one.suffix.lower() in SUFFIXES]
        others += [one.name for one in there if one.suffix.lower() not in SUFFIXES]
        if not pictures:
            raise KitError(
                f"Task '{task}': the class '{name}' has no image in {found[name]}. Put some there, or leave the class "
                "out of `classnames`."
            )
        files += pictures
        labels += [label] * len(pictures)
    if others:
        print(f"Task '{task}': left out what is no image: {first_three(list(map(spelt, others)))}.", flush=True)
    return Listed(tuple(files), np.array(labels, np.int64))


def _matched(classnames: Sequence[str], folders: dict[str, Path]) -> dict[str, Path]:
    """Return class name -> folder: of that very name, or else of one that differs in case or punctuation alone."""
    found = {name: folders[name] for name in classnames if name in folders}
    left = {name: path for name, path in folders.items() if path not in found.values()}
    for name in classnames:
        alike = [path for other, path in left.items() if plain(other) == plain(name)]
        rivals = [other for other in classnames if plain(other) == plain(name)]
        if name not in found and len(alike) == 1 and len(rivals) == 1:
            found[name] = alike[0]
    return found


def listing_hash(files: Sequence[Path], labels: NDArray[np.int64], root: Path) -> str:
    """Return a hash of the files' contents, order and labels; each state of the files is read once, and then known."""
    states = [[one.relative_to(root).as_posix(), *written(one)] for one in files]
    path = cache_dir("sources", "own") / f"images-{content_hash([str(root), states])}.json"
    if not intact(path):
        digests = [file_digest(one) for one in files]
        with sealed(path) as temporary:
            temporary.write_text(json.dumps(content_hash([digests, labels.tolist()])), encoding="utf-8")
    return str(json.loads(path.read_text(encoding="utf-8")))


def npz_keys(which: Which) -> tuple[str, str]:
    """Return the names of the arrays of images and of labels."""
    split = "test" if which == "test" else "train"
    return f"{split}_images", f"{split}_labels"


def npz_shapes(task: str, path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of each array in a .npz file; no array is read.

    Raises:
        KitError: there is no such file, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as stream:
                    version = npy.read_magic(stream)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, kind = read(stream)
                    found[name.removesuffix(".npy")] = shape, kind
        return found
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, SyntaxError) as error:
        raise KitError(
            f"Task '{task}': {path} is no file of numpy.savez ({getattr(error, 'strerror', None) or error}). Write it "
            "with test_images, test_labels, train_images and train_labels."
        ) from error


def check_npz(task: str, path: Path, which: Which) -> int:
    """Check that a .npz file has images and labels of one split, and return how many.

    Raises:
        KitError: it has not.
    """
    shapes = npz_shapes(task, path)
    images, labels = npz_keys(which)
    for key in (images, labels):
        if key not in shapes:
            raise KitError(f"Task '{task}': {path} has no array '{key}', but {', '.join(shapes)}. Add it.")
    shape, kind = shapes[images]
    fits = len(shape) == 3 or (len(shape) == 4 and 3 in (shape[1], shape[3]))
    if kind != np.uint8 or not fits:
        raise KitError(
            f"Task '{task}': {images} in {path} is {shape} {kind}. Images must be uint8 from 0 to 255: (N, H, W), "
            "(N, H, W, 3) or (N, 3, H, W)."
        )
    rows, numbers = shapes[labels]
    if rows != shape[:1] or numbers.kind not in "iub":
        raise KitError(f"Task '{task}': {labels} in {path} is {rows} {numbers}. Give one whole number for each image.")
    return shape[0]


def npz_labels(path: Path, which: Which) -> NDArray[np.int64]:
    """Return the labels (N,) of one split of a .npz file."""
    with np.load(path, allow_pickle=False) as content:
        return np.asarray(content[npz_keys(which)[1]]).astype(np.int64)
