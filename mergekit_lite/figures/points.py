"""Points: one number against another, marks in rows, spreads around a mean, and arrows from before to after."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mergekit_lite.analysis.accuracy import rank_correlation
from mergekit_lite.analysis.costs import front
from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import (
    INK,
    PALE,
    WHITE,
    canvas,
    check_columns,
    column,
    in_rows,
    legend,
    look,
    looks,
    styled,
    written,
)  # fmt: skip
from mergekit_lite.figures.tables import title


@styled()
def scatter(frame: pd.DataFrame, *, xlabel: str, ylabel: str, diagonal: bool = False) -> Figure:
    """Draw points, each group in its own colour and marker; the alternative text tells the rank correlation.

    Args:
        frame: one row per point: columns ``group`` (a task or a method, for instance; one group needs no legend), ``x``
            and ``y``, and ``low`` and ``high`` where y is uncertain.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        diagonal: draw a dotted line where x and y are equal.

    Raises:
        KitError: a column is missing, or there is no point at all.
    """
    check_columns(frame, "group", "x", "y")
    drawn = looks([str(name) for name in frame["group"]])
    single = len(drawn) == len(frame)
    figure, axes = canvas(4.4 if diagonal else 3.6)
    for name, points in frame.groupby("group", sort=False):
        label = title(str(name)) if len(drawn) > 1 else None
        kind = drawn[str(name)].point
        axes.plot(points["x"], points["y"], label=label, markersize=8 if single else 5.5, alpha=0.9, **kind)
        if {"low", "high"} <= set(frame.columns):
            axes.vlines(points["x"], points["low"], points["high"], color=INK, linewidth=1)
    if diagonal:
        axes.axline((frame["x"].min(), frame["x"].min()), slope=1, linestyle=":", color=PALE, linewidth=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if len(drawn) > 1:
        legend(figure)
    groups = f" in {len(drawn)} groups ({', '.join(title(name) for name in drawn)})" if len(drawn) > 1 else ""
    if single and len(drawn) > 1:
        pairs = zip(drawn, frame["x"], frame["y"], strict=True)
        groups = f" ({'; '.join(f'{title(name)} {written(x)}, {written(y)}' for name, x, y in pairs)})"
    ranges = (f"{label} from {written(frame[axis].min())} to {written(frame[axis].max())}"
              for axis, label in (("x", xlabel), ("y", ylabel)))  # fmt: skip
    rho = rank_correlation(frame["x"], frame["y"])
    told = "" if pd.isna(rho) else f" Spearman's rank correlation is {rho:.2f}."
    figure.set_label(f"{len(frame)} points{groups}: {', '.join(ranges)}.{told}")
    return figure


@styled()
def cost_scatter(
    frame: pd.DataFrame, references: Mapping[str, float] | None = None, apart: Sequence[str] = ()
) -> Figure:
    """Draw accuracy (%) against seconds of merging, one point per method, with the Pareto front as a staircase.

    Args:
        frame: `costs.cost_frame`: columns ``name``, ``seconds`` and ``accuracy``.
        references: a method's name -> its accuracy, drawn as a horizontal line: it has no cost of merging.
        apart: names of methods that are drawn, but are no candidates for the front.

    Raises:
        KitError: a column is missing, or there is no point to draw.
    """
    check_columns(frame, "name", "seconds", "accuracy")
    best = front(frame[~frame["name"].isin(apart)])
    figure, axes = canvas(5.0)
    axes.set_xscale("log")
    for name, level in (references or {}).items():
        axes.axhline(level, label=title(name), **look(name).level)
    points = list(zip(map(str, frame["name"]), frame["seconds"], frame["accuracy"], strict=True))
    for name, seconds, accuracy in points:
        axes.plot(seconds, accuracy, markersize=8, zorder=3, label=title(name), **look(name).point)
    axes.margins(x=0.06)
    if len(best):
        right = axes.get_xlim()[1]
        axes.step(
            [*best["seconds"], right], [*best["accuracy"], best["accuracy"].iloc[-1]], where="post", color=INK,
            linewidth=1, zorder=2, label="front: nothing cheaper is as good",
        )  # fmt: skip
        axes.set_xlim(right=right)
    axes.set(xlabel="seconds of merging (logarithmic)", ylabel="average accuracy (%)")
    axes.xaxis.set_major_formatter("{x:g}")
    legend(figure)
    ordered = sorted(points, key=lambda point: point[1])
    said = [f"{title(name)} {accuracy:.1f} in {seconds:.3g} s" for name, seconds, accuracy in ordered]
    names = ", ".join(title(str(name)) for name in best["name"])
    figure.set_label(f"Points of average accuracy in percent against seconds: {'; '.join(said)}. Front: {names}.")
    return figure


@styled()
def group_dots(frame: pd.DataFrame, *, xlabel: str, zero: bool = False) -> Figure:
    """Draw a mark for each row and name, in one panel for each source of numbers.

    Panels share their rows and their axis: what was measured and what was published stand at the same height, on one
    scale, and are not mixed. The marks of a row lie one below the other, in the order of the legend.

    Args:
        frame: one row per mark: columns ``row`` (a group or a method, from top to bottom), ``name`` (a method's name,
            or any text for the legend), ``value``, and, where there are several panels, ``panel`` (whose numbers these
            are, its title). A missing value leaves a gap.
        xlabel: what the value is, with its unit.
        zero: draw a line at zero, where the value is a difference.

    Raises:
        KitError: a column is missing, there is no value at all, or a panel has two values for one row and name.
    """
    check_columns(frame, "row", "name", "value")
    shown = frame.dropna(subset=["value"])
    if shown.empty:
        raise KitError("The frame has no value: there is nothing to draw.")
    if "panel" not in shown.columns:
        shown = shown.assign(panel="")
    twice = shown[shown.duplicated(["panel", "row", "name"])]
    if not twice.empty:
        panel, row, name = twice.iloc[0][["panel", "row", "name"]]
        raise KitError(f"'{panel}' has two values of {name} in the row '{row}'. Give each mark once.")
    panels, rows, names = (list(dict.fromkeys(shown[column])) for column in ("panel", "row", "name"))
    drawn = looks([str(name) for name in names])
    # Marks of 5.5 points that touch, but hide nothing.
    figure, grid = canvas(1.6 + (0.16 + 0.075 * len(names)) * len(rows), ncols=len(panels), sharex=True, sharey=True,
                          squeeze=False)  # fmt: skip
    shifts = np.linspace(-0.36, 0.36, len(drawn)) if len(drawn) > 1 else np.zeros(1)
    said = []
    for axes, panel in zip(grid[0], panels, strict=True):
        in_rows(axes, [title(str(row)) for row in rows], lines=True)
        marks = shown[shown["panel"] == panel]
        for (name, kind), shift in zip(drawn.items(), shifts, strict=True):
            own = marks[marks["name"] == name]
            places = [rows.index(row) + shift for row in own["row"]]
            axes.plot(own["value"], places, label=title(name), markersize=5.5, **kind.point | {"markeredgewidth": 0})
        if zero:
            axes.axvline(0, color=PALE, linewidth=1)
        # As a number of letters, title and label have to fit their own panel.
        axes.set_title(textwrap.fill(panel, 100 // len(panels)))
        axes.set_xlabel(textwrap.fill(xlabel, 96 // len(panels)))
        told = []
        for row, own in marks.groupby("row", sort=False):
            values = (f"{title(name)} {value:.1f}" for name, value in zip(own["name"], own["value"], strict=True))
            told.append(f"{' '.join(title(str(row)).split())}: {', '.join(values)}")
        said.append(f"{panel}: " * bool(panel) + "; ".join(told) + ".")
    legend(figure)
    figure.set_label(f"Marks in {len(rows)} rows, {xlabel}. {' '.join(said)}")
    return figure


@styled()
def spread_dots(seeds: pd.DataFrame, images: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Draw, for each method, how far its accuracy moves with the seed and with the test images, around its mean.

    Args:
        seeds: columns ``name`` and ``accuracy`` (%), one row per method and seed.
        images: method -> standard deviation (points) over bootstrap samples of the test images, and the distances
            from the measured accuracy to the ends of an interval, (spread, low, high).

    Raises:
        KitError: a method of the one is missing in the other.
    """
    names = list(dict.fromkeys(seeds["name"]))
    if set(names) != set(images):
        there = f"seeds of {', '.join(names)}; images of {', '.join(images)}"
        raise KitError(f"Both spreads are needed for each method, but there are {there}.")
    found = seeds.groupby("name")["accuracy"].agg(["mean", "std", "size"]).loc[names]
    over = ["–" if pd.isna(std) else f"{std:.2f}" for std in found["std"]]  # one seed has no spread
    figure, axes = canvas(1.3 + 0.42 * len(names))
    in_rows(axes, [title(name) for name in names])
    for row, name in enumerate(names):
        _, low, high = images[name]
        axes.barh(row, high - low, 0.5, left=low, color=look(name).colour, alpha=0.25, linewidth=0)
        moved = seeds.loc[seeds["name"] == name, "accuracy"] - found.at[name, "mean"]
        axes.plot(moved, [row] * len(moved), markersize=7, clip_on=False, **look(name).point)
    column(axes, 36, [f"{mean:.1f}" for mean in found["mean"]], "mean", bold=True)
    column(axes, 92, over, "s.d. seeds")
    column(axes, 154, [f"{images[name][0]:.2f}" for name in names], "s.d. images")
    axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.set_xlabel("distance from the mean (points)")
    axes.locator_params(axis="x", nbins=6)
    legend(figure, {
        "one seed": Line2D([], [], color=PALE, marker="o", linestyle=""),
        "95 % of bootstrap samples of the test images": Patch(color=PALE, alpha=0.35),
    })  # fmt: skip
    said = [
        f"{title(name)} mean {one['mean']:.1f}, over {one['size']:.0f} seeds {told}, over images {images[name][0]:.2f}"
        for name, (_, one), told in zip(names, found.iterrows(), over, strict=True)
    ]
    figure.set_label(f"Average accuracy in percent and its standard deviations in points: {'; '.join(said)}.")
    return figure


