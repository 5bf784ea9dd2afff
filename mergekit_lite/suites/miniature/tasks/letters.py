"""Handwritten-looking letters on black, large and small: the counterpart of EMNIST Letters."""

from functools import partial

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, glyph
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, letter: str) -> None:
    """Draw a white letter, upper or lower case, bent and slanted as by hand."""
    f = c.placed(size=(0.55, 0.8), turn=0.2, shift=0.12, stretch=0.18)
    slant = c.uniform(-0.25, 0.25)
    f = Frame(f.u + slant * f.v + 0.09 * c.noise(3), f.v + 0.09 * c.noise(3), f.soft)
    ink = glyph(c, f, (letter, letter.lower()))
    c.blend((ink * c.uniform(1.0, 2.2)).clamp(0, 1), c.grey(0.8, 1.0))


CAPTIONS = (
    *("alfa", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima"),
    *("mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey"),
    *("xray", "yankee", "zulu"),
)
TASK = DrawnTask(
    name="letters",
    title="Letters",
    counterpart="EMNIST Letters",
    kind="alphabet",
    templates=('a photo of the digit character: "{}".',),
    classes=tuple(
        DrawnClass(word[0].upper(), f"initial {word}", partial(draw, letter=word[0].upper())) for word in CAPTIONS
    ),
    zero_shot=11.98,
    grain=0.02,
)
