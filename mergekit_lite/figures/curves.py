"""Curves: any lines with bands and references, and what adaptation and Frank-Wolfe do step by step."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mergekit_lite.analysis.accuracy import shared_tasks
from mergekit_lite.analysis.traces import loss_per_task
from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import (
    PALE,
    WHITE,
    Look,
    canvas,
    check_columns,
    legend,
    look,
    looks,
    styled,
    written,
)  # fmt: skip
from mergekit_lite.figures.tables import title

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


@styled()
def lines(
    frame: pd.DataFrame,
    *,
    xlabel: str,
    ylabel: str,
    published: pd.DataFrame | None = None,
    beside: bool = False,
    references: Mapping[str, float] | None = None,
    log: bool = False,
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Draw curves, with a band where the frame has one, published curves and horizontal references beside them.

    Args:
        frame: one row per point: columns ``line`` (a method's name, or any text for the legend), ``x``, ``y``, and
            where there is a band ``low`` and ``high``.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        published: points of the same lines that others measured, columns ``line``, ``x`` and ``y``;
            ``published.attrs["label"]`` says whose they are. Drawn hollow and thin, in the line's colour.
        beside: draw the published points in a panel of their own instead, on the same y axis: where others had other
            models and other images, only the shapes compare.
        references: a method's name, or any text -> a level in the units of y.
        log: draw x on a logarithmic scale.
        ticks: values of x to write at the axis; None leaves it to matplotlib.

    Raises:
        KitError: a column is missing, there is no point at all, or `published` does not say whose it is.
    """
    check_columns(frame, "line", "x", "y")
    levels, label = dict(references or {}), ""
    if published is not None:
        check_columns(published, "line", "x", "y")
        label = published.attrs.get("label", "")
        if not label:
            raise KitError('Say whose the published points are: published.attrs["label"] = "..., ViT-B/32 (OC-8)".')
    theirs = [] if published is None else list(published["line"])
    drawn = looks([*frame["line"], *levels, *theirs])
    apart = beside and published is not None
    if apart:
        figure, (axes, other) = canvas(3.7, ncols=2, sharey=True, width_ratios=(1.7, 1))
        axes.set_title("measured here")
        other.set_title(f"published: {label}", wrap=True)
    else:
        figure, axes = canvas(3.5)
        other = axes
    said = [f"{title(name)} {_told(points)}" for name, points in _by_line(frame)]
    _draw(axes, frame, drawn)
    for name, level in levels.items():
        axes.axhline(level, label=title(name), **drawn[name].level)
        said.append(f"{title(name)} stays at {written(level)}")
    if published is not None:
        _draw(other, published, drawn, hollow=not apart)
        said += [f"published for {title(name)}: {_told(points)}" for name, points in _by_line(published)]
    for panel in figure.axes:
        if log:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
        if ticks is not None:
            panel.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
            panel.set_xticks([], minor=True)
        panel.set_xlabel(xlabel)
    axes.set_ylabel(textwrap.fill(ylabel, 36))  # letters that fit the height
    hollow = Line2D([], [], color=PALE, marker="o", markerfacecolor=WHITE, linewidth=0.8)
    legend(figure, {f"hollow: {label}": hollow} if label and not apart else None)
    figure.set_label(f"Curves of {ylabel} against {xlabel}: {'; '.join(said)}.")
    return figure


def _by_line(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), points) for name, points in frame.groupby("line", sort=False)]


