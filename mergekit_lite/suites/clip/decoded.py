"""Decode once: the real images as uint8 in memory-mapped files, scaled and cut as the experts saw them in training.

Worker processes decode chunks side by side. A ledger notes the hash of each finished chunk, so that an interrupted run
resumes where it stopped and damage is found, and mended, chunk by chunk. Normalisation is left to the device.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mergekit_lite.cache import (
    VARIABLE,
    cache_dir,
    check_room,
    content_hash,
    file_digest,
    locked,
    move_folder_aside,
    written,
    written_whole,
)
from mergekit_lite.errors import KitError
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites.clip.benchmark import HubTask
from mergekit_lite.suites.clip.hub import cleared
from mergekit_lite.suites.clip.hub_data import labelled
from mergekit_lite.suites.clip.labels import label_numbers
from mergekit_lite.suites.clip.pixels import Crop, Preprocessing, Work, decode_rows, handed_over, preprocessing
from mergekit_lite.suites.clip.sources import WHICH, known_source, located
from mergekit_lite.suites.suite import Split, Task, Which, checked_split
from mergekit_lite.suites.words import spelt
from mergekit_lite.workers import side_by_side

TRAIN_IMAGES = 5000
"""Training images that are kept per task, drawn without replacement with a fixed seed. Calibration takes some hundreds
to a few thousand; all of them, near a million, would need some 140 GB. The test images are always complete."""

TRAIN_VARIABLE = "MERGEKIT_LITE_TRAIN_IMAGES"
"""Environment variable with another number of training images; 0 keeps all, for fine-tuning as the papers did."""

TRAIN_SIZES = {
    **{"sun397": 19850, "stanford-cars": 8144, "resisc45": 18900, "eurosat": 21600, "svhn": 73257, "gtsrb": 26640},
    **{"mnist": 60000, "dtd": 3760, "oxford_flowers102": 1020, "pcam": 262144, "fer2013": 28709},
    **{"oxford-iiit-pet": 3680, "stl10": 5000, "cifar100": 50000, "cifar10": 50000, "food101": 75750},
    **{"fashion_mnist": 60000, "emnist_letters": 124800, "kmnist": 60000, "rendered-sst2": 6920},
}
"""Training images by the data sets' papers, to predict sizes until the split was decoded or its card says how many."""

CHUNK = 512  # images: 77 MB at 224 pixels, some seconds of one core
QUIET = 5.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Decoded:
    """What is known of a finished cache: written last, it stands for images and labels.

    Attributes:
        name: of the file of images: of which task, split, size, crop and content of the hub they are.
        commit: of the data set.
        rows, side: number of images and their height and width in pixels.
        chunks: SHA-256 of each chunk of CHUNK images, in order.
        labels: hash of the file of labels.
    """

    name: str
    dataset: str
    split: str
    commit: str
    rows: int
    side: int
    chunks: list[str]
    labels: str

    @property
    def content(self) -> str:
        """Hash of all pixels and labels."""
        return content_hash([self.chunks, self.labels])


def decoded_split(task: HubTask, which: Which, side: int, *, crop: Crop = "transformers", workers: int = 1) -> Split:
    """Return images (N, 3, side, side) uint8, memory-mapped, and labels (N,) of a split; decoded at first use.

    Test images keep the data set's order; the training images are the first TRAIN_IMAGES of a fixed shuffle. All that
    is there is read and compared with its hashes once per process, and again when it was written to; what is damaged is
    decoded again, chunk by chunk.

    Args:
        task: of the benchmark.
        which: "train" or "test".
        side: height and width in pixels.
        crop: whose cut of the middle it is: FusionBench's, like the experts of the hub, if nothing else is said.
        workers: processes that decode.

    Raises:
        KitError: no room, no connection, data that do not fit the class names, or an image that cannot be decoded.
    """
    images = _images_path(task, which, side, crop)
    if not _intact(images):  # read without a lock: a cache that can only be read serves too
        with locked(images):
            if not _intact(images):
                try:
                    _keep_what_is_right(images)
                    _decode(task, which, side, crop, images, workers)
                except OSError as error:
                    raise KitError(
                        f"Task '{task.name}': images cannot be kept in {images.parent} ({error.strerror or error}). "
                        f"Free some space, make it writable, or set {VARIABLE} to another folder; then run it again."
                    ) from error
    pixels, labels = np.load(images, mmap_mode="r"), np.load(_labels_path(images))
    entry = Task(task.name, task.title, task.dataset, task.classnames, task.templates)
    return checked_split(entry, side, pixels, labels)


