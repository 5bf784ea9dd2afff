"""The images of one task of a suite file, wherever they lie: decoded once, then mapped."""

import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from numpy.typing import NDArray

from mergekit_lite.cache import Written, cache_dir, check_room, content_hash, ensure, file_digest, sealed, written
from mergekit_lite.errors import KitError
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites.clip import decoded, sources
from mergekit_lite.suites.clip.benchmark import HubTask
from mergekit_lite.suites.clip.hub import cleared
from mergekit_lite.suites.clip.pixels import Crop, Pictures, Preprocessing, Work, preprocessing
from mergekit_lite.suites.own.arrays import check_npz, npz_keys, npz_labels, npz_pictures, npz_shapes
from mergekit_lite.suites.own.folders import FolderPictures, Listed, listed, listing_hash, split_folder
from mergekit_lite.suites.own.schema import OwnTask
from mergekit_lite.suites.suite import Split, Task, Which, checked_split
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three

REMEDY = "Take it out, or save it anew as PNG or JPEG with 8 bits per colour."

OTHERWISE = (
    "Compare `images` and `classnames` in the suite file with the data set's page. If it was changed on the hub, name "
    "the `revision` that you want."
)


@dataclass(frozen=True)
class Source:
    """Where the images of a task lie, and to what size and with which cut they are decoded."""

    task: Task
    own: OwnTask
    side: int
    crop: Crop

    @property
    def hub_task(self) -> HubTask:
        """The task as the benchmark's code for data sets of the hub knows it."""
        images = self.own.images
        assert images.dataset is not None
        return HubTask(
            name=self.task.name,
            title=self.task.title,
            dataset=images.dataset,
            config=images.config,
            train_split=images.train or "train",
            test_split=images.test or "test",
            image_column=images.image,
            label_column=images.label,
            test_images=0,
            classnames=self.task.classnames,
            templates=self.task.templates,
            experts={},
            accuracy={},
            revision=images.revision,
            remedy=OTHERWISE,
        )


def counted(source: Source, which: Which) -> int:
    """Return how many images a split has; 0 if it is not there.

    Of a data set of the hub that is what was decoded, or else what its card says; where neither tells, and where the
    hub may not be asked, 0.

    Raises:
        KitError: what is there cannot be what is meant, see `listed` and `check_npz`.
    """
    images = source.own.images
    if images.kind == "dataset":
        found = decoded.counted(source.hub_task, source.side, source.crop)[which == "test"]
        if found == 0 and not constants.HF_HUB_OFFLINE:
            found = _kept(sources.located(source.hub_task, which).rows or 0, which)
        return found
    if not has_split(source, which):
        return 0
    if images.kind == "npz":
        return _kept(check_npz(source.task.name, Path(images.npz or ""), which), which)
    return _kept(len(_listed(source, which).labels), which)


def _kept(total: int, which: Which) -> int:
    """Return how many of the images are kept: of training images as many as of the benchmark's."""
    return total if which == "test" else min(total, decoded.train_images() or total)


def has_split(source: Source, which: Which) -> bool:
    """Return whether there is a place for a split at all: a suite may do without training images."""
    images = source.own.images
    if images.kind == "folder":
        return which == "test" or split_folder(images, which).is_dir()
    if images.kind == "npz" and which != "test":
        return npz_keys(which)[0] in npz_shapes(source.task.name, Path(images.npz or ""))
    return True


def is_decoded(source: Source, which: Which, print_: str) -> bool:
    """Return whether a split, whose `fingerprint` is given, was decoded already."""
    if source.own.images.kind == "dataset":
        return decoded.known(source.hub_task, which, source.side, source.crop) is not None
    return _path(source, which, print_, "images").exists()


def fingerprint(source: Source, which: Which) -> str:
    """Return a hash of what the images of a split are: the contents of their files, and how they are decoded.

    Raises:
        KitError: there are none, or they cannot be what is meant, see `listed` and `check_npz`.
    """
    images, how = source.own.images, [source.side, source.crop, _pixels_hash(), "RandomState(0)"]
    if images.kind == "dataset":
        return decoded.fingerprint(source.hub_task, which, source.side, source.crop)
    _check_there(source, which)
    if which != "test":
        how.append(decoded.train_images())
    if images.kind == "npz":
        path = Path(images.npz or "")
        check_npz(source.task.name, path, which)
        return content_hash([_digest(path, written(path)), npz_keys(which), how])
    found = _listed(source, which)
    return content_hash([listing_hash(found.files, found.labels, split_folder(images, which)), how])


