"""How all figures look, and `show`, which puts one into a notebook with its alternative text."""

import base64
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mergekit_lite.errors import KitError
from mergekit_lite.figures.tables import glue

WHITE, INK, PALE, WIDTH = "#ffffff", "#222222", "#767676", 7.2  # width in inches: the book's text column

STYLE = {
    "figure.facecolor": WHITE, "axes.facecolor": WHITE, "savefig.facecolor": WHITE, "savefig.dpi": 200,
    "figure.constrained_layout.use": True, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": PALE,
    "xtick.color": INK, "ytick.color": INK,
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 8, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "hatch.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8,
    "svg.hashsalt": "mergekit-lite", "svg.fonttype": "path",
}  # fmt: skip
"""White ground, dark ink, pale grid behind the data, and the same bytes for the same data."""


class Look(NamedTuple):
    """How a method is drawn: its colour, and what tells it apart without colour."""

    colour: str
    marker: str
    hatch: str
    dash: Any  # a line style of matplotlib

    @property
    def level(self) -> dict[str, Any]:
        """What makes a straight line without points look so."""
        return {"color": self.colour, "linestyle": self.dash, "linewidth": 1.2}

    @property
    def line(self) -> dict[str, Any]:
        """What makes a curve look so."""
        return {"color": self.colour, "linestyle": self.dash, "marker": self.marker}

    @property
    def point(self) -> dict[str, Any]:
        """What makes single points look so, with a white rim that keeps overlapping ones apart."""
        return self.line | {"linestyle": "", "markeredgecolor": WHITE, "markeredgewidth": 0.5}

    @property
    def fill(self) -> dict[str, Any]:
        """What makes a bar look so."""
        return {"color": self.colour, "hatch": self.hatch, "edgecolor": WHITE, "linewidth": 0}


# Okabe and Ito's colours and, for the rest, Tol's muted ones: people with any common colour blindness tell the members
# of a family apart, which stand side by side; families differ in markers and hatches too. Greys are the references.
LOOKS = {
    "pretrained": Look("#a6a6a6", "s", "", ":"),
    "simple_average": Look("#56B4E9", "v", "||", "-."),
    "task_arithmetic": Look("#0072B2", "o", "", "--"),
    "fixed_coefficients": Look("#88CCEE", "p", "..", (0, (1, 1))),
    "ties_merging": Look("#009E73", "^", "//", (0, (5, 1, 1, 1, 1, 1))),
    "dare": Look("#117733", "<", "\\\\", (0, (3, 1, 1, 1))),
    "consensus": Look("#44AA99", ">", "--", (0, (2, 1))),
    "tsv_merging": Look("#882255", "P", "", (0, (5, 1))),
    "iso_c": Look("#CC79A7", "X", "xx", (0, (3, 2))),
    "iso_cts": Look("#AA4499", "*", "++", (0, (6, 2, 1, 2))),
    "fisher_merging": Look("#999933", "d", "||", (0, (1, 2))),
    "regmean": Look("#DDCC77", "h", "", (0, (4, 1, 1, 1))),
    "task_wise_adamerging": Look("#E69F00", "D", "\\\\", (0, (4, 1.5))),
    "task_wise_adamerging_plus": Look("#B87F00", "d", "++", (0, (4, 1.5, 1, 1.5))),
    "layer_wise_adamerging": Look("#D55E00", "o", "", "-"),
    "layer_wise_adamerging_plus": Look("#8A3D00", "P", "xx", (0, (8, 1))),
    "hard_frank_wolfe": Look("#332288", "s", "//", (0, (2, 2))),
    "soft_frank_wolfe": Look("#6A5ACD", "H", "", (0, (7, 1.5))),
    "multi_task_training": Look("#6f6f6f", "s", "..", "-."),
    "individual": Look("#3d3d3d", "s", "", ":"),
}
SPARE = (Look("#F0E442", "h", "++", "-"), Look("#000000", "*", "--", "-"), Look("#661100", "8", "oo", "-"))


# For what is no method (tasks, batch sizes, runs): Okabe and Ito's colours, each with a marker and a dash of its own.
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