def fingerprint(task: HubTask, which: Which, side: int, crop: Crop = "transformers") -> str:
    """Return a hash of all that the images depend on: the files by the hashes that the hub lists, and what is done.

    If they are not known yet the hub is asked for them, but no image is downloaded. The commit is left out, since a new
    line in a repository's README changes no image.

    Raises:
        KitError: the hashes are not known and the hub cannot be asked.
    """
    source = located(task, which)
    drawn = [train_images(), "RandomState(0)"] if which == "train" else None
    columns = [task.image_column, task.label_column]
    files = [file.digest for file in source.files]
    pixels = [side, crop, _pixels_hash()]
    return content_hash([source.dataset, task.config, source.split, files, columns, drawn, pixels])


@cache
def _pixels_hash() -> str:
    return code_of(preprocessing, Preprocessing)


def known(task: HubTask, which: Which, side: int, crop: Crop = "transformers") -> Decoded | None:
    """Return what is known of a split's cache if it is complete, else None. Asks nobody and reads no image."""
    if known_source(task, which) is None:
        return None
    images = _images_path(task, which, side, crop)
    return _facts(images) if images.exists() else None


def sizes(task: HubTask) -> tuple[int, int]:
    """Return how many training images are kept and how many test images there are, as published.

    Of a data set outside the benchmark that is what its card says; 0 as long as nobody knows.
    """
    train, test = (source.rows or 0 if source else 0 for source in map(partial(known_source, task), WHICH))
    train = train or (TRAIN_SIZES[task.name] if task.test_images else 0)
    return min(train, train_images() or train), task.test_images or test


def counted(task: HubTask, side: int, crop: Crop = "transformers") -> tuple[int, int]:
    """Return the same two numbers, counted in what was decoded; as published for what was not."""
    train, test = (known(task, which, side, crop) for which in ("train", "test"))
    published = sizes(task)
    return train.rows if train else published[0], test.rows if test else published[1]


def train_images() -> int:
    """Return how many training images are kept per task; 0 is all.

    Raises:
        KitError: the environment variable is no such number.
    """
    chosen = os.environ.get(TRAIN_VARIABLE, str(TRAIN_IMAGES))
    if not (chosen.isdecimal() and len(chosen) < 10):  # a superscript two is a digit, but no number
        raise KitError(f"{TRAIN_VARIABLE} is '{spelt(chosen)}'. Set it to a number of images per task, or 0 for all.")
    return int(chosen)


def predicted_bytes(task: HubTask, which: Which, side: int) -> int:
    """Return the size of a split's cache: three bytes per pixel and eight per label."""
    return sizes(task)[which == "test"] * (3 * side * side + 8)


def _images_path(task: HubTask, which: Which, side: int, crop: Crop) -> Path:
    name = f"{task.name}-{which}-{side}-{fingerprint(task, which, side, crop)}"
    return cache_dir("images", "clip") / f"{name}.images.npy"


def _labels_path(images: Path) -> Path:
    return images.with_name(images.name.replace(".images.", ".labels."))


def _facts_path(images: Path) -> Path:
    return images.with_name(images.name.replace(".images.npy", ".json"))


def _part_path(images: Path) -> Path:
    return images.with_name(f".{images.name}.part")


def _ledger_path(images: Path) -> Path:
    return images.with_name(f".{images.name}.ledger")