def _check_there(source: Source, which: Which) -> None:
    if not has_split(source, which):
        images = source.own.images
        where = (
            f"the array {npz_keys(which)[0]} in {images.npz}"
            if images.kind == "npz"
            else f"the folder {split_folder(images, which)}"
        )
        raise KitError(
            f"Task '{source.task.name}' has no training images, which this method needs: there is not {spelt(where)}. "
            "Add them, or take a method that needs none."
        )


def brought(source: Source, which: Which, print_: str, workers: int) -> Split:
    """Return the images (N, 3, side, side) uint8, memory-mapped, and labels (N,) of a split; decoded at first use.

    Folders and files of numpy are shuffled, always alike: whoever looks at the first images sees all classes. What is
    interrupted goes on where it stopped.

    Args:
        source: where they lie.
        which: "train" or "test".
        print_: their `fingerprint`.
        workers: processes that decode.

    Raises:
        KitError: they cannot be decoded, or there is no room for them.
    """
    if source.own.images.kind == "dataset":
        return decoded.decoded_split(source.hub_task, which, source.side, crop=source.crop, workers=workers)
    images, labels = (_path(source, which, print_, part) for part in ("images", "labels"))

    def make() -> None:
        part, ledger = (images.with_name(f".{images.name}.{kind}") for kind in ("part", "ledger"))
        with _pictures(source, which, images.with_name(f".{images.name}.unpacked.tmp")) as (pictures, numbers):
            # numpy promises the same numbers from RandomState for ever, not from its newer generators
            order = np.random.RandomState(0).permutation(len(numbers))[: _kept(len(numbers), which)]
            shape = (len(order), 3, source.side, source.side)
            begun = part.stat().st_size if part.exists() else 0
            what = f"{source.task.name}, {which}"
            check_room(images.parent, int(np.prod(shape)) - begun, f"the images of '{source.task.name}', {which}")
            work = Work(source.task.name, pictures, order, part, preprocessing(source.side, source.crop), REMEDY)
            try:
                decoded.filled(work, what, shape, ledger, workers)
            except BrokenProcessPool as error:
                raise KitError(
                    f"{what}: a worker process ended abruptly, most often because the memory ran out. What was decoded "
                    'is kept: run the same again. A script of your own must do so under `if __name__ == "__main__":`.'
                ) from error
            except KitError as error:
                if REMEDY in str(error):  # what comes after the remedy has another fingerprint: this would lie here
                    cleared(part)
                    cleared(ledger)
                raise
            with sealed(labels) as temporary, temporary.open("wb") as stream:
                np.save(stream, numbers[order])
            with sealed(images) as temporary:
                os.replace(part, temporary)
            ledger.unlink(missing_ok=True)

    ensure(make, images, labels)
    return checked_split(source.task, source.side, np.load(images, mmap_mode="r"), np.load(labels))


@contextmanager
def _pictures(source: Source, which: Which, unpacked: Path) -> Iterator[tuple[Pictures, NDArray[np.int64]]]:
    """Yield the images and the number of each one's class; those of a .npz file are unpacked meanwhile."""
    images, task = source.own.images, source.task
    if images.kind == "folder":
        found = _listed(source, which)
        if found.others:
            print(f"Task '{task.name}': left out, as no images: {first_three(list(map(spelt, found.others)))}.")
        yield FolderPictures(found.files), found.labels
        return
    path = Path(images.npz or "")
    check_npz(task.name, path, which)
    labels = npz_labels(task.name, path, which, task.classnames)
    with npz_pictures(task.name, path, which, unpacked) as pictures:
        yield pictures, labels


def _listed(source: Source, which: Which) -> Listed:
    return listed(source.task.name, source.own.images, which, source.task.classnames)


def _path(source: Source, which: Which, print_: str, part: str) -> Path:
    name = f"{source.task.name}-{which}-{source.side}-{print_}"
    return cache_dir("images", "own") / f"{name}.{part}.npy"


@cache
def _pixels_hash() -> str:
    return code_of(preprocessing, Preprocessing)


@cache
def _digest(path: Path, _: Written) -> str:
    return file_digest(path)
