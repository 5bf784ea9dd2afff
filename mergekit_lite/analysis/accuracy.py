"""Accuracies of records side by side: with what each method knew, with published ones, and of constants tried out."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from mergekit_lite.analysis import published as reported
from mergekit_lite.errors import KitError

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record

KNOWLEDGE = ("data access", "images", "labels", "told which tasks count")
"""Columns of `accuracy_frame` that say what a method knew: a comparison of accuracies is one of knowledge too."""


def shared_tasks(records: Iterable["Record"]) -> tuple[str, ...]:
    """Return the tasks that every record was evaluated on, in the records' order.

    Raises:
        KitError: there is no record, or two were evaluated on different tasks: their averages cannot be compared.
    """
    records = list(records)
    if not records:
        raise KitError("There is no record to show. Run some cells first: study.run(suite, cells).")
    first = records[0]
    for record in records:
        if tuple(record.accuracy) != tuple(first.accuracy):
            raise KitError(
                f"{first.title} was evaluated on {', '.join(first.accuracy)}, but {record.title} on "
                f"{', '.join(record.accuracy)}. Show records of the same evaluation tasks together."
            )
    return tuple(first.accuracy)


def accuracy_frame(records: Iterable["Record"], published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return accuracies in percent: one row per record, in the given order.

    Args:
        records: cells that ran on the same evaluation tasks.
        published: rows of `published.accuracies`, all of one family.

    Returns:
        Columns ``method`` (title), those of `KNOWLEDGE`, one per task, ``average``, and with `published` one more,
        named after its table and family (missing where that table has no such method, and in all rows of a method but
        its first, which are variants of ours). The index holds the methods' names.
    """
    records = list(records)
    columns = ["method", *KNOWLEDGE, *shared_tasks(records), "average"]
    rows = [[record.title, *_knowledge(record), *record.accuracy.values(), record.average] for record in records]
    names = pd.Index([record.cell.method for record in records], name="name")
    frame = pd.DataFrame(rows, columns=columns, index=names)
    if published is not None:
        # As floats a missing value becomes NaN, also where all are missing.
        averages = pd.Series([reported.average(published, name) for name in names], names, dtype=float)
        frame[reported.label(published)] = averages.mask(names.duplicated())
    return frame


def marked(name: str, record: "Record") -> str:
    """Return `name` with a dagger if the record's method had not converged."""
    return f"{name} †" if record.converged is False else name


def _knowledge(record: "Record") -> tuple[str, int, int, str]:
    return str(record.access), record.images, record.labels, told(record)


def told(record: "Record") -> str:
    """Return whether the method was told which tasks of its pool count, by being shown data of these alone.

    "all" where those evaluated are those of the pool, so that there is nothing to tell; else "yes, 4 of 20" or "no".
    """
    pool, counted, seen = set(record.cell.pool), set(record.accuracy), set(record.cell.adapt)
    if pool == counted:
        return "all"
    return f"yes, {len(seen)} of {len(pool)}" if seen and seen <= counted and seen < pool else "no"


def best_constant(tried: Mapping[float, "Record"]) -> float:
    """Return the constant with the highest average accuracy, the smallest of several.

    Args:
        tried: value of the constant -> its record on held-out images.

    Raises:
        KitError: there is none, or one was measured on test images, on which nothing may be chosen.
    """
    shared_tasks(tried.values())
    if any(record.cell.split != "held-out" for record in tried.values()):
        raise KitError('A constant must not be chosen on test images. Try it out with Cell(..., split="held-out").')
    return max(sorted(tried), key=lambda value: tried[value].average)


def tuned(record: "Record", tried: Mapping[float, "Record"], images: int) -> "Record":
    """Return the record of a merge with the best of the constants tried, saying what it took to choose that one.

    Its title names the constant. Images, labels and seconds of merging count the search as well: every image has been
    through the encoder once for each value, with its label beside it.

    Args:
        record: of `best_constant`, on test images.
        tried: as in `best_constant`.
        images: how many held-out images each value was measured on, over all tasks.
    """
    search = sum(sum(one.seconds.values()) for one in tried.values())
    changes = {
        "title": f"{record.title}, tuned: {best_constant(tried):g}",
        "access": "labelled held-out",
        "images": record.images + len(tried) * images,
        "labels": record.labels + len(tried) * images,
        "seconds": record.seconds | {"merge": record.seconds["merge"] + search},
    }
    return record.model_copy(update=changes)


def joint(record: "Record") -> "Record":
    """Return the record of FusionBench's multi-task checkpoint as a row of multi-task training, which says whose it is.

    How many images and labels it was shown is not known; 0 stands for that.

    Args:
        record: of the method `individual` on a suite ``...@FB-multi-task``.

    Raises:
        KitError: it is of another suite or method.
    """
    if not record.suite.endswith("@FB-multi-task") or record.cell.method != "individual":
        raise KitError(
            f"The record of {record.title} on {record.suite} is not that of a multi-task checkpoint. Ask for the "
            "method `individual` on all eight tasks of the suite `clip-vit-b-32@FB-multi-task`."
        )
    changes = {
        "title": "Multi-task training (FusionBench's checkpoint)",
        "access": "labelled train, by FusionBench",
        "cell": record.cell.model_copy(update={"method": "multi_task_training"}),
    }
    return record.model_copy(update=changes)


def transfer(records: Iterable["Record"], zero_shot: "Record") -> pd.DataFrame:
    """Return the accuracy of single experts (rows) minus that of the pre-trained model, in points, one column per task.

    Raises:
        KitError: a record merges several experts, or the pre-trained model was not evaluated on one of the tasks.
    """
    records = list(records)
    tasks = shared_tasks(records)
    for record in records:
        if len(record.cell.pool) != 1:
            raise KitError(
                f"The record of {record.title} holds {len(record.cell.pool)} experts. "
                "Show records of a single expert: Cell(..., pool=(task,), evaluate=tasks)."
            )
    before = zero_shot.on(tasks).accuracy
    rows = {record.cell.pool[0]: {task: record.accuracy[task] - before[task] for task in tasks} for record in records}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(tasks), dtype=float)


def rank_correlation(one: "pd.Series[Any]", other: "pd.Series[Any]") -> float:
    """Return Spearman's rank correlation: 1 where both put everything into the same order, -1 in the opposite one."""
    return float(one.rank().corr(other.rank()))


def normalised(merged: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """Return the accuracy of a merge in percent of the experts' own, averaged over tasks.

    Args:
        merged: task -> accuracy of the merge, in percent.
        individual: task -> accuracy of the task's own expert, in percent.

    Raises:
        KitError: a task without an expert's accuracy, or with one of 0.
    """
    missing = [task for task in merged if not individual.get(task)]
    if missing:
        raise KitError(f"The experts' own accuracy is missing or 0 on {', '.join(missing)}: leave such tasks out.")
    return 100 * fmean(merged[task] / individual[task] for task in merged)
