"""Dials with a pointer: a private task for grading.

This file is public, so a student may have trained on it: draw another before you grade.
Other marks, other names and another `name` are enough.
"""

from functools import partial
from math import pi

from mergekit_lite.suites.miniature.canvas import Canvas, disc, either, line, ring
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, turn: float) -> None:
    """Draw a face with a rim and a pointer, about in the direction `turn`."""
    c.fill(c.colour(saturation=(0, 0.4), value=(0.2, 0.9)))
    f = c.placed(size=(0.75, 1.0), turn=0.2, shift=0.15)
    c.paint(disc(f, 0.8), c.grey(0.8, 1), f)
    c.paint(ring(f, 0.8, 0.12), c.colour(value=(0.1, 0.5)), f)
    pointing = f.turned(turn + c.uniform(-0.25, 0.25))
    pointer = line(pointing, (0.0, 0.0), (0.0, -0.6), 0.16)
    c.paint(
        either(pointer, disc(f, 0.12)), c.colour(hue=(-0.1, 0.1), value=(0.3, 0.8)), f
    )


DIRECTIONS = {"up": 0.0, "right": pi / 2, "down": pi, "left": -pi / 2}
TASK = DrawnTask(
    name="dials",
    title="Dials",
    counterpart="no data set",
    kind="dial",
    templates=("a photo of a dial that points {}.",),
    classes=tuple(
        DrawnClass(name, f"pointer {name}", partial(draw, turn=turn))
        for name, turn in DIRECTIONS.items()
    ),
    zero_shot=50.0,
)
