"""How all figures look, and `show`, which puts one into a notebook with its alternative text."""

import base64
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mergekit_lite.errors import KitError
from mergekit_lite.figures.tables import glue

if TYPE_CHECKING:
    pass

INK, PALE, WIDTH = "#222222", "#767676", 7.2  # width in inches: the book's text column


class Look(NamedTuple):
    """How a method is drawn: its colour, and what tells it apart without colour."""

    colour: str
    marker: str
    hatch: str
    dash: Any  # a line style of matplotlib


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


def look(method: str) -> Look:
    """Return how `method` is drawn, the same in every figure; one of your own gets a spare look by its name."""
    return LOOKS.get(method) or SPARE[zlib.crc32(method.encode()) % len(SPARE)]


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the book: white ground, dark ink, the same bytes for the same data."""
    plain = {
        "figure.facecolor": "#ffffff", "axes.facecolor": "#ffffff", "savefig.facecolor": "#ffffff",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": PALE, "xtick.color": INK, "ytick.color": INK,
        "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
        "svg.hashsalt": "mergekit-lite", "svg.fonttype": "path",
    }  # fmt: skip
    with mpl.rc_context(plain):  # type: ignore[arg-type]
        yield


def cell(axes: Axes, x: float, row: float, text: str, bold: bool = False) -> None:
    """Write a number into a column right of the axes, right-aligned `x` points from their edge.

    Points, not a share of the width: the layout makes room for the column, and its place must not move with the width.
    """
    weight = "bold" if bold else "normal"
    style: dict[str, Any] = {"ha": "right", "va": "center", "fontweight": weight, "annotation_clip": False}
    axes.annotate(text, (1, row), (x, 0), axes.get_yaxis_transform(), "offset points", **style)


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
    with style():
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
