"""One cell is computed: the method merges, the merge is evaluated, and both become a record."""

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.cache import Held, locked
from mergekit_lite.machine import device_name, now, peak_memory_mib, reset_peak_memory, versions
from mergekit_lite.methods import load_method, registry
from mergekit_lite.study import budgets, evaluation, keys, task_data
from mergekit_lite.study.records import Cell, CurvePoint, Provenance, Record, read_record, write_record
from mergekit_lite.suites import broken, walking
from mergekit_lite.suites.suite import Suite
from mergekit_lite.weights import weights_hash


@dataclass(frozen=True)
class Job:
    """A cell that is ready to be computed.

    Attributes:
        cell: as it was asked.
        resolved: with all parameters filled in.
        key: the name of its record.
        parts: what the key is made of, see `keys.what_decides`.
        folder: where that is kept.
        source: where a worker process finds the method: a file to load, or the name of a module.
        commit: of the library's source.
    """

    cell: Cell
    resolved: Cell
    key: str
    parts: Mapping[str, Any]
    folder: Path
    source: Path | str
    commit: str | None

    @property
    def path(self) -> Path:
        """The record's file."""
        return self.folder / f"{self.key}.json"

    @property
    def cost(self) -> tuple[bool, int, int]:
        """Sorts the cells that take long before the others, so that none of them is left over for the end."""
        adaptive = registry.get(self.cell.method).access is not registry.Access.NONE
        given = self.resolved.parameters
        steps = given.get("steps") or given.get("iterations", 0) * (1 + given.get("inner_steps", 0))
        return adaptive, steps * len(self.resolved.adapt), len(self.cell.evaluate)


def compute(suite: Suite, job: Job) -> Record | None:
    """Compute one cell and record it, unless another run did so already; return None if one is at it now."""
    if isinstance(job.source, Path):
        load_method(job.source)
    elif job.source != "__main__":  # a worker process runs the script's own file before anything else
        importlib.import_module(job.source)
    try:
        with locked(job.path, wait=False):
            found = read_record(job.path, job.key, job.resolved)
            if isinstance(found, Record):
                return found
            return write_record(answered(keys.asked(suite, job.cell), job), job.path)
    except Held:
        return None


class _Watched:
    """Measures what a method hands over on its way and at its end, and how long measuring takes."""

    def __init__(self, suite: Suite, cell: Cell, data: task_data.Shown) -> None:
        self._suite, self._cell, self._data = suite, cell, data
        self._measured: dict[tuple[str, int], dict[str, float]] = {}
        self.curve: list[CurvePoint] = []
        self.seconds = 0.0

    def accuracies(self, merged: registry.Merged, images: int) -> dict[str, float]:
        _wait_for(self._suite.device)
        begun = time.perf_counter()
        # The last point of a curve is most often the final answer too; there is no need to measure it twice. Only where
        # both are measured on the same images: a hash takes long, as the weights leave the GPU for it.
        same = self._cell.curve_every and self._cell.curve_images == self._cell.images and not merged.own
        name = (weights_hash(merged.weights) if same else "", images)
        answer = self._measured.get(name) or evaluation.accuracies(
            self._suite, merged, self._cell.evaluate, which=self._cell.split, images=images
        )
        if name[0]:
            self._measured[name] = answer
        self.seconds += time.perf_counter() - begun
        return answer

    def watch(self, step: int, weights: Mapping[str, Tensor]) -> None:
        if step % self._cell.curve_every == 0:
            accuracy = self.accuracies(registry.Merged(weights=dict(weights)), self._cell.curve_images)
            self.curve.append(CurvePoint(step=step, images=self._data.images, accuracy=accuracy))


def answered(suite: Suite, job: Job) -> Record:
    """Return the answer to a cell, computed now; `suite` is the one it is about, see `keys.asked`."""
    cell, info, started = job.resolved, registry.get(job.cell.method), now()
    access = info.access_with(cell.parameters)
    reset_peak_memory(suite.device)
    data = task_data.shown(suite, cell.adapt, access)
    watched = _Watched(suite, cell, data)
    offered: dict[str, Any] = {"data": data, "seed": cell.seed, "watch": watched.watch if cell.curve_every else None}
    if "walk" in info.resources:
        offered["walk"] = walking.walk_through(suite)
    resources = {name: offered[name] for name in info.resources if name in offered}
    experts = {task: suite.experts[task] for task in cell.pool}
    for task, how in cell.broken.items():
        experts[task] = broken.Broken(suite.base, experts[task], how, task, cell.seed)

    begun = time.perf_counter()
    merged = info.function(suite.base, experts, **resources, **cell.parameters)
    _wait_for(suite.device)
    merging = time.perf_counter() - begun - watched.seconds
    accuracy = watched.accuracies(merged, cell.images)

    return Record(
        key=job.key,
        suite=suite.name,
        cell=cell,
        title=info.title,
        access=str(access),
        cite=info.cite,
        accuracy=accuracy,
        seconds={"merge": round(merging, 3), "evaluate": round(watched.seconds, 3)},
        peak_memory_mib=round(peak_memory_mib(suite.device), 1),
        images=data.images,
        labels=data.labels,
        travel=budgets.travel(cell.parameters),
        converged=budgets.converged(merged.trace),
        trace=dict(merged.trace),
        curve=watched.curve,
        provenance=Provenance(
            **versions(),
            device=device_name(suite.device),
            dtype=job.parts["environment"]["dtype"],
            commit=job.commit,
            suite=job.parts["suite"],
            sources=suite.sources(cell.pool),
            code=job.parts["code"],
            started=started,
        ),
    )


def _wait_for(device: torch.device) -> None:
    """Work on a GPU is queued: without waiting for it, merging would be billed to the evaluation."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
