"""Figures of the images themselves."""

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from PIL import Image

from mergekit_lite.figures.style import INK, WIDTH, style
from mergekit_lite.suites.corruptions import corrupt

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite


def gallery(suite: "Suite", tasks: Sequence[str], columns: int = 8, pixels: int = 64, rows: int = 1) -> Figure:
    """Draw `rows` times `columns` test images of each task, with the class names as the text encoder reads them.

    A task with more classes than that shows the first image of classes spread evenly over its list; one with fewer
    shows several images of each.

    Args:
        suite: where the images come from.
        tasks: `rows` lines of images each.
        columns: images in a line.
        pixels: larger images are reduced to this side length, so that the page stays small.
        rows: lines of images a task.
    """
    with style():
        # Placed by hand, in inches: a layout engine lets names of two lines run into the pictures above them.
        left, name_height, gap = 0.25, 0.27, 0.05
        side = (WIDTH - left) / columns - gap
        height = rows * len(tasks) * (name_height + side + gap)
        figure = Figure(figsize=(WIDTH, height))
        said = []
        for number, name in enumerate(tasks):
            task, (labels, pictures) = suite.tasks[name], _examples(suite, name, rows * columns)
            for place, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
                line, column = number * rows + place // columns, place % columns
                x, y = left + column * (side + gap), height - line * (name_height + side + gap) - name_height - side
                axes = figure.add_axes((x / WIDTH, y / height, side / WIDTH, side / height))
                axes.set_axis_off()
                axes.imshow(_small(picture, pixels), interpolation="none")
                title = textwrap.wrap(_legible(task.classnames[label]), 15, max_lines=2, placeholder="…")
                axes.set_title("\n".join(title), fontsize=6.5, loc="center", pad=2, color=INK, linespacing=0.95)
            middle = 1 - (number + 0.5) / len(tasks)
            figure.text(0.008, middle, task.title, fontsize=8, rotation=90, ha="left", va="center")
            shown = list(dict.fromkeys(task.classnames[label] for label in labels))
            said.append(f"{task.title}: {', '.join(shown[:3])}{' and others' * (len(shown) > 3)}")
    figure.set_label(f"{rows * columns} test images of each of {len(tasks)} tasks. {'; '.join(said)}.")
    return figure


def corrupted_pictures(suite: "Suite", tasks: Sequence[str], corruptions: Sequence[str], pixels: int = 96) -> Figure:
    """Draw a test image of each task (rows) as it is and under each corruption (columns), at severity 2.

    Args:
        suite: where the images come from.
        tasks: a row each.
        corruptions: names as in `mergekit_lite.suites.corruptions.CORRUPTIONS`.
        pixels: larger images are reduced to this side length after they were corrupted; fine noise fades by that.
    """
    names = ["clean", *corruptions]
    with style():
        # Placed by hand, in inches, as in `gallery`.
        left, head, gap = 0.25, 0.32, 0.05
        side = (WIDTH - left) / len(names) - gap
        height = head + len(tasks) * (side + gap)
        figure = Figure(figsize=(WIDTH, height))
        for row, task in enumerate(tasks):
            _, (picture,) = _examples(suite, task, 1)
            for column, name in enumerate(names):
                shown = corrupt(picture[None], name)[0] if column else picture
                x, y = left + column * (side + gap), height - head - row * (side + gap) - side
                axes = figure.add_axes((x / WIDTH, y / height, side / WIDTH, side / height))
                axes.set_axis_off()
                axes.imshow(_small(shown, pixels), interpolation="none")
                if row == 0:
                    axes.set_title(name.replace("_", "\n"), fontsize=7, loc="center", pad=2, color=INK)
                if column == 0:
                    middle = (y + side / 2) / height
                    figure.text(0.008, middle, suite.tasks[task].title, fontsize=7, rotation=90, va="center")
    titles = ", ".join(suite.tasks[task].title for task in tasks)
    listed = ", ".join(name.replace("_", " ") for name in corruptions)
    figure.set_label(f"A test image of each of {len(tasks)} tasks ({titles}), clean and under {listed}.")
    return figure


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
