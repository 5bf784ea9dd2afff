"""Figures of accuracies: bars, a heat map, curves over steps, and agreement with published averages."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mergekit_lite.analysis import published as reported
from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, PALE, WIDTH, cell, look, style
from mergekit_lite.figures.tables import shared_tasks
from mergekit_lite.methods import registry

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


def accuracy_bars(records: Sequence["Record"], published: pd.DataFrame | None = None) -> Figure:
    """Draw the average accuracy (%) of each record as a bar, with the published average as a diamond beside it.

    Args:
        records: cells that ran on the same evaluation tasks, drawn from top to bottom.
        published: rows of `published.published`, all of one family.
    """
    tasks = shared_tasks(records)
    theirs = [None if published is None else reported.average(published, record.cell.method) for record in records]
    with style():
        figure = Figure(figsize=(WIDTH, 0.95 + 0.34 * len(records)), layout="constrained")
        axes = figure.add_subplot()
        for row, (record, value) in enumerate(zip(records, theirs, strict=True)):
            drawn = look(record.cell.method)
            axes.barh(row, record.average, 0.68, color=drawn.colour, hatch=drawn.hatch, edgecolor="#ffffff", lw=0)
            cell(axes, 56, row, f"{record.average:.1f}", bold=True)
            if published is not None:
                cell(axes, 110, row, "–" if value is None else f"{value:.1f}")
        cell(axes, 56, -0.85, "measured", bold=True)
        if published is not None:
            cell(axes, 110, -0.85, "published")
            known = [(value, row) for row, value in enumerate(theirs) if value is not None]
            axes.plot(
                [value for value, _ in known], [row for _, row in known],
                "D", color="#ffffff", markeredgecolor=INK, markersize=6, clip_on=False,
                label=f"published: {reported.label(published)}",
            )  # fmt: skip
            figure.legend(loc="outside lower right", frameon=False, handletextpad=0.2)
        axes.set(xlim=(0, 100), ylim=(len(records) - 0.5, -0.5), yticks=range(len(records)))
        axes.set_yticklabels([record.title for record in records])
        axes.set_xlabel(f"top-1 accuracy, average over {len(tasks)} tasks (%)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    said = [
        f"{record.title} {record.average:.1f}" + ("" if value is None else f" (published {value:.1f})")
        for record, value in zip(records, theirs, strict=True)
    ]
    figure.set_label(f"Bars of the average accuracy over {len(tasks)} tasks in percent: {'; '.join(said)}.")
    return figure


def accuracy_heatmap(records: Sequence["Record"]) -> Figure:
    """Draw the accuracy (%) of each record (rows) on each task (columns), with the average as last column."""
    tasks = shared_tasks(records)
    values = np.array([[*record.accuracy.values(), record.average] for record in records])
    columns = [*tasks, "average"]
    digits, size = (0, 7) if len(tasks) > 10 else (1, 8)  # of many columns, each has room for two digits
    with style():
        figure = Figure(figsize=(WIDTH, 1.25 + 0.34 * len(records)), layout="constrained")
        axes = figure.add_subplot()
        sns.heatmap(
            values, ax=axes, annot=True, fmt=f".{digits}f", cmap="YlGnBu",
            vmin=np.floor(values.min() / 10) * 10, vmax=100,
            linewidths=1, linecolor="#ffffff", xticklabels=columns, yticklabels=[record.title for record in records],
            cbar_kws={"label": "top-1 accuracy (%)", "pad": 0.015, "aspect": 30}, annot_kws={"size": size},
        )  # fmt: skip
        axes.axvline(len(tasks), color="#ffffff", linewidth=5)
        axes.tick_params(length=0)
        axes.set_xticks(axes.get_xticks(), columns, rotation=30, ha="right", rotation_mode="anchor")
    said = []
    for record in records:
        weak, strong = (pick(record.accuracy, key=record.accuracy.__getitem__) for pick in (min, max))
        ends = f"{record.accuracy[weak]:.1f} ({weak}) to {record.accuracy[strong]:.1f} ({strong})"
        said.append(f"{record.title} from {ends}")
    shape = f"{len(records)} methods by {len(tasks)} tasks"
    figure.set_label(f"Heat map of accuracy in percent, {shape}: {'; '.join(said)}.")
    return figure


def adaptation_curve(records: Sequence["Record"]) -> Figure:
    """Draw accuracy (%) against steps for the records with a curve, and below it the entropy that they minimise.

    Records without a curve are drawn as horizontal lines: task arithmetic, for instance, is where AdaMerging starts.

    Raises:
        KitError: no record has a curve.
    """
    adapted = [record for record in records if record.curve]
    if not adapted:
        raise KitError("None of these records has a curve. Give a cell curve_every=25 (steps from one to the next).")
    still = [record for record in records if not record.curve]
    tasks = shared_tasks(records)
    with style():
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for record in still:
            drawn = look(record.cell.method)
            above.axhline(record.average, color=drawn.colour, linestyle=drawn.dash, linewidth=1.2, label=record.title)
        for record in adapted:
            drawn = look(record.cell.method)
            look_of: dict[str, Any] = {"color": drawn.colour, "linestyle": drawn.dash}
            above.plot(
                [point.step for point in record.curve], [point.average for point in record.curve],
                marker=drawn.marker, markersize=4, linewidth=1.6, label=record.title, **look_of,
            )  # fmt: skip
            below.plot(_per_image(record), linewidth=1, **look_of)
        above.set_ylabel("average accuracy (%)")
        below.set_ylabel("entropy per\nimage (nats)")
        below.set_xlabel("steps of adaptation")
        for axes in (above, below):
            axes.grid(color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=min(len(records), 3), frameon=False)
    said = []
    for record in adapted:
        first, last, losses = record.curve[0], record.curve[-1], _per_image(record)
        text = f"{record.title} goes from {first.average:.1f} to {last.average:.1f} at step {last.step}"
        if len(losses):
            text += f" and its entropy from {losses[0]:.2f} to {losses[-1]:.2f} nats per image"
        said.append(text)
    said += [f"{record.title} stays at {record.average:.1f}" for record in still]
    figure.set_label(f"Curves of the average accuracy over {len(tasks)} tasks in percent: {'; '.join(said)}.")
    return figure


def _per_image(record: "Record") -> np.ndarray:
    """Return the loss before each step; recorded is the sum over the tasks that were adapted to."""
    return np.array(record.trace["loss"]) / len(record.cell.adapt or record.cell.pool)


def agreement_frame(ours: Mapping[str, tuple[float, float]], published: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each method that has a published average: columns published, mean, std, all in percent.

    Args:
        ours: method name -> mean and standard deviation over seeds.
        published: rows of `published.published`, all of one family.
    """
    rows = {name: (reported.average(published, name), *values) for name, values in ours.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["published", "mean", "std"]).dropna()
    frame.attrs["label"] = reported.label(published)
    return frame


def agreement(frame: pd.DataFrame) -> Figure:
    """Draw our averages with their spread against the published ones, one point a method; see `agreement_frame`."""
    with style():
        figure = Figure(figsize=(WIDTH * 0.75, WIDTH * 0.6), layout="constrained")
        axes = figure.add_subplot()
        low, high = (bound(frame[["published", "mean"]].to_numpy().ravel()) for bound in (min, max))
        axes.plot([low - 5, high + 5], [low - 5, high + 5], ":", color=PALE, lw=1)
        told = []
        for name, (theirs, mean, std) in frame.iterrows():
            drawn = look(str(name))
            axes.errorbar(theirs, mean, std, fmt=drawn.marker, color=drawn.colour, ecolor=INK, capsize=3, ms=8)
            title = registry.get(str(name)).title
            axes.annotate(title, (theirs, mean), xytext=(8, -10), textcoords="offset points", fontsize=8)
            told.append(f"{title} {theirs:.1f} and {mean:.1f}")
        axes.set(
            xlabel=f"published average (%), {frame.attrs['label']}", ylabel="our average (%), with spread over seeds"
        )
        axes.margins(x=0.16)
    figure.set_label(f"Published and our average of each method, in percent: {'; '.join(told)}.")
    return figure
