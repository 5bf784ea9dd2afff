"""Figures over pools: accuracy against the number of models, memory against it, and pools with broken experts."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, PALE, WIDTH, Look, look, style
from mergekit_lite.methods import registry

KINDS = (
    Look("#222222", "o", "", "-"),
    Look("#0072B2", "s", "", "-"),
    Look("#E69F00", "D", "", "-"),
    Look("#CC79A7", "^", "", "-"),
    Look("#009E73", "v", "", "-"),
    Look("#D55E00", "X", "", "-"),
)
"""How kinds of pools are told apart, in their order."""


def pool_curves(ours: pd.DataFrame, theirs: pd.DataFrame | None = None, *, added: str, evaluated: str) -> Figure:
    """Draw accuracy (%) against the number of models added to a pool, and the published curves in a smaller panel.

    Args:
        ours: columns ``name`` (a method), ``added`` and ``accuracy``, a row for each point.
        theirs: `published.scaling`, in a panel of its own: other models, other images, so the shapes are compared.
        added: what was added, for the axis: "irrelevant experts".
        evaluated: where the accuracy was measured: "the same 4 tasks".

    Raises:
        KitError: there is no point to draw.
    """
    if ours.empty:
        raise KitError("There is no point to draw. Give one row for each method and number of models.")
    with style():
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        if theirs is None:
            left, panels = figure.add_subplot(), []
        else:
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1))
            _curves(right, theirs)
            right.set_title(textwrap.fill(f"published: {theirs.attrs['label']}", 36), fontsize=7.5)
            panels = [right]
        _curves(left, ours)
        left.set_title("measured here", fontsize=7.5)
        left.set_ylabel(f"top-1 accuracy, average\nover {evaluated} (%)")
        for axes in (left, *panels):
            axes.set(ylim=(0, 100), xlabel=f"{added} added")
            axes.grid(color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
        shown = {
            label: handle
            for axes in (left, *panels)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    said = [_ends(ours, "measured")] + ([] if theirs is None else [_ends(theirs, theirs.attrs["label"])])
    figure.set_label(f"Curves of accuracy in percent over {evaluated} against the {added} added. {' '.join(said)}")
    return figure


def _curves(axes: Axes, frame: pd.DataFrame) -> None:
    for name, points in frame.dropna(subset=["name"]).groupby("name", sort=False):
        drawn, points = look(str(name)), points.sort_values("added")
        look_of: dict[str, Any] = {"color": drawn.colour, "linestyle": drawn.dash, "marker": drawn.marker}
        axes.plot(
            points["added"], points["accuracy"], markersize=4.5, linewidth=1.6, label=registry.get(str(name)).title,
            **look_of,
        )  # fmt: skip
    counts = sorted(set(frame["added"]))
    axes.set_xticks(counts if len(counts) <= 6 else counts[::2])


def _ends(frame: pd.DataFrame, where: str) -> str:
    said = []
    for name, points in frame.dropna(subset=["name"]).groupby("name", sort=False):
        points = points.sort_values("added")
        first, last = points.iloc[0], points.iloc[-1]
        ends = f"{first['accuracy']:.1f} at {first['added']:.0f} to {last['accuracy']:.1f} at {last['added']:.0f}"
        said.append(f"{registry.get(str(name)).title} from {ends}")
    return f"In {where}: {'; '.join(said)}." if where != "measured" else f"Measured: {'; '.join(said)}."


def memory_curves(frame: pd.DataFrame, model_mib: float) -> Figure:
    """Draw peak memory (MiB) against the size of the pool, above what the smallest pool of the same method took.

    Args:
        frame: columns ``name`` (a method), ``pool`` (number of experts) and ``mib``.
        model_mib: size of one set of weights: a dotted line shows what a pool takes that is held as a whole.
    """
    with style():
        figure = Figure(figsize=(WIDTH * 0.85, 3.2), layout="constrained")
        axes = figure.add_subplot()
        said = []
        for name, points in frame.groupby("name", sort=False):
            drawn, points = look(str(name)), points.sort_values("pool")
            more = points["mib"] - points["mib"].iloc[0]
            title = registry.get(str(name)).title
            axes.plot(
                points["pool"], more, color=drawn.colour, linestyle=drawn.dash, marker=drawn.marker, markersize=4.5,
                linewidth=1.6, label=title,
            )  # fmt: skip
            said.append(f"{title} {points['mib'].iloc[0]:.0f} MiB, then {more.iloc[-1]:+.0f}")
        sizes = np.array(sorted(set(frame["pool"])))
        axes.plot(sizes, (sizes - sizes[0]) * model_mib, ":", color=INK, linewidth=1.2, label="the added experts alone")
        axes.axhline(0, color=PALE, linewidth=0.8)
        axes.set_xticks(sizes)
        axes.set_xlabel("experts in the pool")
        axes.set_ylabel("peak memory above that of\nthe smallest pool (MiB)")
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    added = f"{(sizes[-1] - sizes[0]) * model_mib:.0f} MiB"
    figure.set_label(
        f"Curves of peak memory for {sizes[0]} to {sizes[-1]} experts: {'; '.join(said)}. "
        f"The added experts alone take {added}."
    )
    return figure


def pool_dots(frame: pd.DataFrame, evaluated: str) -> Figure:
    """Draw the accuracy (%) of each method (rows, by name) with each kind of pool (columns), one mark each.

    Raises:
        KitError: more kinds than can be told apart.
    """
    if frame.shape[1] > len(KINDS):
        raise KitError(
            f"{frame.shape[1]} kinds of pools cannot be told apart in one figure. Show {len(KINDS)} at most."
        )
    with style():
        figure = Figure(figsize=(WIDTH, 1.5 + 0.5 * len(frame)), layout="constrained")
        axes = figure.add_subplot()
        shifts: Sequence[float] = np.linspace(-0.26, 0.26, frame.shape[1]).tolist()
        for (kind, values), drawn, shift in zip(frame.items(), KINDS, shifts, strict=False):
            axes.plot(
                values.to_numpy(), np.arange(len(frame)) + shift, drawn.marker, color=drawn.colour, markersize=6,
                label=str(kind),
            )  # fmt: skip
        titles = [registry.get(str(name)).title for name in frame.index]
        axes.set_yticks(range(len(frame)), titles)
        axes.set_ylim(len(frame) - 0.5, -0.5)
        for row in range(1, len(frame)):
            axes.axhline(row - 0.5, color="#e4e4e4", linewidth=0.7)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"top-1 accuracy, average over {evaluated} (%)")
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    said = []
    for title, row_values in zip(titles, frame.to_numpy(dtype=float), strict=True):
        pairs = zip(frame.columns, row_values, strict=True)
        said.append(f"{title}: " + ", ".join(f"{kind} {value:.1f}" for kind, value in pairs))
    figure.set_label(f"Accuracy in percent over {evaluated} by kind of pool. {'; '.join(said)}.")
    return figure
