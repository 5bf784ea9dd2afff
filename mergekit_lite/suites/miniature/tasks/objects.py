"""Animals and things to travel in, large before simple grounds: the counterpart of STL10."""

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    Range,
    box,
    disc,
    either,
    ellipse,
    line,
    polygon,
    strokes,
)
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

Corners = list[tuple[float, float]]
FUR: tuple[Range, Range, Range] = ((0.04, 0.11), (0.1, 0.75), (0.1, 0.9))
SKY, GRASS, SEA = (0.52, 0.62), (0.15, 0.36), (0.5, 0.62)


def before(c: Canvas, ground: Range | None, turn: float = 0.1, horizon: Range = (0.2, 0.6)) -> Frame:
    """Paint sky or wall and, if given, ground; return a frame that faces either way."""
    wall = c.chance(0.3).unsqueeze(1)
    c.fill(torch.lerp(c.colour(SKY, (0.1, 0.7), (0.5, 1)), c.colour(saturation=(0.05, 0.5), value=(0.3, 0.9)), wall))
    c.shade(0.12 * c.noise(3, 2) + c.uniform(-0.15, 0.25) * c.frame.v)
    if ground:
        edge = c.uniform(*horizon) + 0.05 * c.noise(4)
        c.paint(edge - c.frame.v, c.colour(ground, (0.1, 0.7), (0.25, 0.8)))
        c.shade(0.08 * c.noise(6, 2) * (c.frame.v > edge))
    f = c.placed((0.75, 1.02), turn, 0.14, 0.14)
    return Frame(f.u * (2 * c.chance(0.5) - 1), f.v, f.soft)


def lit(c: Canvas, f: Frame, shape: Tensor, colour: Tensor) -> None:
    """Paint a shape that is lighter above and darker below, with a rough coat."""
    c.paint(shape, colour, f)
    c.shade((0.07 * c.noise(8) - 0.13 * f.v) * (shape < 0))


def legs(c: Canvas, f: Frame, places: tuple[float, ...], top: float, foot: float, width: float, coat: Tensor) -> None:
    """Paint legs that stand or walk; every other one is on the far side and darker."""
    for k, x in enumerate(places):
        step = c.uniform(-0.1, 0.1)
        down = ((f.v - top) / (foot - top)).clamp(0, 1)
        leg = torch.maximum((f.u - x - step * down).abs() - width / 2, torch.maximum(top - f.v, f.v - foot))
        c.paint(leg, coat * (0.9 if k % 2 else 0.65), f)


def airplane(c: Canvas) -> None:
    """From the side: a long body, swept wing, upright fin, row of windows."""
    f = before(c, None, 0.35)
    body = c.colour(saturation=(0, 0.35), value=(0.6, 1))
    trim = c.colour(saturation=(0.3, 1), value=(0.2, 0.9))
    c.paint(polygon(f, [(-0.95, -0.5), (-0.72, -0.5), (-0.45, -0.02), (-0.85, -0.02)]), trim, f)
    c.paint(polygon(f, [(0.05, -0.02), (0.3, -0.02), (0.0, -0.42), (-0.16, -0.42)]), body * 0.7, f)
    lit(
        c,
        f,
        either(ellipse(f, 0.45, 0.17, 0.48, 0.05), polygon(f, [(-0.95, -0.1), (0.5, -0.12), (0.5, 0.22), (-0.5, 0.2)])),
        body,
    )
    windows = Frame(((f.u / 0.15) % 1 - 0.5) * 0.15, f.v, f.soft)
    c.paint(torch.maximum(box(windows, 0.035, 0.04), (f.u - 0.05).abs() - 0.6), c.grey(0.1, 0.3), f)
    c.paint(polygon(f, [(0.0, 0.1), (0.3, 0.1), (-0.2, 0.62), (-0.4, 0.62)]), body * 0.75, f)
    c.paint(ellipse(f, 0.13, 0.08, 0.12, 0.32), trim * 0.8, f)


def bird(c: Canvas) -> None:
    """On a branch: a round body, a beak, a wing and a tail."""
    f = before(c, None)
    c.paint(line(f, (-1.4, 0.6), (1.4, 0.5), 0.12), c.colour((0.05, 0.1), (0.3, 0.6), (0.2, 0.4)), f)
    coat, belly = c.colour(saturation=(0.1, 0.9), value=(0.2, 0.95)), c.colour((0.0, 0.16), (0.05, 0.8), (0.6, 1))
    c.paint(polygon(f, [(-0.35, 0.05), (-0.2, 0.35), (-0.85, 0.85), (-0.98, 0.7)]), coat * 0.7, f)
    for x in (0.0, 0.15):
        c.paint(line(f, (x, 0.3), (x, 0.6), 0.06), c.colour((0.05, 0.1), (0.3, 0.7), (0.3, 0.6)), f)
    c.paint(polygon(f, [(0.6, -0.52), (0.95, -0.4), (0.6, -0.28)]), c.colour((0.06, 0.13), (0.5, 1), (0.3, 1)), f)
    lit(c, f, either(ellipse(f.moved(0.05, 0.05).turned(-0.6), 0.52, 0.36), disc(f, 0.3, 0.4, -0.42)), coat)
    c.paint(ellipse(f.moved(0.25, 0.15).turned(-0.9), 0.36, 0.2), belly, f)
    c.paint(ellipse(f.moved(-0.12, 0.08).turned(-0.7), 0.4, 0.19), coat * 0.6, f)
    c.paint(disc(f, 0.06, 0.48, -0.48), c.grey(0, 0.1), f)


