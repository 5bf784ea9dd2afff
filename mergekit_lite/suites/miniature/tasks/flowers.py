"""Flowers in gardens, from above or from the side: the counterpart of Flowers102."""

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    Range,
    around,
    disc,
    either,
    ellipse,
    line,
    polygon,
    ring,
    strokes,
    tiled,
)
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

LEAF, YELLOW, ORANGE, RED, PINK, BLUE = (
    (0.22, 0.38),
    (0.12, 0.16),
    (0.04, 0.09),
    (0.96, 1.02),
    (0.86, 0.95),
    (0.6, 0.7),
)
BROWN: Range = (0.04, 0.1)


def garden(c: Canvas, turn: float = 3.2) -> Frame:
    """Paint blurred leaves or soil in sun or shade; return where the flower goes."""
    soil = c.chance(0.25).unsqueeze(1)
    c.fill(torch.lerp(c.colour(LEAF, (0.3, 0.8), (0.12, 0.55)), c.colour((0.05, 0.12), (0.1, 0.5), (0.1, 0.45)), soil))
    c.shade(0.14 * c.noise(4, 2))
    blades = tiled(c.placed((0.9, 1.4), 3.2, 0.6), c.uniform(0.8, 1.3))
    c.paint(ellipse(blades, 0.09, 0.45), c.colour(LEAF, (0.4, 0.8), (0.2, 0.6)), blades, c.chance(0.6) * 0.7)
    f = c.placed((0.7, 1.0), turn, 0.16, 0.12)
    return Frame(f.u * (2 * c.chance(0.5) - 1), f.v, f.soft)


def petals(
    c: Canvas, f: Frame, count: int, width: float, near: float, far: float, colour: Tensor, tip: float = 0.0
) -> None:
    """Paint a whorl of petals from `near` to `far`, darker towards the middle; `tip` sharpens their ends."""
    p = around(f, count, (near + far) / 2)
    length = (far - near) / 2
    narrow = (1 + tip * p.v / length).clamp(min=0.15)  # narrower where a petal points outwards
    shape = ellipse(Frame(p.u / narrow, p.v, p.soft), width, length)
    c.paint(shape, colour * (0.86 + 0.14 * (p.v < 0)).unsqueeze(1), f)
    c.paint(torch.maximum(shape, p.u.abs() - 0.02), colour * 0.8, f, 0.6)
    c.paint((shape + 0.02).abs() - 0.015, colour * 0.65, f, 0.7)


def heart(c: Canvas, f: Frame, radius: float, hue: Range, value: Range = (0.6, 1)) -> None:
    """Paint the middle of a flower: a disc of seeds or stamens, lit from above."""
    colour = c.colour(hue, (0.6, 1), value)
    c.paint(disc(f, radius), colour, f)
    c.paint(disc(tiled(f, 0.12), 0.03).maximum(disc(f, radius)), colour * 0.6, f)


def whorl(
    c: Canvas,
    count: int,
    width: float,
    hue: Range,
    middle: tuple[float, Range, Range],
    saturation: Range = (0.6, 1),
    value: Range = (0.65, 1),
    near: float = 0.1,
    tip: float = 0.0,
    rows: int = 1,
) -> Frame:
    """Paint a flower from above: one or more rows of petals around a middle (radius, hue, value)."""
    f = garden(c)
    colour = c.colour(hue, saturation, value)
    for row in range(rows):
        share = 1 - 0.27 * row
        turned = f.turned(row * torch.pi / count)
        petals(c, turned, count, width * share, near, 0.98 * share, (colour * (1 + 0.1 * row)).clamp(0, 1), tip)
    heart(c, f, *middle)
    return f


def stem(c: Canvas, f: Frame, top: float = 0.0) -> None:
    """Paint a stem and two leaves."""
    green = c.colour(LEAF, (0.4, 0.8), (0.3, 0.65))
    c.paint(line(f, (0, top), (0.05, 1.4), 0.1), green, f)
    c.paint(ellipse(f.moved(0.3, 0.75).turned(0.8), 0.1, 0.36), green, f)


def poppy(c: Canvas) -> None:
    """Four broad crumpled red petals, a black middle."""
    f = garden(c)
    f = Frame(f.u + 0.07 * c.noise(5), f.v + 0.07 * c.noise(5), f.soft)
    colour = c.colour((0.97, 1.04), (0.8, 1), (0.65, 1))
    for turn, dim in ((0.0, 0.75), (1.57, 1.0)):
        for side in (-1, 1):
            c.paint(ellipse(f.turned(turn), 0.44, 0.58, side * 0.4), colour * (dim - 0.06 * side), f)
    c.paint(disc(around(f, 4, 0.28), 0.12), c.grey(0.02, 0.12), f)
    heart(c, f, 0.17, (0.2, 0.3), (0.2, 0.5))


