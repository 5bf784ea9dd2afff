"""Figures of one number against another: curves with bands, points in groups, and arrows from before to after."""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, LOOKS, PALE, WIDTH, Look, style
from mergekit_lite.methods import registry

# For what is no method (tasks, batch sizes): Okabe and Ito's colours, each with a marker and a dash of its own.
SERIES = (
    Look("#0072B2", "o", "", "-"),
    Look("#E69F00", "D", "", (0, (4, 1.5))),
    Look("#009E73", "^", "", (0, (5, 1, 1, 1))),
    Look("#CC79A7", "X", "", (0, (2, 1))),
    Look("#56B4E9", "v", "", "-."),
    Look("#D55E00", "s", "", (0, (6, 2))),
    Look("#882255", "P", "", (0, (1, 1))),
    Look("#6f6f6f", "d", "", (0, (3, 1, 1, 1, 1, 1))),
)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return how each of `names` is drawn: methods as everywhere, others in order, in colours that are still free."""
    others = [name for name in dict.fromkeys(names) if name not in LOOKS]
    taken = {LOOKS[name].colour for name in names if name in LOOKS}
    free = [look for look in SERIES if look.colour not in taken] or SERIES
    ordered = dict(zip(others, islice(cycle(free), len(others)), strict=True))
    return {name: LOOKS.get(name) or ordered[name] for name in dict.fromkeys(names)}


def lines(
    frame: pd.DataFrame,
    *,
    xlabel: str,
    ylabel: str,
    published: pd.DataFrame | None = None,
    references: Mapping[str, float] | None = None,
    log: bool = False,
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Draw curves, with a band where the frame has one, published curves and horizontal references beside them.

    Args:
        frame: a row a point: columns ``line`` (a method's name, or any text for the legend), ``x``, ``y``, and where
            there is a band ``low`` and ``high``.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        published: points of the same lines that others measured, columns ``line``, ``x`` and ``y``;
            ``published.attrs["label"]`` says whose they are. Drawn hollow and thin, in the line's colour.
        references: a method's name, or any text -> a level in the units of y.
        log: draw x on a logarithmic scale.
        ticks: values of x to write at the axis; None leaves it to matplotlib.

    Raises:
        KitError: a column is missing, there is no point at all, or `published` does not say whose it is.
    """
    _check(frame, ("line", "x", "y"))
    levels = dict(references or {})
    if published is not None:
        _check(published, ("line", "x", "y"))
        if not published.attrs.get("label"):
            raise KitError('Say whose the published points are: published.attrs["label"] = "..., ViT-B/32 (OC-8)".')
    theirs = [] if published is None else list(published["line"])
    drawn = looks([*frame["line"], *levels, *theirs])
    with style():
        figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
        axes = figure.add_subplot()
        said = []
        for name, points in frame.groupby("line", sort=False):
            look, text = drawn[str(name)], title(str(name))
            _curve(axes, points, look, text)
            said.append(f"{text} {_told(points)}")
        for name, level in levels.items():
            look = drawn[name]
            axes.axhline(level, color=look.colour, linestyle=look.dash, linewidth=1.2, label=title(name))
        if published is not None:
            for name, points in published.groupby("line", sort=False):
                _hollow(axes, points, drawn[str(name)])
                said.append(f"published for {title(str(name))}: {_told(points)}")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        if ticks is not None:
            axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _finish(figure, axes, None if published is None else str(published.attrs["label"]))
    said += [f"{title(name)} stays at {_number(level)}" for name, level in levels.items()]
    figure.set_label(f"Curves of {ylabel} against {xlabel}: {'; '.join(said)}.")
    return figure


