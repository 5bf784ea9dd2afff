"""How far an optimiser could travel, and whether it had arrived."""

import math
import random

import pytest

from mergekit_lite.study.budgets import converged, travel


def falling(steps: int, rate: float, noise: float = 0.0) -> list[float]:
    draw = random.Random(0)
    return [0.3 + 0.7 * math.exp(-rate * step) + noise * draw.gauss(0, 1) for step in range(steps)]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"steps": 200, "learning_rate": 0.01}, 2.0),
        ({"iterations": 4, "inner_steps": 40, "inner_learning_rate": 0.01}, 1.6),
        ({"iterations": 3, "step_size": 0.3}, None),
        ({"scaling": 0.3}, None),
    ],
)
def test_travel_is_steps_times_learning_rate(parameters: dict[str, float], expected: float | None) -> None:
    assert travel(parameters) == (None if expected is None else pytest.approx(expected))


def test_an_objective_that_still_falls_has_not_converged() -> None:
    assert converged({"loss": falling(200, 0.005)}) is False


def test_an_objective_that_stands_still_has_converged_although_batches_scatter() -> None:
    assert converged({"loss": falling(200, 0.05, noise=0.03)}) is True


def test_a_rise_at_the_end_is_no_fall() -> None:
    assert converged({"loss": [*falling(150, 0.05), *(0.5 for _ in range(50))]}) is True


def test_inner_steps_count_one_iteration_after_another() -> None:
    halves = falling(40, 0.2), [0.3] * 40
    inner = [{"loss": list(losses)} for losses in halves]
    assert converged({"loss": [1.0, 0.3], "gap": [0.1, 0.0], "inner": inner}) is True
    assert converged({"loss": [1.0, 0.3], "gap": [0.1, 0.0], "inner": [{"loss": falling(40, 0.01)}]}) is False


def test_nothing_is_said_of_too_few_steps_or_of_hard_steps() -> None:
    assert converged({"loss": [1.0] * 15}) is None
    assert converged({}) is None
    assert converged({"loss": [1.0] * 20, "gap": [0.1] * 20}) is None
