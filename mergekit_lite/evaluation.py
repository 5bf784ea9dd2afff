"""Accuracy of one set of weights on many tasks, and the unlabelled test images that adaptive methods may look at."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.methods.registry import Merged, UnlabelledData

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite


def accuracy(suite: "Suite", weights: Mapping[str, Tensor], task: str, batch_size: int | None = None) -> float:
    """Return the top-1 accuracy of `weights` on the whole test split of `task`, in percent (0 to 100).

    The class of an image is the row of the task's zero-shot head (C, D) that agrees most with its features (D,).
    """
    split = suite.split(task, "test")
    head = suite.heads[task].to(suite.device)
    if batch_size is None:  # on a CPU, what stays in the cache of a core counts; on a GPU, what keeps it busy
        batch_size = 125 if suite.device.type == "cpu" else 1000
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(split.labels), batch_size):
            rows = slice(start, start + batch_size)
            features = suite.encode(weights, _images(suite, split.images[rows]))
            labels = torch.as_tensor(np.array(split.labels[rows]), device=features.device)
            correct += int(((features @ head.to(features.dtype).T).argmax(dim=1) == labels).sum())
    return 100.0 * correct / len(split.labels)


def accuracies(suite: "Suite", merged: Merged, tasks: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of a merge on each of `tasks`, in percent, in their order."""
    return {task: accuracy(suite, merged.for_task(task), task) for task in tasks}


def unlabelled(suite: "Suite", tasks: Sequence[str]) -> UnlabelledData:
    """Return the test images of `tasks` without their labels, as an adaptive method may see them.

    AdaMerging (section 3.2) adapts to the very images that it is then tested on, so these are the *test* images.
    """
    return _Unlabelled(suite, tuple(tasks))


@dataclass(frozen=True)
class _Unlabelled:
    suite: "Suite"
    tasks: tuple[str, ...]

    @property
    def heads(self) -> Mapping[str, Tensor]:
        return {task: self.suite.heads[task].to(self.suite.device) for task in self.tasks}

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return self.suite.encode(weights, images)

    def batches(self, *, images_per_task: int, steps: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
        images = {task: self.suite.split(task, "test").images for task in self.tasks}
        orders = {task: _order(len(images[task]), task, seed) for task in self.tasks}
        for _ in range(steps):
            yield {
                task: _images(self.suite, images[task][[next(orders[task]) for _ in range(images_per_task)]])
                for task in self.tasks
            }


def _order(count: int, task: str, seed: int) -> Iterator[int]:
    """Yield image numbers for ever: one shuffled epoch after another, so that each image is seen equally often.

    The order depends on the task's name and the seed only: adding a task to a pool leaves the others' batches alone.
    """
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    while True:
        yield from generator.permutation(count)


def _images(suite: "Suite", images: np.ndarray) -> Tensor:
    # np.array copies: torch warns about, and must not write to, a read-only memory map.
    return torch.from_numpy(np.array(images)).to(suite.device)
