"""A small language for pictures made of coloured parts, compact enough for tables of many classes.

A sketch such as `"red o 0 10 60 55, brown s 8 0 -40 10 -75"` lists parts from back to front: a colour of `PALETTE`
(left out, it is the colour before), a kind of shape and its numbers in hundredths, x to the right and y down:

    o x y rx ry             ellipse; a and u are its upper and lower half
    b left top right bottom box
    p x y x y x y ...       convex polygon
    s width x y x y ...     stroke through points
    r x y radius width      ring
    f x y radius petals     flower or crown with a wavy outline
    g left top right bottom period   grid of small squares within a box

A kind behind a bar, `|o`, is drawn on the right and mirrored on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    Range,
    box,
    either,
    ellipse,
    polygon,
    ring,
    strokes,
    tiled,
)

PALETTE: dict[str, tuple[Range, Range, Range]] = {  # ranges of hue, saturation and value
    "any": ((0, 1), (0.4, 1), (0.3, 0.95)),
    "other": ((0, 1), (0.3, 1), (0.5, 1)),
    "red": ((0.95, 1.03), (0.7, 1), (0.5, 0.95)),
    "orange": ((0.05, 0.09), (0.7, 1), (0.7, 1)),
    "yellow": ((0.12, 0.16), (0.6, 1), (0.75, 1)),
    "lime": ((0.17, 0.24), (0.5, 0.9), (0.55, 0.9)),
    "green": ((0.27, 0.4), (0.5, 0.9), (0.25, 0.65)),
    "sky": ((0.52, 0.6), (0.2, 0.6), (0.6, 1)),
    "blue": ((0.56, 0.66), (0.4, 0.9), (0.3, 0.75)),
    "violet": ((0.72, 0.85), (0.3, 0.8), (0.4, 0.9)),
    "pink": ((0.9, 1.0), (0.25, 0.5), (0.75, 1)),
    "brown": ((0.03, 0.09), (0.45, 0.8), (0.25, 0.55)),
    "golden": ((0.1, 0.13), (0.5, 0.85), (0.75, 1)),
    "toast": ((0.06, 0.1), (0.5, 0.8), (0.5, 0.8)),
    "chocolate": ((0.03, 0.07), (0.5, 0.8), (0.15, 0.35)),
    "wood": ((0.06, 0.1), (0.4, 0.7), (0.4, 0.75)),
    "tan": ((0.07, 0.11), (0.25, 0.5), (0.65, 0.9)),
    "cream": ((0.1, 0.15), (0.05, 0.3), (0.85, 1)),
    "olive": ((0.16, 0.25), (0.3, 0.6), (0.25, 0.5)),
    "steel": ((0.55, 0.62), (0.0, 0.2), (0.45, 0.75)),
    "grey": ((0.5, 0.65), (0.0, 0.15), (0.35, 0.65)),
    "dark": ((0, 1), (0.0, 0.4), (0.02, 0.2)),
    "white": ((0, 1), (0.0, 0.06), (0.85, 1)),
}


@dataclass(frozen=True)
class Part:
    """One coloured shape of a sketch."""

    colour: str
    kind: str
    mirrored: bool
    numbers: tuple[float, ...]


def parse(text: str) -> tuple[Part, ...]:
    """Return the parts that `text` lists."""
    parts, colour = [], "any"
    for piece in text.split(","):
        words = piece.split()
        if words[0] in PALETTE:
            colour = words.pop(0)
        kind = words.pop(0)
        numbers = [int(word) if kind[-1] == "f" and k == 3 else int(word) / 100 for k, word in enumerate(words)]
        parts.append(Part(colour, kind[-1], kind.startswith("|"), tuple(numbers)))
    return tuple(parts)


def paint_parts(c: Canvas, f: Frame, parts: Sequence[Part], when: Tensor | float = 1.0) -> None:
    """Paint the parts from back to front, in the pictures where `when` is 1; one shade of each colour per picture."""
    shades = {name: c.colour(*PALETTE[name]) for name in dict.fromkeys(part.colour for part in parts)}
    for name, group in groupby(parts, key=lambda part: part.colour):
        c.paint(either(*(distance(f, part) for part in group)), shades[name], f, when)


def flower(f: Frame, x: float, y: float, radius: float, petals: float) -> Tensor:
    """Return about the distance to a disc with a wavy outline."""
    u, v = f.u - x, f.v - y
    wave = 0.82 + 0.18 * torch.cos(torch.atan2(v, u) * petals)
    return (u**2 + v**2).sqrt() - radius * wave


def distance(f: Frame, part: Part) -> Tensor:
    """Return the distance to a part."""
    f = Frame(f.u.abs(), f.v, f.soft) if part.mirrored else f
    n = part.numbers
    match part.kind:
        case "o":
            return _oval(f, *n)
        case "a":
            return torch.maximum(_oval(f, *n), f.v - n[1])
        case "u":
            return torch.maximum(_oval(f, *n), n[1] - f.v)
        case "b":
            return _within(f, *n)
        case "g":
            return torch.maximum(_within(f, *n[:4]), box(tiled(f, n[4]), n[4] * 0.28, n[4] * 0.28))
        case "p":
            points = list(zip(n[::2], n[1::2], strict=True))
            area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True))
            return polygon(f, points if area > 0 else points[::-1])
        case "s":
            return strokes(f, list(zip(n[1::2], n[2::2], strict=True)), n[0])
        case "r":
            return ring(f, n[2], n[3], n[0], n[1])
        case "f":
            return flower(f, *n)
    raise ValueError(f"unknown kind of part: {part.kind!r}")


def _within(f: Frame, left: float, top: float, right: float, bottom: float) -> Tensor:
    return box(f, (right - left) / 2, (bottom - top) / 2, (left + right) / 2, (top + bottom) / 2)


def _oval(f: Frame, x: float, y: float, rx: float, ry: float) -> Tensor:
    return ellipse(f, rx, ry, x, y)
