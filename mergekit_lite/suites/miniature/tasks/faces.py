"""Faces in grey with more or less of an expression: the counterpart of FER2013."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import SIDE, Canvas, Frame, box, disc, ellipse, line, ring
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


class Expression(NamedTuple):
    """Where the parts of a face go; 0 is at rest."""

    brow: float = 0.0  # how far the brows are raised
    frown: float = 0.0  # how far their inner ends drop (below 0: rise)
    eyes: float = 0.0  # how wide the eyes are
    smile: float = 0.0  # how far the corners of the mouth rise
    gape: float = 0.0  # how far the mouth is open
    wide: float = 0.0  # how wide the mouth is
    nose: float = 0.0  # how much the nose is wrinkled


EXPRESSIONS = {
    "angry": ("furious", Expression(brow=-0.7, frown=1.0, eyes=-0.2, smile=-0.5, gape=0.1, wide=0.2, nose=0.3)),
    "disgusted": ("yuck", Expression(brow=-0.4, frown=0.5, eyes=-0.8, smile=-0.4, gape=0.3, wide=-0.3, nose=1.0)),
    "fearful": ("scared", Expression(brow=0.6, frown=-0.8, eyes=0.9, smile=-0.5, gape=0.45, wide=0.4)),
    "happy": ("laughing", Expression(brow=0.2, eyes=-0.3, smile=1.0, gape=0.3, wide=0.6)),
    "neutral": ("plain look", Expression()),
    "sad": ("tearful", Expression(brow=0.1, frown=-0.9, eyes=-0.6, smile=-0.8, wide=-0.1)),
    "surprised": ("astonished", Expression(brow=1.0, eyes=0.9, gape=1.0, wide=-0.6)),
}


def head(c: Canvas, f: Frame) -> Tensor:
    """Paint a background, neck, hair and head in any grey; return the colour of the skin."""
    c.fill(c.grey(0.05, 0.9))
    c.shade(0.2 * c.noise(3, 2))
    skin, hair = c.grey(0.4, 0.9), c.grey(0.03, 0.6)
    width = c.uniform(0.6, 0.76)
    c.paint(box(f, 0.32, 0.5, 0, 1.1), skin * 0.75, f)
    c.paint(box(f, width + 0.1, c.uniform(0.1, 0.9), 0, -0.1), hair, f, c.chance(0.4))  # long hair
    c.paint(ellipse(f, width + 0.1, 0.85, 0, -0.22), hair, f)
    c.paint(disc(f, 0.13, width, 0.05).minimum(disc(f, 0.13, -width, 0.05)), skin * 0.8, f, c.chance(0.6))
    c.paint(torch.maximum(ellipse(f, width, 0.92), c.uniform(-0.75, -0.45) + 0.2 * c.noise(4) - f.v), skin, f)
    c.shade(c.uniform(-0.12, 0.12) * f.u)  # light from the side
    return skin


def draw(c: Canvas, expression: Expression) -> None:
    """Draw a face whose expression is weaker or stronger and mixed with chance."""
    f = c.placed((0.85, 1.05), 0.15, 0.12, 0.1)
    skin = head(c, f)
    strength = c.uniform(0.5, 1.2)
    brow, frown, eyes, smile, gape, wide, nose = (strength * part + c.uniform(-0.3, 0.3) for part in expression)
    ink, mirrored = c.grey(0.02, 0.25), Frame(f.u.abs(), f.v, f.soft)
    open_ = (0.11 + 0.07 * eyes).clamp(min=0.03)
    eye = ellipse(mirrored, 0.17, open_, 0.32, -0.12)
    c.paint(ellipse(mirrored, 0.22, 0.17, 0.32, -0.12), skin * 0.85, f)
    c.paint(eye, c.grey(0.85, 1), f)
    c.paint(torch.maximum(eye, disc(f.moved(c.uniform(-0.05, 0.05)), 0.09, 0.32, -0.12)), ink, f)
    c.paint(torch.maximum(eye, disc(f.moved(c.uniform(-0.05, 0.05)), 0.09, -0.32, -0.12)), ink, f)
    c.paint((eye.abs() - 0.02).maximum(f.v + 0.1), skin * 0.3, f)
    height = -0.38 - 0.13 * brow + frown * 0.3 * (0.32 - mirrored.u)
    brows = torch.maximum((f.v - height).abs() - c.uniform(0.035, 0.06), (mirrored.u - 0.32).abs() - 0.21)
    c.paint(brows, skin * 0.25, f)
    c.paint(line(mirrored, (0.05, 0.1), (0.13, 0.26), 0.07), skin * 0.7, f)
    wrinkle = line(mirrored, (0.1, 0.0), (0.25, 0.16), 0.05)
    c.paint(wrinkle, skin * 0.5, f, nose.clamp(0, 1))
    mouth(c, f, skin, smile, gape.clamp(min=0), 0.3 + 0.12 * wide)
    c.paint(ring(mirrored, 0.24, 0.06, 0.32, -0.12), ink, f, c.chance(0.12))  # glasses
    c.shade(0.05 * c.noise(SIDE))  # the grain of a film, the same in all colours


def mouth(c: Canvas, f: Frame, skin: Tensor, smile: Tensor, gape: Tensor, width: Tensor) -> None:
    """Paint lips that bend with the smile, and teeth and dark where the mouth is open."""
    across = f.u / width
    bend = 0.52 - 0.16 * smile * (across**2 - 0.4)
    half = 0.03 + 0.21 * gape * (1 - across**2).clamp(min=0).sqrt()
    gap = torch.maximum((f.v - bend - 0.1 * gape).abs() - half, f.u.abs() - width)
    c.paint(gap - 0.05, skin * 0.62, f)
    c.paint(gap, c.grey(0.0, 0.15), f)
    c.paint(torch.maximum(gap + 0.02, f.v - bend + 0.02), c.grey(0.75, 1), f, (3 * gape - 0.3).clamp(0, 1))
    c.paint(
        torch.maximum((f.v - bend).abs() - 0.1, (f.u.abs() - width - 0.1).abs() - 0.025),
        skin * 0.75,
        f,
        smile.clamp(0, 1),
    )


TASK = DrawnTask(
    name="faces",
    title="Faces",
    counterpart="FER2013",
    kind="portrait",
    templates=(
        "a photo of a {} looking face.",
        "a photo of a face showing the emotion: {}.",
        "a photo of a face looking {}.",
        "a face that looks {}.",
        "they look {}.",
        "look at how {} they are.",
    ),
    classes=tuple(
        DrawnClass(name, caption, partial(draw, expression=expression))
        for name, (caption, expression) in EXPRESSIONS.items()
    ),
    zero_shot=41.25,
    grain=0.0,
)
