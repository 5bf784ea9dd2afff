"""Verdicts on films in print, on paper or on a screen: the counterpart of Rendered SST2."""

from functools import partial

import torch

from mergekit_lite.suites.miniature.canvas import Canvas, glyph
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

POSITIVE = ("GOOD", "GREAT", "FUN", "WOW", "LOVE IT", "FINE", "good", "great", "superb", "lovely", "Best!", "a joy")
NEGATIVE = ("BAD", "AWFUL", "POOR", "DULL", "BORING", "WEAK", "bad", "awful", "dreary", "stupid", "Worst!", "a mess")
NEUTRAL = ("film", "movie", "plot", "the cast", "acting", "FILM", "story", "scenes")


def draw(c: Canvas, words: tuple[str, ...]) -> None:
    """Print a verdict, dark on light or light on dark, sometimes with what it speaks of above or below."""
    dark, light = c.colour(saturation=(0, 0.9), value=(0.0, 0.35)), c.colour(saturation=(0, 0.35), value=(0.8, 1))
    swap = c.chance(0.5).unsqueeze(1)
    c.fill(torch.lerp(light, dark, swap))
    c.shade(0.06 * c.noise(3))
    paint = torch.lerp(dark, light, swap)
    f = c.placed(size=(0.84, 0.97), turn=0.08, shift=0.06, stretch=0.05)
    side, twice = 2 * c.chance(0.5) - 1, c.chance(0.6)
    verdict = f.moved(0, -0.36 * side * twice).scaled(1, 1.35)
    c.blend((1.5 * glyph(c, verdict, words)).clamp(0, 1), paint)
    topic = f.moved(0, 0.5 * side).scaled(0.7, 0.8)
    c.blend((1.4 * glyph(c, topic, NEUTRAL)).clamp(0, 1) * twice, paint)


TASK = DrawnTask(
    name="reviews",
    title="Reviews",
    counterpart="Rendered SST2",
    kind="cinema",
    templates=("a {} review of a movie.",),
    classes=(
        DrawnClass("negative", "thumbs down", partial(draw, words=NEGATIVE)),
        DrawnClass("positive", "thumbs up", partial(draw, words=POSITIVE)),
    ),
    zero_shot=58.65,
    grain=0.05,
)
