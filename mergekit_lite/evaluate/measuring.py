"""Numbers out of answers: accuracy with intervals, what is left of the experts' skill, and which differences count."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mergekit_lite.analysis.accuracy import normalised
from mergekit_lite.analysis.uncertainty import image_spread, interval, paired_spread
from mergekit_lite.evaluate.answers import Answers, are_kept, bring_images, gathered
from mergekit_lite.evaluate.models import Model
from mergekit_lite.study import Cell, Record, run
from mergekit_lite.suites.suite import Suite

LEVEL = 0.95

EXPERT = Model("", "expert")
"""The suite's experts where nobody asked for them as a row."""


@dataclass(frozen=True)
class Score:
    """How a model does on one task.

    Attributes:
        correct: images that it classifies correctly.
        images: test images.
        low, high: ends of Wilson's 95 % interval of the accuracy with other test images, in percent. It has a width
            where all images are right or all are wrong, too.
        expert: accuracy of the task's own expert, in percent.
    """

    correct: int
    images: int
    low: float
    high: float
    expert: float

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100.0 * self.correct / self.images

    @property
    def normalised(self) -> float | None:
        """The accuracy in percent of the expert's; None if the expert has not a single image right."""
        return 100.0 * self.accuracy / self.expert if self.expert else None


@dataclass(frozen=True)
class Difference:
    """By how many points a model's average accuracy is above that of the first, with its 95 % interval.

    The interval is from 10,000 bootstrap samples in which both models answer the same images.
    """

    points: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Average:
    """How a model does over all tasks: the means of accuracy and normalised accuracy, in percent.

    `low` and `high` are the ends of a 95 % interval of the accuracy, from 10,000 bootstrap samples of the images.
    """

    accuracy: float
    low: float
    high: float
    normalised: float | None
    difference: Difference | None


@dataclass(frozen=True)
class Evaluation:
    """All that was measured, by the names of models and tasks, in the order they were asked for."""

    suite: Suite
    models: tuple[Model, ...]
    tasks: tuple[str, ...]
    scores: Mapping[tuple[str, str], Score]
    averages: Mapping[str, Average]
    answers: Mapping[tuple[str, str], Answers]
    labels: Mapping[str, NDArray[np.int64]]

    @property
    def first(self) -> str:
        """The name of the model that the others are compared with."""
        return self.models[0].name


def evaluated(suite: Suite, models: Sequence[Model], tasks: Sequence[str]) -> Evaluation:
    """Measure models on all test images of `tasks`.

    What the experts reach is taken from the study's records, which this adds to.

    Raises:
        KitError: images or experts cannot be made or fetched, or a task has no test images.
    """
    with redirect_stdout(sys.stderr):  # what is told on the way is no part of the result
        bring_images(suite, tasks)
        own = next((model for model in models if model.place == "expert"), None)
        if own is None and are_kept(suite, EXPERT, tasks):
            own = EXPERT
        # Where the experts' answers are to be had, a record need not be; else it is enough how many are right.
        recorded = {} if own else _of_records(suite, tasks)
        found = gathered(suite, [*models, EXPERT] if own is EXPERT else models, tasks)
        labels = {task: np.asarray(suite.split(task, "test").labels) for task in tasks}
    right = {key: one == labels[key[1]] for key, one in found.items()}
    experts = {task: percent(right[own.name, task]) for task in tasks} if own else recorded
    scores = {
        (model.name, task): score(int(right[model.name, task].sum()), len(labels[task]), experts[task])
        for model in models
        for task in tasks
    }
    averages = {model.name: average(model.name, models[0].name, tasks, scores, right) for model in models}
    return Evaluation(suite, tuple(models), tuple(tasks), scores, averages, found, labels)


def percent(right: NDArray[np.bool_]) -> float:
    """Return the share of answers that are right, as a study's records have it."""
    return 100.0 * int(right.sum()) / len(right)


def _of_records(suite: Suite, tasks: Sequence[str]) -> dict[str, float]:
    cell = Cell(method="individual", pool=tuple(tasks), evaluate=tuple(tasks))
    return run(suite, [cell])[0].accuracy


def score(correct: int, images: int, expert: float) -> Score:
    """Return the score of `correct` out of `images`; `expert` is in percent."""
    low, high = wilson(correct, images)
    return Score(correct, images, 100 * low, 100 * high, expert)


def wilson(correct: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval of a share, from 0 to 1 (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    z, share = NormalDist().inv_cdf(0.5 + level / 2), correct / total
    middle, spread = share + z**2 / (2 * total), z * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def average(
    name: str,
    first: str,
    tasks: Sequence[str],
    scores: Mapping[tuple[str, str], Score],
    right: Mapping[tuple[str, str], NDArray[np.bool_]],
) -> Average:
    """Return how the model `name` does over all tasks, and how far from the model `first`.

    Args:
        name: of a model.
        first: of another one, or the same.
        tasks: all of them.
        scores: (model, task) -> score.
        right: (model, task) -> whether each image is classified correctly, (N,).
    """
    record = Record.model_construct(accuracy={task: scores[name, task].accuracy for task in tasks})
    low, high = interval(image_spread(record, {task: scores[name, task].images for task in tasks}), LEVEL)
    experts = {task: scores[name, task].expert for task in tasks}
    return Average(
        record.average,
        low,
        high,
        normalised(record.accuracy, experts) if all(experts.values()) else None,
        None if name == first else _difference(*(_frame(right, one, tasks) for one in (name, first))),
    )


def _difference(one: pd.DataFrame, other: pd.DataFrame) -> Difference:
    means = [frame.groupby("task", sort=False)["right"].mean().mean() for frame in (one, other)]
    return Difference(100 * (means[0] - means[1]), *interval(paired_spread(one, other), LEVEL))


def _frame(right: Mapping[tuple[str, str], NDArray[np.bool_]], name: str, tasks: Sequence[str]) -> pd.DataFrame:
    parts = [pd.DataFrame({"task": task, "right": right[name, task]}) for task in tasks]
    return pd.concat(parts, ignore_index=True)
