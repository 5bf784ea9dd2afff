"""What a run does when its loss or gradient becomes NaN or infinite: it stops, keeps the best it had, and says so."""

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from mergekit_lite.weights import all_finite

State = TypeVar("State")

_PACKAGE = Path(__file__).parents[2]


class Kept(NamedTuple, Generic[State]):
    """The state of the lowest loss so far: coefficients or weights that nothing changes afterwards."""

    state: State
    loss: float = math.inf
    where: str = "the start"

    def stopped(self, where: str, reason: str) -> str:
        """Say where and why a run was stopped, and what is kept."""
        lowest = f", which had the lowest loss ({self.loss:.4g})" if math.isfinite(self.loss) else ""
        return f"Stopped at {where}: {reason}. Kept is the state of {self.where}{lowest}."


def unsound(loss: float, gradient: Iterable[Tensor]) -> str:
    """Say what is NaN or infinite; nothing if neither the loss nor its gradient is."""
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    return "" if all_finite(gradient) else "the gradient became NaN or infinite"


def warn_if_stopped(trace: Mapping[str, Any]) -> None:
    """Repeat what the trace says under "stopped" as a RuntimeWarning about the line that called the library."""
    if "stopped" not in trace:
        return
    level, frame = 1, inspect.currentframe()
    while frame and _PACKAGE in Path(frame.f_code.co_filename).parents:
        level, frame = level + 1, frame.f_back
    warnings.warn(trace["stopped"], RuntimeWarning, stacklevel=level)
