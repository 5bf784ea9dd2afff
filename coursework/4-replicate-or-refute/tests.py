"""Tests of assignment 4, a point each: the arithmetic of budget, error bar and rule."""

import math
from types import ModuleType

from scipy import stats


def test_images_adapted(module: ModuleType) -> None:
    assert module.images_adapted(200, 8, 8, 3) == 38_400


def test_images_adapted_counts_each_factor(module: ModuleType) -> None:
    assert module.images_adapted(2, 3, 5, 7) == 210


def test_best_constants(module: ModuleType) -> None:
    tried = {(0.1, 0): 50.0, (0.3, 0): 70.0, (0.5, 0): 60.0}
    assert module.best_constants(tried) == {0: 0.3}


def test_best_constants_of_each_run_and_the_smallest(module: ModuleType) -> None:
    tried = {
        (0.5, 1): 80.0,
        (0.3, 1): 80.0,
        (0.1, 1): 10.0,
        (0.5, 4): 20.0,
        (0.3, 4): 10.0,
        (0.1, 4): 5.0,
    }
    assert module.best_constants(tried) == {1: 0.3, 4: 0.5}


def test_t_interval(module: ModuleType) -> None:
    mean, low, high = module.t_interval([1.0, 3.0])
    half = float(stats.t.ppf(0.975, 1)) * math.sqrt(2) / math.sqrt(2)
    assert math.isclose(mean, 2.0)
    assert math.isclose(low, 2.0 - half, rel_tol=1e-9)
    assert math.isclose(high, 2.0 + half, rel_tol=1e-9)


def test_t_interval_of_many(module: ModuleType) -> None:
    values = [0.0, 1.0, 2.0, 3.0, 4.0]
    mean, low, high = module.t_interval(values)
    wanted = stats.t.interval(0.95, 4, loc=2.0, scale=math.sqrt(2.5 / 5))
    assert math.isclose(mean, 2.0)
    assert math.isclose(low, float(wanted[0]), rel_tol=1e-9)
    assert math.isclose(high, float(wanted[1]), rel_tol=1e-9)


def test_decided_above_zero(module: ModuleType) -> None:
    assert module.decided(5.5, 5.0, 6.0, 11.0) == "holds"
    assert module.decided(5.4, 5.0, 5.8, 11.0) == "holds in part"


def test_decided_with_zero_and_below(module: ModuleType) -> None:
    assert module.decided(6.0, 0.0, 12.0, 11.0) == "undecided"
    assert module.decided(-6.0, -12.0, 0.0, 11.0) == "undecided"
    assert module.decided(-6.0, -7.0, -5.0, 11.0) == "does not hold"
