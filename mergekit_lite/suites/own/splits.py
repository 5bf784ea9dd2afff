"""The images of one task of a suite file, wherever they lie: decoded once, then mapped."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mergekit_lite.cache import Written, cache_dir, check_room, content_hash, ensure, file_digest, sealed, written
from mergekit_lite.errors import KitError
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites.clip import decoded
from mergekit_lite.suites.clip.benchmark import HubTask
from mergekit_lite.suites.clip.decoded import CHUNK
from mergekit_lite.suites.clip.pixels import (
    Crop,
    Pictures,
    Preprocessing,
    Work,
    decode_rows,
    handed_over,
    preprocessing,
)
from mergekit_lite.suites.own.pictures import (
    FolderPictures,
    Listed,
    NpzPictures,
    check_npz,
    listed,
    listing_hash,
    npz_keys,
    npz_labels,
    npz_shapes,
    split_folder,
)
from mergekit_lite.suites.own.schema import OwnTask
from mergekit_lite.suites.suite import Split, Task, Which, checked_split
from mergekit_lite.workers import side_by_side

REMEDY = "Take it out, or save it anew as PNG or JPEG."


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
        )


def counted(source: Source, which: Which) -> int:
    """Return how many images a split has; 0 if it is not there. Of a data set nobody has brought yet, 0 too.

    Raises:
        KitError: what is there cannot be what is meant, see `listed` and `check_npz`.
    """
    images = source.own.images
    if images.kind == "dataset":
        return decoded.counted(source.hub_task, source.side, source.crop)[which == "test"]
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


def is_decoded(source: Source, which: Which) -> bool:
    """Return whether a split was decoded already."""
    if source.own.images.kind == "dataset":
        return decoded.known(source.hub_task, which, source.side, source.crop) is not None
    return _path(source, which, "images").exists()


def fingerprint(source: Source, which: Which) -> str:
    """Return a hash of what the images of a split are: the contents of their files, and how they are decoded."""
    images, how = source.own.images, [source.side, source.crop, _pixels_hash(), "RandomState(0)"]
    if images.kind == "dataset":
        return decoded.fingerprint(source.hub_task, which, source.side, source.crop)
    if which != "test":
        how.append(decoded.train_images())
    if images.kind == "npz":
        path = Path(images.npz or "")
        check_npz(source.task.name, path, which)
        return content_hash([_digest(path, written(path)), npz_keys(which), how])
    found = _listed(source, which)
    return content_hash([listing_hash(found.files, found.labels, split_folder(images, which)), how])


def brought(source: Source, which: Which, workers: int) -> Split:
    """Return the images (N, 3, side, side) uint8, memory-mapped, and labels (N,) of a split; decoded at first use.

    Folders and files of numpy are shuffled, always alike: whoever looks at the first images sees all classes.

    Args:
        source: where they lie.
        which: "train" or "test".
        workers: processes that decode.

    Raises:
        KitError: they are not there or cannot be decoded, or there is no room for them.
    """
    if source.own.images.kind == "dataset":
        return decoded.decoded_split(source.hub_task, which, source.side, crop=source.crop, workers=workers)
    if not has_split(source, which):
        raise KitError(
            f"Task '{source.task.name}' has no training images, which this method needs. Put them beside the test "
            "images, see `images` in the suite file; or take a method that needs none."
        )
    images, labels = (_path(source, which, part) for part in ("images", "labels"))

    def make() -> None:
        pictures, numbers = _pictures(source, which)
        # numpy promises the same numbers from RandomState for ever, not from its newer generators
        order = np.random.RandomState(0).permutation(len(numbers))[: _kept(len(numbers), which)]
        shape = (len(order), 3, source.side, source.side)
        what = f"the images of '{source.task.name}', {which}"
        check_room(images.parent, int(np.prod(shape)), what)
        with sealed(images) as temporary:
            open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape).flush()
            checked_split(source.task, source.side, np.load(temporary, mmap_mode="r"), numbers[order])
            work = Work(source.task.name, pictures, order, temporary, _pixels(source), remedy=REMEDY)
            _decode(work, f"{source.task.name}, {which}", len(order), workers)
        with sealed(labels) as temporary, temporary.open("wb") as stream:
            np.save(stream, numbers[order])

    ensure(make, images, labels)
    return checked_split(source.task, source.side, np.load(images, mmap_mode="r"), np.load(labels))


def _decode(work: Work, what: str, total: int, workers: int) -> None:
    spans = [(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
    if len(spans) == 1:  # no process is started for a second's work
        decode_rows(work, spans[0])
        return
    done = 0
    for span, outcome in side_by_side(partial(handed_over, work), decode_rows, spans, workers):
        outcome()
        done += span[1] - span[0]
        print(f"{what}: {done} of {total} images", flush=True)


def _pictures(source: Source, which: Which) -> tuple[Pictures, NDArray[np.int64]]:
    images = source.own.images
    if images.kind == "folder":
        found = _listed(source, which)
        return FolderPictures(found.files), found.labels
    path = Path(images.npz or "")
    check_npz(source.task.name, path, which)
    return NpzPictures(path, npz_keys(which)[0]), npz_labels(path, which)


def _listed(source: Source, which: Which) -> Listed:
    return listed(source.task.name, source.own.images, which, source.task.classnames)


def _pixels(source: Source) -> Preprocessing:
    return preprocessing(source.side, source.crop)


def _path(source: Source, which: Which, part: str) -> Path:
    name = f"{source.task.name}-{which}-{source.side}-{fingerprint(source, which)}"
    return cache_dir("images", "own") / f"{name}.{part}.npy"


@cache
def _pixels_hash() -> str:
    return code_of(preprocessing, Preprocessing)


@cache
def _digest(path: Path, _: Written) -> str:
    return file_digest(path)