@styled()
def arrows(frame: pd.DataFrame, *, xlabel: str) -> Figure:
    """Draw an arrow from before to after for each row and series.

    Args:
        frame: one row per arrow: columns ``row`` (a task, say), ``series`` (what changes), ``before`` and ``after``.
        xlabel: what changes, with its unit.

    Raises:
        KitError: a column is missing, or there is no arrow at all.
    """
    check_columns(frame, "row", "series", "before", "after")
    rows = list(dict.fromkeys(frame["row"]))
    drawn = looks([str(name) for name in frame["series"]])
    shifts = {name: 0.7 * ((place + 0.5) / len(drawn) - 0.5) for place, name in enumerate(drawn)}
    figure, axes = canvas(1.1 + 0.38 * len(rows))
    in_rows(axes, rows, lines=True)
    for one in frame.itertuples(index=False):
        colour, y = drawn[str(one.series)].colour, rows.index(one.row) + shifts[str(one.series)]
        axes.plot(one.before, y, marker="o", color=colour, markerfacecolor=WHITE, markersize=5)
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 2.5, "shrinkB": 0, "mutation_scale": 11}
        axes.annotate("", (one.after, y), (one.before, y), arrowprops=arrow)
    axes.plot(frame["after"], np.zeros(len(frame)), alpha=0)  # annotations do not count for the limits
    axes.set_xlabel(xlabel)
    handles = {title(name): Line2D([], [], color=kind.colour, marker=">") for name, kind in drawn.items()}
    hollow = Line2D([], [], color=INK, marker="o", markerfacecolor=WHITE, linestyle="")
    legend(figure, handles | {"before": hollow})
    said = []
    for row, own in frame.groupby("row", sort=False):
        parts = (f"{one.series} {one.before:.1f} to {one.after:.1f}" for one in own.itertuples(index=False))
        said.append(f"{row}: {', '.join(parts)}")
    figure.set_label(f"Arrows from before to after, {xlabel}. {'; '.join(said)}.")
    return figure