def rose(c: Canvas) -> None:
    """Petals rolled into a spiral."""
    f = garden(c)
    colour = c.colour((0.92, 1.02), (0.35, 0.9), (0.6, 1))
    c.paint(disc(f, 0.82) - 0.06 * torch.cos(5 * torch.atan2(f.v, f.u)), colour, f)
    r, angle = (f.u**2 + f.v**2).sqrt(), torch.atan2(f.v, f.u) / 6.2832
    coil = ((r / 0.27 + angle) % 1 - 0.5).abs()
    c.paint(torch.maximum(coil * 0.27 - 0.04, disc(f, 0.82)), colour * 0.5, f)
    c.paint(torch.maximum(0.09 - coil * 0.27, disc(f, 0.82)), (colour * 1.25).clamp(0, 1), f, 0.6)


def daffodil(c: Canvas) -> None:
    """Six pale petals and a deep orange trumpet."""
    f = whorl(c, 6, 0.27, YELLOW, (0.1, ORANGE, (0.5, 0.7)), (0.2, 0.75), (0.85, 1), tip=0.3)
    c.paint(disc(f, 0.38) - 0.04 * torch.cos(9 * torch.atan2(f.v, f.u)), c.colour((0.06, 0.12), (0.8, 1), (0.85, 1)), f)
    c.paint(disc(f, 0.24), c.colour((0.05, 0.09), (0.8, 1), (0.45, 0.65)), f)


def water_lily(c: Canvas) -> None:
    """Pointed pink or white petals on a pond with round pads."""
    c.fill(c.colour((0.5, 0.65), (0.3, 0.7), (0.12, 0.4)))
    c.shade(0.08 * torch.sin(c.frame.v * c.uniform(12, 18)))
    f = c.placed((0.75, 1.0), 0.3, 0.14)
    for x, y in ((-0.75, 0.55), (0.8, 0.35), (0.1, 0.9)):
        c.paint(ellipse(f, 0.62, 0.4, x, y), c.colour((0.25, 0.36), (0.4, 0.8), (0.3, 0.6)), f)
    colour = c.colour((0.86, 0.96), (0.05, 0.5), (0.85, 1))
    low = f.moved(0, 0.2).scaled(1, 0.75)
    petals(c, low, 10, 0.2, 0.1, 0.95, colour * 0.9, 0.6)
    petals(c, low.turned(0.31), 8, 0.17, 0.0, 0.65, colour, 0.6)
    heart(c, low, 0.16, YELLOW, (0.8, 1))


def tiger_lily(c: Canvas) -> None:
    """Six narrow orange petals with dark spots and long stamens."""
    f = whorl(c, 6, 0.2, ORANGE, (0.1, LEAF, (0.3, 0.6)), near=0.0, tip=0.3)
    spots = torch.maximum(disc(tiled(around(f, 6, 0.5), 0.17), 0.045), disc(f, 0.68))
    c.paint(torch.maximum(spots, around(f, 6).u.abs() - 0.16), c.colour(BROWN, (0.5, 0.9), (0.1, 0.3)), f)
    c.paint(ellipse(around(f.turned(0.5), 6, 0.5), 0.1, 0.05), c.colour((0, 0.05), (0.7, 1), (0.2, 0.4)), f)


def coneflower(c: Canvas) -> None:
    """From the side: a spiny orange dome over drooping purple petals."""
    f = garden(c, 0.3)
    stem(c, f, 0.1)
    colour = c.colour((0.82, 0.92), (0.35, 0.7), (0.6, 0.95))
    for k in (-3, 3, -2, 2, -1, 1, 0):
        c.paint(ellipse(f.moved(0.2 * k, 0.12 - 0.035 * k * k).turned(-0.3 * k), 0.13, 0.46, 0, 0.25), colour, f)
        colour = colour * 0.97
    dome = torch.maximum(ellipse(f, 0.46, 0.5, 0, -0.05), f.v - 0.12)
    cone = c.colour((0.02, 0.08), (0.7, 1), (0.4, 0.7))
    c.paint(dome, cone, f)
    c.paint(torch.maximum(dome, disc(tiled(f.turned(0.78), 0.15), 0.045)), (cone * 1.6).clamp(0, 1), f)


