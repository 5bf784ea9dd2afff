"""Fixtures that several test files share: models so small that exactness can be checked in float64."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest_plugins = ("tiny_clip",)

# One test process a core: with more threads than that, tiny models spend their time waiting for one another.
torch.set_num_threads(1)


@dataclass
class GivenData:
    """Unlabelled data whose batches are given: the same ones in the same order for everyone."""

    heads: Mapping[str, Tensor]
    encode: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    given: list[dict[str, Tensor]]
    asked: list[dict[str, int | float | None]] = field(default_factory=list)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        self.asked.append({"images_per_task": images_per_task, "steps": steps, "seed": seed, "keep": keep})
        return iter(self.given)


@dataclass
class Pico:
    """An encoder of three kinds of tensors (convolution, vectors, matrix), K random experts and heads, all float64."""

    base: dict[str, Tensor]
    experts: dict[str, dict[str, Tensor]]
    heads: dict[str, Tensor]
    generator: torch.Generator

    @staticmethod
    def encode(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Patches, layer norm, tanh, mean over positions, projection, unit length."""
        patches = torch.nn.functional.conv2d(images, weights["conv1.weight"], stride=4).flatten(2).transpose(1, 2)
        normed = torch.nn.functional.layer_norm(patches, (6,), weights["ln.weight"], weights["ln.bias"])
        return torch.nn.functional.normalize(normed.tanh().mean(dim=1) @ weights["proj"], dim=1)

    def images(self, count: int) -> Tensor:
        return torch.rand(count, 3, 8, 8, generator=self.generator, dtype=torch.float64)

    def data(self, steps: int, count: int = 4) -> GivenData:
        """Return given data of all tasks; batch sizes differ between tasks so that a mean over all would show."""
        sizes = {task: count + place for place, task in enumerate(self.heads)}
        given = [{task: self.images(size) for task, size in sizes.items()} for _ in range(steps)]
        return GivenData(self.heads, self.encode, given)


@pytest.fixture
def pico() -> Pico:
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = {
        "conv1.weight": noise(6, 3, 4, 4, scale=0.3),
        "ln.weight": 1 + noise(6, scale=0.1),
        "ln.bias": noise(6, scale=0.1),
        "proj": noise(6, 5, scale=0.5),
    }
    tasks = {"digits": 4, "signs": 3, "textures": 6}
    experts = {
        task: {name: tensor + noise(*tensor.shape, scale=0.2) for name, tensor in base.items()} for task in tasks
    }
    unit = {task: torch.nn.functional.normalize(noise(classes, 5, scale=1), dim=1) for task, classes in tasks.items()}
    return Pico(base, experts, {task: 10 * head for task, head in unit.items()}, generator)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the cache into a temporary folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(folder))
    return folder
