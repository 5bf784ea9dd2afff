"""Accuracy of one set of weights on one task."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.machine import in_memory

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Split, Suite, Which

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


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
    A batch that does not fit into the GPU's memory is halved until it does. While a GPU works on one batch, the next
    one is read into memory from which the GPU copies by itself.

    Raises:
        KitError: not even one image fits.
    """
    split = suite.split(task, which)
    total = min(images or len(split.labels), len(split.labels))
    head = suite.heads[task].to(suite.device)
    weights = dict(weights)  # an expert lies in a file: read it once, not once per batch
    most = batch_size or _first_size(suite.device)
    spans = [slice(start, min(start + most, total)) for start in range(0, total, most)]
    with torch.inference_mode(), closing(_batches(split, spans, suite.device)) as batches:
        correct = sum(_correct(suite, weights, head, *batch, most) for batch in batches)
    return 100.0 * correct / total


def _first_size(device: torch.device) -> int:
    """Return how many images to begin with: what stays in the cache of a core on a CPU, what keeps a GPU busy."""
    return 125 if device.type == "cpu" else 1000


def _correct(
    suite: "Suite", weights: Mapping[str, Tensor], head: Tensor, images: Tensor, labels: Tensor, most: int
) -> int:
    """Return how many of `images` are classified correctly: of as many at once as fit into memory, at most `most`."""
    correct = done = 0

    def part(size: int) -> tuple[int, int]:
        # Cut off at the end here: `in_memory` remembers what fits, and should not take the rest of a split for it.
        some = images[done : done + size].to(suite.device, non_blocking=True)
        features = suite.encode(weights, some)
        right = (features @ head.to(features.dtype).T).argmax(dim=1) == labels[done : done + size].to(features.device)
        return int(right.sum()), len(some)

    while done < len(labels):
        right, size = in_memory(part, most, suite.device, what="the features", key=suite.name)
        correct, done = correct + right, done + size
    return correct


def _batches(split: "Split", spans: Sequence[slice], device: torch.device) -> Generator[tuple[Tensor, Tensor]]:
    """Yield images and labels of each span, on the CPU: for a GPU read ahead, into memory that it can copy from."""
    gpu = device.type == "cuda"
    load = partial(_loaded, split, gpu)
    yield from ahead(load, spans) if gpu else map(load, spans)


def _loaded(split: "Split", pinned: bool, rows: slice) -> tuple[Tensor, Tensor]:
    # Pinned memory is torch's to give, which has it again for another batch only when the GPU has copied this one.
    images = torch.empty(split.images[rows].shape, dtype=torch.uint8, pin_memory=pinned)
    np.copyto(images.numpy(), split.images[rows])  # torch must not write to a read-only memory map
    return images, torch.from_numpy(np.array(split.labels[rows]))


def ahead(load: Callable[[Item], Loaded], items: Iterable[Item]) -> Generator[Loaded]:
    """Yield ``load(item)`` of each item in order; a thread loads the next one while the caller works on this one.

    What `load` raises is raised here, in its turn. The thread has ended when the last one was taken, or on `close`.
    """
    coming: Future[Loaded] | None = None
    with ThreadPoolExecutor(1, "ahead") as thread:
        for item in items:
            now, coming = coming, thread.submit(load, item)
            if now:
                yield now.result()
        if coming:
            yield coming.result()
