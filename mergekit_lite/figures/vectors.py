"""Figures of task vectors and coefficients: who helps whom, how vectors lie, what was learned."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, WIDTH, cell, style
from mergekit_lite.figures.tables import shared_tasks

if TYPE_CHECKING:
    from mergekit_lite.analysis.geometry import Geometry
    from mergekit_lite.study.records import Record


def transfer_heatmap(records: Sequence["Record"], zero_shot: "Record") -> Figure:
    """Draw how each expert (rows) changes the accuracy on each task (columns), in points; a frame marks its own task.

    Args:
        records: one expert each, all evaluated on the same tasks.
        zero_shot: the pre-trained model, evaluated on those tasks at least.
    """
    frame = transfer(records, zero_shot)
    with style():
        figure, axes = _square(frame, "RdBu", (-100.0, 100.0), "change of accuracy (points)", "{:+.0f}")
        axes.set(xlabel="tested on", ylabel="expert of")
        for row, expert in enumerate(frame.index):
            if expert in frame.columns:
                column = list(frame.columns).index(expert)
                own = Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, edgecolor=INK, lw=1.2, zorder=3)
                axes.add_patch(own)
    said = []
    for expert in frame.index:
        changes = frame.loc[expert].to_dict()
        parts = [f"its own task by {changes.pop(expert):+.1f}"] if expert in changes else []
        if changes:
            parts.append(f"the others by {sum(changes.values()) / len(changes):+.1f} on average")
        said.append(f"the expert of {expert} changes {' and '.join(parts)}")
    shape = f"{len(frame)} experts by {frame.shape[1]} tasks"
    figure.set_label(f"Heat map of the change of accuracy in points against zero-shot, {shape}: {'; '.join(said)}.")
    return figure


def transfer(records: Sequence["Record"], zero_shot: "Record") -> pd.DataFrame:
    """Return the accuracy of single experts (rows) minus that of the pre-trained model, in points, a column a task.

    Raises:
        KitError: a record merges several experts, or the pre-trained model was not evaluated on one of the tasks.
    """
    tasks = shared_tasks(records)
    for record in records:
        if len(record.cell.pool) != 1:
            raise KitError(
                f"The record of {record.title} holds {len(record.cell.pool)} experts. "
                "Show records of a single expert: Cell(..., pool=(task,), evaluate=tasks)."
            )
    missing = [task for task in tasks if task not in zero_shot.accuracy]
    if missing:
        raise KitError(f"{zero_shot.title} was not evaluated on {', '.join(missing)}. Evaluate it on all tasks shown.")
    rows = {record.cell.pool[0]: {task: record.accuracy[task] - zero_shot.accuracy[task] for task in tasks}
            for record in records}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(tasks), dtype=float)


def cosine_heatmap(geometry: "Geometry") -> Figure:
    """Draw the cosine between the task vectors of any two experts, and their lengths as a column beside it."""
    names, cosines = list(geometry.names), geometry.cosines.numpy()
    # Each pair once: the map is its own mirror image, and the diagonal is 1.
    below = np.tril(np.ones_like(cosines, dtype=bool), -1)
    frame = pd.DataFrame(np.where(below, cosines, np.nan), index=names, columns=names)
    # What two experts share is seldom more than a tenth: the colours reach as far as the largest value.
    reach = float(np.nanmax(np.abs(frame.to_numpy(dtype=float)), initial=0.01))
    with style():
        figure, axes = _square(frame, "PuOr_r", (-reach, reach), "cosine of two task vectors", "{:.2f}")
        for row, norm in enumerate(geometry.norms.tolist()):
            cell(axes, 30, row, f"{100 * norm:.1f}")
        cell(axes, 30, -0.8, "length (%)")
    said = f"{len(names)} task vectors, in percent of the base's length: " + ", ".join(
        f"{name} {100 * norm:.1f}" for name, norm in zip(names, geometry.norms.tolist(), strict=True)
    )
    pairs = [(cosines[a, b], f"{names[a]} and {names[b]}") for a in range(len(names)) for b in range(a)]
    pairs = sorted(pair for pair in pairs if np.isfinite(pair[0]))
    if pairs:
        (low, apart), (high, close) = pairs[0], pairs[-1]
        said += f". Cosines go from {low:.3f} ({apart}) to {high:.3f} ({close})"
    figure.set_label(f"Heat map of the cosines between task vectors. {said}.")
    return figure


def pair_heatmap(frame: pd.DataFrame) -> Figure:
    """Draw what each task (rows) keeps of its expert's accuracy when it is merged with one other expert (columns).

    Args:
        frame: percent of the expert's accuracy, tasks by partners; the diagonal, and pairs not merged, are missing.

    Raises:
        KitError: no pair was merged.
    """
    values = frame.to_numpy(dtype=float)
    if np.isnan(values).all():
        raise KitError("The frame holds no pair of experts. Merge two experts or more with one another.")
    reach = max(5.0, float(np.nanmax(np.abs(values - 100))))
    with style():
        limits = (100 - reach, 100 + reach)
        figure, axes = _square(frame, "RdBu", limits, "accuracy kept (% of the expert's)", "{:.0f}", centre=100.0)
        axes.set(xlabel="merged with the expert of", ylabel="tested on")
        means = np.nanmean(np.where(np.isnan(values).all(1, keepdims=True), 0.0, values), axis=1)
        for row, mean in enumerate(means):
            cell(axes, 30, row, f"{mean:.0f}")
        cell(axes, 30, -0.8, "mean")
    said = "; ".join(f"{name} keeps {mean:.1f} on average" for name, mean in zip(frame.index, means, strict=True))
    row, column = divmod(int(np.nanargmin(values)), values.shape[1])
    worst = f"least {values[row, column]:.1f} ({frame.index[row]} with {frame.columns[column]})"
    figure.set_label(f"Map of the accuracy kept in pairs, in percent of the expert's: {said}; {worst}.")
    return figure


def by_block(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean coefficient of each transformer block: columns ``x`` (relative depth), ``y``, ``low``, ``high``.

    Args:
        frame: coefficients as `coefficients` returns them, experts by tensors in the model's order.

    Returns:
        A row a block. x is the middle of the block, 0 where the first begins and 1 where the last ends; y is the mean
        over experts and the block's tensors, low and high the means of the experts with the least and the most. Tensors
        outside the blocks are left out.

    Raises:
        KitError: no tensor belongs to a block.
    """
    blocks: dict[int, list[str]] = {}
    for tensor in map(str, frame.columns):
        parts = tensor.split(".")
        if "resblocks" in parts:
            blocks.setdefault(int(parts[parts.index("resblocks") + 1]), []).append(tensor)
    if not blocks:
        raise KitError("None of these tensors belongs to a transformer block: their names hold no 'resblocks'.")
    rows = []
    for number in sorted(blocks):
        means = frame[blocks[number]].mean(axis=1)
        rows.append({"x": (number + 0.5) / len(blocks), "y": means.mean(), "low": means.min(), "high": means.max()})
    return pd.DataFrame(rows)


