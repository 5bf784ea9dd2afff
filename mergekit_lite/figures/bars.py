"""Bars: average accuracies of methods and of variants, and what Frank-Wolfe's first gradient promises."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from mergekit_lite.analysis import published as reported
from mergekit_lite.analysis.accuracy import marked, shared_tasks
from mergekit_lite.analysis.traces import descents
from mergekit_lite.figures.style import INK, WHITE, WIDTH, Look, canvas, column, in_rows, legend, look, signed, styled

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


@styled()
def accuracy_bars(records: Iterable["Record"], published: pd.DataFrame | None = None) -> Figure:
    """Draw the average accuracy (%) of each record as a bar, with the published average as a diamond beside it.

    A dagger marks what had not converged. Of variants of one method, the first has the published average.

    Args:
        records: cells that ran on the same evaluation tasks, drawn from top to bottom.
        published: rows of `published.accuracies`, all of one family.
    """
    records = list(records)
    tasks, methods = shared_tasks(records), [record.cell.method for record in records]
    figure, axes = canvas(0.95 + 0.34 * len(records))
    for row, record in enumerate(records):
        axes.barh(row, record.average, 0.68, **look(record.cell.method).fill)
    said = [f"{record.title} {record.average:.1f}" for record in records]
    column(axes, 56, [f"{record.average:.1f}" for record in records], "measured", bold=True)
    if published is not None:
        firsts = [method not in methods[:row] for row, method in enumerate(methods)]
        theirs = [reported.average(published, name) if one else None for name, one in zip(methods, firsts, strict=True)]
        column(axes, 110, ["–" if value is None else f"{value:.1f}" for value in theirs], "published")
        known = [(value, row) for row, value in enumerate(theirs) if value is not None]
        axes.plot(
            [value for value, _ in known], [row for _, row in known],
            "D", color=WHITE, markeredgecolor=INK, markersize=6, clip_on=False,
            label=f"published: {reported.label(published)}",
        )  # fmt: skip
        legend(figure)
        for value, row in known:
            said[row] += f" (published {value:.1f})"
    in_rows(axes, [marked(record.title, record) for record in records])
    axes.set(xlim=(0, 100), xlabel=_measured(tasks, records))
    figure.set_label(f"Bars of the average accuracy over {len(tasks)} tasks in percent: {'; '.join(said)}.")
    return figure


@styled()
def variant_bars(
    groups: Mapping[str, Mapping[str, "Record"]], references: Mapping[str, "Record"] | None = None
) -> Figure:
    """Draw the average accuracy (%) of variants, group by group, with references as upright lines.

    A dagger marks what had not converged.

    Args:
        groups: title of a group -> what tells its variants apart -> the record.
        references: drawn through all groups.
    """
    references = references or {}
    # A group's title stands on the left of the axes in a row of its own, where the names stand: it may be longer.
    rows: list[tuple[str, Record | None]] = []
    for heading, group in groups.items():
        rows += [(heading, None), *group.items()]
    tasks = shared_tasks([*(record for _, record in rows if record), *references.values()])
    figure, axes = canvas(0.9 + 0.23 * len(rows))
    for row, (_, record) in enumerate(rows):
        if record:
            axes.barh(row, record.average, 0.72, **look(record.cell.method).fill)
    column(axes, 32, [f"{record.average:.1f}" if record else "" for _, record in rows], bold=True)
    for (name, record), dash in zip(references.items(), (":", "--", "-.", "-"), strict=False):
        axes.axvline(record.average, color=INK, linestyle=dash, linewidth=1.1, label=name)
    in_rows(axes, [marked(name, record) if record else name for name, record in rows])
    axes.set(xlim=(0, 100), xlabel=_measured(tasks, [record for _, record in rows if record]))
    for label, (_, record) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(fontsize=8, fontweight="normal" if record else "bold")
    if references:
        legend(figure)
    said = [f"{name} {record.average:.1f}" for name, record in references.items()]
    for heading, group in groups.items():
        said.append(f"{heading}: " + ", ".join(f"{name} {record.average:.1f}" for name, record in group.items()))
    figure.set_label(f"Bars of the average accuracy over {len(tasks)} tasks in percent. {'; '.join(said)}.")
    return figure


def _measured(tasks: Sequence[str], records: Iterable["Record"]) -> str:
    """Return what the bars' axis shows, and what a dagger means if there is one."""
    note = "; †: not converged" if any(record.converged is False for record in records) else ""
    return f"top-1 accuracy, average over {len(tasks)} tasks (%){note}"


@styled()
def descent_bars(record: "Record", iteration: int = 1) -> Figure:
    """Draw `traces.descents`, largest first: dark for the experts of the tasks in the loss, pale for all others."""
    promises = descents(record, iteration)
    figure, axes = canvas(1.2 + 0.21 * len(promises), WIDTH * 0.8)
    for inside, drawn, text in (
        (True, Look("#332288", "", "", ""), "expert of a task in the loss"),
        (False, Look("#c9c3dd", "", "//", ""), "expert of another task"),
    ):
        rows = [row for row, name in enumerate(promises.index) if (name in record.cell.adapt) is inside]
        if rows:
            axes.barh(rows, promises.iloc[rows], 0.7, label=text, **drawn.fill)
    axes.axvline(0, color=INK, linewidth=0.8)
    in_rows(axes, list(promises.index))
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("promised decrease of the loss on the way there (nats)")
    column(axes, 34, [signed(f"{value:+.2f}") for value in promises])
    legend(figure)
    said = "; ".join(f"{name} {value:+.2f}" for name, value in promises.items())
    figure.set_label(f"Bars of the promised decrease of the loss towards each expert, in nats: {said}.")
    return figure
