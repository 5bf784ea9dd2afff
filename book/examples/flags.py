"""Flags in two colours: a task of one's own."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mergekit_lite.suites.miniature.canvas import Canvas, box, disc, either, stripes
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, mark: Callable[..., Tensor]) -> None:
    """Draw a cloth before the sky and on it a mark, in other colours each time."""
    c.fill(c.colour(hue=(0.5, 0.65), value=(0.6, 1)))
    f = c.placed(size=(0.8, 1.0), turn=0.3, shift=0.15)
    cloth = box(f, 0.9, 0.6)
    c.paint(cloth, c.colour(value=(0.1, 0.5)), f)
    c.paint(cloth.maximum(mark(f)), c.colour(saturation=(0, 0.5), value=(0.8, 1)), f)


MARKS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "cross": ("plus", lambda f: either(box(f, 0.12, 1), box(f, 1, 0.12))),
    "saltire": (
        "letter x",
        lambda f: either(box(f.turned(0.8), 0.12, 2), box(f.turned(-0.8), 0.12, 2)),
    ),
    "disc": ("ball", lambda f: disc(f, 0.35)),
    "pale": ("upright band", lambda f: box(f, 0.25, 1)),
    "barry": ("stripes", lambda f: stripes(f.v, 0.4)),
}
TASK = DrawnTask(
    name="flags",
    title="Flags",
    counterpart="no data set",
    kind="flag",
    templates=("a photo of a flag with a {}.",),
    classes=tuple(
        DrawnClass(name, caption, partial(draw, mark=mark))
        for name, (caption, mark) in MARKS.items()
    ),
    zero_shot=50.0,
)