def _square(
    frame: pd.DataFrame, colours: str, limits: tuple[float, float], label: str, number: str, centre: float = 0.0
) -> tuple[Figure, Axes]:
    """Draw a frame as a map of square cells with a number in each, `centre` in white; return figure and axes."""
    values, (rows, columns) = frame.to_numpy(dtype=float), frame.shape
    side = min(0.5, (WIDTH - 2.2) / columns)  # inches: what the labels and the colour bar leave
    figure = Figure(figsize=(WIDTH, 1.3 + max(side * rows, 2.0)), layout="constrained")
    axes = figure.add_subplot()
    norm = TwoSlopeNorm(centre, *limits)
    drawn = axes.imshow(values, norm=norm, cmap=colours, interpolation="none", aspect="auto")
    size = 8 if columns <= 10 else 5.5
    for row in range(rows):
        for column in range(columns):
            value = float(values[row, column])
            if not np.isnan(value):
                # Black on pale, white on dark: both diverging maps are dark at their ends.
                ink = "#ffffff" if abs(2 * float(norm(value)) - 1) > 0.65 else INK
                text = number.format(value)
                text = text.strip("+-") if float(text) == 0 else text.replace("-", "−")
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    axes.set_xticks(range(columns), list(frame.columns), rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), list(frame.index))
    axes.tick_params(labelsize=8 if columns <= 10 else 7)
    axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#ffffff", linewidth=1)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, pad=0.015, aspect=30)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure, axes


