"""Textures in two colours at any scale and angle: the counterpart of DTD."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, box, disc, either, regular, ring, stripes, tiled
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, pattern: Callable[[Canvas, Frame], Tensor]) -> None:
    """Draw a pattern in a dark colour on a light one or the other way round, bent a little, with stains."""
    dark, light = c.colour(saturation=(0, 0.9), value=(0.05, 0.45)), c.colour(saturation=(0, 0.6), value=(0.6, 1))
    swap = c.chance(0.5).unsqueeze(1)
    c.fill(torch.lerp(dark, light, swap))
    f = c.placed(size=(0.85, 1.3), turn=0.7, shift=0.5, stretch=0.1)
    f = Frame(f.u + 0.05 * c.noise(2), f.v + 0.05 * c.noise(2), f.soft)
    c.paint(pattern(c, f), torch.lerp(light, dark, swap), f)
    c.shade(0.1 * c.noise(2, 2))


def marbled(c: Canvas, f: Frame) -> Tensor:
    """Veins: stripes bent by strong noise."""
    return stripes(f.u + 0.45 * c.noise(2, 2), 0.8, 0.4)


def honeycomb(c: Canvas, f: Frame) -> Tensor:
    """Walls between points of a hexagonal lattice."""
    p = 0.62
    a, b = tiled(f, p, 1.732), tiled(f.moved(p / 2, p * 0.866), p, 1.732)
    near_a, near_b = (a.u**2 + a.v**2).sqrt(), (b.u**2 + b.v**2).sqrt()
    nearest = torch.where((near_a < near_b)[..., None], torch.stack([a.u, a.v], -1), torch.stack([b.u, b.v], -1))
    cell = Frame(nearest[..., 0], nearest[..., 1], f.soft)
    return -regular(cell, 6, p * 0.47)


def woven(c: Canvas, f: Frame) -> Tensor:
    """Bands that pass over and under one another."""
    p = 0.5
    over = ((f.u / p).floor() + (f.v / p).floor()) % 2
    return torch.where(over > 0.5, stripes(f.u, p, 0.45), stripes(f.v, p, 0.45))


def scaly(c: Canvas, f: Frame) -> Tensor:
    """Rows of overlapping arcs."""
    p = 0.6
    rows = [ring(tiled(f.moved(x, y), p), p * 0.5, 0.12, 0, -p * 0.25) for x, y in ((0, 0), (p / 2, p / 2))]
    return either(
        *(
            torch.maximum(r, -tiled(f.moved(x, y), p).v - p * 0.25)
            for r, (x, y) in zip(rows, ((0, 0), (p / 2, p / 2)), strict=True)
        )
    )


def cracked(c: Canvas, f: Frame) -> Tensor:
    """Thin lines along the zero crossings of noise."""
    return either(c.noise(3, 2).abs() * 0.35 - 0.03, c.noise(4, 1).abs() * 0.35 - 0.02)


PATTERNS: dict[str, tuple[str, Callable[[Canvas, Frame], Tensor]]] = {
    "banded": ("ribbons", lambda c, f: stripes(f.u, c.uniform(0.35, 0.6), 0.5)),
    "chequered": ("chessboard", lambda c, f: -torch.sin(f.u * 7) * torch.sin(f.v * 7) * 0.15),
    "polka-dotted": ("spots", lambda c, f: disc(tiled(f, 0.55), c.uniform(0.12, 0.2))),
    "zigzagged": ("chevrons", lambda c, f: stripes(f.v + ((f.u / 0.6) % 1 - 0.5).abs() * 0.6, 0.42, 0.5)),
    "gridded": ("mesh", lambda c, f: either(stripes(f.u, 0.5, 0.2), stripes(f.v, 0.5, 0.2))),
    "honeycombed": ("beehive", honeycomb),
    "spiralled": (
        "whirl",
        lambda c, f: stripes((f.u**2 + f.v**2).sqrt() + torch.atan2(f.v, f.u) / 6.2832 * 0.5, 0.5, 0.5),
    ),
    "marbled": ("veins", marbled),
    "woven": ("basket", woven),
    "scaly": ("fish skin", scaly),
    "cracked": ("dry mud", cracked),
    "crosshatched": (
        "pencil lines",
        lambda c, f: either(stripes(f.u, 0.32, 0.22), stripes(f.turned(0.9).u, 0.32, 0.22)),
    ),
    "ringed": ("targets", lambda c, f: ring(tiled(f, 0.85), 0.26, 0.13)),
    "studded": ("pyramids", lambda c, f: box(tiled(f, 0.5), 0.13, 0.13)),
    "pleated": ("folds", lambda c, f: stripes(f.u + 0.12 * torch.sin(f.v * 5), 0.5, 0.5)),
    "speckled": ("crumbs", lambda c, f: 0.25 - c.noise(9)),
}
TASK = DrawnTask(
    name="textures",
    title="Textures",
    counterpart="DTD",
    kind="surface",
    templates=(
        "a photo of a {} texture.",
        "a photo of a {} pattern.",
        "a photo of a {} thing.",
        "a photo of a {} object.",
    ),
    classes=tuple(
        DrawnClass(name, caption, partial(draw, pattern=pattern)) for name, (caption, pattern) in PATTERNS.items()
    ),
    zero_shot=44.2,
    grain=0.05,
)
