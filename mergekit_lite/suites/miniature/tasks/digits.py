"""Handwritten-looking digits on black: the counterpart of MNIST."""

from functools import partial

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, glyph
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, digit: str) -> None:
    """Draw a white digit, bent and slanted as by hand, in a stroke of varying weight."""
    f = c.placed(size=(0.55, 0.8), turn=0.25, shift=0.12, stretch=0.2)
    slant = c.uniform(-0.35, 0.35)
    f = Frame(f.u + slant * f.v + 0.16 * c.noise(3), f.v + 0.16 * c.noise(3), f.soft)
    ink = glyph(c, f, digit)
    c.blend((ink * c.uniform(1.0, 2.2)).clamp(0, 1), c.grey(0.8, 1.0))


CAPTIONS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASK = DrawnTask(
    name="digits",
    title="Digits",
    counterpart="MNIST",
    kind="handwriting",
    templates=('a photo of the number: "{}".',),
    classes=tuple(DrawnClass(str(d), word, partial(draw, digit=str(d))) for d, word in enumerate(CAPTIONS)),
    zero_shot=48.26,
    grain=0.02,
)