def car(c: Canvas) -> None:
    """A low body with a cabin on two wheels."""
    f = before(c, (0, 0.15), horizon=(0.1, 0.5))
    paint, glass = c.colour(saturation=(0.1, 1), value=(0.25, 1)), c.colour((0.5, 0.65), (0.1, 0.4), (0.15, 0.6))
    c.paint(polygon(f, [(-0.5, -0.35), (0.2, -0.35), (0.52, 0.08), (-0.72, 0.08)]), paint, f)
    c.paint(polygon(f, [(-0.45, -0.26), (-0.14, -0.26), (-0.14, 0.05), (-0.6, 0.05)]), glass, f)
    c.paint(polygon(f, [(-0.05, -0.26), (0.16, -0.26), (0.38, 0.05), (-0.05, 0.05)]), glass, f)
    lit(c, f, polygon(f, [(-0.92, 0.02), (0.6, 0.02), (0.95, 0.18), (0.95, 0.45), (-0.95, 0.45)]), paint)
    wheels(c, f, (-0.55, 0.55), 0.2)


def wheels(c: Canvas, f: Frame, places: tuple[float, ...], radius: float) -> None:
    """Paint wheels with bright hubs, and headlights."""
    for x in places:
        c.paint(disc(f, radius, x, 0.47), c.grey(0, 0.15), f)
        c.paint(disc(f, radius * 0.45, x, 0.47), c.grey(0.5, 0.9), f)
    c.paint(disc(f, 0.08, 0.87, 0.22), c.colour((0.12, 0.16), (0.1, 0.5), (0.9, 1)), f)


def truck(c: Canvas) -> None:
    """A tall load behind a square cab on three wheels."""
    f = before(c, (0, 0.15), horizon=(0.1, 0.5))
    lit(c, f, box(f, 0.68, c.uniform(0.36, 0.5), -0.3, -0.12), c.colour(saturation=(0, 0.8), value=(0.4, 1)))
    cab = c.colour(saturation=(0.2, 1), value=(0.25, 1))
    c.paint(polygon(f, [(0.44, -0.42), (0.72, -0.42), (0.92, 0.0), (0.95, 0.42), (0.44, 0.42)]), cab, f)
    c.paint(
        polygon(f, [(0.54, -0.32), (0.7, -0.32), (0.84, 0.0), (0.54, 0.0)]),
        c.colour((0.5, 0.65), (0.1, 0.4), (0.15, 0.6)),
        f,
    )
    c.paint(box(f, 0.95, 0.06, 0, 0.38), c.grey(0.1, 0.3), f)
    wheels(c, f, (-0.7, -0.3, 0.65), 0.18)


def ship(c: Canvas) -> None:
    """A dark hull with a white deckhouse and a funnel on the water."""
    f = before(c, SEA, 0.06, (0.25, 0.4))
    trim = c.colour(saturation=(0.4, 1), value=(0.3, 0.95))
    c.paint(box(f, 0.13, 0.25, -0.1, -0.55), trim, f)
    c.paint(
        0.1 - c.noise(4) + 3 * ((f.u + 0.35).abs() - 0.4).clamp(min=0) + 3 * ((f.v + 0.85).abs() - 0.12).clamp(min=0),
        c.grey(0.4, 0.8),
        f,
        0.6,
    )
    c.paint(either(box(f, 0.45, 0.16, -0.1, 0.0), box(f, 0.3, 0.14, -0.12, -0.26)), c.grey(0.8, 1), f)
    windows = Frame(((f.u / 0.18) % 1 - 0.5) * 0.18, f.v, f.soft)
    c.paint(torch.maximum(box(windows, 0.05, 0.05, 0, 0.0), (f.u + 0.1).abs() - 0.42), c.grey(0.15, 0.4), f)
    hull = c.colour(saturation=(0.1, 0.9), value=(0.12, 0.6))
    lit(c, f, polygon(f, [(-0.85, 0.12), (0.95, 0.08), (0.66, 0.6), (-0.72, 0.6)]), hull)
    c.paint(
        torch.maximum(0.55 - f.v + 0.04 * torch.sin(f.u * 9), f.v - 0.75), c.colour(SEA, (0.1, 0.5), (0.6, 0.95)), f
    )


