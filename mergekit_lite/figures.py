"""One function for each kind of figure, and `show`, which puts a figure into a notebook with its alternative text.

All figures have an opaque white ground and dark ink. A transparent ground would need a second set of inks for dark
mode, and a copied figure would be unreadable on the other ground; a white card reads the same in both and in print.
Lines and letters are vectors (SVG, letters as outlines, so no font is needed), and the same data give the same bytes.
Each function writes what it drew into the figure's label, in words and numbers: `show` takes it as alternative text.
"""

import base64
import io
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image

from mergekit_lite import published as reported
from mergekit_lite.errors import KitError
from mergekit_lite.tables import glue, shared_tasks

if TYPE_CHECKING:
    from mergekit_lite.records import Record
    from mergekit_lite.suites.suite import Suite

INK, PALE, WIDTH = "#222222", "#767676", 7.2  # width in inches: the book's text column


class Look(NamedTuple):
    """How a method is drawn: its colour, and what tells it apart without colour."""

    colour: str
    marker: str
    hatch: str
    dash: Any  # a line style of matplotlib


# Okabe and Ito's colours, which people with any common colour blindness tell apart; greys for the references.
LOOKS = {
    "pretrained": Look("#a6a6a6", "s", "", ":"),
    "simple_average": Look("#56B4E9", "v", "||", "-."),
    "task_arithmetic": Look("#0072B2", "o", "", "--"),
    "ties_merging": Look("#009E73", "^", "//", (0, (5, 1, 1, 1, 1, 1))),
    "task_wise_adamerging": Look("#E69F00", "D", "\\\\", (0, (4, 1.5))),
    "layer_wise_adamerging": Look("#D55E00", "o", "", "-"),
    "individual": Look("#3d3d3d", "s", "", ":"),
}
SPARE = (Look("#CC79A7", "X", "xx", "-"), Look("#F0E442", "h", "++", "-"), Look("#000000", "*", "--", "-"))


def look(method: str) -> Look:
    """Return how `method` is drawn, the same in every figure; one of your own gets a spare look by its name."""
    return LOOKS.get(method) or SPARE[zlib.crc32(method.encode()) % len(SPARE)]


@contextmanager
def _style() -> Iterator[None]:
    plain = {
        "figure.facecolor": "#ffffff", "axes.facecolor": "#ffffff", "savefig.facecolor": "#ffffff",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": PALE, "xtick.color": INK, "ytick.color": INK,
        "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
        "svg.hashsalt": "mergekit-lite", "svg.fonttype": "path",
    }  # fmt: skip
    with mpl.rc_context(plain):  # type: ignore[arg-type]
        yield


def accuracy_bars(records: Sequence["Record"], published: pd.DataFrame | None = None) -> Figure:
    """Draw the average accuracy (%) of each record as a bar, with the published average as a diamond beside it.

    Args:
        records: cells that ran on the same evaluation tasks, drawn from top to bottom.
        published: rows of `published.published`, all of one family.
    """
    tasks = shared_tasks(records)
    theirs = [None if published is None else reported.average(published, record.cell.method) for record in records]
    with _style():
        figure = Figure(figsize=(WIDTH, 0.95 + 0.34 * len(records)), layout="constrained")
        axes = figure.add_subplot()
        for row, (record, value) in enumerate(zip(records, theirs, strict=True)):
            drawn = look(record.cell.method)
            axes.barh(row, record.average, 0.68, color=drawn.colour, hatch=drawn.hatch, edgecolor="#ffffff", lw=0)
            _cell(axes, 56, row, f"{record.average:.1f}", bold=True)
            if published is not None:
                _cell(axes, 110, row, "–" if value is None else f"{value:.1f}")
        _cell(axes, 56, -0.85, "measured", bold=True)
        if published is not None:
            _cell(axes, 110, -0.85, "published")
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


def _cell(axes: Axes, x: float, row: float, text: str, bold: bool = False) -> None:
    """Write a number into a column right of the axes, right-aligned `x` points from their edge.

    Points, not a share of the width: the layout makes room for the column, and its place must not move with the width.
    """
    weight = "bold" if bold else "normal"
    style: dict[str, Any] = {"ha": "right", "va": "center", "fontweight": weight, "annotation_clip": False}
    axes.annotate(text, (1, row), (x, 0), axes.get_yaxis_transform(), "offset points", **style)


