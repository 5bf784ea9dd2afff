"""What a merge costs: images, seconds and memory of records, who is cheaper and better, and published costs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from mergekit_lite.analysis.published import DOUBTFUL, reference

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


def cost_frame(records: Iterable["Record"], start: float) -> pd.DataFrame:
    """Return what each record cost and what it reached.

    Args:
        records: merges, all evaluated on the same tasks.
        start: average accuracy of the pre-trained model in percent, from which gains are counted.

    Returns:
        Columns ``name`` (the method), ``title``, ``access``, ``images`` and ``labels`` (that the method was shown),
        ``seconds`` of merging, ``mib`` (peak memory), ``accuracy`` (average, percent) and ``rate`` (points gained over
        `start` per second of merging).
    """
    rows = [
        {
            "name": record.cell.method,
            "title": record.title,
            "access": record.access,
            "images": record.images,
            "labels": record.labels,
            # Records have three decimals; less than a millisecond is no measurement.
            "seconds": max(record.seconds["merge"], 0.001),
            "mib": record.peak_memory_mib,
            "accuracy": record.average,
        }
        for record in records
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(rate=(frame["accuracy"] - start) / frame["seconds"])


def memory_frame(records: Iterable["Record"], model_mib: float) -> pd.DataFrame:
    """Return how much more memory (MiB) each record took at its peak than the smallest pool of the same method.

    Args:
        records: merges of pools of several sizes.
        model_mib: size of one set of weights; the line "the added experts alone" is what the added ones take together.

    Returns:
        Columns ``line`` (the method), ``x`` (experts in the pool) and ``y`` (MiB), in the order of x.
    """
    rows = [(record.cell.method, len(record.cell.pool), record.peak_memory_mib) for record in records]
    sizes = sorted({size for _, size, _ in rows})
    rows += [("the added experts alone", size, size * model_mib) for size in sizes]
    frame = pd.DataFrame(rows, columns=["line", "x", "y"]).sort_values("x", kind="stable", ignore_index=True)
    return frame.assign(y=frame["y"] - frame.groupby("line")["y"].transform("first"))


def front(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the Pareto front, cheapest first: no other row is as good or better in less or equal time.

    Args:
        frame: columns ``seconds`` and ``accuracy``.
    """
    ordered = frame.sort_values(["seconds", "accuracy"], ascending=[True, False], kind="stable")
    best = ordered["accuracy"].cummax().shift(fill_value=float("-inf"))
    return ordered[ordered["accuracy"] > best]


def published_costs() -> pd.DataFrame:
    """Return published costs: columns ``method``, ``what``, ``value``, ``unit`` and ``where``.

    ``where`` names paper, table, model and family, with the doubt of its source. None of them was measured here, and
    each belongs to hardware of its own.
    """
    found = reference("costs")
    places = found[["paper", "table", "model", "family", "trust"]].itertuples(index=False)
    where = [
        f"{paper}, {table}, {'/'.join(model.rsplit('-', 1))} ({family}{DOUBTFUL.get(trust, '')})"
        for paper, table, model, family, trust in places
    ]
    return found[["method", "what", "value", "unit"]].assign(where=where)
