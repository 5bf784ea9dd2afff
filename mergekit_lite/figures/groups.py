"""Marks in rows: what each method reaches in each group, measured here and published, in panels side by side."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mergekit_lite.errors import KitError
from mergekit_lite.figures.curves import looks, title
from mergekit_lite.figures.style import LOOKS, PALE, SPARE, WIDTH, Look, style

COLUMNS = ("panel", "row", "name", "value")


def group_dots(frame: pd.DataFrame, *, xlabel: str, zero: bool = False) -> Figure:
    """Draw a mark for each row and name, in one panel for each source of numbers.

    Panels share their rows and their axis: what was measured and what was published stand at the same height, on one
    scale, and are not mixed. The marks of a row lie one below the other, in the order of the legend.

    Args:
        frame: a row a mark: columns ``panel`` (whose numbers these are, its title), ``row`` (a group, from top to
            bottom), ``name`` (a method's name, or any text for the legend) and ``value``. A missing value leaves a gap.
        xlabel: what the value is, with its unit.
        zero: draw a line at zero, where the value is a difference.

    Raises:
        KitError: a column is missing, there is no value at all, or a panel has two values for one row and name.
    """
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns)) or "none"
        raise KitError(f"The frame has no column {', '.join(missing)}. Needed: {', '.join(COLUMNS)}; there: {there}.")
    shown = frame.dropna(subset=["value"])
    if shown.empty:
        raise KitError("The frame has no value: there is nothing to draw.")
    twice = shown[shown.duplicated(["panel", "row", "name"])]
    if not twice.empty:
        panel, row, name = twice.iloc[0][["panel", "row", "name"]]
        raise KitError(f"'{panel}' has two values of {name} in the row '{row}'. Give each mark once.")
    panels, rows, names = (list(dict.fromkeys(shown[column])) for column in COLUMNS[:3])
    drawn = _looks([str(name) for name in names])
    height = 0.16 + 0.075 * len(names)  # inches a row: marks of 5.5 points that touch, but hide nothing
    with style():
        figure = Figure(figsize=(WIDTH, 1.6 + height * len(rows)), layout="constrained")
        grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            _panel(axes, shown[shown["panel"] == panel], rows, drawn)
            axes.set_title(textwrap.fill(panel, 100 // len(panels)), fontsize=8)
            if zero:
                axes.axvline(0, color=PALE, linewidth=1)
            # As a number of letters, the label has to fit under its own panel.
            axes.set_xlabel(textwrap.fill(xlabel, 96 // len(panels)))
        grid[0].set_yticks(range(len(rows)), rows)
        grid[0].set_ylim(len(rows) - 0.5, -0.5)
        handles = [
            Line2D([], [], color=look.colour, marker=look.marker, linestyle="", markersize=6, label=title(name))
            for name, look in drawn.items()
        ]
        columns = 4 if max(len(title(name)) for name in drawn) < 22 else 3  # what fits below the panels
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)
    said = [f"{panel}: {_told(shown[shown['panel'] == panel])}" for panel in panels]
    figure.set_label(f"Marks in {len(rows)} rows, {xlabel}. {' '.join(said)}")
    return figure


def _looks(names: list[str]) -> dict[str, Look]:
    """Return how each of `names` is drawn; what is no method, among methods, takes no method's colour."""
    spare = iter(SPARE[1:])
    others = {name: next(spare, SPARE[0]) for name in names if name not in LOOKS}
    return {name: LOOKS.get(name) or others[name] for name in names} if len(others) < len(names) else looks(names)


def _panel(axes: Axes, marks: pd.DataFrame, rows: list[str], drawn: dict[str, Look]) -> None:
    shifts = np.linspace(-0.36, 0.36, len(drawn)) if len(drawn) > 1 else np.zeros(1)
    for (name, look), shift in zip(drawn.items(), shifts, strict=True):
        own = marks[marks["name"] == name]
        places = [rows.index(row) + shift for row in own["row"]]
        axes.plot(own["value"], places, look.marker, color=look.colour, markersize=5.5, markeredgewidth=0)
    for border in range(1, len(rows)):
        axes.axhline(border - 0.5, color="#c8c8c8", linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)


def _told(marks: pd.DataFrame) -> str:
    said = []
    for row, own in marks.groupby("row", sort=False):
        values = (f"{title(name)} {value:.1f}" for name, value in zip(own["name"], own["value"], strict=True))
        said.append(f"{' '.join(str(row).split())}: {', '.join(values)}")
    return "; ".join(said) + "."