def look(method: str) -> Look:
    """Return how `method` is drawn, the same in every figure; one of your own gets a spare look by its name."""
    return LOOKS.get(method) or SPARE[zlib.crc32(method.encode()) % len(SPARE)]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return how each of `names` is drawn: methods as everywhere, others in order, among methods in free colours."""
    taken = {LOOKS[name].colour for name in names if name in LOOKS}
    first = SPARE[1:] if taken else ()  # in no method's colour, and dark enough for a line
    free = cycle([look for look in (*first, *SERIES) if look.colour not in taken])
    return {name: LOOKS.get(name) or next(free) for name in dict.fromkeys(names)}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the book, see `STYLE`; also a decorator."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def canvas(height: float, width: float = WIDTH, **panels: Any) -> tuple[Figure, Any]:
    """Return a figure of this size in inches, and its axes: one, or as many as `panels` ask of `Figure.subplots`."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(**panels)


def in_rows(axes: Axes, names: Sequence[str], *, lines: bool = False) -> None:
    """Name the rows at 0, 1, ... from top to bottom; the grid is upright, with `lines` also between the rows."""
    axes.set(ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    for border in range(1, len(names) if lines else 0):
        axes.axhline(border - 0.5, color="#c8c8c8", linewidth=0.7, zorder=0)


def column(
    axes: Axes, x: float, texts: Sequence[str], head: str = "", *, first: float = 0.0, bold: bool = False
) -> None:
    """Write a column right of the axes, right-aligned `x` points from their edge, a text per row from y = `first` on.

    Points, not a share of the width: the layout makes room for the column, and its place must not move with the width.
    """
    places = [*((first + row, text) for row, text in enumerate(texts)), (first - 0.8, head)]
    for y, text in places:
        if text:
            axes.annotate(
                text, (1, y), (x, 0), axes.get_yaxis_transform(), "offset points", ha="right", va="center",
                fontweight="bold" if bold else "normal", annotation_clip=False,
            )  # fmt: skip


def legend(figure: Figure, extra: Mapping[str, Any] | None = None) -> None:
    """Put a legend above all panels, each label once, in as many columns as the width holds; `extra` comes last."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, texts = axes.get_legend_handles_labels()
        found |= {text: handle for text, handle in zip(texts, handles, strict=True) if text not in found}
    found |= extra or {}
    room = 17 * figure.get_figwidth()  # letters in a line; a handle is as wide as nine
    for columns in range(len(found), 0, -1):
        # As matplotlib fills them: downwards, and the first columns take what does not divide.
        parts = np.array_split([len(text) + 9 for text in found], columns)
        if columns == 1 or sum(part.max() for part in parts) <= room:
            figure.legend(list(found.values()), list(found), loc="outside upper left", ncols=columns)
            return


def check_columns(frame: pd.DataFrame, *columns: str) -> None:
    """Raise a KitError if the frame lacks one of the columns, or has no row."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns)) or "none"
        raise KitError(f"The frame has no column {', '.join(missing)}. Needed: {', '.join(columns)}; there: {there}.")
    if frame.empty:
        raise KitError("The frame has no row: there is nothing to draw.")


def written(value: float) -> str:
    """Write a value with as many digits as a reader needs: percent with one, coefficients with three."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def signed(text: str) -> str:
    """Write a number's hyphen as a minus sign, and no sign at all before a zero."""
    return text.strip("+-") if float(text) == 0 else text.replace("-", "−")


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
    with styled():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(_lean(stream.getvalue().decode()).encode()).decode()
    below = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    picture = f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}" style="max-width:100%;height:auto"/>'
    return HTML(f'<figure class="kit-figure">\n{picture}{below}\n</figure>')


def _lean(svg: str) -> str:
    """Return an SVG without comments and indentation, its pictures of few colours with a palette: the same to see."""

    def smaller(found: re.Match[str]) -> str:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA"))
        colours, places = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
        if len(colours) > 256 or colours[:, 3].min() < 255:
            return found[0]
        picture = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8), "P")
        picture.putpalette(colours[:, :3].tobytes())
        stream = io.BytesIO()
        picture.save(stream, "png", optimize=True)
        return f'"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"'

    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r'"data:image/png;base64,([^"]+)"', smaller, re.sub(r">\s+<", "><", svg))


def show(figure: Figure, alt: str | None = None, caption: str | None = None, key: str | None = None) -> None:
    """Display a figure (see `figure_html`); with `key`, a page of the book can quote it (`tables.glue`)."""
    html = figure_html(figure, alt, caption)
    if key is None:
        display(html)
    else:
        glue(key, html, show=True)