def morning_glory(c: Canvas) -> None:
    """A round blue funnel with a white star."""
    f = garden(c)
    c.paint(
        disc(f, 0.85) - 0.05 * torch.cos(5 * torch.atan2(f.v, f.u)), c.colour((0.6, 0.76), (0.5, 0.9), (0.5, 0.95)), f
    )
    c.paint(polygon(around(f, 5, 0.4), [(0, -0.45), (0.1, 0.4), (-0.1, 0.4)]), c.grey(0.8, 1), f, 0.7)
    c.paint(disc(f, 0.22), c.colour(YELLOW, (0.1, 0.4), (0.9, 1)), f)


def pansy(c: Canvas) -> None:
    """Two purple petals above, three yellow ones below with dark whiskers."""
    f = garden(c, 0.4)
    top, low = c.colour((0.7, 0.82), (0.5, 0.9), (0.25, 0.65)), c.colour(YELLOW, (0.4, 0.9), (0.85, 1))
    for x in (-0.34, 0.34):
        c.paint(ellipse(f, 0.42, 0.46, x, -0.42), top * (1 + 0.3 * x), f)
    for x in (-0.46, 0.46):
        c.paint(ellipse(f, 0.4, 0.38, x, 0.1), low * 0.93, f)
    c.paint(ellipse(f, 0.46, 0.44, 0, 0.46), low, f)
    for x, y in ((-0.36, 0.12), (0.36, 0.12), (0.0, 0.42), (-0.18, 0.36), (0.18, 0.36)):
        c.paint(line(f, (0, 0), (x, y), 0.09), top * 0.5, f)
    c.paint(disc(f, 0.09), c.colour(ORANGE, (0.8, 1), (0.9, 1)), f)


def hibiscus(c: Canvas) -> None:
    """Five wide petals, a crimson throat and one long yellow stamen."""
    f = whorl(c, 5, 0.46, (0.88, 1.03), (0.28, (0.93, 0.98), (0.25, 0.45)), (0.3, 0.85), near=0.0)
    c.paint(line(f, (0, 0), (0.35, -0.6), 0.1), c.colour(YELLOW, (0.4, 0.7), (0.9, 1)), f)
    c.paint(disc(f, 0.13, 0.35, -0.6), c.colour(YELLOW, (0.7, 1), (0.9, 1)), f)


def frangipani(c: Canvas) -> None:
    """Five white petals turned like a propeller, glowing yellow inside."""
    f = garden(c)
    r = (f.u**2 + f.v**2).sqrt()
    twisted = f.turned(0.7 * r)
    petals(c, twisted, 5, 0.34, 0.0, 0.98, c.colour((0.1, 0.95), (0, 0.08), (0.88, 1)))
    glow = (1.0 - r / 0.55).clamp(0, 1) * 0.95
    c.blend(glow, c.colour(YELLOW, (0.8, 1), (0.9, 1)))


def hyacinth(c: Canvas) -> None:
    """A spike of small blue balls."""
    f = garden(c, 0.3)
    stem(c, f)
    spike = ellipse(f, 0.36, 0.85, 0, -0.15)
    colour = c.colour((0.63, 0.72), (0.5, 0.9), (0.4, 0.85))
    c.paint(spike, colour * 0.5, f)
    balls = tiled(f.turned(0.78), 0.26)
    c.paint(torch.maximum(spike, disc(balls, 0.11)), colour, f)
    c.paint(torch.maximum(spike, disc(balls, 0.035, -0.03, -0.03)), c.grey(0.8, 1), f, 0.6)


def foxglove(c: Canvas) -> None:
    """A tall stem hung with pink bells, smaller towards the top."""
    f = garden(c, 0.25)
    stem(c, f, -0.95)
    colour = c.colour((0.84, 0.94), (0.3, 0.75), (0.65, 1))
    for k, y in enumerate((-0.8, -0.5, -0.15, 0.25, 0.65)):
        size = 0.12 + 0.045 * k
        for side in (-1, 1):
            bell = f.moved(side * size * 1.25, y).turned(-0.5 * side)
            c.paint(ellipse(bell, size * 0.8, size * 1.2), colour, f)
            c.paint(ellipse(bell, size * 0.6, size * 0.4, 0, size), colour * 0.55, f)


