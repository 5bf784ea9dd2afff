"""Entropy and loss of single images, their means over groups, and what other images would have said."""

import math
from typing import TYPE_CHECKING

import fakes
import numpy as np
import pandas as pd
import pytest
import samples
import torch

from mergekit_lite import study
from mergekit_lite.analysis.uncertainty import answers as answers_of
from mergekit_lite.analysis.uncertainty import entropy_and_loss, grouped, image_spread, interval, paired_spread, rebuilt
from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.soft import RECIPES as SOFT
from mergekit_lite.study import evaluation

if TYPE_CHECKING:
    from pathlib import Path

    from mergekit_lite.suites.suite import Suite


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


def test_entropy_and_loss_are_those_of_the_definitions(suite: "Suite") -> None:
    frame = entropy_and_loss(suite, suite.base, ("digits", "signs"), batch_size=7)
    assert list(frame["task"].value_counts(sort=False).items()) == [("digits", 40), ("signs", 40)]
    split, head = suite.split("digits", "test"), suite.heads["digits"]
    for number in (0, 13, 39):
        chances = torch.softmax(head @ suite.encode(suite.base, torch.from_numpy(split.images[number][None]))[0], 0)
        row = frame.iloc[number]
        assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in chances.tolist()), rel=1e-4)
        assert row["loss"] == pytest.approx(-math.log(chances[split.labels[number]]), rel=1e-4)


def test_groups_are_of_equal_size_sorted_by_entropy_within_each_task() -> None:
    entropy = [3.0, 1.0, 2.0, 4.0, 10.0, 30.0, 20.0, 40.0]
    frame = pd.DataFrame({"task": ["b"] * 4 + ["a"] * 4, "entropy": entropy, "loss": [value + 1 for value in entropy]})
    assert grouped(frame, 2).to_dict("list") == {  # tasks in their own order
        "task": ["b", "a", "b", "a"],
        "group": [0, 0, 1, 1],
        "entropy": [1.5, 15.0, 3.5, 35.0],
        "loss": [2.5, 16.0, 4.5, 36.0],
    }


def test_a_task_with_few_images_has_as_many_groups_and_ties_are_split() -> None:
    frame = pd.DataFrame({"task": ["a"] * 3 + ["b"] * 10, "entropy": [0.5] * 13, "loss": range(13)})
    assert grouped(frame, 5).groupby("task").size().to_dict() == {"a": 3, "b": 5}


def test_right_answers_are_those_of_the_accuracy(suite: "Suite") -> None:
    frame = entropy_and_loss(suite, suite.base, ("digits", "signs"), batch_size=7)
    for task, rows in frame.groupby("task"):
        assert 100 * rows["right"].mean() == pytest.approx(evaluation.accuracy(suite, suite.base, str(task)))


def test_spread_over_images_is_the_binomial_one() -> None:
    record = samples.record("mine", "Mine", (50.0, 80.0, 100.0))
    sizes = {"scenes": 100, "signs": 400, "digits": 50}
    draws = image_spread(record, sizes, draws=20_000)
    assert draws.shape == (20_000,)
    assert draws.mean() == pytest.approx(record.average, abs=0.05)
    expected = 100 / 3 * math.sqrt(0.5 * 0.5 / 100 + 0.8 * 0.2 / 400)  # the last task has no spread
    assert draws.std() == pytest.approx(expected, rel=0.03)
    np.testing.assert_array_equal(draws, image_spread(record, sizes, draws=20_000))
    assert not np.array_equal(draws, image_spread(record, sizes, draws=20_000, seed=1))


def test_spread_needs_the_size_of_each_task() -> None:
    with pytest.raises(KitError, match=r"The number of test images of signs is needed\. Give sizes\[task\]"):
        image_spread(samples.record("mine", "Mine", (50.0, 80.0, 100.0)), {"scenes": 10, "digits": 10})


def answers(right: list[bool]) -> pd.DataFrame:
    return pd.DataFrame({"task": ["a"] * 40 + ["b"] * 10, "right": right})


def test_pairing_takes_out_what_both_models_share() -> None:
    hard = [number % 2 == 0 for number in range(50)]  # both fail on every other image
    better = [*hard[:40], *[True] * 10]  # task b: right on five images more
    draws = paired_spread(answers(better), answers(hard), draws=20_000)
    assert draws.mean() == pytest.approx(25.0, abs=0.2)  # half of task b, in the mean of two tasks
    assert draws.std() == pytest.approx(100 / 2 * math.sqrt(0.5 * 0.5 / 10), rel=0.03)
    assert set(paired_spread(answers(hard), answers(hard), draws=10)) == {0.0}


def test_models_of_different_images_are_not_paired() -> None:
    one = answers([True] * 50)
    with pytest.raises(KitError, match="did not answer the same images"):
        paired_spread(one, one.iloc[::-1])


def test_interval_holds_the_middle_of_the_draws() -> None:
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))


MIXED = {"iterations": 3, "inner_steps": 2, "inner_learning_rate": 0.1, "images_per_task": 4, "samples": 4}
ADAPTED = {"steps": 2, "images_per_task": 4, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dare", {"drop": 0.5}),
        ("task_wise_adamerging", ADAPTED),
        ("layer_wise_adamerging", ADAPTED),
        ("soft_frank_wolfe", SOFT["released"] | MIXED),
        ("soft_frank_wolfe", SOFT["paper"] | MIXED),
    ],
)
def test_rebuilt_weights_reach_the_recorded_accuracy(
    suite: "Suite", tmp_path: "Path", name: str, parameters: dict[str, float]
) -> None:
    pool = ("digits", "signs")
    cell = study.Cell(method=name, parameters=parameters, pool=pool, evaluate=pool, seed=3)
    (record,) = study.run(suite, [cell], workers=1, folder=tmp_path)
    weights = rebuilt(suite, record)
    assert any(not torch.equal(weights[key], start) for key, start in suite.base.items())
    for task in pool:
        assert evaluation.accuracy(suite, weights, task) == record.accuracy[task]


def test_answers_are_those_of_the_merges_that_can_be_made_again(suite: "Suite", tmp_path: "Path") -> None:
    pool = ("digits", "signs")
    ada = study.Cell(method="layer_wise_adamerging", parameters=ADAPTED, pool=pool, evaluate=pool)
    plus = ada.model_copy(update={"method": "layer_wise_adamerging_plus"})
    records = study.run(suite, {"plus": plus, "plain": ada}, workers=1, folder=tmp_path)
    found = answers_of(suite, records, workers=1)
    assert list(found) == ["plain"]
    pd.testing.assert_frame_equal(found["plain"], entropy_and_loss(suite, rebuilt(suite, records["plain"]), pool))


def test_soft_steps_from_another_start_are_not_rebuilt() -> None:
    trace = {"chosen": [["signs"]], "start": {"method": "task_arithmetic"}, "inner": [{"coefficients": [[0.5]]}]}
    with pytest.raises(KitError, match="cannot be merged again from its record"):
        rebuilt(fakes.fake_suite(), samples.record("soft_frank_wolfe", "Mine", (50.0, 80.0, 100.0), trace=trace))


@pytest.mark.parametrize("name", ["layer_wise_adamerging_plus", "soft_frank_wolfe"])
def test_what_would_have_to_see_its_data_again_is_not_rebuilt(suite: "Suite", name: str) -> None:
    with pytest.raises(KitError, match=r"cannot be merged again from its record\. Take a merge without data"):
        rebuilt(suite, samples.record(name, "Mine", (50.0, 80.0, 100.0)))
