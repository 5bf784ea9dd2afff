"""Heat maps: accuracies, experts against tasks and against one another, coefficients, and the vertices chosen."""

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mergekit_lite.analysis.accuracy import KNOWLEDGE, accuracy_frame
from mergekit_lite.analysis.traces import block, choice_frame, coefficients
from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, WHITE, WIDTH, canvas, column, signed, styled

if TYPE_CHECKING:
    from mergekit_lite.analysis.geometry import Geometry
    from mergekit_lite.study.records import Record


@styled()
def accuracy_heatmap(records: Iterable["Record"]) -> Figure:
    """Draw the accuracy (%) of each record (rows) on each task (columns), with the average as last column."""
    records = list(records)
    frame = accuracy_frame(records).iloc[:, 1 + len(KNOWLEDGE) :]
    frame.index = pd.Index([record.title for record in records])
    count = frame.shape[1] - 1
    number = "{:.0f}" if count > 10 else "{:.1f}"  # of many columns, each has room for two digits
    low = np.floor(frame.to_numpy().min() / 10) * 10
    height = 1.25 + 0.34 * len(frame)
    figure, axes = _heatmap(frame, "top-1 accuracy (%)", number, height=height, cmap="YlGnBu", vmin=low, vmax=100)
    axes.axvline(count, color=WHITE, linewidth=5)
    said = []
    for record in records:
        weak, strong = (pick(record.accuracy, key=record.accuracy.__getitem__) for pick in (min, max))
        ends = f"{record.accuracy[weak]:.1f} ({weak}) to {record.accuracy[strong]:.1f} ({strong})"
        said.append(f"{record.title} from {ends}")
    shape = f"{len(records)} methods by {count} tasks"
    figure.set_label(f"Heat map of accuracy in percent, {shape}: {'; '.join(said)}.")
    return figure


@styled()
def transfer_heatmap(frame: pd.DataFrame) -> Figure:
    """Draw how each expert (rows) changes the accuracy on each task (columns), in points; a frame marks its own task.

    Args:
        frame: as `accuracy.transfer` returns it.
    """
    figure, axes = _diverging(frame, "change of accuracy (points)", "{:+.0f}", cmap="RdBu", reach=100)
    axes.set(xlabel="tested on", ylabel="expert of")
    said = []
    for row, expert in enumerate(frame.index):
        changes = frame.loc[expert].to_dict()
        parts = []
        if expert in changes:
            corner = list(changes).index(expert) + 0.02, row + 0.02
            axes.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, edgecolor=INK, lw=1.2, zorder=3))
            parts.append(f"its own task by {changes.pop(expert):+.1f}")
        if changes:
            parts.append(f"the others by {sum(changes.values()) / len(changes):+.1f} on average")
        said.append(f"the expert of {expert} changes {' and '.join(parts)}")
    shape = f"{len(frame)} experts by {frame.shape[1]} tasks"
    figure.set_label(f"Heat map of the change of accuracy in points against zero-shot, {shape}: {'; '.join(said)}.")
    return figure


@styled()
def cosine_heatmap(geometry: "Geometry") -> Figure:
    """Draw the cosine between the task vectors of any two experts, and their lengths as a column beside it."""
    names, cosines, norms = list(geometry.names), geometry.cosines.numpy(), 100 * geometry.norms.numpy()
    # Each pair once: the map is its own mirror image, and the diagonal is 1.
    below = np.tril(np.ones_like(cosines, dtype=bool), -1)
    frame = pd.DataFrame(np.where(below, cosines, np.nan), index=names, columns=names)
    # What two experts share is seldom more than a tenth: the colours reach as far as the largest value.
    reach = float(np.nanmax(np.abs(frame.to_numpy()), initial=0.01))
    figure, axes = _diverging(frame, "cosine of two task vectors", "{:.2f}", cmap="PuOr_r", reach=reach)
    column(axes, 30, [f"{norm:.1f}" for norm in norms], "length (%)", first=0.5)
    said = f"{len(names)} task vectors, in percent of the base's length: " + ", ".join(
        f"{name} {norm:.1f}" for name, norm in zip(names, norms, strict=True)
    )
    pairs = sorted((cosines[a, b], f"{names[a]} and {names[b]}") for a, b in np.argwhere(np.isfinite(frame)))
    if pairs:
        (low, apart), (high, close) = pairs[0], pairs[-1]
        said += f". Cosines go from {low:.3f} ({apart}) to {high:.3f} ({close})"
    figure.set_label(f"Heat map of the cosines between task vectors. {said}.")
    return figure