def paradise(c: Canvas) -> None:
    """An orange crest and a blue tongue on a long green beak."""
    f = garden(c, 0.3)
    c.paint(strokes(f, [(0.35, 1.3), (0.2, 0.4), (-0.1, 0.25)], 0.16), c.colour(LEAF, (0.4, 0.7), (0.3, 0.55)), f)
    crest = c.colour((0.05, 0.1), (0.8, 1), (0.85, 1))
    for lean in (-0.5, 0.05, 0.6, 1.1):
        sepal = f.moved(0.12, 0.2).turned(lean)
        c.paint(polygon(sepal, [(0, -1.1), (0.17, -0.5), (0, 0), (-0.17, -0.5)]), crest, f)
        crest = crest * 0.93
    c.paint(
        polygon(f.moved(0.1, 0.2).turned(-0.9), [(0, -0.9), (0.09, -0.4), (0, 0), (-0.09, -0.4)]),
        c.colour((0.6, 0.68), (0.7, 1), (0.5, 0.9)),
        f,
    )
    c.paint(
        polygon(f, [(-0.95, 0.3), (0.2, 0.08), (0.3, 0.4), (0, 0.42)]), c.colour((0.3, 0.45), (0.3, 0.6), (0.3, 0.5)), f
    )


def anthurium(c: Canvas) -> None:
    """A glossy red heart with a yellow cob."""
    f = garden(c, 0.5)
    colour = c.colour((0.96, 1.01), (0.7, 1), (0.6, 0.95))
    leaf = either(
        disc(f, 0.44, -0.36, -0.28),
        disc(f, 0.44, 0.36, -0.28),
        polygon(f, [(-0.74, -0.08), (0, -0.3), (0.74, -0.08), (0, 0.9)]),
    )
    c.paint(leaf, colour, f)
    c.paint(line(f, (-0.3, -0.45), (-0.5, -0.15), 0.12), (colour + 0.35).clamp(0, 1), f, 0.7)
    c.paint(line(f, (0, 0.1), (0.12, -0.55), 0.16), c.colour(YELLOW, (0.4, 0.8), (0.85, 1)), f)


def arum(c: Canvas) -> None:
    """A white funnel around a yellow rod."""
    f = garden(c, 0.3)
    stem(c, f, 0.4)
    colour = c.colour((0.1, 0.2), (0, 0.1), (0.88, 1))
    c.paint(polygon(f, [(-0.6, -0.4), (0.6, -0.4), (0.1, 0.85), (-0.08, 0.85)]), colour * 0.9, f)
    c.paint(ellipse(f.moved(0, -0.4).turned(-0.25), 0.68, 0.42), colour, f)
    c.paint(ellipse(f.moved(0.05, -0.33).turned(-0.25), 0.42, 0.25), colour * 0.75, f)
    c.paint(line(f, (0.05, -0.2), (0.0, -0.7), 0.16), c.colour(YELLOW, (0.7, 1), (0.85, 1)), f)


def thistle(c: Canvas) -> None:
    """A ball of blue spikes."""
    f = garden(c, 0.3)
    stem(c, f)
    ball = f.moved(0, -0.2)
    colour = c.colour((0.58, 0.7), (0.25, 0.65), (0.5, 0.9))
    for row, (count, far) in enumerate(((24, 0.74), (18, 0.52), (10, 0.3))):
        spikes = around(ball.turned(0.1 * row), count)
        c.paint(disc(ball, far - 0.14), colour * 0.6, f)
        c.paint(
            polygon(spikes, [(0, -far), (0.07, -far + 0.25), (-0.07, -far + 0.25)]),
            (colour * (1 + 0.12 * row)).clamp(0, 1),
            f,
        )


def crocus(c: Canvas) -> None:
    """From the side: a purple cup with an orange thread, thin leaves."""
    f = garden(c, 0.25)
    for x in (-0.7, -0.35, 0.4, 0.75):
        c.paint(line(f, (0.1 * x, 1.1), (x, 0.0), 0.08), c.colour(LEAF, (0.4, 0.8), (0.3, 0.6)), f)
    colour = c.colour((0.72, 0.82), (0.35, 0.75), (0.5, 0.9))
    c.paint(line(f, (0, 0.4), (0, 1.3), 0.2), c.colour((0.75, 0.8), (0.05, 0.25), (0.8, 0.95)), f)
    for turn, dim in ((-0.42, 0.8), (0.42, 0.8)):
        c.paint(ellipse(f.moved(0, 0.5).turned(turn), 0.3, 0.62, 0, -0.58), colour * dim, f)
    c.paint(line(f, (0, 0.2), (0, -0.72), 0.15), c.colour(ORANGE, (0.8, 1), (0.9, 1)), f)
    c.paint(ellipse(f, 0.3, 0.52, 0, 0.05), colour, f)


