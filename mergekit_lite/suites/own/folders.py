"""Images that a user has in folders, one for each class: which files they are, and what their hash is."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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

SLOW = 10**9
"""Bytes of images that take some seconds to read: that they are read is said."""


class Listed(NamedTuple):
    """The images of one split in their order, the number of each one's class, and the names of what is no image."""

    files: tuple[Path, ...]
    labels: NDArray[np.int64]
    others: tuple[str, ...]


@dataclass(frozen=True)
class FolderPictures:
    """Images in files, opened when they are asked for; see `clip.pixels.Pictures`."""

    files: tuple[Path, ...]

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Return the decoded image under `image`; of an animation it is the first frame.

        Raises:
            OSError: the file cannot be decoded, or has more than 8 bits per colour: what is above 255 would be cut off.
        """
        from PIL import Image

        try:
            with Image.open(self.files[place]) as image:
                image.load()
                deep = image.mode.startswith(("I", "F"))
        except Exception as error:  # decoders raise errors of many kinds for broken files, and one for huge ones
            raise OSError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
        if deep:
            raise OSError(f"its mode is {image.mode}, more than 8 bits per colour")
        return {"image": image}

    def name(self, place: int) -> str:
        """Return the file."""
        return spelt(str(self.files[place]))


def split_folder(images: Images, which: Which) -> Path:
    """Return the folder of a split of images that lie in folders."""
    assert images.folder is not None
    named = images.test if which == "test" else images.train
    return Path(images.folder) / (named or ("test" if which == "test" else "train"))


def listed(task: str, images: Images, which: Which, classnames: Sequence[str]) -> Listed:
    """Return the files of one split, class by class and by name, with their labels.

    What begins with a dot is hidden, files and folders alike. Folders inside that of a class are its images too.

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
        raise KitError(
            f"Task '{task}': there is no folder {spelt(str(root))}. Make it, with a folder of images for each class."
        )
    try:
        folders = {one.name: one for one in sorted(root.iterdir()) if one.is_dir() and not one.name.startswith(".")}
        found = _matched(task, classnames, folders, root)
        there = {name: _files(found[name]) for name in classnames}
    except OSError as error:
        raise KitError(
            f"Task '{task}': the folder {spelt(str(error.filename or root))} cannot be read "
            f"({error.strerror or error}). Make it readable."
        ) from error
    pictures = {name: [one for one in files if one.suffix.lower() in SUFFIXES] for name, files in there.items()}
    empty = [name for name, files in pictures.items() if not files]
    if empty:
        raise KitError(
            f"Task '{task}': classes without an image: {first_three(list(map(spelt, empty)))}, see "
            f"{spelt(str(found[empty[0]]))}. Put images there ({', '.join(sorted(SUFFIXES))}), or leave the class out "
            "of `classnames` and its folder away."
        )
    return Listed(
        tuple(file for files in pictures.values() for file in files),
        np.repeat(np.arange(len(classnames)), [len(files) for files in pictures.values()]),
        tuple(one.name for files in there.values() for one in files if one.suffix.lower() not in SUFFIXES),
    )


def _files(folder: Path) -> list[Path]:
    """Return the files in a folder and those below it, by name, but for what is hidden."""

    def refuse(error: OSError) -> None:
        raise error  # os.walk would leave out in silence what it cannot read

    found = []
    for place, inside, names in os.walk(folder, onerror=refuse):
        inside[:] = [one for one in inside if not one.startswith(".")]
        found += [os.path.join(place, name) for name in names if not name.startswith(".")]
    return [Path(one) for one in sorted(found)]


def _matched(task: str, classnames: Sequence[str], folders: dict[str, Path], root: Path) -> dict[str, Path]:
    """Return class name -> folder: of that very name, or else the only one that differs in case or punctuation alone.

    Raises:
        KitError: classes are left without a folder, or folders without a class.
    """
    found = {name: folders[name] for name in classnames if name in folders}
    left = {name: path for name, path in folders.items() if path not in found.values()}
    for name in classnames:
        alike = [path for other, path in left.items() if plain(other) == plain(name)]
        rivals = [other for other in classnames if plain(other) == plain(name)]
        if name not in found and len(alike) == 1 and len(rivals) == 1:
            found[name] = alike[0]
    lost = [spelt(name) for name in classnames if name not in found]
    strange = [spelt(name) for name, path in left.items() if path not in found.values()]
    if lost or strange:
        raise KitError(
            f"Task '{task}': the folders in {spelt(str(root))} are not its classes. Classes without a folder: "
            f"{first_three(lost) or 'none'}. Folders that are no class: {first_three(strange) or 'none'}. Call each "
            "folder as its class, or list the classes in `classnames`."
        )
    return found


def listing_hash(files: Sequence[Path], labels: NDArray[np.int64], root: Path) -> str:
    """Return a hash of the files' contents, order and labels. Their names are not in it, nor is where they lie.

    Each state of the files is read once, and then known by their times and sizes.
    """
    states = [[os.path.relpath(one, root), *written(one)] for one in files]
    path = cache_dir("sources", "own") / f"images-{content_hash([str(root), states, labels.tolist()])}.json"
    if not intact(path):
        size = sum(one.stat().st_size for one in files)
        if size > SLOW:
            print(f"{root}: reading {len(files)} images, {size / 1e9:.1f} GB, to know them again.", flush=True)
        digests = [file_digest(one) for one in files]
        with sealed(path) as temporary:
            temporary.write_text(json.dumps(content_hash([digests, labels.tolist()])), encoding="utf-8")
    return str(json.loads(path.read_text(encoding="utf-8")))
