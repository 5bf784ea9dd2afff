"""Order statistics of vectors too long to hold: read twice, with about a hundredth of their entries in memory."""

from collections.abc import Callable, Iterable
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 2**18  # entries that bracket a magnitude, to half a percent of all entries

Stream = Callable[[int], Iterable[Tensor]]
"""Called with n, yields every n-th entry of a long vector, in parts of any shape that may be overwritten."""


def kth_smallest(stream: Stream, entries: int, k: int) -> float:
    """Return the k-th smallest magnitude, 1 <= k <= `entries`, exactly; NaN if any entry is NaN or infinite.

    A sample tells between which two magnitudes it almost surely lies. One look at all entries counts those below and
    picks up those between, among which it is found. Should the sample have misled, everything is picked up.

    Args:
        stream: the vector.
        entries: how many there are.
        k: rank.
    """
    below, between, largest = _count_and_pick(stream, *_bracket(stream, entries, k))
    if not isfinite(largest):
        return nan
    if not below < k <= below + len(between):
        below, between, _ = _count_and_pick(stream, 0.0, inf)
    between.partition(k - below - 1)  # in place: torch.kthvalue would need three times the memory
    return float(between[k - below - 1])


def _bracket(stream: Stream, entries: int, k: int) -> tuple[float, float]:
    """Return magnitudes between which the k-th smallest lies, judging by a sample."""
    sample = torch.cat([part.reshape(-1) for part in stream(max(1, entries // SAMPLE))]).abs().sort().values
    share = k / entries
    spread = 5 * (share * (1 - share) / len(sample)) ** 0.5  # five standard deviations of a rank
    low, high = (int((share + side * spread) * len(sample)) for side in (-1, 1))
    least = float(sample[min(low, len(sample) - 1)]) if low > 0 else 0.0
    return least, float(sample[high + 1]) if high + 1 < len(sample) else inf


def _count_and_pick(stream: Stream, low: float, high: float) -> tuple[int, NDArray[Any], float]:
    """Return how many magnitudes are below `low`, those from `low` to `high`, and the largest."""
    below, between, largest = 0, [], np.float64(0)
    for part in stream(1):
        magnitudes = part.abs_().cpu().numpy()
        below += int(np.count_nonzero(magnitudes < low))
        between.append(magnitudes[(magnitudes >= low) & (magnitudes <= high)])
        largest = np.maximum(largest, magnitudes.max(initial=0))  # keeps a NaN
    return below, np.concatenate(between), float(largest)
