"""What a merge costs: images seen, seconds and memory of records, who is cheaper and better, and published costs."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import pandas as pd

from mergekit_lite.analysis.published import DOUBTFUL
from mergekit_lite.errors import KitError
from mergekit_lite.methods import registry

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


def images_seen(record: "Record") -> int:
    """Return how many images went through the encoder while a record was merged; one that was seen twice counts twice.

    Optimisers see `images_per_task` of each task in a step; Frank-Wolfe sees `samples` of each for the gradient of an
    iteration, too; calibration shows each expert `images` of its own task. The evaluation does not count.

    Raises:
        KitError: the method looks at data in a way that is not known here.
    """
    cell = record.cell
    given = registry.resolve(cell.method, cell.parameters)
    if "data" not in registry.get(cell.method).resources:
        return 0
    tasks = len(cell.adapt or cell.pool)
    if "iterations" in given:
        inner = given["inner_steps"] * given["images_per_task"] if "inner_steps" in given else 0
        return int(given["iterations"] * tasks * (given["samples"] + inner))
    if "steps" in given:
        return int(given["steps"] * given["images_per_task"] * tasks)
    if "images" in given:
        return int(given["images"] * tasks)
    raise KitError(f"How many images {record.title} sees is not known. Add its rule to mergekit_lite.analysis.costs.")


def cost_frame(records: Sequence["Record"], start: float) -> pd.DataFrame:
    """Return what each record cost and what it reached.

    Args:
        records: merges, all evaluated on the same tasks.
        start: average accuracy of the pre-trained model in percent, from which gains are counted.

    Returns:
        Columns ``name`` (the method), ``title``, ``access``, ``images``, ``seconds`` of merging, ``mib`` (peak memory),
        ``accuracy`` (average, percent) and ``rate`` (points gained over `start` for each second of merging).
    """
    rows = [
        {
            "name": record.cell.method,
            "title": record.title,
            "access": record.access,
            "images": images_seen(record),
            # Records have three decimals; less than a millisecond is no measurement.
            "seconds": max(record.seconds["merge"], 0.001),
            "mib": record.peak_memory_mib,
            "accuracy": record.average,
        }
        for record in records
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(rate=(frame["accuracy"] - start) / frame["seconds"])


def front(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the Pareto front, cheapest first: no other row is as good or better in less or equal time.

    Args:
        frame: columns ``seconds`` and ``accuracy``.
    """
    ordered = frame.sort_values(["seconds", "accuracy"], ascending=[True, False], kind="stable")
    best = ordered["accuracy"].cummax().shift(fill_value=float("-inf"))
    return ordered[ordered["accuracy"] > best]


@cache
def _published() -> pd.DataFrame:
    with files("mergekit_lite").joinpath("reference/costs.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream)


def published_costs() -> pd.DataFrame:
    """Return published costs: columns ``method``, ``what``, ``value``, ``unit`` and ``where``.

    ``where`` names paper, table, model and family, with the doubt of its source. None of them was measured here, and
    each belongs to hardware of its own.
    """
    found = _published()
    places = found[["paper", "table", "model", "family", "trust"]].itertuples(index=False)
    where = [
        f"{paper}, {table}, {'/'.join(model.rsplit('-', 1))} ({family}{DOUBTFUL.get(trust, '')})"
        for paper, table, model, family, trust in places
    ]
    return found[["method", "what", "value", "unit"]].assign(where=where)