@styled()
def pair_heatmap(frame: pd.DataFrame) -> Figure:
    """Draw what each task (rows) keeps of its expert's accuracy when it is merged with one other expert (columns).

    Args:
        frame: percent of the expert's accuracy, tasks by partners; the diagonal, and pairs not merged, are missing.

    Raises:
        KitError: no pair was merged.
    """
    values = frame.to_numpy(float)
    if np.isnan(values).all():
        raise KitError("The frame holds no pair of experts. Merge two experts or more with one another.")
    reach, means = max(5.0, float(np.nanmax(np.abs(values - 100)))), frame.mean(axis=1)
    figure, axes = _diverging(
        frame, "accuracy kept (% of the expert's)", "{:.0f}", cmap="RdBu", centre=100, reach=reach
    )
    axes.set(xlabel="merged with the expert of", ylabel="tested on")
    column(axes, 30, ["–" if np.isnan(mean) else f"{mean:.0f}" for mean in means], "mean", first=0.5)
    said = "; ".join(f"{name} keeps {mean:.1f} on average" for name, mean in means.dropna().items())
    row, partner = divmod(int(np.nanargmin(values)), values.shape[1])
    worst = f"least {values[row, partner]:.1f} ({frame.index[row]} with {frame.columns[partner]})"
    figure.set_label(f"Map of the accuracy kept in pairs, in percent of the expert's: {said}; {worst}.")
    return figure


@styled()
def coefficient_map(record: "Record") -> Figure:
    """Draw the coefficient of each expert (rows) for each tensor (columns); white is where all of them started."""
    frame, initial = coefficients(record), float(record.cell.parameters["initial"])
    least, most, means = frame.to_numpy().min(), frame.to_numpy().max(), frame.mean(axis=1)
    # The colours need room on both sides of the start, wherever that was.
    low, high = min(0.0, least, initial - 0.1), max(1.0, most, initial + 0.1)
    bar = {"ticks": [low, initial, high], "format": "{x:.2g}"}
    figure, axes = _heatmap(
        frame, "coefficient", height=1.2 + 0.28 * len(frame), cmap="PuOr_r", norm=TwoSlopeNorm(initial, low, high),
        linewidths=0, colorbar=bar,
    )  # fmt: skip
    parts = [(name, len(list(found))) for name, found in groupby(_parts(frame.columns))]
    ends = np.cumsum([0, *(size for _, size in parts)])
    for border in ends[1:-1]:
        axes.axvline(border, color=INK, linewidth=0.6)
    axes.set_xticks((ends[1:] + ends[:-1]) / 2, [name for name, _ in parts], rotation=0)
    axes.set(xlabel=f"{frame.shape[1]} tensors of the image encoder, from input to output", ylabel="expert")
    column(axes, 30, [f"{mean:.2f}" for mean in means], "mean", first=0.5)
    said = "; ".join(f"{name} {mean:.2f}" for name, mean in means.items())
    figure.set_label(
        f"Map of the merging coefficients of {record.title}, {len(frame)} experts by {frame.shape[1]} tensors. "
        f"All started at {initial:.2g} and ended between {least:.2f} and {most:.2f}. Means: {said}."
    )
    return figure


