"""Entropy and loss of single images, and their means over groups."""

import math
from typing import TYPE_CHECKING

import fakes
import pandas as pd
import pytest
import torch

from mergekit_lite.uncertainty import entropy_and_loss, grouped

if TYPE_CHECKING:
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