def _draw(axes: Axes, frame: pd.DataFrame, drawn: Mapping[str, Look], *, hollow: bool = False) -> None:
    for name, points in _by_line(frame):
        # Of a line with many points every so many carry a marker: enough to tell lines apart in print.
        kind = drawn[name].line | {"markevery": max(1, len(points) // 8)}
        if hollow:
            kind |= {"markersize": 6, "markerfacecolor": WHITE, "linewidth": 0.8, "clip_on": False, "zorder": 3}
            if len(points) <= 2:  # two points are no curve: a line between them would say more than is known
                kind["linestyle"] = ""
        axes.plot(points["x"], points["y"], label=None if hollow else title(name), **kind)
        if {"low", "high"} <= set(points.columns):
            axes.fill_between(points["x"], points["low"], points["high"], color=kind["color"], alpha=0.15, linewidth=0)


def _told(points: pd.DataFrame) -> str:
    """Say in words where a line starts, ends and is highest."""
    first, last, top = points.iloc[0], points.iloc[-1], points.iloc[int(points["y"].argmax())]
    if len(points) == 1:
        return f"is {written(first['y'])} at {first['x']:.3g}"
    text = f"goes from {written(first['y'])} at {first['x']:.3g} to {written(last['y'])} at {last['x']:.3g}"
    inside = top["x"] not in (first["x"], last["x"])
    return text + (f", highest {written(top['y'])} at {top['x']:.3g}" if inside else "")


@styled()
def adaptation_curve(records: Iterable["Record"]) -> Figure:
    """Draw accuracy (%) against steps for the records with a curve, and below it the entropy that they minimise.

    Records without a curve are drawn as horizontal lines: task arithmetic, for instance, is where AdaMerging starts.

    Raises:
        KitError: no record has a curve.
    """
    records = list(records)
    if not any(record.curve for record in records):
        raise KitError("None of these records has a curve. Give a cell curve_every=25 (steps from one to the next).")
    tasks, said = shared_tasks(records), []
    figure, (above, below) = canvas(4.0, nrows=2, sharex=True, height_ratios=(2, 1))
    for record in records:
        drawn = look(record.cell.method)
        if not record.curve:
            above.axhline(record.average, label=record.title, **drawn.level)
            said.append(f"{record.title} stays at {record.average:.1f}")
            continue
        first, last, losses = record.curve[0], record.curve[-1], loss_per_task(record)
        averages = [point.average for point in record.curve]
        above.plot([point.step for point in record.curve], averages, label=record.title, **drawn.line)
        below.plot(losses, **drawn.level | {"linewidth": 1})
        text = f"{record.title} goes from {first.average:.1f} to {last.average:.1f} at step {last.step}"
        if len(losses):
            text += f" and its entropy from {losses.iloc[0]:.2f} to {losses.iloc[-1]:.2f} nats per image"
        said.append(text)
    above.set_ylabel("average accuracy (%)")
    below.set(xlabel="steps of adaptation", ylabel="entropy per\nimage (nats)")
    figure.align_ylabels()
    legend(figure)
    figure.set_label(f"Curves of the average accuracy over {len(tasks)} tasks in percent: {'; '.join(said)}.")
    return figure


@styled()
def over_budget(runs: Mapping[tuple[str, str], "Record"], references: Mapping[str, float] | None = None) -> Figure:
    """Draw accuracy (%) against the images that a method had been shown, a panel for each pool, on the same axes.

    What was still lowering its objective when its budget ended (`Record.converged`) ends in a hollow mark: there the
    curve says more than its last point.

    Args:
        runs: (panel, line) -> a record with a curve; a line is a method's name or any text.
        references: a method's name, or any text -> a level in percent, in all panels.

    Raises:
        KitError: a record has no curve.
    """
    bare = [record.title for record in runs.values() if len(record.curve) < 2]
    if bare:
        raise KitError(f"{bare[0]} has no curve. Give its cell curve_every=25 (steps from one point to the next).")
    tasks, panels = shared_tasks(runs.values()), list(dict.fromkeys(panel for panel, _ in runs))
    drawn, said = looks([*dict.fromkeys(line for _, line in runs), *(references or {})]), []
    figure, grid = canvas(3.6, ncols=len(panels), sharey=True, sharex=True)
    for panel, axes in zip(panels, np.atleast_1d(grid), strict=True):
        axes.set_title(panel)
        for (_, line), record in ((key, one) for key, one in runs.items() if key[0] == panel):
            averages = [point.average for point in record.curve]
            shown = [point.images / 1000 for point in record.curve]
            axes.plot(shown, averages, label=title(line), markevery=[-1], **drawn[line].line)
            if record.converged is False:
                axes.plot(shown[-1:], averages[-1:], **drawn[line].line | {"markerfacecolor": WHITE, "zorder": 3})
            text = (
                f"{panel}, {title(line)}: from {averages[0]:.1f} to {averages[-1]:.1f} % after {record.images} images"
            )
            said.append(text + (", still falling in loss" if record.converged is False else ""))
        for name, level in (references or {}).items():
            axes.axhline(level, label=title(name), **drawn[name].level)
    np.atleast_1d(grid)[0].set_ylabel("average accuracy (%)")
    figure.supxlabel("images shown to the method (thousands)", fontsize=9)
    legend(figure)
    figure.set_label(f"Curves of the average accuracy over {len(tasks)} tasks against images: {'; '.join(said)}.")
    return figure


@styled()
def frank_wolfe_trace(records: Mapping[str, "Record"]) -> Figure:
    """Draw accuracy, loss and duality gap of several runs against the iteration.

    Loss and gap are measured before each iteration, the accuracy before the first and after each, if the run has a
    curve. The loss is the mean over its tasks.

    Args:
        records: runs of hard or soft FW-Merging by what tells them apart.

    Raises:
        KitError: a record without such a trace.
    """
    strange = [record.title for record in records.values() if "gap" not in record.trace]
    if strange:
        raise KitError(f"{strange[0]} has no duality gap. Show hard or soft FW-Merging.")
    tasks, drawn, said = shared_tasks(records.values()), looks(list(records)), []
    figure, (above, middle, below) = canvas(5.0, nrows=3, sharex=True)
    for name, record in records.items():
        losses, gaps, line = loss_per_task(record).to_list(), record.trace["gap"], drawn[name].line
        middle.plot(losses, label=name, **line)
        below.plot(gaps, **line)
        text = f"{name}: loss from {losses[0]:.2f} to {losses[-1]:.2f}, gap from {gaps[0]:.2f} to {gaps[-1]:.2f}"
        if record.curve:
            averages = [point.average for point in record.curve]
            above.plot([point.step for point in record.curve], averages, **line)
            text += f", accuracy from {averages[0]:.1f} to {averages[-1]:.1f} %"
        said.append(text)
    above.set_ylabel("accuracy (%)")
    middle.set_ylabel("loss (nats)")
    below.set(xlabel="iterations done", ylabel="duality gap\n(nats)")
    below.axhline(0, color=PALE, linewidth=0.8)
    below.xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    legend(figure)
    figure.set_label(f"Curves of accuracy on {len(tasks)} tasks, loss and duality gap: {'; '.join(said)}.")
    return figure
