"""What a method gets to see of a suite's images: the test split without labels, or the training split."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Access, Examples, LayerData
from mergekit_lite.suites.scoring import ahead

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite, Which


class Shown(LayerData, Protocol):
    """What a method may see, and how much of it was handed out: images, and labels with them, twice seen counts two."""

    images: int
    labels: int


def shown(suite: "Suite", tasks: Sequence[str], access: Access) -> Shown:
    """Return the images of `tasks` as a method with this data access may see them.

    Unlabelled images are *test* images: AdaMerging (section 3.2) adapts to the very images that it is then tested on.
    Calibration inputs are training images without labels, and labelled ones are training images too.
    """
    which: Which = "test" if access is Access.UNLABELLED else "train"

    # The class is in here so that no attribute leads to the suite, which holds the labels of the test split. Whoever
    # looks into the closures of its functions finds them all the same: Python keeps honest methods honest, no others.
    class Data:
        def __init__(self) -> None:
            self.heads = {task: suite.heads[task].to(suite.device, copy=True) for task in tasks}
            self.images = self.labels = 0

        def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
            return suite.encode(weights, images)

        def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
            return suite.layer_inputs(weights, images)

        def batches(
            self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
        ) -> Iterator[Mapping[str, Examples]]:
            if access is Access.NONE:
                raise KitError("A method with data access 'none' asked for images. Register it with the access it has.")
            splits = {task: suite.split(task, which) for task in tasks}
            rows = {task: _rows(len(split.labels), task, images_per_task, seed, keep) for task, split in splits.items()}
            gpu = suite.device.type == "cuda"

            def load(step: int) -> dict[str, list[Tensor]]:
                batch = {}
                for task, split in splits.items():
                    some = next(rows[task])
                    # indexing with a list copies: torch must not write to a read-only memory map
                    parts = [torch.from_numpy(split.images[some])]
                    if access is Access.LABELLED:
                        parts.append(torch.from_numpy(split.labels[some]))
                    batch[task] = [part.pin_memory() for part in parts] if gpu else parts
                return batch

            # While a GPU takes one step, the images of the next are read into memory that it copies from by itself.
            for batch in ahead(load, range(steps)) if gpu else map(load, range(steps)):
                there: dict[str, Examples] = {}
                for task, parts in batch.items():
                    images, *labels = (part.to(suite.device, non_blocking=True) for part in parts)
                    there[task] = (images, labels[0]) if labels else images
                    self.images += len(images)
                    self.labels += sum(map(len, labels))
                yield there

    return Data()


def _rows(count: int, task: str, size: int, seed: int, keep: int | float | None) -> Iterator[list[int]]:
    """Yield the image numbers of one batch after another, for ever; see `TaskData.batches`."""
    if isinstance(keep, float):
        keep = max(1, round(keep * count)) if keep < 1 else None
    order = _order(count, task, seed, keep)
    size = min(size, count, keep or count)
    while True:
        yield [next(order) for _ in range(size)]


def _order(count: int, task: str, seed: int, kept: int | None) -> Iterator[int]:
    """Yield image numbers for ever: one shuffled epoch after another, so that each image is seen equally often.

    The order depends on the task's name and the seed only: adding a task to a pool leaves the others' batches alone.
    Where only some are `kept`, these come again in the same order.
    """
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    if kept is not None:
        yield from cycle(generator.permutation(count)[:kept].tolist())
    while True:
        yield from generator.permutation(count).tolist()
