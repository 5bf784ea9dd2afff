"""Cells on this machine: one process per core with one thread each, or one per GPU; a single one is this process."""

import sys
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias

import torch

from mergekit_lite.study.computing import Job, compute
from mergekit_lite.study.records import Record
from mergekit_lite.suites.suite import Suite
from mergekit_lite.workers import cores, side_by_side

Outcomes: TypeAlias = Generator[tuple[Job, Callable[[], Record | None]], None, None]
"""Jobs as they end, each with a function that returns its record (None: another run has it under way) or raises."""


def processes(suite: Suite) -> int:
    """Return how many processes compute cells of `suite`: one per core, or on a GPU one per GPU that can be seen."""
    if suite.device.type != "cuda":
        return cores()
    return gpus(suite.device)


def gpus(device: torch.device) -> int:
    """Return on how many GPUs cells for `device` can be computed: all, unless it names one, such as ``cuda:1``."""
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1


def outcomes(suite: Suite, jobs: Sequence[Job], workers: int) -> Outcomes:
    """Yield the jobs as they end. What another run holds is left to it, and not waited for."""
    # A method of a notebook exists in this process only; that of a script comes with the script's file.
    notebook = not hasattr(sys.modules["__main__"], "__file__")
    here = [job for job in jobs if job.source == "__main__" and notebook]
    there = [job for job in jobs if job not in here]
    alone = workers == 1 or len(there) <= 1
    shared = gpus(suite.device) if suite.device.type == "cuda" else 0
    yield from side_by_side((lambda: suite) if alone else suite.loader, compute, there, workers, gpus=shared)
    yield from side_by_side(lambda: suite, compute, here, 1)
