"""Accuracies of records side by side: with published ones, and of single experts against the pre-trained model."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from mergekit_lite.analysis import published as reported
from mergekit_lite.errors import KitError

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


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
        Columns ``method`` (title), ``data access``, one per task, ``average``, and with `published` one more, named
        after its table and family (missing where that table has no such method). The index holds the methods' names.
    """
    records = list(records)
    columns = ["method", "data access", *shared_tasks(records), "average"]
    rows = [[record.title, str(record.access), *record.accuracy.values(), record.average] for record in records]
    names = [record.cell.method for record in records]
    frame = pd.DataFrame(rows, columns=columns, index=pd.Index(names, name="name"))
    if published is not None:
        # As floats a missing value becomes NaN, also where all are missing.
        averages = pd.Series([reported.average(published, name) for name in names], frame.index, dtype=float)
        frame[reported.label(published)] = averages
    return frame


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
