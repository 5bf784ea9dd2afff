"""Figures of the images themselves."""

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from PIL import Image

from mergekit_lite.figures.style import WIDTH, styled
from mergekit_lite.suites.corruptions import corrupt

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite


@styled()
def gallery(suite: "Suite", tasks: Sequence[str], columns: int = 8, pixels: int = 64, rows: int = 1) -> Figure:
    """Draw `rows` times `columns` test images of each task, with the class names as the text encoder reads them.

    A task with more classes than that shows the first image of classes spread evenly over its list; one with fewer
    shows several images of each.

    Args:
        suite: where the images come from.
        tasks: `rows` lines of images each.
        columns: images in a line.
        pixels: larger images are reduced to this side length, so that the page stays small.
        rows: lines of images per task.
    """
    sheet, said = _Sheet(columns, rows * len(tasks), room=0.27), []
    for number, name in enumerate(tasks):
        task, (labels, pictures) = suite.tasks[name], _examples(suite, name, rows * columns)
        for place, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
            lines = textwrap.wrap(_legible(task.classnames[label]), 15, max_lines=2, placeholder="…")
            line, column = divmod(place, columns)
            sheet.put(number * rows + line, column, _small(picture, pixels), "\n".join(lines))
        sheet.name(number * rows, (number + 1) * rows, task.title)
        shown = list(dict.fromkeys(task.classnames[label] for label in labels))
        said.append(f"{task.title}: {', '.join(shown[:3])}{' and others' * (len(shown) > 3)}")
    sheet.figure.set_label(f"{rows * columns} test images of each of {len(tasks)} tasks. {'; '.join(said)}.")
    return sheet.figure


@styled()
def corrupted_pictures(suite: "Suite", tasks: Sequence[str], corruptions: Sequence[str], pixels: int = 96) -> Figure:
    """Draw a test image of each task (rows) as it is and under each corruption (columns), at severity 2.

    Args:
        suite: where the images come from.
        tasks: a row each.
        corruptions: names as in `mergekit_lite.suites.corruptions.CORRUPTIONS`.
        pixels: larger images are reduced to this side length after they were corrupted; fine noise fades by that.
    """
    names = ["clean", *corruptions]
    sheet = _Sheet(len(names), len(tasks), head=0.27)
    for row, task in enumerate(tasks):
        _, (picture,) = _examples(suite, task, 1)
        for column, name in enumerate(names):
            shown = corrupt(picture[None], name)[0] if column else picture
            sheet.put(row, column, _small(shown, pixels), "" if row else name.replace("_", "\n"))
        sheet.name(row, row + 1, suite.tasks[task].title)
    titles = ", ".join(suite.tasks[task].title for task in tasks)
    listed = ", ".join(name.replace("_", " ") for name in corruptions)
    sheet.figure.set_label(f"A test image of each of {len(tasks)} tasks ({titles}), clean and under {listed}.")
    return sheet.figure


class _Sheet:
    """A figure of pictures in rows and columns, placed by hand in inches: a layout engine lets names of two lines run
    into the pictures above them. `room` is left for a name above each picture, `head` above the first row alone.
    """

    LEFT, GAP = 0.25, 0.05

    def __init__(self, columns: int, rows: int, *, room: float = 0.0, head: float = 0.0) -> None:
        self.side, self.room, self.head = (WIDTH - self.LEFT) / columns - self.GAP, room, head
        self.figure = Figure(figsize=(WIDTH, self.height(rows)))
        self.figure.set_layout_engine("none")

    def height(self, rows: int) -> float:
        """Return how far below the upper edge `rows` rows end."""
        return self.head + rows * (self.room + self.side + self.GAP)

    def put(self, row: int, column: int, picture: np.ndarray, name: str) -> None:
        """Draw a picture (h, w, 3) with its name above it."""
        wide, high = self.figure.get_size_inches()
        x, y = self.LEFT + column * (self.side + self.GAP), high - self.height(row + 1) + self.GAP
        axes = self.figure.add_axes((x / wide, y / high, self.side / wide, self.side / high))
        axes.set_axis_off()
        axes.imshow(picture, interpolation="none")
        axes.set_title(name, fontsize=6.5, loc="center", pad=2, linespacing=0.95)

    def name(self, first: int, end: int, text: str) -> None:
        """Write a text on the left, along the rows from `first` up to `end`."""
        middle = 1 - (self.height(first) + self.height(end)) / 2 / self.figure.get_figheight()
        self.figure.text(0.008, middle, text, fontsize=7.5, rotation=90, va="center")


def _examples(suite: "Suite", task: str, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Return `count` labels in their order, spread evenly, and for each the next test image of its class."""
    split, classes = suite.split(task, "test"), len(suite.tasks[task].classnames)
    spread = np.linspace(0, classes - 1, count) if classes >= count else np.arange(count) * classes // count
    labels = [int(label) for label in spread]
    found = {label: np.flatnonzero(np.asarray(split.labels) == label) for label in set(labels)}
    nth = [labels[:place].count(label) for place, label in enumerate(labels)]
    return labels, [
        np.array(split.images[found[label][n % len(found[label])]]) for label, n in zip(labels, nth, strict=True)
    ]


def _legible(text: str) -> str:
    """Return `text` with letters that the figures' font lacks spelt out: in a figure they would be empty boxes."""
    font = get_font(findfont("DejaVu Sans"))
    return "".join(
        letter if letter.isspace() or font.get_char_index(ord(letter)) else unicodedata.name(letter, "?").lower()
        for letter in text
    )


def _small(picture: np.ndarray, pixels: int) -> np.ndarray:
    """Return a picture (3, H, W) as (h, w, 3), not larger than `pixels` and in fewer shades."""
    small = Image.fromarray(picture.transpose(1, 2, 0))
    small.thumbnail((pixels, pixels))
    # 64 colours of its own look the same and take half the bytes (see `_lean`): noise hardly compresses.
    return np.asarray(small.quantize(64).convert("RGB"))