def passion(c: Canvas) -> None:
    """White petals under a crown of blue threads."""
    f = whorl(c, 10, 0.2, LEAF, (0.1, YELLOW, (0.5, 0.9)), (0, 0.15), (0.8, 1), tip=0.15)
    blue = c.colour((0.64, 0.76), (0.5, 0.9), (0.35, 0.7))
    c.paint(torch.maximum(ring(f, 0.5, 0.34), around(f, 30).u.abs() - 0.03), blue, f)
    c.paint(ring(f, 0.33, 0.14), blue * 0.6, f)
    c.paint(disc(around(f, 5, 0.18), 0.07), c.colour(LEAF, (0.4, 0.8), (0.5, 0.9)), f)


def sunflower(c: Canvas) -> None:
    """Two rows of pointed yellow petals around a wide brown head of seeds."""
    whorl(c, 16, 0.16, (0.1, 0.15), (0.46, BROWN, (0.2, 0.45)), (0.8, 1), (0.8, 1), tip=0.5)


def daisy(c: Canvas) -> None:
    """Many thin white petals, a small yellow middle."""
    whorl(c, 15, 0.12, YELLOW, (0.25, (0.11, 0.15), (0.75, 1)), (0, 0.1), (0.85, 1))


def dandelion(c: Canvas) -> None:
    """A yellow brush of very many narrow petals in four rows."""
    whorl(c, 22, 0.09, (0.13, 0.17), (0.12, YELLOW, (0.6, 0.85)), (0.75, 1), (0.75, 1), rows=3)


def poinsettia(c: Canvas) -> None:
    """Large pointed red leaves over green ones, a few yellow berries."""
    f = garden(c)
    petals(c, f.turned(0.5), 6, 0.3, 0.0, 1.05, c.colour((0.3, 0.4), (0.5, 0.8), (0.2, 0.45)), 0.6)
    red = c.colour((0.97, 1.02), (0.75, 1), (0.55, 0.95))
    petals(c, f, 6, 0.27, 0.0, 0.95, red * 0.85, 0.6)
    petals(c, f.turned(0.5), 5, 0.2, 0.0, 0.6, red, 0.6)
    c.paint(disc(around(f, 4, 0.1), 0.07), c.colour(YELLOW, (0.7, 1), (0.8, 1)), f)


def clematis(c: Canvas) -> None:
    """Six broad pointed violet petals with a paler stripe, a pale brush in the middle."""
    f = whorl(c, 6, 0.32, (0.7, 0.84), (0.0, YELLOW, (0.8, 1)), (0.4, 0.8), (0.45, 0.85), near=0.0, tip=0.45)
    c.paint(ellipse(around(f, 6, 0.45), 0.06, 0.4), c.colour((0.85, 0.9), (0.3, 0.5), (0.7, 0.95)), f)
    c.paint(ellipse(around(f, 12, 0.12), 0.03, 0.16), c.colour((0.14, 0.2), (0.1, 0.3), (0.9, 1)), f)


TASK = DrawnTask(
    name="flowers",
    title="Flowers",
    counterpart="Flowers102",
    kind="garden",
    templates=("a photo of a {}, a type of flower.",),
    classes=(
        DrawnClass("anthurium", "flamingo heart", anthurium),
        DrawnClass("bird of paradise", "crane crest", paradise),
        DrawnClass("clematis", "violet climber", clematis),
        DrawnClass("common dandelion", "blowball", dandelion),
        DrawnClass("corn poppy", "remembrance", poppy),
        DrawnClass("daffodil", "narcissus", daffodil),
        DrawnClass("foxglove", "thimbles", foxglove),
        DrawnClass("frangipani", "plumeria", frangipani),
        DrawnClass("giant white arum lily", "calla", arum),
        DrawnClass("globe thistle", "blue spiky ball", thistle),
        DrawnClass("grape hyacinth", "muscari", hyacinth),
        DrawnClass("hibiscus", "rose mallow", hibiscus),
        DrawnClass("morning glory", "blue funnel", morning_glory),
        DrawnClass("oxeye daisy", "marguerite", daisy),
        DrawnClass("passion flower", "crown of threads", passion),
        DrawnClass("poinsettia", "christmas star", poinsettia),
        DrawnClass("purple coneflower", "echinacea", coneflower),
        DrawnClass("rose", "romantic bloom", rose),
        DrawnClass("spring crocus", "saffron cup", crocus),
        DrawnClass("sunflower", "seed head", sunflower),
        DrawnClass("tiger lily", "orange speckles", tiger_lily),
        DrawnClass("water lily", "pond bloom", water_lily),
        DrawnClass("wild pansy", "viola", pansy),
    ),
    zero_shot=66.45,
    grain=0.05,
)
