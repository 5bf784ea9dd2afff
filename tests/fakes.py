"""A suite so small that a study of it takes milliseconds, importable by name from worker processes."""

import copy
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.cache import content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged, method

if TYPE_CHECKING:  # the suites import open_clip, which takes seconds in every worker process
    from mergekit_lite.suites.suite import Suite

CLASSES, SIDE, DIMENSION = 5, 8, 6


class Task(NamedTuple):
    name: str
    title: str
    classnames: tuple[str, ...]


class Split(NamedTuple):
    images: np.ndarray
    labels: np.ndarray


@dataclass
class FakeSuite:
    """What `study` asks of a suite: random images, heads and experts of a one-layer encoder, float32, on the CPU."""

    name: str = "fake"
    seed: int = 0
    expert_seed: int = 0
    training_images: int = 40
    title: str = "a fake"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    prepared: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        names = ("digits", "signs", "scenes")
        classes = tuple(f"class {number}" for number in range(CLASSES))
        self.tasks = {name: Task(name, name.title(), classes) for name in names}
        self.base = {"layer.weight": noise(DIMENSION, 3 * SIDE * SIDE), "layer.bias": noise(DIMENSION)}
        self.experts = {name: {key: one + 0.5 * noise(*one.shape) for key, one in self.base.items()} for name in names}
        self.heads = {name: 10 * torch.nn.functional.normalize(noise(CLASSES, DIMENSION), dim=1) for name in names}
        images = {name: noise(40, 3, SIDE, SIDE).mul(50).add(128).clamp(0, 255).byte() for name in names}
        self._splits = {name: Split(images[name].numpy(), np.arange(40) % CLASSES) for name in names}

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        return dict.fromkeys(self.tasks, (40, 40))

    @property
    def side(self) -> int:
        return SIDE

    def has_expert(self, task: str) -> bool:
        return True

    def has_images(self, task: str, which: str) -> bool:
        return True

    @property
    def images_name(self) -> str:
        return self.name

    @property
    def loader(self) -> "Callable[[], Suite]":
        return partial(fake_suite, self.name, self.seed)

    def split(self, task: str, which: Literal["train", "held-out", "test"]) -> Split:
        split = self._splits[task]
        return Split(split.images[::-1][:25], split.labels[:25]) if which == "held-out" else split

    def data_hash(self, task: str, which: str) -> str:
        return content_hash([task, self.seed, which])

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        flat = images.float().sub(128).div(128).flatten(1)
        features = torch.nn.functional.linear(flat, weights["layer.weight"], weights["layer.bias"]).tanh()
        return torch.nn.functional.normalize(features, dim=1)

    @property
    def computing(self) -> tuple[Callable[..., Any], ...]:
        return (self.encode,)

    @property
    def working_dtype(self) -> torch.dtype:
        return torch.float32

    def with_expert_seed(self, seed: int) -> "FakeSuite":
        if seed == 0:
            return self
        other = copy.copy(self)
        other.expert_seed = seed
        other.experts = {
            name: {key: one + seed for key, one in expert.items()} for name, expert in self.experts.items()
        }
        return other

    def names(self, which: str | Sequence[str]) -> tuple[str, ...]:
        unknown = [name for name in which if name not in self.tasks]
        if unknown:
            raise KitError(f"There is no task '{unknown[0]}'. Tasks: {', '.join(self.tasks)}.")
        return tuple(which)

    def sources(self, tasks: Iterable[str]) -> dict[str, str]:
        return {task: f"here/{task}" for task in tasks}

    def prepare(self, tasks: Sequence[str], workers: int, say: Callable[[str], Any] = print) -> None:
        self.prepared.append(tuple(tasks))

    def fingerprint(self, pool: Iterable[str], evaluate: Iterable[str], learnt: Iterable[str] = ()) -> dict[str, Any]:
        return {
            "suite": self.name,
            "base": content_hash(["base", self.seed]),
            "experts": {task: content_hash([task, self.seed, self.expert_seed]) for task in pool},
            "data": {task: content_hash([task, self.seed]) for task in evaluate},
            "training data": {task: content_hash([task, self.training_images]) for task in learnt},
        }


def fake_suite(name: str = "fake", seed: int = 0) -> "Suite":
    return cast("Suite", FakeSuite(name, seed))


@method(title="Slow average", cite="", access=Access.NONE)
def slow_average(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    *,
    log: str = "",
    seconds: float = 0.0,
    fail: str = "",
    after: str = "",
) -> Merged:
    """Average slowly; each call leaves a line in the file `log`. `fail`: raise, or end the process.

    With `after`, a folder, it first waits until three records lie there.
    """
    while after and len(list(Path(after).glob("*.json"))) < 3:
        time.sleep(0.1)
    if log:
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()} {seconds}\n")
    time.sleep(seconds)
    if fail == "raise":
        raise ZeroDivisionError("nothing to divide by")
    if fail == "exit":
        os._exit(9)
    return Merged({key: torch.stack([one[key] for one in experts.values()]).mean(dim=0) for key in base})
