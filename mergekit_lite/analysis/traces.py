"""What a method left in its record's trace: learned coefficients, and the vertices that Frank-Wolfe chose."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import pandas as pd

from mergekit_lite.errors import KitError

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


def coefficients(record: "Record") -> pd.DataFrame:
    """Return the coefficients a record ended with: one row per expert, one column per tensor, in the model's order.

    Raises:
        KitError: the record's method left no coefficients per tensor.
    """
    found = record.trace.get("coefficients", {"tensors": []})
    if len(found["tensors"]) < 2:
        raise KitError(f"The record of {record.title} has no coefficient for each tensor. Show layer_wise_adamerging.")
    return pd.DataFrame(found["values"], index=found["experts"], columns=found["tensors"], dtype=float)


def block(tensor: str) -> int | None:
    """Return the number (from 0) of the transformer block that a tensor belongs to by its name, None outside all."""
    parts = tensor.split(".")
    return int(parts[parts.index("resblocks") + 1]) if "resblocks" in parts else None


def by_block(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean coefficient of each transformer block: columns ``x`` (relative depth), ``y``, ``low``, ``high``.

    Args:
        frame: coefficients as `coefficients` returns them, experts by tensors in the model's order.

    Returns:
        One row per block. x is the middle of the block, 0 where the first begins and 1 where the last ends; y is the
        mean over experts and the block's tensors, low and high the means of the experts with the least and the most.
        Tensors outside the blocks are left out.

    Raises:
        KitError: no tensor belongs to a block.
    """
    numbers = pd.Series([block(str(tensor)) for tensor in frame.columns], dtype="Int64")
    if numbers.isna().all():
        raise KitError("None of these tensors belongs to a transformer block: their names hold no 'resblocks'.")
    means = frame.T.groupby(numbers.to_numpy(float, na_value=float("nan"))).mean()  # blocks by experts
    depth = (means.index + 0.5) / len(means)
    low, mean, high = means.min(axis=1), means.mean(axis=1), means.max(axis=1)
    return pd.DataFrame({"x": depth, "y": mean, "low": low, "high": high}).reset_index(drop=True)


def choice_frame(record: "Record") -> pd.DataFrame:
    """Return how much of each iteration's step went to each vertex: one row per vertex, one column per iteration.

    Of a hard step that is the share of the tensors, 1 for a whole model; of a soft step the coefficient that was
    learned, averaged over tensors. Iterations count from 1. The vertices whose tasks make up the loss stand first.

    Raises:
        KitError: the record has no such trace.
    """
    trace = record.trace
    if "chosen" not in trace:
        raise KitError(f"The record of {record.title} says nothing of vertices. Show hard or soft FW-Merging.")
    first = [name for name in record.cell.adapt if name in trace["vertices"]]
    rows = dict.fromkeys([*first, *trace["vertices"]])
    count, hard = len(trace["tensors"]), "inner" not in trace
    frame = pd.DataFrame(0.0, index=list(rows), columns=range(1, len(trace["chosen"]) + 1))
    for step, picked in enumerate(trace["chosen"]):
        picks = [picked] if hard else picked
        learned = [[1.0]] if hard else trace["inner"][step]["coefficients"]
        for pick, values in zip(picks, learned, strict=True):
            vertices = pick if isinstance(pick, list) else [pick] * count
            weights = values * count if len(values) == 1 else values
            for vertex, weight in zip(vertices, weights, strict=True):
                if vertex is not None:
                    frame.loc[vertex, step + 1] += weight / count
    return frame


def most_chosen(record: "Record", tasks: Collection[str]) -> tuple[float, float]:
    """Return how much of all steps went to the experts of `tasks`, and to all other vertices, see `choice_frame`."""
    sums = choice_frame(record).sum(axis=1)
    inside = sums.index.isin(list(tasks))
    return float(sums[inside].sum()), float(sums[~inside].sum())


def descents(record: "Record", iteration: int = 1) -> "pd.Series[float]":
    """Return for each vertex <g, theta - s>, the decrease of the loss that the gradient promises on the way there.

    Args:
        record: of hard or soft Frank-Wolfe over whole models, with the inner product as oracle.
        iteration: from 1.

    Raises:
        KitError: another granularity or oracle, or an iteration that was not run.
    """
    parameters = record.cell.parameters
    if parameters.get("oracle") != "inner product" or parameters.get("granularity") != "model":
        raise KitError(f"{record.title}: only inner products with whole models say how much a step promises.")
    if not 1 <= iteration <= len(record.trace["scores"]):
        raise KitError(f"{record.title} ran {len(record.trace['scores'])} iterations; there is no number {iteration}.")
    scores = record.trace["scores"][iteration - 1]
    first = scores[0] if isinstance(scores, list) else scores
    # The gap is the largest promise, that of the lowest score: all others follow from their distance to it.
    highest = record.trace["gap"][iteration - 1] + min(first.values())
    return pd.Series({name: highest - score for name, score in first.items()}).sort_values(ascending=False)


def loss_per_task(record: "Record") -> "pd.Series[float]":
    """Return the loss before each step or iteration (nats per image): traces hold the sum over the tasks adapted to."""
    return pd.Series(record.trace["loss"], dtype=float) / len(record.cell.adapt or record.cell.pool)