def coefficients(record: "Record") -> pd.DataFrame:
    """Return the merging coefficients a record ended with: a row an expert, a column a tensor, in the model's order.

    Raises:
        KitError: the record's method left no coefficients per tensor.
    """
    found = record.trace.get("coefficients", {"tensors": []})
    if len(found["tensors"]) < 2:
        raise KitError(f"The record of {record.title} has no coefficient for each tensor. Show layer_wise_adamerging.")
    return pd.DataFrame(found["values"], index=found["experts"], columns=found["tensors"], dtype=float)


def coefficient_map(record: "Record") -> Figure:
    """Draw the coefficient of each expert (rows) for each tensor (columns); white is where all of them started."""
    frame = coefficients(record)
    values = frame.to_numpy()
    initial = float(record.cell.parameters["initial"])
    # The colours need room on both sides of the start, wherever that was.
    low, high = min(0.0, values.min(), initial - 0.1), max(1.0, values.max(), initial + 0.1)
    with style():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.28 * len(frame)), layout="constrained")
        axes = figure.add_subplot()
        # An image keeps one pixel a coefficient (a mesh of vectors would take 100 times the bytes for a large encoder).
        drawn = axes.imshow(
            values, norm=TwoSlopeNorm(initial, low, high), cmap="PuOr_r", aspect="auto", interpolation="none"
        )
        starts, names = _groups([str(tensor) for tensor in frame.columns])
        middles = (np.array(starts) + np.array([*starts[1:], frame.shape[1]])) / 2 - 0.5
        for start in starts[1:]:
            axes.axvline(start - 0.5, color=INK, linewidth=0.6)
        axes.set_xticks(middles, names)
        axes.set_yticks(range(len(frame)), list(frame.index))
        axes.tick_params(length=0)
        axes.set_xlabel(f"{frame.shape[1]} tensors of the image encoder, from input to output")
        axes.set_ylabel("expert")
        bar = figure.colorbar(drawn, ax=axes, pad=0.015, aspect=30)
        bar.set_ticks([low, initial, high], labels=[f"{value:.2g}" for value in (low, initial, high)])
        bar.set_label("coefficient")
        for row, mean in enumerate(values.mean(axis=1)):
            cell(axes, 30, row, f"{mean:.2f}")
        cell(axes, 30, -0.8, "mean")
    means = "; ".join(f"{name} {mean:.2f}" for name, mean in zip(frame.index, values.mean(axis=1), strict=True))
    figure.set_label(
        f"Map of the merging coefficients of {record.title}, {len(frame)} experts by {frame.shape[1]} tensors. "
        f"All started at {initial:.2g} and ended between {values.min():.2f} and {values.max():.2f}. Means: {means}."
    )
    return figure


def _groups(tensors: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return where each part of the encoder starts in its list of tensors, and the part's short name."""
    starts: list[int] = []
    names: list[str] = []
    for position, tensor in enumerate(tensors):
        parts = tensor.split(".")
        if "resblocks" in parts:
            name = f"block {int(parts[parts.index('resblocks') + 1]) + 1}"
        else:
            name = "out" if any(label.startswith("block") for label in names) else "in"
        if not names or name != names[-1]:
            starts.append(position)
            names.append(name)
    if sum(name.startswith("block") for name in names) > 6:  # 12 or 24 labels would not fit side by side: numbers do
        names = [name.removeprefix("block ") for name in names]
    return starts, names
