"""Accuracy of one set of weights on many tasks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Merged

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Split, Suite

_fitting: dict[tuple[str, str], int] = {}
"""Suite and device -> the batch size that was found to fit into its memory, for the rest of this process."""


def accuracy(suite: "Suite", weights: Mapping[str, Tensor], task: str, batch_size: int | None = None) -> float:
    """Return the top-1 accuracy of `weights` on the whole test split of `task`, in percent (0 to 100).

    The class of an image is the row of the task's zero-shot head (C, D) that agrees most with its features (D,).
    A batch that does not fit into the GPU's memory is halved until it does.

    Raises:
        KitError: not even one image fits.
    """
    split = suite.split(task, "test")
    head = suite.heads[task].to(suite.device)
    weights = dict(weights)  # an expert lies in a file: read it once, not once per batch
    key = (suite.name, str(suite.device))
    size = batch_size or _fitting.get(key) or _first_size(suite.device)
    correct = start = 0
    with torch.inference_mode():
        while start < len(split.labels):
            right = _correct(suite, weights, head, split, slice(start, start + size))
            if right is not None:
                correct, start = correct + right, start + size
            elif size == 1:
                raise KitError(
                    f"There is not enough memory on '{suite.device}' for a single image of {suite.name}. "
                    "End what else runs there, or use the device 'cpu'."
                )
            else:
                size //= 2
                _fitting[key] = size
    return 100.0 * correct / len(split.labels)


def accuracies(suite: "Suite", merged: Merged, tasks: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of a merge on each of `tasks`, in percent, in their order."""
    return {task: accuracy(suite, merged.for_task(task), task) for task in tasks}


def _first_size(device: torch.device) -> int:
    """Return how many images to begin with: what stays in the cache of a core on a CPU, what keeps a GPU busy."""
    return 125 if device.type == "cpu" else 1000


def _correct(suite: "Suite", weights: Mapping[str, Tensor], head: Tensor, split: "Split", rows: slice) -> int | None:
    """Return how many images of `rows` are told right, or None if they do not fit into the memory together."""
    try:
        features = suite.encode(weights, _images(suite, split.images[rows]))
        labels = torch.as_tensor(np.array(split.labels[rows]), device=features.device)
        return int(((features @ head.to(features.dtype).T).argmax(dim=1) == labels).sum())
    except torch.OutOfMemoryError:
        pass  # the error holds on to the tensors of the failed batch until this block is left
    if suite.device.type == "cuda":
        torch.cuda.empty_cache()  # pieces of the larger batch would otherwise crowd the smaller one out
    return None


def _images(suite: "Suite", images: np.ndarray) -> Tensor:
    # np.array copies: torch warns about, and must not write to, a read-only memory map.
    return torch.from_numpy(np.array(images)).to(suite.device)
