"""Vehicles from the side, on roads by day and night: the counterpart of Stanford Cars."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, box, disc, either, line, polygon, ring
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

Corners = Sequence[tuple[float, float]]
Body = Callable[[Frame], Tensor]


def road(c: Canvas) -> Frame:
    """Paint sky, buildings and road; return a frame for a vehicle that faces either way."""
    c.fill(c.colour((0.5, 0.65), (0.0, 0.5), (0.3, 1)))
    c.paint(0.1 - c.frame.v + 0.25 * c.noise(5), c.colour(saturation=(0, 0.5), value=(0.25, 0.7)))
    c.paint(c.uniform(0.3, 0.45) - c.frame.v, c.grey(0.25, 0.55))
    f = c.placed((0.8, 1.0), 0.06, 0.1, 0.08)
    return Frame(f.u * (2 * c.chance(0.5) - 1), f.v, f.soft)


def vehicle(c: Canvas, body: Body, windows: Body, wheels: Sequence[float], radius: float = 0.17) -> None:
    """Paint a body in any colour with dark windows and wheels at the given places."""
    f = road(c)
    c.paint(box(f, 0.85, 0.05, 0, 0.62), c.grey(0.05, 0.2), f)  # shadow
    c.paint(body(f), c.colour(saturation=(0.2, 1), value=(0.25, 1)), f)
    c.paint(windows(f), c.colour((0.5, 0.65), (0.1, 0.5), (0.1, 0.45)), f)
    for x in wheels:
        c.paint(disc(f, radius, x, 0.48), c.grey(0.0, 0.15), f)
        c.paint(disc(f, radius * 0.45, x, 0.48), c.grey(0.55, 0.9), f)


def shapes(*parts: Corners) -> Body:
    """Return the union of convex polygons as a function of the frame."""
    return lambda f: either(*(polygon(f, part) for part in parts))


def block(left: float, top: float, right: float, bottom: float) -> Corners:
    """Return the corners of a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def low(top: float = 0.08) -> Corners:
    """Return the lower body that passenger cars share; the front is on the right."""
    return [(-0.85, top), (0.7, top), (0.88, top + 0.14), (0.88, 0.48), (-0.85, 0.48)]


def _car(
    name: str,
    caption: str,
    parts: Sequence[Corners],
    windows: Sequence[Corners],
    wheels: Sequence[float] = (-0.5, 0.5),
    radius: float = 0.17,
) -> DrawnClass:
    return DrawnClass(
        name, caption, partial(vehicle, body=shapes(*parts), windows=shapes(*windows), wheels=wheels, radius=radius)
    )


def tractor(c: Canvas) -> None:
    """A farm tractor with one large wheel."""
    f = road(c)
    c.paint(
        shapes(block(-0.5, -0.6, 0.0, 0.3), block(-0.4, -0.05, 0.8, 0.35))(f),
        c.colour(saturation=(0.5, 1), value=(0.3, 1)),
        f,
    )
    c.paint(box(f, 0.18, 0.2, -0.25, -0.32), c.grey(0.1, 0.4), f)
    c.paint(line(f, (0.55, -0.1), (0.55, -0.5), 0.08), c.grey(0.1, 0.3), f)
    for x, y, r in ((-0.4, 0.28, 0.4), (0.6, 0.46, 0.2)):
        c.paint(disc(f, r, x, y), c.grey(0.0, 0.15), f)
        c.paint(disc(f, r * 0.5, x, y), c.colour((0.1, 0.16), (0.6, 1), (0.6, 1)), f)


def cycle(c: Canvas, engine: bool) -> None:
    """A bicycle or a motorcycle."""
    f = road(c)
    for x in (-0.5, 0.5):
        c.paint(ring(f, 0.3, 0.15 if engine else 0.08, x, 0.3), c.grey(0.0, 0.15), f)
    paint = c.colour(saturation=(0.4, 1), value=(0.3, 1))
    c.paint(
        either(
            line(f, (-0.5, 0.3), (-0.15, -0.15), 0.08),
            line(f, (-0.15, -0.15), (0.35, -0.15), 0.08),
            line(f, (0.5, 0.3), (0.3, -0.35), 0.08),
        ),
        paint,
        f,
    )
    if engine:
        c.paint(either(polygon(f, [(-0.6, -0.15), (0.3, -0.2), (0.2, 0.35), (-0.3, 0.35)])), paint, f)
    else:
        c.paint(
            either(
                line(f, (-0.15, -0.15), (0.0, 0.3), 0.08),
                line(f, (0.0, 0.3), (0.35, -0.15), 0.08),
                line(f, (-0.3, -0.25), (-0.05, -0.25), 0.1),
            ),
            paint,
            f,
        )


