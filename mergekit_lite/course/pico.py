"""A pool so small that a method runs on it in milliseconds: three tasks, their experts and images, out of a seed.

It trains and needs nothing: no suite, no cache. `course check` tries a method on it, and so do the tests that students
are handed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Access, Examples
from mergekit_lite.weights import Weights

CLASSES = {"circles": 3, "squares": 4, "stripes": 5}
"""Task -> how many classes it has."""

SIDE, WIDTH, FEATURES = 8, 6, 8
IMAGES = 48  # of each task, for training and for testing
SCALE = 10.0  # the logit scale of the heads


class Encoder(nn.Module):
    """Patches, layer norm, tanh, mean over the patches, a linear layer: four tensors of three kinds, and a bias."""

    image_mean, image_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, FEATURES, bias=False)

    def hidden(self, images: Tensor) -> Tensor:
        """Return what goes into the linear layer for normalised images (N, 3, 8, 8): (N, 6)."""
        patches = self.conv(images).flatten(2).transpose(1, 2)
        return self.norm(patches).tanh().mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (N, 8) of normalised images (N, 3, 8, 8), of any length."""
        return self.fc(self.hidden(images))


@dataclass(frozen=True)
class Pico:
    """The pool. All weights are of one dtype.

    Attributes:
        base: the encoder's weights before the experts learnt.
        experts: task -> weights that were trained on the task for some steps.
        heads: task -> head (C, 8): rows of unit length, times `SCALE`.
        images: split, "train" or "test" -> task -> images (48, 3, 8, 8) uint8.
        labels: split -> task -> labels (48,) int64.
        drawn_as: task -> the name that its batches are drawn by, so that a task may be renamed and its batches stay.
    """

    base: Weights
    experts: dict[str, Weights]
    heads: dict[str, Tensor]
    images: dict[str, dict[str, Tensor]]
    labels: dict[str, dict[str, Tensor]]
    drawn_as: dict[str, str]

    @staticmethod
    def encode(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return features (N, 8) of unit length; uint8 images are normalised, others are taken as they are."""
        return normalize(functional_call(_ENCODER, dict(weights), (_normalised(images, weights),)), dim=-1)

    @staticmethod
    def inputs(weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Return what goes into the one linear layer, by the name of its weight (8, 6): rows (N, 6)."""
        found: list[Tensor] = []
        hook = _ENCODER.fc.register_forward_pre_hook(lambda module, args: found.append(args[0]))
        try:
            with torch.no_grad():
                Pico.encode(weights, images)
        finally:
            hook.remove()
        return {"fc.weight": found[0]}

    def data(self, access: Access) -> "PicoData":
        """Return the images as a method with this access may see them; see `study.task_data`."""
        which = "test" if access is Access.UNLABELLED else "train"
        heads = {task: head.clone() for task, head in self.heads.items()}
        labels = self.labels[which] if access is Access.LABELLED else {}
        return PicoData(heads, access, self.images[which], labels, self.drawn_as)

    def accuracy(self, weights: Mapping[str, Tensor], task: str) -> float:
        """Return the accuracy in percent on the test images of `task`."""
        with torch.no_grad():
            logits = self.encode(weights, self.images["test"][task]) @ self.heads[task].T
        return 100 * float((logits.argmax(dim=1) == self.labels["test"][task]).double().mean())


@dataclass(frozen=True)
class PicoData:
    """Task data of the pico pool, for methods of any access."""

    heads: Mapping[str, Tensor]
    access: Access
    images: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    drawn_as: Mapping[str, str]
    fixed_seed: int | None = None  # draw the batches by it, whatever the method asks for

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """As `Pico.encode`."""
        return Pico.encode(weights, images)

    def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
        """As `Pico.inputs`."""
        return Pico.inputs(weights, images)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Examples]]:
        """Yield batches of images, with labels where the access allows them; see `TaskData.batches`.

        Raises:
            KitError: the method's access is "none".
        """
        if self.access is Access.NONE:
            raise KitError("A method with data access 'none' asked for images. Register it with the access it has.")
        kept = IMAGES if keep is None else max(1, round(keep * IMAGES)) if isinstance(keep, float) else keep
        size = min(images_per_task, kept, IMAGES)
        orders = {task: self._order(task, seed, kept) for task in self.images}
        for _ in range(steps):
            rows = {task: [next(order) for _ in range(size)] for task, order in orders.items()}
            yield {task: self._examples(task, some) for task, some in rows.items()}

    def _order(self, task: str, seed: int, kept: int) -> Iterator[int]:
        """Return image numbers for ever; they depend on the task's name and the seed, and on no other task."""
        seed = seed if self.fixed_seed is None else self.fixed_seed
        generator = np.random.default_rng([seed, crc32(self.drawn_as[task].encode())])
        return cycle(generator.permutation(IMAGES)[:kept].tolist())

    def _examples(self, task: str, rows: list[int]) -> Examples:
        images = self.images[task][rows]
        return (images, self.labels[task][rows]) if task in self.labels else images


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> Pico:
    """Return the pico pool of `seed`, the same each time; experts in float64 make rounding as small as can be.

    Args:
        seed: of all that is drawn: base, heads, images.
        dtype: of the weights and heads.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = partial(torch.randn, generator=generator, dtype=torch.float64)
    shapes = {name: tensor.shape for name, tensor in _ENCODER.named_parameters()}
    base = {name: (name == "norm.weight") + 0.3 * noise(*shape) for name, shape in shapes.items()}
    heads = {task: SCALE * normalize(noise(classes, FEATURES), dim=1) for task, classes in CLASSES.items()}
    images: dict[str, dict[str, Tensor]] = {"train": {}, "test": {}}
    labels: dict[str, dict[str, Tensor]] = {"train": {}, "test": {}}
    for task, classes in CLASSES.items():
        pattern = 128 + 60 * noise(classes, 3, SIDE, SIDE)
        for which in images:
            label = torch.arange(IMAGES) % classes
            labels[which][task] = label
            drawn = pattern[label] + 50 * noise(IMAGES, 3, SIDE, SIDE)
            images[which][task] = drawn.round().clamp(0, 255).to(torch.uint8)
    experts = {
        task: _trained(Pico.encode, base, heads[task], images["train"][task], labels["train"][task]) for task in CLASSES
    }

    def cast(weights: Mapping[str, Tensor]) -> Weights:
        return {name: tensor.to(dtype) for name, tensor in weights.items()}

    whole = {task: cast(expert) for task, expert in experts.items()}
    return Pico(cast(base), whole, cast(heads), images, labels, {task: task for task in CLASSES})


def _trained(
    encode: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    base: Mapping[str, Tensor],
    head: Tensor,
    images: Tensor,
    labels: Tensor,
    steps: int = 60,
    rate: float = 0.01,
) -> Weights:
    """Return `base` after some steps of Adam on all images at once."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in base.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            cross_entropy(encode(weights, images) @ head.T, labels).backward()
            optimiser.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def _normalised(images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    if images.dtype != torch.uint8:
        return images
    mean, std = (torch.tensor(one)[:, None, None] for one in (Encoder.image_mean, Encoder.image_std))
    return ((images / 255 - mean) / std).to(next(iter(weights.values())).dtype)


with torch.device("meta"):  # its weights are handed in each time, so that it has none, and draws none
    _ENCODER = Encoder().requires_grad_(False)
