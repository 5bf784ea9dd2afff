"""House numbers: a digit in any colour on a wall between other digits, cut off. The counterpart of SVHN."""

from functools import partial

from mergekit_lite.suites.miniature.canvas import Canvas, glyph
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, digit: str) -> None:
    """Draw the digit in the middle of an uneven wall, and at its sides parts of the number's other digits."""
    wall = c.colour(saturation=(0.1, 0.9), value=(0.15, 0.95))
    c.fill(wall)
    c.shade(0.12 * c.noise(3, 2) + c.uniform(-0.2, 0.2) * c.frame.v)
    # paint that stands out: dark on a light wall, light on a dark one
    dark = (wall.mean(1, keepdim=True) > 0.45).float()
    paint = c.colour(saturation=(0, 0.8), value=(0.55, 1)) - dark * c.uniform(0.45, 0.6).unsqueeze(1)
    f = c.placed(size=(0.6, 0.8), turn=0.15, shift=0.1, stretch=0.15)
    gap = c.uniform(1.35, 1.7)
    for side in (-1, 1):  # any of the ten digits, so that they tell nothing of the one in the middle
        c.blend(glyph(c, f.moved(side * gap, c.uniform(-0.1, 0.1)), tuple("0123456789")) * c.chance(0.7), paint)
    c.blend(glyph(c, f, digit), paint)


CAPTIONS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASK = DrawnTask(
    name="numbers",
    title="House numbers",
    counterpart="SVHN",
    kind="door plate",
    templates=('a photo of the number: "{}".',),
    classes=tuple(DrawnClass(str(d), f"plate {word}", partial(draw, digit=str(d))) for d, word in enumerate(CAPTIONS)),
    zero_shot=31.63,
    grain=0.05,
)