def accuracy_heatmap(records: Sequence["Record"]) -> Figure:
    """Draw the accuracy (%) of each record (rows) on each task (columns), with the average as last column."""
    tasks = shared_tasks(records)
    values = np.array([[*record.accuracy.values(), record.average] for record in records])
    columns = [*tasks, "average"]
    with _style():
        figure = Figure(figsize=(WIDTH, 1.25 + 0.34 * len(records)), layout="constrained")
        axes = figure.add_subplot()
        sns.heatmap(
            values, ax=axes, annot=True, fmt=".1f", cmap="YlGnBu", vmin=np.floor(values.min() / 10) * 10, vmax=100,
            linewidths=1, linecolor="#ffffff", xticklabels=columns, yticklabels=[record.title for record in records],
            cbar_kws={"label": "top-1 accuracy (%)", "pad": 0.015, "aspect": 30}, annot_kws={"size": 8},
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


def coefficients(record: "Record") -> pd.DataFrame:
    """Return the merging coefficients a record ended with: a row an expert, a column a tensor, in the model's order.

    Raises:
        KitError: the record's method left no coefficients per tensor.
    """
    found = record.trace.get("coefficients", {"tensors": []})
    if len(found["tensors"]) < 2:
        raise KitError(f"The record of {record.title} has no coefficient for each tensor. Show layer_wise_adamerging.")
    return pd.DataFrame(found["values"], index=found["experts"], columns=found["tensors"], dtype=float)


def coefficient_map(record: "Record") -> Figure:
    """Draw the coefficient of each expert (rows) for each tensor (columns); white is where all of them started."""
    frame = coefficients(record)
    values = frame.to_numpy()
    initial = float(record.cell.parameters["initial"])
    # The colours need room on both sides of the start, wherever that was.
    low, high = min(0.0, values.min(), initial - 0.1), max(1.0, values.max(), initial + 0.1)
    with _style():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.28 * len(frame)), layout="constrained")
        axes = figure.add_subplot()
        # An image keeps one pixel a coefficient (a mesh of vectors would take 100 times the bytes for a large encoder).
        drawn = axes.imshow(
            values, norm=TwoSlopeNorm(initial, low, high), cmap="PuOr_r", aspect="auto", interpolation="none"
        )
        starts, names = _groups([str(tensor) for tensor in frame.columns])
        middles = (np.array(starts) + np.array([*starts[1:], frame.shape[1]])) / 2 - 0.5
        for start in starts[1:]:
            axes.axvline(start - 0.5, color=INK, linewidth=0.6)
        axes.set_xticks(middles, names)
        axes.set_yticks(range(len(frame)), list(frame.index))
        axes.tick_params(length=0)
        axes.set_xlabel(f"{frame.shape[1]} tensors of the image encoder, from input to output")
        axes.set_ylabel("expert")
        bar = figure.colorbar(drawn, ax=axes, pad=0.015, aspect=30)
        bar.set_ticks([low, initial, high], labels=[f"{value:.2g}" for value in (low, initial, high)])
        bar.set_label("coefficient")
        for row, mean in enumerate(values.mean(axis=1)):
            _cell(axes, 30, row, f"{mean:.2f}")
        _cell(axes, 30, -0.8, "mean")
    means = "; ".join(f"{name} {mean:.2f}" for name, mean in zip(frame.index, values.mean(axis=1), strict=True))
    figure.set_label(
        f"Map of the merging coefficients of {record.title}, {len(frame)} experts by {frame.shape[1]} tensors. "
        f"All started at {initial:.2g} and ended between {values.min():.2f} and {values.max():.2f}. Means: {means}."
    )
    return figure


