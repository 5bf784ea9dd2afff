"""What a merge takes in memory and time, from shapes and from a piece that is merged to see how long it takes."""

import time
from collections.abc import Mapping

import psutil
import torch
from torch import Tensor

from mergekit_lite.merge.jobs import Job
from mergekit_lite.merge.ways import PIECE, WAYS, Cut, entries_of, grouped, spans_of
from mergekit_lite.weights import Pool

IN_PIECES = 16
"""How often a method that sees pieces holds one in float32, with what the allocator keeps; see benchmarks."""

BY_TENSOR = {"tsv_merging": 6, "iso_c": 9, "iso_cts": 10}
"""How often a spectral method holds the largest matrix in float32, at most: decompositions are in float64."""

CORNER = 512
"""Side of the matrix that spectral methods are timed on: a corner of the largest."""


def memory(job: Job) -> tuple[int, bool]:
    """Return how many bytes the process will need, and whether it may be more, since nobody knows what a method keeps.

    Mapped files are not counted, as the system can drop what it read of them; pickles are in memory already.
    """
    process = psutil.Process().memory_info()
    held = process.rss - getattr(process, "shared", 0)
    entries = entries_of(job.base)
    largest = 4 * max(entries.values(), default=0)
    model = sum(entries[name] * kind.itemsize for name, kind in job.kinds.items())
    if job.asked.way == "whole":
        return held + model + 4 * largest, True
    if job.asked.way == "tensors":
        known = BY_TENSOR.get(job.asked.name)
        return held + (known or len(job.experts) + 6) * largest, known is None
    piece = IN_PIECES * 4 * min(PIECE, sum(entries.values()))
    return held + piece + (model if job.asked.way == "pieces at once" else 0), False


def seconds(job: Job) -> float | None:
    """Return how long a merge will take by a piece of it; None of a method that is not known to work piece by piece.

    Raises:
        KitError: the piece cannot be merged.
    """
    if job.asked.name not in WAYS:
        return None
    whole = Cut(job.base, dict.fromkeys(job.base), job.kinds)
    costs = {name: _cost(whole.layout(name)[0]) for name in whole}
    largest = max(costs, key=costs.__getitem__)
    if job.asked.way == "tensors" and costs[largest]:
        base, experts = _corner(job, largest)
        return _timed(job, base, experts) * sum(costs.values()) / _cost(tuple(base[largest].shape))
    entries = entries_of(job.base)
    spans = spans_of(dict(sorted(entries.items(), key=lambda one: -one[1])), PIECE)
    sizes = {label: span[2] - span[1] for label, span in spans.items() if span}
    some = {label: spans[label] for label in next(grouped(sizes, PIECE))}
    ends = {name: Cut(expert, some, job.kinds) for name, expert in job.experts.items()}
    share = sum(sizes[label] for label in some) / max(1, sum(sizes.values()))
    return _timed(job, Cut(job.base, some, job.kinds), ends) / share if share else 0.0


def _timed(job: Job, base: Mapping[str, Tensor], experts: Pool) -> float:
    begun = time.perf_counter()
    job.asked.merge(base, experts)
    if base and next(iter(base.values())).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _corner(job: Job, name: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return the upper left corner of one matrix of all models."""

    def of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weights[name][:CORNER, :CORNER].to(job.kinds[name], copy=True)}

    return of(job.base), {expert: of(weights) for expert, weights in job.experts.items()}


def _cost(shape: tuple[int, ...]) -> int:
    """Return what the decomposition of a tensor costs, in no unit: of a vector nothing.

    The products of an (m, n) matrix with n <= m take m n^2 steps, and the eigenvalues of its Gram matrix n^3, which are
    about eight times as slow.
    """
    return min(shape) ** 2 * (max(shape) + 8 * min(shape)) if len(shape) == 2 else 0
