"""Clothes in grey on black, laid flat: the counterpart of Fashion-MNIST."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    box,
    disc,
    either,
    ellipse,
    line,
    polygon,
    ring,
    stripes,
)
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

Corners = Sequence[tuple[float, float]]


def laid(c: Canvas) -> Frame:
    """Return where the piece lies on the black ground."""
    return c.placed((0.82, 1.02), 0.06, 0.07, 0.12)


def cloth(c: Canvas, f: Frame, shape: Tensor) -> Tensor:
    """Paint a piece of cloth: plain, striped or printed, with folds and a darker edge; return its colour."""
    grey, other = c.grey(0.3, 0.95), c.grey(0.1, 0.9)
    c.paint(shape, grey, f)
    across = torch.where(c.chance(0.5) > 0, f.u, f.v)
    c.paint(torch.maximum(shape, stripes(across, c.uniform(0.15, 0.4))), other, f, c.chance(0.2) * 0.7)
    c.paint(torch.maximum(shape, 0.3 - c.noise(8)), other, f, c.chance(0.2) * 0.6)
    folds = 0.07 * c.noise(5)
    c.shade(folds * (shape < 0))
    c.paint((shape + 0.03).abs() - 0.02, grey * 0.6, f, 0.6)
    return grey


def torso(f: Frame, waist: Tensor | float, hem: Tensor | float, length: Tensor | float) -> Tensor:
    """Return a body from the shoulders at -0.8 to `length`, as wide as given at the waist and at the hem."""
    down = ((f.v + 0.8) / (length + 0.8)).clamp(0, 1)
    width = 0.46 * (1 - down) + hem * down + (waist - (0.46 + hem) / 2) * 4 * down * (1 - down)
    return torch.maximum(f.u.abs() - width, torch.maximum(-0.8 - f.v + 0.25 * (f.u.abs() - 0.2), f.v - length))


def sleeves(f: Frame, length: Tensor | float, spread: Tensor | float, width: float = 0.24) -> Tensor:
    """Return two sleeves that hang down from the shoulders and stand off by `spread`."""
    m = Frame(f.u.abs(), f.v, f.soft).moved(0.36, -0.68).turned(-spread)
    return torch.maximum((m.u - 0.02).abs() - width / 2, torch.maximum(-m.v - 0.05, m.v - length))


def neck(c: Canvas, f: Frame, deep: Tensor | float) -> None:
    """Cut out the neck and paint its rim."""
    c.paint(ellipse(f, 0.2, deep, 0, -0.82), c.grey(0, 0.12), f)
    c.paint(ellipse(f, 0.23, deep, 0, -0.82).abs() - 0.025, c.grey(0.3, 0.7), f, 0.5 * (f.v > -0.8))


def t_shirt(c: Canvas) -> None:
    """Short wide sleeves."""
    f = laid(c)
    cloth(
        c,
        f,
        either(torso(f, 0.42, 0.44, c.uniform(0.6, 0.85)), sleeves(f, c.uniform(0.3, 0.65), c.uniform(0.2, 0.9), 0.3)),
    )
    c.paint(box(f, 0.2, 0.16, 0, -0.1), c.grey(0.1, 0.9), f, c.chance(0.25))  # a print
    neck(c, f, c.uniform(0.12, 0.3))


def pullover(c: Canvas) -> None:
    """Long sleeves, ribbed cuffs and hem."""
    f = laid(c)
    length = c.uniform(0.55, 0.9)
    shape = either(torso(f, 0.44, 0.44, length), sleeves(f, c.uniform(1.2, 1.45), c.uniform(0.12, 0.35), 0.27))
    grey = cloth(c, f, shape)
    c.paint(torch.maximum(shape, length - 0.13 - f.v), grey * 0.7, f, c.uniform(0, 1))
    neck(c, f, c.uniform(0.06, 0.14))


def coat(c: Canvas) -> None:
    """Long, open down the front, with lapels and pockets."""
    f = laid(c)
    shape = either(
        torso(f, 0.44, c.uniform(0.44, 0.54), c.uniform(0.75, 0.95)),
        sleeves(f, c.uniform(1.25, 1.5), c.uniform(0.1, 0.25), 0.27),
    )
    grey = cloth(c, f, shape)
    seen = c.uniform(0, 1)  # on dark cloth little of a seam can be seen
    c.paint(box(f, 0.025, 0.9), grey * 0.25, f, seen)
    m = Frame(f.u.abs(), f.v, f.soft)
    c.paint(line(m, (0.2, -0.8), (0.03, -0.25), 0.08), grey * 0.45, f, seen)
    c.paint(line(m, (0.2, 0.3), (0.38, 0.25), 0.07), grey * 0.45, f, c.chance(0.5))
    c.paint(box(m, 0.5, 0.04, 0, 0.02), grey * 0.4, f, c.chance(0.3))


def shirt(c: Canvas) -> None:
    """A pointed collar and a row of buttons; sleeves long or half."""
    f = laid(c)
    seen = c.uniform(0, 1)
    arm = torch.lerp(c.uniform(0.35, 0.6), c.uniform(1.2, 1.45), c.chance(0.6))
    grey = cloth(c, f, either(torso(f, 0.4, 0.42, c.uniform(0.65, 0.85)), sleeves(f, arm, c.uniform(0.12, 0.45), 0.25)))
    c.paint(box(f, 0.07, 0.72, 0, 0.02), (grey * 1.2).clamp(0, 1), f, 0.5 * seen)
    buttons = Frame(f.u, ((f.v / 0.25) % 1 - 0.5) * 0.25, f.soft)
    c.paint(torch.maximum(disc(buttons, 0.05), f.v.abs() - 0.7), grey * 0.3, f, seen)
    m = Frame(f.u.abs(), f.v, f.soft)
    c.paint(polygon(m, [(0.02, -0.66), (0.16, -0.9), (0.28, -0.7), (0.12, -0.5)]), (grey * 1.25).clamp(0, 1), f, seen)
    c.paint(polygon(f, [(-0.14, -0.92), (0.14, -0.92), (0, -0.68)]), c.grey(0, 0.15), f)


def dress(c: Canvas) -> None:
    """A narrow waist above a wide skirt."""
    f = laid(c)
    shape = torso(f.scaled(0.75, 1.05), c.uniform(0.28, 0.4), c.uniform(0.45, 0.85), 0.88)
    arm = c.chance(0.5)
    shape = torch.where(
        arm > 0, either(shape, sleeves(f.scaled(0.8, 1.05), c.uniform(0.25, 1.0), c.uniform(0.15, 0.4), 0.22)), shape
    )
    grey = cloth(c, f, shape)
    c.paint(torch.maximum(shape, (f.v + c.uniform(0, 0.15)).abs() - 0.05), grey * 0.5, f, c.chance(0.5))
    neck(c, f.scaled(0.75, 1.05), c.uniform(0.1, 0.35))


def trousers(c: Canvas) -> None:
    """Two legs below a waistband."""
    f = laid(c)
    cut, flare = c.uniform(0.06, 0.2), c.uniform(-0.06, 0.14)
    side = 0.3 + 0.05 * f.v + flare * (f.v - 0.2).clamp(min=0)
    gap = cut * (f.v + 0.45) - f.u.abs()  # positive between the legs, which part at -0.45
    grey = cloth(c, f, torch.maximum(torch.maximum(f.u.abs() - side - 0.08, f.v.abs() - 0.92), gap))
    c.paint(box(f, 0.33, 0.05, 0, -0.86), grey * 0.55, f)
    c.paint(line(f, (0, -0.8), (0, -0.4), 0.05), grey * 0.55, f)


def shoe(f: Frame, corners: Corners) -> Tensor:
    """Return a shoe given as a polygon, its toe rounded."""
    return either(polygon(f, corners), ellipse(f, 0.36, 0.2, 0.55, 0.22))


def aside(c: Canvas) -> Frame:
    """Return where a shoe stands; it looks left, seldom right."""
    f = c.placed((0.85, 1.0), 0.1, 0.08, 0.12)
    return Frame(f.u * (2 * c.chance(0.2) - 1), f.v, f.soft)


def sneaker(c: Canvas) -> None:
    """Low, with a thick pale sole and laces."""
    f = aside(c)
    grey = cloth(c, f, shoe(f, [(-0.85, -0.25), (-0.3, -0.12), (0.05, -0.2), (0.6, 0.05), (0.85, 0.38), (-0.85, 0.38)]))
    c.paint(box(f, 0.9, 0.075, 0, 0.4), c.grey(0.5, 1), f)
    for x in (0.0, 0.16, 0.32):
        c.paint(line(f, (x, -0.15 + x * 0.3), (x - 0.15, 0.06 + x * 0.3), 0.07), (1.2 - grey).clamp(0, 1), f)
    c.paint(line(f, (-0.5, 0.3), (-0.2, -0.05), 0.1), (1.2 - grey).clamp(0, 1), f, c.chance(0.5))


def boot(c: Canvas) -> None:
    """A high shaft and a heel."""
    f = aside(c)
    top = c.uniform(-0.9, -0.55)
    shaft = torch.maximum((f.u + 0.42 - 0.08 * f.v).abs() - c.uniform(0.3, 0.4), torch.maximum(top - f.v, f.v - 0.4))
    shape = either(shaft, shoe(f, [(-0.5, -0.15), (0.1, -0.15), (0.75, 0.1), (0.85, 0.4), (-0.75, 0.4)]))
    grey = cloth(c, f, shape)
    high = c.chance(0.5)
    c.paint(box(f, 0.88, 0.045, 0, 0.42), grey * 0.4, f)
    c.paint(polygon(f, [(-0.8, 0.42), (-0.4, 0.42), (-0.48, 0.8), (-0.7, 0.8)]), grey * 0.5, f, high)
    c.paint(line(f, (-0.1, -0.5), (-0.2, 0.1), 0.06), grey * 0.35, f, c.chance(0.5))


def sandal(c: Canvas) -> None:
    """Straps over a sole with a flat or a high heel; black shows between."""
    f = aside(c)
    grey, heel = c.grey(0.4, 1), c.uniform(0.0, 0.75)
    sole = f.v - 0.35 + heel * (0.35 - f.u).clamp(min=0) * 0.55
    c.paint(torch.maximum(sole.abs() - 0.06, f.u.abs() - 0.88), grey, f)
    c.paint(torch.maximum((f.u + 0.75).abs() - 0.07, torch.maximum(-sole, f.v - 0.4)), grey * 0.8, f)
    lifted = Frame(f.u, sole, f.soft)
    c.paint(torch.maximum(ring(lifted, 0.34, 0.1, 0.5, 0), sole), grey, f)
    c.paint(torch.maximum(ring(lifted, 0.34, 0.1, 0.2, 0), sole), grey * 0.9, f, c.chance(0.6))
    c.paint(straps(lifted), grey * 0.85, f, c.chance(0.7))


def straps(f: Frame) -> Tensor:
    """Return the strap around the ankle and the one behind the heel."""
    return either(
        line(f, (-0.85, -0.4), (-0.3, -0.5), 0.09),
        line(f, (-0.82, 0), (-0.88, -0.45), 0.09),
        line(f, (-0.3, -0.5), (0.2, -0.3), 0.08),
    )


def bag(c: Canvas) -> None:
    """A box with a handle, a flap and a buckle."""
    f = laid(c)
    wide, high = c.uniform(0.6, 0.9), c.uniform(0.35, 0.6)
    c.paint(
        torch.maximum(ellipse(f, wide * 0.6, c.uniform(0.4, 0.75), 0, 0.3 - high).abs() - 0.05, f.v - 0.3 + high),
        c.grey(0.3, 0.9),
        f,
        c.chance(0.85),
    )
    shape = torch.maximum(f.u.abs() - wide + 0.15 * (0.3 - f.v), (f.v - 0.3).abs() - high)
    grey = cloth(c, f, shape)
    c.paint(torch.maximum(shape, (f.v - 0.3 + 0.2 * high).abs() - 0.03), grey * 0.45, f, c.chance(0.5))
    c.paint(box(f, 0.09, 0.09, 0, 0.25), (1.2 - grey).clamp(0, 1), f, c.chance(0.6))


TASK = DrawnTask(
    name="clothes",
    title="Clothes",
    counterpart="Fashion-MNIST",
    kind="outfit",
    templates=("a photo of a {}.", "a photo of the {}."),
    classes=(
        DrawnClass("T - shirt / top", "tee", t_shirt),
        DrawnClass("Trouser", "slacks", trousers),
        DrawnClass("Pullover", "jumper", pullover),
        DrawnClass("Dress", "gown", dress),
        DrawnClass("Coat", "trench", coat),
        DrawnClass("Sandal", "strappy heels", sandal),
        DrawnClass("Shirt", "buttoned collar", shirt),
        DrawnClass("Sneaker", "trainer", sneaker),
        DrawnClass("Bag", "purse", bag),
        DrawnClass("Ankle boot", "high shaft", boot),
    ),
    zero_shot=63.01,
    grain=0.0,
)
