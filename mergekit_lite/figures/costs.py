"""Figures of cost and trust: accuracy against seconds with its front, and two kinds of spread side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mergekit_lite.analysis.costs import front
from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, PALE, WIDTH, cell, look, style
from mergekit_lite.methods import registry


def cost_scatter(
    frame: pd.DataFrame, references: Mapping[str, float] | None = None, apart: Sequence[str] = ()
) -> Figure:
    """Draw accuracy (%) against seconds of merging, a point a method, with the Pareto front as a staircase.

    Args:
        frame: `costs.cost_frame`: columns ``name``, ``seconds`` and ``accuracy``.
        references: a method's name -> its accuracy, drawn as a horizontal line: it has no cost of merging.
        apart: names of methods that are drawn, but are no candidates for the front.

    Raises:
        KitError: there is no point to draw.
    """
    if frame.empty:
        raise KitError("There is no point to draw. Give one row for each method.")
    levels = dict(references or {})
    best = front(frame[~frame["name"].isin(apart)])
    with style():
        figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for name, level in levels.items():
            drawn = look(name)
            axes.axhline(level, color=drawn.colour, linestyle=drawn.dash, linewidth=1.1, label=registry.get(name).title)
        points = list(zip(map(str, frame["name"]), frame["seconds"], frame["accuracy"], strict=True))
        for name, seconds, accuracy in points:
            drawn = look(name)
            axes.plot(
                seconds, accuracy, drawn.marker, color=drawn.colour, markersize=8, linestyle="", zorder=3,
                label=registry.get(name).title, markeredgecolor="#ffffff", markeredgewidth=0.5,
            )  # fmt: skip
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
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    ordered = sorted(points, key=lambda point: point[1])
    said = [f"{registry.get(name).title} {accuracy:.1f} in {seconds:.3g} s" for name, seconds, accuracy in ordered]
    names = ", ".join(registry.get(str(name)).title for name in best["name"])
    figure.set_label(f"Points of average accuracy in percent against seconds: {'; '.join(said)}. Front: {names}.")
    return figure


def spread_dots(seeds: pd.DataFrame, images: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Draw, for each method, how far its accuracy moves with the seed and with the test images, around its mean.

    Args:
        seeds: columns ``name`` and ``accuracy`` (%), a row for each method and seed.
        images: method -> standard deviation (points) over bootstrap samples of the test images, and the distances
            from the measured accuracy to the ends of an interval, (spread, low, high).

    Raises:
        KitError: a method of the one is missing in the other.
    """
    names = list(dict.fromkeys(seeds["name"]))
    if set(names) != set(images):
        there = f"seeds of {', '.join(names)}; images of {', '.join(images)}"
        raise KitError(f"Both spreads are needed for each method, but there are {there}.")
    said = []
    with style():
        figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        for row, name in enumerate(names):
            drawn, values = look(name), seeds.loc[seeds["name"] == name, "accuracy"]
            spread, low, high = images[name]
            over = float(values.std()) if len(values) > 1 else float("nan")
            axes.barh(row, high - low, 0.5, left=low, color=drawn.colour, alpha=0.25, linewidth=0)
            drawn_as: dict[str, Any] = {"color": drawn.colour, "marker": drawn.marker, "markeredgecolor": "#ffffff"}
            axes.plot(
                values - values.mean(), [row] * len(values), linestyle="", markersize=7, markeredgewidth=0.6,
                clip_on=False, **drawn_as,
            )  # fmt: skip
            told = "–" if pd.isna(over) else f"{over:.2f}"
            for place, text in ((36, f"{values.mean():.1f}"), (92, told), (154, f"{spread:.2f}")):
                cell(axes, place, row, text, bold=place == 36)
            title = registry.get(name).title
            said.append(f"{title} mean {values.mean():.1f}, over {len(values)} seeds {told}, over images {spread:.2f}")
        for place, text in ((36, "mean"), (92, "s.d. seeds"), (154, "s.d. images")):
            cell(axes, place, -0.85, text)
        axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        axes.set(ylim=(len(names) - 0.5, -0.6), yticks=range(len(names)))
        axes.set_yticklabels([registry.get(name).title for name in names])
        axes.set_xlabel("distance from the mean (points)")
        axes.locator_params(axis="x", nbins=6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        handles = [
            Line2D([], [], color=PALE, marker="o", linestyle="", label="one seed"),
            Patch(color=PALE, alpha=0.35, label="95 % of bootstrap samples of the test images"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    figure.set_label(f"Average accuracy in percent and its standard deviations in points: {'; '.join(said)}.")
    return figure
