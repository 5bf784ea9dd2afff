"""What an adaptive method was given: how far its optimiser could travel, and whether that was enough.

A comparison in which one method had not arrived is one of budgets, not of methods: such a method is shown as a curve
over its budget.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

QUARTER = 4
"""Convergence is looked for in the last quarter of the steps."""

STILL = 0.01
"""Share of the objective's first value by which it may still fall there."""

SMALL = 0.05
"""Share of all it has fallen by which it may still fall there: single batches scatter by more than `STILL`."""


def travel(parameters: Mapping[str, Any]) -> float | None:
    """Return steps times learning rate, summed over iterations: the way that Adam can move one coefficient.

    None if the (resolved) parameters are not those of a method that takes such steps.
    """
    if "inner_steps" in parameters:
        steps, rate = parameters["iterations"] * parameters["inner_steps"], parameters["inner_learning_rate"]
    elif "learning_rate" in parameters:
        steps, rate = parameters["steps"], parameters["learning_rate"]
    else:
        return None
    return float(steps * rate)


def converged(trace: Mapping[str, Any]) -> bool | None:
    """Return whether the objective had stopped falling in the last quarter of the steps; None if a trace holds too few.

    Each step measures it on other images, so means are compared: of the first and of the second half of that quarter.
    Between them it may fall by `STILL` of the mean over the first eighth of all steps, or by `SMALL` of its whole fall
    since. Of soft Frank-Wolfe the inner steps of all iterations count, one after another; of the hard one, whose
    iterations are its only steps, nothing is said.
    """
    losses = [loss for part in trace["inner"] for loss in part["loss"]] if "inner" in trace else trace.get("loss", [])
    if ("gap" in trace and "inner" not in trace) or len(losses) < 4 * QUARTER:
        return None
    half = len(losses) // QUARTER // 2
    before, after, first = fmean(losses[-2 * half : -half]), fmean(losses[-half:]), fmean(losses[:half])
    return before - after <= max(STILL * abs(first), SMALL * (first - after))
