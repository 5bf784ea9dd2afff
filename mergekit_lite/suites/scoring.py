"""Accuracy of one set of weights on one task."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.machine import in_memory

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Split, Suite, Which


def accuracy(
    suite: "Suite",
    weights: Mapping[str, Tensor],
    task: str,
    batch_size: int | None = None,
    *,
    which: "Which" = "test",
    images: int = 0,
) -> float:
    """Return the top-1 accuracy of `weights` on a split of `task`, in percent (0 to 100).

    Args:
        suite: encoder, heads and images.
        weights: of the encoder.
        task: one of the suite's.
        batch_size: images at once; None leaves it to the device.
        which: the split.
        images: take only the first so many, which is quicker; 0 takes all. Splits are in random order.

    The class of an image is the row of the task's zero-shot head (C, D) that agrees most with its features (D,).
    A batch that does not fit into the GPU's memory is halved until it does.

    Raises:
        KitError: not even one image fits.
    """
    split = suite.split(task, which)
    total = min(images or len(split.labels), len(split.labels))
    head = suite.heads[task].to(suite.device)
    weights = dict(weights)  # an expert lies in a file: read it once, not once per batch
    most = batch_size or _first_size(suite.device)
    correct = done = 0

    def part(size: int) -> tuple[int, int]:
        rows = slice(done, done + size)
        return _correct(suite, weights, head, split, rows), size

    with torch.inference_mode():
        while done < total:
            right, size = in_memory(part, min(most, total - done), suite.device, what="the features", key=suite.name)
            correct, done = correct + right, done + size
    return 100.0 * correct / total


def _first_size(device: torch.device) -> int:
    """Return how many images to begin with: what stays in the cache of a core on a CPU, what keeps a GPU busy."""
    return 125 if device.type == "cpu" else 1000


def _correct(suite: "Suite", weights: Mapping[str, Tensor], head: Tensor, split: "Split", rows: slice) -> int:
    """Return how many images of `rows` are classified correctly."""
    features = suite.encode(weights, _images(suite, split.images[rows]))
    labels = torch.as_tensor(np.array(split.labels[rows]), device=features.device)
    return int(((features @ head.to(features.dtype).T).argmax(dim=1) == labels).sum())


def _images(suite: "Suite", images: np.ndarray) -> Tensor:
    # np.array copies: torch warns about, and must not write to, a read-only memory map.
    return torch.from_numpy(np.array(images)).to(suite.device)