def _curve(axes: Axes, points: pd.DataFrame, look: Look, text: str) -> None:
    # Of a line with many points every so many carry a marker: enough to tell lines apart in print.
    every = max(1, len(points) // 8)
    drawn: dict[str, Any] = {"color": look.colour, "linestyle": look.dash, "marker": look.marker, "markevery": every}
    axes.plot(points["x"], points["y"], markersize=4.5, linewidth=1.6, label=text, **drawn)
    if {"low", "high"} <= set(points.columns):
        axes.fill_between(points["x"], points["low"], points["high"], color=look.colour, alpha=0.15, linewidth=0)


def _hollow(axes: Axes, points: pd.DataFrame, look: Look) -> None:
    every = max(1, len(points) // 8)
    # Two points are no curve: a line between them would say more than is known.
    dash = look.dash if len(points) > 2 else ""
    drawn: dict[str, Any] = {"color": look.colour, "linestyle": dash, "marker": look.marker, "markevery": every}
    axes.plot(
        points["x"], points["y"], markersize=6, markerfacecolor="#ffffff", linewidth=0.8, clip_on=False, zorder=3,
        **drawn,
    )  # fmt: skip


def _told(points: pd.DataFrame) -> str:
    """Say in words where a line starts, ends and is highest."""
    first, last, top = points.iloc[0], points.iloc[-1], points.iloc[int(points["y"].argmax())]
    if len(points) == 1:
        return f"is {_number(first['y'])} at {first['x']:.3g}"
    text = f"goes from {_number(first['y'])} at {first['x']:.3g} to {_number(last['y'])} at {last['x']:.3g}"
    inside = top["x"] not in (first["x"], last["x"])
    return text + (f", highest {_number(top['y'])} at {top['x']:.3g}" if inside else "")


def scatter(frame: pd.DataFrame, *, xlabel: str, ylabel: str) -> Figure:
    """Draw points, each group in its own colour and marker; the alternative text tells the rank correlation.

    Args:
        frame: a row a point: columns ``group`` (a task, for instance; one group needs no legend), ``x`` and ``y``.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.

    Raises:
        KitError: a column is missing, or there is no point at all.
    """
    _check(frame, ("group", "x", "y"))
    drawn = looks([str(name) for name in frame["group"]])
    with style():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for name, points in frame.groupby("group", sort=False):
            look, every = drawn[str(name)], len(drawn) > 1
            axes.plot(
                points["x"], points["y"], look.marker, markersize=5.5, color=look.colour, alpha=0.85,
                markeredgewidth=0, label=title(str(name)) if every else None,
            )  # fmt: skip
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _finish(figure, axes, None)
    groups = f" in {len(drawn)} groups ({', '.join(title(name) for name in drawn)})" if len(drawn) > 1 else ""
    ranges = (f"{label} from {_number(frame[axis].min())} to {_number(frame[axis].max())}"
              for axis, label in (("x", xlabel), ("y", ylabel)))  # fmt: skip
    rho = rank_correlation(frame["x"], frame["y"])
    told = "" if pd.isna(rho) else f" Spearman's rank correlation is {rho:.2f}."
    figure.set_label(f"{len(frame)} points{groups}: {', '.join(ranges)}.{told}")
    return figure


def rank_correlation(one: "pd.Series[Any]", other: "pd.Series[Any]") -> float:
    """Return Spearman's rank correlation: 1 where both put everything into the same order, -1 in the opposite one."""
    return float(one.rank().corr(other.rank()))


def arrows(frame: pd.DataFrame, *, xlabel: str) -> Figure:
    """Draw an arrow from before to after for each row and series.

    Args:
        frame: a row an arrow: columns ``row`` (a task, say), ``series`` (what changes), ``before`` and ``after``.
        xlabel: what changes, with its unit.

    Raises:
        KitError: a column is missing, or there is no arrow at all.
    """
    _check(frame, ("row", "series", "before", "after"))
    rows = list(dict.fromkeys(frame["row"]))
    drawn = looks([str(name) for name in frame["series"]])
    places = {name: (place + 0.5) / len(drawn) - 0.5 for place, name in enumerate(drawn)}
    with style():
        figure = Figure(figsize=(WIDTH, 1.1 + 0.38 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for _, one in frame.iterrows():
            look, y = drawn[one["series"]], rows.index(one["row"]) + 0.7 * places[one["series"]]
            axes.plot(one["before"], y, marker="o", color=look.colour, markerfacecolor="#ffffff", markersize=5)
            axes.annotate(
                "", (one["after"], y), (one["before"], y),
                arrowprops={"arrowstyle": "-|>", "color": look.colour, "lw": 1.5, "shrinkA": 2.5, "shrinkB": 0,
                            "linestyle": "-", "mutation_scale": 11},
            )  # fmt: skip
        handles = [Line2D([], [], color=look.colour, marker=">", label=title(name)) for name, look in drawn.items()]
        handles.append(Line2D([], [], color=INK, marker="o", markerfacecolor="#ffffff", linestyle="", label="before"))
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
        ends = [*frame["before"], *frame["after"]]
        room = 0.03 * max(max(ends) - min(ends), 1.0)
        axes.set(xlim=(min(ends) - room, max(ends) + room), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
        axes.set_yticklabels(rows)
        axes.set_xlabel(xlabel)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        for border in range(1, len(rows)):
            axes.axhline(border - 0.5, color="#e4e4e4", linewidth=0.7)
    said = []
    for row in rows:
        parts = [f"{one['series']} {one['before']:.1f} to {one['after']:.1f}"
                 for _, one in frame[frame["row"] == row].iterrows()]  # fmt: skip
        said.append(f"{row}: {', '.join(parts)}")
    figure.set_label(f"Arrows from before to after, {xlabel}. {'; '.join(said)}.")
    return figure


def title(name: str) -> str:
    """Return the title of the method called `name`, or the name itself if no method is called so."""
    return next((info.title for info in registry.all_methods() if info.name == name), name)


def _finish(figure: Figure, axes: Axes, label: str | None) -> None:
    """Add the grid, and a legend above the axes if there is something to tell apart."""
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    handles, texts = axes.get_legend_handles_labels()
    if label is not None:
        handles.append(Line2D([], [], color=PALE, marker="o", markerfacecolor="#ffffff", linewidth=0.8))
        texts.append(f"hollow: {label}")
    if not handles:
        return
    figure.legend(handles, texts, loc="outside upper left", ncols=_columns(texts), frameon=False)


def _columns(texts: Sequence[str], room: int = 105) -> int:
    """Return how many columns a legend may have: the text column holds about 105 letters, a handle is as wide as 9."""
    for columns in range(len(texts), 1, -1):
        # As matplotlib fills them: downwards, and the first columns take what does not divide.
        parts = np.array_split(np.array([len(text) + 9 for text in texts]), columns)
        if sum(part.max() for part in parts) <= room:
            return columns
    return 1


def _check(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns)) or "none"
        raise KitError(f"The frame has no column {', '.join(missing)}. Needed: {', '.join(columns)}; there: {there}.")
    if frame.empty:
        raise KitError("The frame has no row: there is nothing to draw.")


def _number(value: float) -> str:
    """Write a value with as many digits as a reader needs: percent with one, coefficients with three."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
