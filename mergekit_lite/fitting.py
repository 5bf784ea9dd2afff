"""Batches as large as the memory allows: one that does not fit is halved, and the rest of the process remembers it."""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from mergekit_lite.errors import KitError

Result = TypeVar("Result")

_fitting: dict[Hashable, int] = {}


def in_memory(
    attempt: Callable[[int], Result], most: int, device: torch.device, *, what: str, key: Hashable = None
) -> Result:
    """Return ``attempt(size)`` for the first size that fits into memory: `most`, or a half of it, a quarter...

    Args:
        attempt: works on so many images at once.
        most: how many to begin with, at least 1.
        device: whose memory it is.
        what: what a single image does not fit for, in the error.
        key: what was found to fit is remembered under it, together with `what` and `device`. If it is the name of a
            suite, the error says it.

    Raises:
        KitError: not even one image fits.
    """
    place = (what, str(device), key)
    size = min(most, _fitting.get(place, most))
    while True:
        try:
            return attempt(size)
        except torch.OutOfMemoryError:
            pass  # the error holds on to the tensors of what failed until this block is left
        if device.type == "cuda":
            torch.cuda.empty_cache()  # pieces of the larger batch would otherwise crowd the smaller one out
        if size == 1:
            whose = f" of {key}" if isinstance(key, str) else ""
            raise KitError(
                f"There is not enough memory on '{device}' for {what} of a single image{whose}. "
                "End what else runs there, or use the device 'cpu'."
            )
        _fitting[place] = size = size // 2
