"""Tests of the method in method.py: run `pytest` in this folder. They take seconds and need no data."""

import torch
from method import median  # your method's name, here and below

from mergekit_lite.course import pico
from mergekit_lite.course.checks import run_checks
from mergekit_lite.methods import get

POOL = pico.make()  # three tiny tasks with their experts: base, experts, heads, images, labels


def test_the_answer_is_known_where_there_is_only_one_number() -> None:
    """Work out by hand what your equation gives here, and write it down instead of what the median gives."""
    base = {"weight": torch.tensor([1.0])}
    experts = {"a": {"weight": torch.tensor([2.0])}, "b": {"weight": torch.tensor([4.0])}}
    assert median(base, experts).weights["weight"].item() == 3.0  # 1 + (1 + 3) / 2
    experts["c"] = {"weight": torch.tensor([100.0])}
    assert median(base, experts).weights["weight"].item() == 4.0  # 1 + 3: the outlier has no say
    assert median(base, experts, scaling=0.5).weights["weight"].item() == 2.5


def test_what_holds_of_every_merge_holds_of_this_one() -> None:
    """These are the checks of `mergekit-lite course check`, which tells of each why it must hold."""
    failed = [finding for finding in run_checks(get("median"), POOL) if finding.passed is False]
    assert failed == []


def test_the_merge_knows_more_than_the_model_before() -> None:
    """Compare the average accuracy on the tiny tasks: if merging does not help there, something is wrong."""
    merged = median(POOL.base, POOL.experts).weights

    def average(weights):
        return sum(POOL.accuracy(weights, task) for task in POOL.experts) / len(POOL.experts)

    assert average(merged) > average(POOL.base)