def _parts(tensors: Iterable[str]) -> list[str]:
    """Return for each tensor the part of the encoder that it belongs to, in few letters."""
    blocks = [block(tensor) for tensor in tensors]
    first = next((place for place, number in enumerate(blocks) if number is not None), len(blocks))
    word = "block " if len(set(blocks)) <= 7 else ""  # 12 or 24 words would not fit side by side: numbers do
    return [
        ("in" if place < first else "out") if number is None else f"{word}{number + 1}"
        for place, number in enumerate(blocks)
    ]


@styled()
def choice_map(record: "Record") -> Figure:
    """Draw `traces.choice_frame`; bold and above the line stand the vertices whose tasks make up the loss."""
    frame = choice_frame(record)
    rows, columns = frame.shape
    seen = [name for name in record.cell.adapt if name in frame.index]
    figure, axes = _heatmap(
        frame, "coefficient" if "inner" in record.trace else "share of tensors", "{:.2f}", cmap="Blues", vmin=0,
        height=max(1.8, 1.0 + 0.23 * rows), width=min(WIDTH, 2.6 + 0.46 * columns), vmax=max(1, frame.to_numpy().max()),
        linewidths=0.6, linecolor="#e4e4e4", blank=0.005,
    )  # fmt: skip
    axes.set_xticks(axes.get_xticks(), list(frame.columns), rotation=0, ha="center")
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in seen else "normal")
    if 0 < len(seen) < rows:
        axes.axhline(len(seen), color=INK, linewidth=1.2)
    axes.set(xlabel="iteration", ylabel="vertex")
    sums = frame.sum(axis=1)
    said = "; ".join(f"{name} {total:.2f}" for name, total in sums.items() if abs(total) >= 0.005) or "none"
    figure.set_label(
        f"Map of the vertices that {record.title} chose in {columns} iterations. Sums over all iterations: {said}. "
        f"{int((sums.abs() < 0.005).sum())} of {rows} vertices were never chosen."
    )
    return figure


def _diverging(
    frame: pd.DataFrame, label: str, number: str, *, cmap: str, reach: float, centre: float = 0
) -> tuple[Figure, Axes]:
    """Draw a map of square cells whose colours go from centre - reach to centre + reach, the centre in white."""
    side = min(0.5, (WIDTH - 2.2) / frame.shape[1])  # inches: what the labels and the colour bar leave
    height = 1.3 + max(side * len(frame), 2.0)
    return _heatmap(frame, label, number, height=height, cmap=cmap, vmin=centre - reach, vmax=centre + reach)


def _heatmap(
    frame: pd.DataFrame, label: str, number: str = "", *, height: float, width: float = WIDTH, blank: float = 0,
    colorbar: dict[str, Any] | None = None, **more: Any,
) -> tuple[Figure, Axes]:  # fmt: skip
    """Draw a frame as a heat map with `number.format` of each value in its cell, missing ones left white.

    Cell (r, c) lies between r and r + 1, c and c + 1. Values smaller than `blank` are not written; `label` stands at
    the colour bar, whose other options are `colorbar`; `more` goes to seaborn.
    """
    figure, axes = canvas(height, width)
    columns = frame.shape[1]
    texts = frame.map(lambda value: signed(number.format(value)) if number and abs(value) >= blank else "")
    longest = texts.map(len).to_numpy().max()
    sns.heatmap(
        frame, ax=axes, annot=texts.to_numpy() if number else None, fmt="",
        annot_kws={"size": 8 if columns <= 10 else 7 if longest <= 3 else 5.5}, xticklabels=True, yticklabels=True,
        # Many cells as a picture: as vectors they would take 100 times the bytes for a large encoder.
        rasterized=frame.size > 100, cbar_kws={"label": label, "pad": 0.015, "aspect": 30} | (colorbar or {}),
        **{"linewidths": 1, "linecolor": WHITE} | more,
    )  # fmt: skip
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=8 if columns <= 10 else 7)
    axes.set_xticks(axes.get_xticks(), list(frame.columns), rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="", ylabel="")
    return figure, axes
