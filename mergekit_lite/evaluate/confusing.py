"""Which classes a model takes for which."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.evaluate.measuring import Evaluation


@dataclass(frozen=True)
class Confusion:
    """Images of one task by their class (row) and the class that a model takes them for (column): (C, C)."""

    model: str
    task: str
    classnames: tuple[str, ...]
    matrix: NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """`count` images of one class that were taken for another; `share` is their part of that class, in percent."""

    true: str
    predicted: str
    share: float
    count: int


def worst_task(evaluation: Evaluation) -> str:
    """Return the task on which the first model is least accurate, the first of several."""
    return min(evaluation.tasks, key=lambda task: evaluation.scores[evaluation.first, task].accuracy)


def confusion(evaluation: Evaluation, model: str, task: str) -> Confusion:
    """Return what `model` takes the test images of `task` for."""
    names = evaluation.suite.tasks[task].classnames
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (evaluation.labels[task], evaluation.answers[model, task]), 1)
    return Confusion(model, task, tuple(names), matrix)


def pairs(confused: Confusion, most: int = 8) -> list[Pair]:
    """Return the pairs of classes that are confused most often, by the number of images, at most so many."""
    matrix = confused.matrix.copy()
    totals = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, matrix.shape)
    names = confused.classnames
    return [
        Pair(names[row], names[column], 100.0 * matrix[row, column] / totals[row], int(matrix[row, column]))
        for row, column in zip(rows, columns, strict=True)
        if matrix[row, column]
    ]