def _groups(tensors: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return where each part of the encoder starts in its list of tensors, and the part's short name."""
    starts: list[int] = []
    names: list[str] = []
    for position, tensor in enumerate(tensors):
        parts = tensor.split(".")
        if "resblocks" in parts:
            name = f"block {int(parts[parts.index('resblocks') + 1]) + 1}"
        else:
            name = "out" if any(label.startswith("block") for label in names) else "in"
        if not names or name != names[-1]:
            starts.append(position)
            names.append(name)
    if sum(name.startswith("block") for name in names) > 6:  # 12 or 24 labels would not fit side by side: numbers do
        names = [name.removeprefix("block ") for name in names]
    return starts, names


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
    with _style():
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for record in still:
            drawn = look(record.cell.method)
            above.axhline(record.average, color=drawn.colour, linestyle=drawn.dash, linewidth=1.2, label=record.title)
        for record in adapted:
            drawn = look(record.cell.method)
            style: dict[str, Any] = {"color": drawn.colour, "linestyle": drawn.dash}
            above.plot(
                [point.step for point in record.curve], [point.average for point in record.curve],
                marker=drawn.marker, markersize=4, linewidth=1.6, label=record.title, **style,
            )  # fmt: skip
            # The loss is the sum over tasks, measured before each step.
            below.plot(np.array(record.trace["loss"]) / len(record.cell.pool), linewidth=1, **style)
        above.set_ylabel("average accuracy (%)")
        below.set_ylabel("entropy per\nimage (nats)")
        below.set_xlabel("steps of adaptation")
        for axes in (above, below):
            axes.grid(color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=len(records), frameon=False)
    said = []
    for record in adapted:
        first, last, losses = record.curve[0], record.curve[-1], record.trace["loss"]
        text = f"{record.title} goes from {first.average:.1f} to {last.average:.1f} at step {last.step}"
        if losses:
            start, end = losses[0] / len(record.cell.pool), losses[-1] / len(record.cell.pool)
            text += f" and its entropy from {start:.2f} to {end:.2f} nats per image"
        said.append(text)
    said += [f"{record.title} stays at {record.average:.1f}" for record in still]
    figure.set_label(f"Curves of the average accuracy over {len(tasks)} tasks in percent: {'; '.join(said)}.")
    return figure


def gallery(suite: "Suite", tasks: Sequence[str], columns: int = 8, pixels: int = 64) -> Figure:
    """Draw the first test image of `columns` classes of each task, with the class names as the text encoder reads them.

    Args:
        suite: where the images come from.
        tasks: one row each.
        columns: classes shown, spread evenly over the task's classes.
        pixels: larger images are reduced to this side length, so that the page stays small.
    """
    with _style():
        figure = Figure(figsize=(WIDTH, 0.12 + 1.12 * len(tasks)))
        figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
        grid = figure.subplots(len(tasks), columns, squeeze=False)
        said = []
        for row, name in zip(grid, tasks, strict=True):
            task, split = suite.tasks[name], suite.split(name, "test")
            chosen = np.unique(np.linspace(0, len(task.classnames) - 1, columns).astype(int))
            for axes in row:
                axes.set_axis_off()
            for axes, label in zip(row, chosen, strict=False):
                picture = np.array(split.images[int(np.flatnonzero(np.asarray(split.labels) == label)[0])])
                small = Image.fromarray(picture.transpose(1, 2, 0))
                small.thumbnail((pixels, pixels))
                # 32 shades a channel look the same and take two thirds of the bytes: noise hardly compresses.
                shades = np.round(np.asarray(small) / 255 * 31) / 31
                axes.imshow(np.round(shades * 255).astype(np.uint8), interpolation="none")
                title = textwrap.wrap(task.classnames[label], 15, max_lines=2, placeholder="…")
                axes.set_title("\n".join(title), fontsize=6.5, loc="center", pad=2, color=INK, linespacing=0.95)
            place: dict[str, Any] = {"transform": row[0].transAxes, "rotation": 90, "ha": "right", "va": "center"}
            row[0].text(-0.12, 0.5, task.title, fontsize=8, **place)
            said.append(f"{task.title}: {', '.join(task.classnames[label] for label in chosen[:3])} and others")
    figure.set_label(f"Test images of {columns} classes for each of {len(tasks)} tasks. {'; '.join(said)}.")
    return figure


def figure_html(figure: Figure, alt: str | None = None, caption: str | None = None) -> HTML:
    """Return a figure as one piece of HTML: an SVG that is part of the page, its alternative text, its caption.

    Args:
        figure: what to show.
        alt: what a reader who cannot see the figure should know; None takes the figure's label.
        caption: the finding, printed below.

    Raises:
        KitError: there is no alternative text.
    """
    alt = str(alt or figure.get_label()).strip()
    if not alt:
        raise KitError("This figure has no alternative text. Say in show(figure, alt=...) what it shows, with numbers.")
    stream = io.BytesIO()
    with _style():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(stream.getvalue()).decode()
    below = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    picture = f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}" style="max-width:100%;height:auto"/>'
    return HTML(f'<figure class="kit-figure">\n{picture}{below}\n</figure>')


def show(figure: Figure, alt: str | None = None, caption: str | None = None, key: str | None = None) -> None:
    """Display a figure (see `figure_html`); with `key`, a page of the book can quote it (`tables.glue`)."""
    html = figure_html(figure, alt, caption)
    if key is None:
        display(html)
    else:
        glue(key, html, show=True)
