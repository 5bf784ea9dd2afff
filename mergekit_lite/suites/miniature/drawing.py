"""What a drawn task is, and drawing whole splits of it."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.fingerprints import PACKAGE, code_of
from mergekit_lite.suites.miniature.canvas import SIDE, Canvas

Which = Literal["pretrain", "train", "test", "held-out"]
# Each split has its own stream of random numbers.
STREAMS: dict[Which, int] = {"pretrain": 0, "train": 1, "test": 2, "held-out": 3}
BATCH = 256  # pictures of one class painted at once: enough to amortise the operations, few enough for the cache


@dataclass(frozen=True)
class DrawnClass:
    """One class: its name in the benchmark, what people call it in captions, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Canvas], None]


@dataclass(frozen=True)
class DrawnTask:
    """A task that is drawn.

    Attributes:
        name, title, counterpart, templates: as in `mergekit_lite.suites.Task`.
        kind: the word with which captions name the domain.
        classes: in the order of labels.
        zero_shot: accuracy in percent of CLIP ViT-B/32 on the real data set, which the miniature's zero-shot head is
            made as bad as; published by FusionBench, see `mergekit_lite/reference`.
        grain: standard deviation of the sensor noise, of the whole range of grey.
        real: returns all pictures (N, 3, 32, 32) uint8 and labels (N,) of a real data set, which then make up the
            training and test splits; drawn ones are left for pre-training.
    """

    name: str
    title: str
    counterpart: str
    kind: str
    templates: tuple[str, ...]
    classes: tuple[DrawnClass, ...]
    zero_shot: float
    grain: float = 0.03
    real: Callable[[], tuple[Tensor, Tensor]] | None = None


def draw(task: DrawnTask, which: Which, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw `size` pictures with balanced classes in random order.

    Returns:
        images (size, 3, 32, 32) uint8 and labels (size,) int64. The same arguments give the same bytes; no two splits,
        and no two seeds, share a stream of random numbers.
    """
    root = np.random.SeedSequence([zlib.crc32(task.name.encode()), STREAMS[which], seed])
    order, *streams = (np.random.default_rng(child) for child in root.spawn(1 + len(task.classes)))
    labels = torch.from_numpy(order.permutation(np.arange(size) % len(task.classes)))
    images = torch.empty(size, 3, SIDE, SIDE, dtype=torch.uint8)
    for label, (entry, rng) in enumerate(zip(task.classes, streams, strict=True)):
        for places in (labels == label).nonzero()[:, 0].split(BATCH):
            canvas = Canvas(len(places), rng)
            entry.draw(canvas)
            images[places] = (canvas.finished(task.grain) * 255 + 0.5).to(torch.uint8)
    return images, labels


def pictures(
    task: DrawnTask, which: Literal["train", "held-out", "test"], sizes: Mapping[Which, int]
) -> tuple[Tensor, Tensor]:
    """Return a split to fine-tune on, to choose constants on, or to test on: drawn, or a share of real pictures.

    Real pictures are shuffled once and dealt out to the splits in proportion to `sizes`.
    """
    if task.real is None:
        return draw(task, which, sizes[which])
    images, labels = task.real()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    whole = sum(sizes[split] for split in ("test", "held-out", "train"))
    tests, held = (round(len(labels) * sizes[split] / whole) for split in ("test", "held-out"))
    rows = {"test": order[:tests], "held-out": order[tests : tests + held], "train": order[tests + held :]}[which]
    return images[rows], labels[rows]


def drawing_hash(task: DrawnTask) -> str:
    """Return a hash of the code that draws `task`, wherever that lies: in a file of its own or in a notebook."""
    draws = tuple(entry.draw for entry in task.classes)
    ships = all(getattr(one, "func", one).__module__.partition(".")[0] == PACKAGE for one in draws)
    # The kit's own code does not change while it runs; a notebook's cell may.
    return (_known_code_of if ships else code_of)(task.name, draws, task.grain, task.real, pictures)


_known_code_of = cache(code_of)
