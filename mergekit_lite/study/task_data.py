"""What a method gets to see of a suite's images: the test split without labels, or the training split."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.methods.registry import Access, Examples, LayerData

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite, Which


def seen(suite: "Suite", tasks: Sequence[str], access: Access) -> LayerData:
    """Return the images of `tasks` as a method with this data access may see them.

    Unlabelled images are *test* images: AdaMerging (section 3.2) adapts to the very images that it is then tested on.
    Calibration inputs are training images without labels, and labelled ones are training images too.
    """
    return _Seen(suite, tuple(tasks), access)


@dataclass(frozen=True)
class _Seen:
    suite: "Suite"
    tasks: tuple[str, ...]
    access: Access

    @property
    def heads(self) -> Mapping[str, Tensor]:
        return {task: self.suite.heads[task].to(self.suite.device) for task in self.tasks}

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return self.suite.encode(weights, images)

    def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
        return self.suite.layer_inputs(weights, images)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, samples: int | None = None, share: float = 1.0
    ) -> Iterator[Mapping[str, Examples]]:
        which: Which = "test" if self.access is Access.UNLABELLED else "train"
        splits = {task: self.suite.split(task, which) for task in self.tasks}
        parts = {task: max(1, round(share * len(split.labels))) for task, split in splits.items()}
        sizes = {task: images_per_task if share == 1 else min(images_per_task, part) for task, part in parts.items()}
        orders = {
            task: _order(len(split.labels), task, seed, samples if share == 1 else parts[task])
            for task, split in splits.items()
        }
        for _ in range(steps):
            batch: dict[str, Examples] = {}
            for task, split in splits.items():
                rows = [next(orders[task]) for _ in range(sizes[task])]
                # indexing with a list copies: torch must not write to a read-only memory map
                images = torch.from_numpy(split.images[rows]).to(self.suite.device)
                labels = torch.from_numpy(split.labels[rows]).to(self.suite.device)
                batch[task] = (images, labels) if self.access is Access.LABELLED else images
            yield batch


def _order(count: int, task: str, seed: int, samples: int | None) -> Iterator[int]:
    """Yield image numbers for ever: one shuffled epoch after another, so that each image is seen equally often.

    The order depends on the task's name and the seed only: adding a task to a pool leaves the others' batches alone.
    Of `samples` images, the same ones come again in the same order.
    """
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    if samples is not None:
        yield from cycle(generator.permutation(count)[:samples].tolist())
    while True:
        yield from generator.permutation(count).tolist()