def _facts(images: Path) -> Decoded | None:
    """Return what was noted of a finished cache; None if it was not, or if the note is damaged or of another cache."""
    try:
        facts = Decoded(**json.loads(_facts_path(images).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # missing, a folder, unreadable; no JSON; not these fields
        return None
    return facts if facts.name == images.name else None


_read: set[tuple[object, ...]] = set()  # what this process has read whole and found intact


def _intact(images: Path) -> bool:
    """Return whether images and labels are, to the bit, what was decoded: read once per process and after a change."""
    facts, labels = _facts(images), _labels_path(images)
    if facts is None:
        return False
    try:
        state = (str(images), facts.content, written(images), written(labels))
        if state in _read:
            return True
        right = _mapped(images, (facts.rows, 3, facts.side, facts.side)) is not None
        right = right and _chunk_hashes(images, range(len(facts.chunks))) == facts.chunks
        right = right and file_digest(labels) == facts.labels
    except OSError:  # missing, a folder, a loop of links, unreadable
        return False
    if right:
        _read.add(state)
    return right


def _keep_what_is_right(images: Path) -> None:
    """Where a finished cache is damaged, make an unfinished one of it, whose right chunks need not be decoded again."""
    if not os.path.lexists(images):
        return
    print(f"The cache {images.name} is damaged: what is wrong is decoded again.", flush=True)
    facts = _facts(images)
    if facts is not None:
        with written_whole(_ledger_path(images)) as ledger:
            ledger.write_text("".join(f"{n} {digest}\n" for n, digest in enumerate(facts.chunks)))
        _facts_path(images).unlink()
        cleared(_part_path(images))
        os.replace(images, _part_path(images))


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the images in a file, or None if it does not hold that many of that size."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    # Missing, empty, too short, or no such file at all; numpy reads its header as Python.
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):
        return None
    right = array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous
    return array if right else None


def _chunk_hashes(path: Path, chunks: Sequence[int]) -> list[str]:
    array = np.load(path, mmap_mode="r")
    return [hashlib.sha256(array[n * CHUNK : (n + 1) * CHUNK].data).hexdigest() for n in chunks]


def _decode(task: HubTask, which: Which, side: int, crop: Crop, images: Path, workers: int) -> None:
    part = _part_path(images)
    begun = part.stat().st_size if part.exists() else 0
    check_room(images.parent, predicted_bytes(task, which, side) - begun, f"the images of '{task.name}', {which}")
    arrow = cache_dir("arrow", "clip", images.name.removesuffix(".images.npy"))
    dataset = labelled(task, which, folder=arrow)
    order = np.arange(len(dataset))
    if which == "train":  # numpy promises the same numbers from RandomState for ever, not from its newer generators
        order = np.random.RandomState(0).permutation(len(dataset))[: train_images() or None]
    elif task.test_images and len(dataset) != task.test_images:
        print(f"{task.name}: {len(dataset)} test images, not {task.test_images} as in FusionBench.", flush=True)
    shape = (len(order), 3, side, side)
    if not task.test_images:  # only now it is known how many there are
        check_room(images.parent, int(np.prod(shape)) - begun, f"the images of '{task.name}', {which}")
    work = Work(task.name, dataset, order, part, preprocessing(side, crop), task.remedy)
    hashes = filled(work, f"{task.name}, {which}", shape, _ledger_path(images), workers)
    with written_whole(_labels_path(images)) as temporary, temporary.open("wb") as stream:
        np.save(stream, label_numbers(dataset, task)[order])
    source = located(task, which)
    facts = Decoded(
        name=images.name,
        dataset=source.dataset,
        split=source.split,
        commit=source.commit,
        rows=len(order),
        side=side,
        chunks=hashes,
        labels=file_digest(_labels_path(images)),
    )
    with written_whole(_facts_path(images)) as temporary:
        temporary.write_text(json.dumps(asdict(facts), indent=1), encoding="utf-8")
    move_folder_aside(images)
    os.replace(part, images)  # the last step: without this file the cache counts as unfinished
    _ledger_path(images).unlink(missing_ok=True)
    del dataset
    shutil.rmtree(arrow, ignore_errors=True)  # the library's own copy is not needed any more


def filled(work: Work, what: str, shape: tuple[int, int, int, int], ledger: Path, workers: int) -> list[str]:
    """Decode the chunks that are not there yet into the unfinished file, and return the hashes of all."""
    part, total = work.part, shape[0]
    if _mapped(part, shape) is None:
        cleared(ledger)
        cleared(part)
        # No page is touched here, nor later: what the disk has no room for is noticed where it is written.
        open_memmap(part, mode="w+", dtype=np.uint8, shape=shape).flush()
    spans = {n: (n * CHUNK, min((n + 1) * CHUNK, total)) for n in range(-(-total // CHUNK))}
    noted = _noted(ledger)
    hashes = {n: noted[str(n)] for n in spans if str(n) in noted and _chunk_hashes(part, [n]) == [noted[str(n)]]}
    missing = {span: n for n, span in spans.items() if n not in hashes}
    begun = said = time.monotonic()
    done = total - sum(stop - start for start, stop in missing)
    with ledger.open("a") as book:
        for span, outcome in side_by_side(partial(handed_over, work), decode_rows, list(missing), workers):
            n = missing[span]
            hashes[n] = outcome()
            book.write(f"{n} {hashes[n]}\n")
            book.flush()
            done += span[1] - span[0]
            if done == total or time.monotonic() - said > QUIET:
                said = time.monotonic()
                print(f"{what}: {done} of {total} images, {said - begun:.0f} s", flush=True)
    return [hashes[n] for n in sorted(hashes)]


def _noted(ledger: Path) -> dict[str, str]:
    """Return number and hash of the chunks that are said to be finished; a ledger that cannot be read is none."""
    try:
        lines = [line.split() for line in ledger.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        cleared(ledger)
        return {}
    return {line[0]: line[1] for line in lines if len(line) == 2}