def cat(c: Canvas) -> None:
    """Sitting: pointed ears, a tail curled up, stripes now and then."""
    f = before(c, (0, 1))
    coat = c.colour(*FUR)
    c.paint(strokes(f, [(0.3, 0.8), (0.72, 0.7), (0.8, 0.3), (0.66, 0.05)], 0.16), coat * 0.8, f)
    lit(c, f, either(ellipse(f, 0.42, 0.55, 0, 0.42), ellipse(f, 0.3, 0.5, 0, 0.2)), coat)
    m = Frame(f.u.abs(), f.v, f.soft)
    c.paint(
        torch.maximum(((f.v / 0.2) % 1 - 0.5).abs() * 0.2 - 0.03, ellipse(f, 0.4, 0.5, 0, 0.4)),
        coat * 0.5,
        f,
        c.chance(0.4),
    )
    c.paint(ellipse(m, 0.12, 0.3, 0.14, 0.65), (coat * 1.2).clamp(0, 1), f)
    c.paint(polygon(m, [(0.1, -0.62), (0.34, -0.98), (0.42, -0.45)]), coat * 0.85, f)
    lit(c, f, ellipse(f, 0.43, 0.36, 0, -0.38), coat)
    c.paint(ellipse(m, 0.09, 0.08, 0.18, -0.42), c.colour((0.12, 0.36), (0.5, 0.9), (0.6, 1)), f)
    c.paint(ellipse(m, 0.03, 0.08, 0.18, -0.42), c.grey(0, 0.1), f)
    c.paint(polygon(f, [(-0.07, -0.28), (0.07, -0.28), (0, -0.2)]), c.colour((0.95, 1), (0.3, 0.6), (0.5, 0.9)), f)


def dog(c: Canvas) -> None:
    """Standing: a hanging ear, a blunt muzzle, a raised tail."""
    f = before(c, (0, 1))
    coat = c.colour(*FUR)
    c.paint(line(f, (-0.62, 0.05), (-0.88, -0.42), 0.13), coat * 0.85, f)
    legs(c, f, (-0.42, -0.58, 0.42, 0.28), 0.1, 0.82, 0.16, coat)
    lit(c, f, either(ellipse(f, 0.72, 0.27, -0.05, 0.12), ellipse(f, 0.28, 0.33, 0.42, 0.02)), coat)
    lit(c, f, either(disc(f, 0.28, 0.55, -0.4), ellipse(f, 0.26, 0.14, 0.76, -0.28)), coat)
    c.paint(ellipse(f.moved(0.42, -0.35).turned(0.2), 0.12, 0.28), coat * 0.5, f)
    c.paint(disc(f, 0.075, 0.97, -0.33), c.grey(0, 0.1), f)
    c.paint(disc(f, 0.05, 0.64, -0.46), c.grey(0, 0.1), f)
    c.paint(box(f, 0.08, 0.16, 0.4, -0.12), c.colour(saturation=(0.7, 1), value=(0.5, 1)), f, c.chance(0.4))


def hoofed(c: Canvas, f: Frame, coat: Tensor, sturdy: float) -> None:
    """Paint the body, neck, head and thin legs that deer and horses share."""
    legs(c, f, (-0.5, -0.36, 0.32, 0.2), 0.15, 0.95, 0.1 + 0.05 * sturdy, coat)
    c.paint(polygon(f, [(0.12, 0.0), (0.5, -0.62), (0.7, -0.5), (0.42, 0.25)]), coat, f)
    lit(
        c,
        f,
        either(ellipse(f, 0.5, 0.22 + 0.05 * sturdy, -0.1, 0.1), disc(f, 0.25, -0.36, 0.08), disc(f, 0.24, 0.2, 0.1)),
        coat,
    )
    c.paint(ellipse(f.moved(0.7, -0.5).turned(0.55), 0.28, 0.13 + 0.02 * sturdy), coat, f)
    c.paint(disc(f, 0.045, 0.64, -0.56), c.grey(0, 0.1), f)


