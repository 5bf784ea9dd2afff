"""Accuracy of one set of weights on many tasks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.methods.registry import Merged

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


def _images(suite: "Suite", images: np.ndarray) -> Tensor:
    # np.array copies: torch warns about, and must not write to, a read-only memory map.
    return torch.from_numpy(np.array(images)).to(suite.device)