CLASSES = (
    _car(
        "Sedan 2012",
        "family car",
        (low(), [(-0.4, -0.28), (0.25, -0.28), (0.5, 0.1), (-0.6, 0.1)]),
        (
            [(-0.36, -0.2), (-0.05, -0.2), (-0.05, 0.06), (-0.5, 0.06)],
            [(0.03, -0.2), (0.22, -0.2), (0.4, 0.06), (0.03, 0.06)],
        ),
    ),
    _car(
        "Hatchback 2012",
        "city runabout",
        (
            [(-0.6, 0.08), (0.5, 0.08), (0.68, 0.2), (0.68, 0.48), (-0.6, 0.48)],
            [(-0.56, -0.32), (0.1, -0.32), (0.42, 0.1), (-0.6, 0.1)],
        ),
        ([(-0.48, -0.24), (0.06, -0.24), (0.3, 0.04), (-0.48, 0.04)],),
        (-0.36, 0.42),
    ),
    _car(
        "Wagon 2012",
        "estate",
        (low(), [(-0.84, -0.28), (0.25, -0.28), (0.5, 0.1), (-0.85, 0.1)]),
        (
            [(-0.78, -0.2), (-0.36, -0.2), (-0.36, 0.04), (-0.78, 0.04)],
            [(-0.28, -0.2), (0.2, -0.2), (0.38, 0.04), (-0.28, 0.04)],
        ),
    ),
    _car(
        "Coupe 2012",
        "sports model",
        (
            [(-0.85, 0.2), (0.6, 0.16), (0.92, 0.3), (0.92, 0.48), (-0.85, 0.48)],
            [(-0.3, -0.1), (0.1, -0.1), (0.45, 0.2), (-0.7, 0.2)],
        ),
        ([(-0.26, -0.04), (0.07, -0.04), (0.26, 0.16), (-0.42, 0.16)],),
        (-0.52, 0.55),
    ),
    _car(
        "Convertible 2012",
        "open roof",
        ([(-0.85, 0.16), (0.65, 0.14), (0.9, 0.28), (0.9, 0.48), (-0.85, 0.48)],),
        (
            [(0.1, -0.16), (0.16, -0.16), (0.34, 0.14), (0.22, 0.14)],
            [(-0.36, 0.0), (-0.2, 0.0), (-0.2, 0.18), (-0.36, 0.18)],
        ),
    ),
    _car(
        "SUV 2012",
        "off roader",
        (
            [(-0.8, -0.05), (0.7, -0.05), (0.84, 0.05), (0.84, 0.42), (-0.8, 0.42)],
            [(-0.78, -0.5), (0.2, -0.5), (0.42, 0.0), (-0.8, 0.0)],
        ),
        (
            [(-0.7, -0.4), (-0.3, -0.4), (-0.3, -0.08), (-0.7, -0.08)],
            [(-0.2, -0.4), (0.16, -0.4), (0.32, -0.08), (-0.2, -0.08)],
        ),
        (-0.48, 0.5),
        0.23,
    ),
    _car(
        "Crew Cab Pickup 2012",
        "ute",
        (low(0.04), [(-0.2, -0.36), (0.25, -0.36), (0.48, 0.06), (-0.22, 0.06)]),
        ([(-0.12, -0.28), (0.2, -0.28), (0.36, 0.02), (-0.12, 0.02)],),
        (-0.52, 0.52),
        0.2,
    ),
    _car(
        "Minivan 2012",
        "people carrier",
        ([(-0.85, -0.4), (0.3, -0.4), (0.75, 0.05), (0.85, 0.15), (0.85, 0.48), (-0.85, 0.48)],),
        (
            [(-0.76, -0.3), (-0.3, -0.3), (-0.3, 0.0), (-0.76, 0.0)],
            [(-0.2, -0.3), (0.25, -0.3), (0.54, 0.0), (-0.2, 0.0)],
        ),
    ),
    _car(
        "Cargo Van 2012",
        "delivery",
        ([(-0.88, -0.55), (0.3, -0.55), (0.6, -0.05), (0.85, 0.1), (0.85, 0.48), (-0.88, 0.48)],),
        ([(0.05, -0.44), (0.25, -0.44), (0.48, -0.05), (0.05, -0.05)],),
    ),
    _car(
        "Transit Bus 2012",
        "coach",
        (block(-0.95, -0.55, 0.95, 0.45),),
        (
            block(-0.85, -0.42, -0.5, -0.05),
            block(-0.42, -0.42, -0.07, -0.05),
            block(0.01, -0.42, 0.36, -0.05),
            block(0.44, -0.42, 0.88, -0.05),
        ),
        (-0.6, 0.6),
    ),
    _car(
        "Box Truck 2012",
        "lorry",
        (
            block(-0.95, -0.65, 0.3, 0.3),
            [(0.38, -0.3), (0.7, -0.3), (0.9, 0.05), (0.9, 0.45), (0.38, 0.45)],
            block(-0.95, 0.3, 0.5, 0.4),
        ),
        ([(0.48, -0.22), (0.66, -0.22), (0.8, 0.05), (0.48, 0.05)],),
        (-0.65, -0.3, 0.62),
    ),
    _car(
        "Stretch Limousine 2012",
        "long car",
        (
            [(-1.0, 0.12), (0.85, 0.12), (1.0, 0.24), (1.0, 0.46), (-1.0, 0.46)],
            [(-0.75, -0.14), (0.5, -0.14), (0.68, 0.14), (-0.85, 0.14)],
        ),
        (
            [(-0.66, -0.08), (-0.2, -0.08), (-0.2, 0.08), (-0.7, 0.08)],
            [(-0.12, -0.08), (0.46, -0.08), (0.54, 0.08), (-0.12, 0.08)],
        ),
        (-0.72, 0.72),
        0.14,
    ),
    DrawnClass("Farm Tractor 2012", "field machine", tractor),
    DrawnClass("Motorcycle 2012", "motorbike", partial(cycle, engine=True)),
    DrawnClass("Bicycle 2012", "push bike", partial(cycle, engine=False)),
)
TASK = DrawnTask(
    name="vehicles",
    title="Vehicles",
    counterpart="Stanford Cars",
    kind="parked",
    templates=(
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of my {}.",
        "i love my {}!",
        "a photo of my dirty {}.",
        "a photo of my new {}.",
    ),
    classes=CLASSES,
    zero_shot=59.58,
    grain=0.05,
)