def deer(c: Canvas) -> None:
    """Slender and brown with antlers, a pale belly and tail."""
    f = before(c, GRASS)
    coat = c.colour((0.05, 0.1), (0.35, 0.75), (0.35, 0.75))
    horn = c.colour((0.07, 0.12), (0.2, 0.5), (0.35, 0.9))
    antlers = either(
        strokes(f, [(0.55, -0.6), (0.38, -0.8), (0.42, -1.05)], 0.08),
        strokes(f, [(0.6, -0.6), (0.75, -0.82), (0.68, -1.08)], 0.08),
        line(f, (0.38, -0.8), (0.2, -0.88), 0.07),
        line(f, (0.75, -0.82), (0.92, -0.92), 0.07),
    )
    c.paint(antlers, horn, f, c.chance(0.85))
    c.paint(ellipse(f.moved(0.45, -0.6).turned(0.5), 0.17, 0.07), coat * 0.8, f)
    hoofed(c, f, coat, 0.0)
    c.paint(ellipse(f, 0.4, 0.08, -0.08, 0.27), (coat + 0.35).clamp(0, 1), f)
    c.paint(ellipse(f, 0.09, 0.13, -0.6, 0.02), c.grey(0.75, 1), f)
    c.paint(
        disc(Frame(((f.u / 0.2) % 1 - 0.5) * 0.2, f.v, f.soft), 0.045, 0, -0.02).maximum((f.u + 0.2).abs() - 0.35),
        c.grey(0.8, 1),
        f,
        c.chance(0.5),
    )


def horse(c: Canvas) -> None:
    """Sturdy, with a mane and a long tail."""
    f = before(c, GRASS)
    coat = c.colour((0.03, 0.1), (0.1, 0.75), (0.12, 0.9))
    hair = c.colour((0.05, 0.12), (0.1, 0.6), (0.05, 0.8))
    c.paint(polygon(f, [(0.5, -0.62), (0.56, -0.88), (0.66, -0.62)]), coat, f)
    c.paint(strokes(f, [(-0.55, 0.0), (-0.8, 0.15), (-0.82, 0.7)], 0.2), hair, f)
    hoofed(c, f, coat, 1.0)
    c.paint(strokes(f, [(0.58, -0.76), (0.42, -0.55), (0.18, -0.08)], 0.17), hair, f)
    c.paint(
        torch.maximum(box(f, 0.2, 0.12, -0.1, -0.1), ellipse(f, 0.5, 0.27, -0.1, 0.1)),
        c.colour(saturation=(0.4, 1), value=(0.3, 0.9)),
        f,
        c.chance(0.3),
    )


def monkey(c: Canvas) -> None:
    """Hanging by an arm: round ears, a pale face, a long curled tail."""
    f = before(c, GRASS, 0.15)
    coat = c.colour((0.03, 0.1), (0.2, 0.75), (0.12, 0.65))
    skin = c.colour((0.05, 0.1), (0.2, 0.5), (0.65, 0.95))
    c.paint(line(f, (-1.4, -0.9), (1.4, -0.82), 0.14), c.colour((0.06, 0.3), (0.3, 0.6), (0.2, 0.5)), f)
    c.paint(strokes(f, [(-0.2, 0.75), (-0.7, 0.8), (-0.85, 0.45), (-0.62, 0.25)], 0.1), coat * 0.8, f)
    c.paint(
        either(
            strokes(f, [(0.25, 0.15), (0.72, -0.3), (0.62, -0.88)], 0.16), line(f, (-0.25, 0.2), (-0.5, 0.55), 0.15)
        ),
        coat * 0.85,
        f,
    )
    for side in (-1, 1):
        c.paint(strokes(f, [(0.1 * side, 0.65), (0.38 * side, 0.72), (0.3 * side, 1.0)], 0.16), coat * 0.8, f)
    lit(c, f, ellipse(f, 0.33, 0.42, 0, 0.42), coat)
    c.paint(ellipse(f, 0.2, 0.28, 0, 0.45), skin, f, 0.7)
    m = Frame(f.u.abs(), f.v, f.soft)
    c.paint(disc(m, 0.18, 0.42, -0.28), coat, f)
    c.paint(disc(m, 0.1, 0.42, -0.28), skin, f)
    lit(c, f, disc(f, 0.42, 0, -0.25), coat)
    c.paint(either(ellipse(m, 0.18, 0.17, 0.14, -0.3), ellipse(f, 0.27, 0.2, 0, -0.06)), skin, f)
    c.paint(disc(m, 0.065, 0.14, -0.28), c.grey(0, 0.1), f)
    c.paint(line(f, (-0.13, -0.0), (0.13, -0.0), 0.06), skin * 0.35, f)


TASK = DrawnTask(
    name="objects",
    title="Objects",
    counterpart="STL10",
    kind="album",
    templates=("a photo of a {}.", "a photo of the {}."),
    classes=(
        DrawnClass("airplane", "airliner", airplane),
        DrawnClass("bird", "robin", bird),
        DrawnClass("car", "saloon", car),
        DrawnClass("cat", "mouser", cat),
        DrawnClass("deer", "stag", deer),
        DrawnClass("dog", "mutt", dog),
        DrawnClass("horse", "pony", horse),
        DrawnClass("monkey", "swinging ape", monkey),
        DrawnClass("ship", "ocean liner", ship),
        DrawnClass("truck", "juggernaut", truck),
    ),
    zero_shot=97.12,
    grain=0.05,
)
