"""Short measurements of one suite's own work on this machine, on noise, with the other cores as busy as in a run."""

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.methods import registry
from mergekit_lite.study import Cell, adapted_to
from mergekit_lite.suites import miniature
from mergekit_lite.suites.miniature.drawing import draw
from mergekit_lite.suites.miniature.tasks import TASKS
from mergekit_lite.suites.suite import Suite

LONG_ENOUGH = 0.5  # seconds: anything shorter would measure chance


NEIGHBOUR = """
import os, torch
torch.set_num_threads(1)
layer = torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
images, parent = torch.randn(64, 17, 128), os.getppid()
print("ready", flush=True)
while os.getppid() == parent:
    layer(images).sum().backward()
"""


@contextlib.contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Keep other cores busy as a run will: cores share memory, often arithmetic units too, so each gets slower."""
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(min(count, 7)):  # more would not change much and would take memory
            process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield


def import_seconds() -> float:
    """Return how long a fresh process takes to import the library; in this one all is imported already."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mergekit_lite.figures, mergekit_lite.suites"], check=True)
    return time.perf_counter() - begun


def image_shape(suite: Suite) -> tuple[int, ...]:
    """Return the shape (3, H, W) of the suite's images."""
    if isinstance(suite, miniature.Miniature):  # without drawing a whole split
        return tuple(draw(next(iter(TASKS.values())), "test", 1)[0].shape[1:])
    return suite.split(next(iter(suite.tasks)), "test").images.shape[1:]


def noise_images(suite: Suite, count: int) -> Tensor:
    """Return images (count, 3, H, W) uint8 of noise."""
    return torch.randint(0, 256, (count, *image_shape(suite)), dtype=torch.uint8)


def seconds_each(work: Callable[[int], object], long_enough: float = LONG_ENOUGH) -> float:
    """Return the seconds that one piece takes, where ``work(n)`` does n pieces; one is done before, to warm up."""
    count, took = 1, 0.0
    work(1)
    while True:
        begun = time.perf_counter()
        work(count)
        took = time.perf_counter() - begun
        if took >= long_enough:
            return took / count
        count = min(10 * count, math.ceil(1.2 * count * long_enough / max(took, 1e-9)))


def start_and_step(work: Callable[[int], object]) -> tuple[float, float]:
    """Return the seconds of the start and of each step of `work`, where ``work(n)`` starts once and takes n steps."""
    one = _timed(work, 1)
    if one < LONG_ENOUGH:  # what happens once in a process would count; in longer work it does not matter
        one = _timed(work, 1)
    count = 1 + math.ceil(min(10, LONG_ENOUGH / max(one, 1e-9)))
    many = _timed(work, count)
    while many - one < LONG_ENOUGH / 2 and count < 10**6:
        count *= 4
        many = _timed(work, count)
    step = max(0.0, many - one) / (count - 1)
    return max(0.0, one - step), step


def _timed(work: Callable[[int], object], count: int) -> float:
    begun = time.perf_counter()
    work(count)
    return time.perf_counter() - begun


class Bench:
    """Times the cells of one suite, each kind of work once."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._noise = noise_images(suite, 100).to(suite.device)
        self._known: dict[str, tuple[float, float]] = {}  # seconds of a start and of a step
        self._image = 0.0  # seconds of one image

    def cell(self, cell: Cell) -> float:
        """Return the predicted seconds of one cell: merging, and measuring as often as its curve asks for."""
        parameters = registry.resolve(cell.method, cell.parameters)
        outer, inner = _loops(cell, parameters)
        points = 1 + (math.ceil(parameters[outer or inner] / cell.curve_every) if cell.curve_every else 0)
        images = sum(self.suite.sizes[task][1] for task in cell.evaluate)
        return self._merging(cell, parameters) + points * images * self._measuring()

    def _measuring(self) -> float:
        """Return the seconds that the encoder takes for one image."""

        def encode(count: int) -> None:
            with torch.inference_mode():
                for _ in range(count):
                    self.suite.encode(self.suite.base, self._noise).sum().item()  # waits for a GPU

        if not self._image:
            self._image = seconds_each(encode) / len(self._noise)
        return self._image

    def _merging(self, cell: Cell, parameters: dict[str, Any]) -> float:
        info = registry.get(cell.method)
        outer, inner = _loops(cell, parameters)
        experts = dict.fromkeys(cell.pool, self.suite.base)  # what the numbers are does not change the time
        tasks, access = adapted_to(cell, parameters), info.access_with(parameters)
        resources = {"data": NoiseData(self.suite, tasks, access, self._noise)} if "data" in info.resources else {}

        def merge(count: int) -> None:
            shortened = {name: value for name, value in ((outer, 1), (inner, count)) if name}
            info.function(self.suite.base, experts, **resources, **parameters | shortened)

        # Numbers with a fraction, such as learning rates, and the counts themselves do not change the time of a step.
        fixed = {
            key: one for key, one in parameters.items() if key not in (outer, inner) and not isinstance(one, float)
        }
        name = repr((cell.method, sorted(fixed.items()), len(cell.pool), len(tasks)))
        if name not in self._known:
            self._known[name] = start_and_step(merge) if inner else (_timed(merge, 1), 0.0)
        start, step = self._known[name]
        return (parameters[outer] if outer else 1) * (start + (parameters[inner] if inner else 0) * step)


def _loops(cell: Cell, parameters: Mapping[str, Any]) -> tuple[str, str]:
    """Return the parameters that say how often a method does the same again, and again within that; "" for none."""
    if "data" not in registry.get(cell.method).resources:
        return "", ""
    if "inner_steps" in parameters:
        return "iterations", "inner_steps"
    return "", next((name for name in ("steps", "iterations", "images") if name in parameters), "")


@dataclass(frozen=True)
class NoiseData:
    """Images as `registry.LayerData` has them, all of them noise and of the first class."""

    suite: Suite
    tasks: tuple[str, ...]
    access: registry.Access
    noise: Tensor

    @property
    def heads(self) -> Mapping[str, Tensor]:
        """The real heads: their sizes count."""
        return {task: self.suite.heads[task] for task in self.tasks}

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Encode as the suite does."""
        return self.suite.encode(weights, images)

    def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
        """Return the inputs of the linear layers as the suite does."""
        return self.suite.layer_inputs(weights, images)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, registry.Examples]]:
        """Yield the same images again and again."""
        batch: dict[str, registry.Examples] = {}
        for task in self.tasks:
            there = self.suite.sizes[task][self.access is registry.Access.UNLABELLED]
            part = max(1, round(keep * there)) if isinstance(keep, float) else keep or there
            count = min(images_per_task, part)
            images = self.noise[torch.arange(count) % len(self.noise)]
            labels = torch.zeros(count, dtype=torch.long, device=images.device)
            batch[task] = (images, labels) if self.access is registry.Access.LABELLED else images
        for _ in range(steps):
            yield batch
