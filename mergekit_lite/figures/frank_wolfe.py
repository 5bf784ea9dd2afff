"""Figures of Frank-Wolfe: what the oracle compares, what it picks, how loss and gap fall, and variants side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, PALE, WIDTH, Look, cell, look, style
from mergekit_lite.figures.tables import shared_tasks

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record

RUNS = (
    Look("#332288", "s", "", "--"),
    Look("#D55E00", "o", "", "-"),
    Look("#009E73", "^", "", "-."),
    Look("#E69F00", "D", "", ":"),
    Look("#56B4E9", "v", "", (0, (3, 1, 1, 1, 1, 1))),
)
"""How runs of one method are told apart, in their order."""


def choice_frame(record: "Record") -> pd.DataFrame:
    """Return how much of each iteration's step went to each vertex: a row a vertex, a column an iteration (from 1).

    Of a hard step that is the share of the tensors, 1 for a whole model; of a soft step the coefficient that was
    learned, averaged over tensors. The vertices whose tasks make up the loss stand first.

    Raises:
        KitError: the record has no such trace.
    """
    trace = record.trace
    if "chosen" not in trace:
        raise KitError(f"The record of {record.title} says nothing of vertices. Show hard or soft FW-Merging.")
    seen = record.cell.adapt
    rows = [*(name for name in seen if name in trace["vertices"])]
    rows += [name for name in trace["vertices"] if name not in rows]
    count = len(trace["tensors"])
    frame = pd.DataFrame(0.0, index=rows, columns=range(1, len(trace["chosen"]) + 1))
    for step, picked in enumerate(trace["chosen"]):
        hard = "inner" not in trace
        picks = [picked] if hard else picked
        coefficients = [[1.0]] if hard else trace["inner"][step]["coefficients"]
        for pick, values in zip(picks, coefficients, strict=True):
            vertices = [pick] * count if not isinstance(pick, list) else pick
            weights = values * count if len(values) == 1 else values
            for vertex, weight in zip(vertices, weights, strict=True):
                if vertex is not None:
                    frame.loc[vertex, step + 1] += weight / count
    return frame


def choice_map(record: "Record") -> Figure:
    """Draw `choice_frame`; bold and above the line stand the vertices whose tasks make up the loss."""
    frame = choice_frame(record)
    values, seen = frame.to_numpy(), [name for name in record.cell.adapt if name in frame.index]
    rows, columns = values.shape
    with style():
        width = min(WIDTH, 2.6 + 0.46 * columns)
        figure = Figure(figsize=(width, max(1.8, 1.0 + 0.23 * rows)), layout="constrained")
        axes = figure.add_subplot()
        high = max(1.0, float(values.max()))
        drawn = axes.imshow(values, cmap="Blues", vmin=0, vmax=high, aspect="auto", interpolation="none")
        for row, column in zip(*np.nonzero(np.abs(values) >= 0.005), strict=True):
            value = float(values[row, column])
            ink = "#ffffff" if value > 0.6 * high else INK
            text = f"{value:.2f}".replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
        axes.set_xticks(range(columns), [str(name) for name in frame.columns])
        axes.set_yticks(range(rows), list(frame.index))
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in seen else "normal")
        axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="#e4e4e4", linewidth=0.6)
        if 0 < len(seen) < rows:
            axes.axhline(len(seen) - 0.5, color=INK, linewidth=1.2)
        axes.tick_params(which="both", length=0, labelsize=8)
        axes.set_xlabel("iteration")
        axes.set_ylabel("vertex")
        bar = figure.colorbar(drawn, ax=axes, pad=0.02, aspect=30)
        bar.set_label("coefficient" if "inner" in record.trace else "share of tensors")
        bar.outline.set_visible(False)
    sums = frame.sum(axis=1)
    said = "; ".join(f"{name} {total:.2f}" for name, total in sums.items() if abs(total) >= 0.005) or "none"
    figure.set_label(
        f"Map of the vertices that {record.title} chose in {columns} iterations. Sums over all iterations: {said}. "
        f"{int((sums.abs() < 0.005).sum())} of {rows} vertices were never chosen."
    )
    return figure


def descents(record: "Record", iteration: int = 1) -> pd.Series:
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
    lowest = min(first.values())
    gap = record.trace["gap"][iteration - 1]
    return pd.Series({name: gap + lowest - score for name, score in first.items()}).sort_values(ascending=False)


def descent_bars(record: "Record", iteration: int = 1) -> Figure:
    """Draw `descents`, largest first: dark for the experts of the tasks in the loss, pale for all others."""
    promises, seen = descents(record, iteration), set(record.cell.adapt)
    with style():
        figure = Figure(figsize=(WIDTH * 0.8, 1.0 + 0.21 * len(promises)), layout="constrained")
        axes = figure.add_subplot()
        for inside, colour, hatch, text in (
            (True, "#332288", "", "expert of a task in the loss"),
            (False, "#c9c3dd", "//", "expert of another task"),
        ):
            rows = [row for row, name in enumerate(promises.index) if (name in seen) is inside]
            if rows:
                axes.barh(
                    rows, promises.to_numpy()[rows], 0.7, color=colour, hatch=hatch, edgecolor="#ffffff", lw=0,
                    label=text,
                )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(promises)), list(promises.index))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("promised decrease of the loss on the way there (nats)")
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        for row, value in enumerate(promises):
            cell(axes, 34, row, f"{value:+.2f}".replace("-", "−"))
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    said = "; ".join(f"{name} {value:+.2f}" for name, value in promises.items())
    figure.set_label(f"Bars of the promised decrease of the loss towards each expert, in nats: {said}.")
    return figure


def frank_wolfe_trace(records: Mapping[str, "Record"]) -> Figure:
    """Draw accuracy, loss and duality gap of several runs against the iteration.

    Loss and gap are measured before each iteration, the accuracy before the first and after each, if the run has a
    curve. The loss is the mean over its tasks.

    Args:
        records: runs of hard or soft FW-Merging by what tells them apart, five at most.

    Raises:
        KitError: too many runs, or a record without such a trace.
    """
    if len(records) > len(RUNS):
        raise KitError(f"{len(records)} runs cannot be told apart in one figure. Show {len(RUNS)} at most.")
    strange = [record.title for record in records.values() if "gap" not in record.trace]
    if strange:
        raise KitError(f"{strange[0]} has no duality gap. Show hard or soft FW-Merging.")
    tasks = shared_tasks(list(records.values()))
    said = []
    with style():
        figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
        above, middle, below = figure.subplots(3, sharex=True)
        for (name, record), drawn in zip(records.items(), RUNS, strict=False):
            look_of: dict[str, Any] = {"color": drawn.colour, "linestyle": drawn.dash, "marker": drawn.marker}
            look_of |= {"markersize": 4, "linewidth": 1.5}
            losses = np.array(record.trace["loss"]) / len(record.cell.adapt)
            gaps = record.trace["gap"]
            middle.plot(losses, label=name, **look_of)
            below.plot(gaps, **look_of)
            text = f"{name}: loss from {losses[0]:.2f} to {losses[-1]:.2f}, gap from {gaps[0]:.2f} to {gaps[-1]:.2f}"
            if record.curve:
                steps, averages = zip(*((point.step, point.average) for point in record.curve), strict=True)
                above.plot(steps, averages, **look_of)
                text += f", accuracy from {averages[0]:.1f} to {averages[-1]:.1f} %"
            said.append(text)
        above.set_ylabel("accuracy (%)")
        middle.set_ylabel("loss (nats)")
        below.set_ylabel("duality gap\n(nats)")
        below.set_xlabel("iterations done")
        below.axhline(0, color=PALE, linewidth=0.8)
        below.xaxis.get_major_locator().set_params(integer=True)
        for axes in (above, middle, below):
            axes.grid(color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
        figure.align_ylabels()
        figure.legend(loc="outside upper left", ncols=min(3, len(records)), frameon=False)
    figure.set_label(f"Curves of accuracy on {len(tasks)} tasks, loss and duality gap: {'; '.join(said)}.")
    return figure


def variant_bars(
    groups: Mapping[str, Mapping[str, "Record"]], references: Mapping[str, "Record"] | None = None
) -> Figure:
    """Draw the average accuracy (%) of variants, group by group, with references as upright lines.

    Args:
        groups: title of a group -> what tells its variants apart -> the record.
        references: drawn through all groups.
    """
    references = references or {}
    every: list[Record] = [record for group in groups.values() for record in group.values()]
    tasks = shared_tasks([*every, *references.values()])
    said = [f"{name} {record.average:.1f}" for name, record in references.items()]
    with style():
        lines = sum(len(group) for group in groups.values()) + len(groups)
        figure = Figure(figsize=(WIDTH, 0.9 + 0.23 * lines), layout="constrained")
        axes = figure.add_subplot()
        row, ticks, names = 0.0, [], []
        for title, group in groups.items():
            # On the left of the axes, where the names stand: a heading may be longer than a name.
            ticks.append(row)
            names.append(title)
            row += 1
            for name, record in group.items():
                drawn = look(record.cell.method)
                axes.barh(row, record.average, 0.72, color=drawn.colour, hatch=drawn.hatch, edgecolor="#ffffff", lw=0)
                cell(axes, 32, row, f"{record.average:.1f}", bold=True)
                ticks.append(row)
                names.append(name)
                row += 1
            said.append(f"{title}: " + ", ".join(f"{name} {record.average:.1f}" for name, record in group.items()))
        for (name, record), dash in zip(references.items(), (":", "--", "-.", "-"), strict=False):
            axes.axvline(record.average, color=INK, linestyle=dash, linewidth=1.1, label=name)
        axes.set(xlim=(0, 100), ylim=(row - 0.4, -0.6))
        axes.set_yticks(ticks, names)
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in groups else "normal")
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"top-1 accuracy, average over {len(tasks)} tasks (%)")
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        if references:
            figure.legend(loc="outside upper left", ncols=len(references), frameon=False)
    figure.set_label(f"Bars of the average accuracy over {len(tasks)} tasks in percent. {'; '.join(said)}.")
    return figure


def most_chosen(record: "Record", tasks: Sequence[str]) -> tuple[float, float]:
    """Return how much of all steps went to the experts of `tasks`, and to all other vertices, see `choice_frame`."""
    sums = choice_frame(record).sum(axis=1)
    inside = [name in tasks for name in sums.index]
    return float(sums[inside].sum()), float(sums[[not one for one in inside]].sum())
