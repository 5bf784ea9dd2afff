"""Data for a method in a process without a suite: images come from the grader, batch by batch, see `serving`."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mergekit_lite
from mergekit_lite.methods.registry import Examples

Ask = Callable[[dict[str, Any]], dict[str, Any] | dict[str, Tensor]]
"""Sends a question to the grader, and returns its answer."""


class Handed:
    """Task data as `study.task_data.Shown` describes them, with batches that `ask` gets from the grader."""

    def __init__(self, packed: Path, ask: Ask) -> None:
        content = torch.load(packed, weights_only=False)  # the grader wrote it, so unpickling is safe
        self.heads: Mapping[str, Tensor] = content["heads"]
        self.images = self.labels = 0
        self._ask, self._streams = ask, itertools.count()
        self._encoder = _Encoder(content["model"], content["mean"], content["std"])

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return features (N, D) of unit length, see `TaskData.encode`."""
        return self._encoder.encode(weights, images)

    def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
        """Return what goes into each linear layer, see `LayerData.inputs`."""
        return self._encoder.layer_inputs(weights, images)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Examples]]:
        """Yield batches, see `TaskData.batches`.

        Raises:
            KitError: the method's access does not allow it, or an argument is out of its range.
        """
        stream = next(self._streams)
        asked = {"images_per_task": images_per_task, "steps": steps, "seed": seed, "keep": keep}
        self._ask({"kind": "batches", "stream": stream, **asked})
        while (batch := self._ask({"kind": "next", "stream": stream})) and "end" not in batch:
            yield {name: self._examples(name, batch) for name in batch if name in self.heads}

    def _examples(self, name: str, batch: Mapping[str, Any]) -> Examples:
        images, labels = batch[name], batch.get(f"{name} labels")
        self.images += len(images)
        if labels is None:
            return images
        self.labels += len(labels)
        return images, labels


class _Encoder:
    """A suite's encoder without the suite: it computes features with the very functions that the suite has.

    The room of the suites, where images are drawn, is left as soon as these are taken from it.
    """

    device = torch.device("cpu")

    def __init__(self, visual: torch.nn.Module, mean: Tensor, std: Tensor) -> None:
        from mergekit_lite.suites.suite import Suite

        self._model = torch.nn.Module()
        self._model.visual = visual
        self._mean, self._std = mean, std
        self.encode: Any = Suite.encode.__get__(self)
        self.layer_inputs: Any = Suite.layer_inputs.__get__(self)
        self._normalised: Any = Suite._normalised.__get__(self)
        for name in [name for name in sys.modules if name.startswith("mergekit_lite.suites")]:
            del sys.modules[name]
        del mergekit_lite.suites  # type: ignore[attr-defined]
