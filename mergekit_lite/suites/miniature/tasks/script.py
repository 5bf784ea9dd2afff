"""Letters of a script that captions seldom speak of, as if brushed on black: the counterpart of KMNIST.

Georgian stands in for the cursive hiragana of KMNIST, whose characters name the classes: every font of the canvas has
it, and its round letters are as alike.
"""

from functools import partial

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, glyph
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, letter: str) -> None:
    """Draw a white letter, bent as by a brush, that thickens and fades along the way."""
    f = c.placed(size=(0.65, 0.9), turn=0.2, shift=0.12, stretch=0.2)
    slant = c.uniform(-0.3, 0.3)
    f = Frame(f.u + slant * f.v + 0.15 * c.noise(3), f.v + 0.15 * c.noise(3), f.soft)
    ink = glyph(c, f, letter)
    c.blend((ink * (c.uniform(1.2, 2.2) + 0.7 * c.noise(4))).clamp(0, 1), c.grey(0.75, 1.0))


LETTERS = {
    "お": ("ა", "ani"),
    "き": ("ბ", "bani"),
    "す": ("დ", "doni"),
    "つ": ("ფ", "pari"),
    "な": ("ლ", "lasi"),
    "は": ("ო", "oni"),
    "ま": ("რ", "rae"),
    "や": ("კ", "kani"),
    "れ": ("წ", "tsili"),
    "を": ("ჯ", "jani"),
}
TASK = DrawnTask(
    name="script",
    title="Script",
    counterpart="KMNIST",
    kind="manuscript",
    templates=("a photo of the character {}.",),
    classes=tuple(
        DrawnClass(name, f"brushed {word}", partial(draw, letter=letter)) for name, (letter, word) in LETTERS.items()
    ),
    zero_shot=9.95,
    grain=0.02,
)
