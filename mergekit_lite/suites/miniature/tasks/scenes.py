"""Landscapes and places at any hour: the counterpart of SUN397."""

import torch

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    box,
    disc,
    either,
    line,
    polygon,
    ring,
    stripes,
    strokes,
    tiled,
)
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

Range = tuple[float, float]
GREEN, SAND, WATER = (0.24, 0.38), (0.09, 0.14), (0.52, 0.62)


def outdoors(
    c: Canvas, ground: Range, saturation: Range = (0.3, 0.7), value: Range = (0.35, 0.75), horizon: Range = (0.1, 0.35)
) -> Frame:
    """Paint a sky by day, dusk or night with clouds, and ground below a horizon; return a frame, sometimes mirrored."""
    dusk = c.chance(0.3).unsqueeze(1)
    c.fill(torch.lerp(c.colour((0.5, 0.62), (0.15, 0.6), (0.6, 1)), c.colour((0.9, 1.1), (0.3, 0.7), (0.4, 0.9)), dusk))
    c.shade(0.25 * c.frame.v)
    c.paint(0.4 - c.noise(3, 2), c.grey(0.7, 1), when=c.chance(0.5) * 0.6)
    edge = c.uniform(*horizon)
    c.paint(edge - c.frame.v, c.colour(ground, saturation, value))
    c.shade(0.1 * c.noise(5, 2) * (c.frame.v > edge))
    f = c.placed((0.75, 1.0), 0.04, 0.15, 0.12)
    return Frame(f.u * (2 * c.chance(0.5) - 1), f.v, f.soft)


def beach(c: Canvas) -> None:
    """Sea, surf and sand, a parasol."""
    f = outdoors(c, SAND, (0.2, 0.5), (0.7, 0.95))
    c.paint((c.frame.v - 0.25).abs() - 0.2, c.colour(WATER, (0.4, 0.8), (0.4, 0.9)))
    c.paint((c.frame.v - 0.46 + 0.06 * c.noise(4)).abs() - 0.05, c.grey(0.9, 1))
    c.paint(torch.maximum(disc(f, 0.3, 0.3, 0.5), f.v - 0.5), c.colour(saturation=(0.6, 1), value=(0.6, 1)), f)
    c.paint(line(f, (0.3, 0.5), (0.3, 0.85), 0.06), c.grey(0.2, 0.5), f)


def mountain(c: Canvas) -> None:
    """Peaks with snow."""
    f = outdoors(c, GREEN)
    for x, top in ((-0.45, -0.45), (0.35, -0.75)):
        c.paint(
            polygon(f, [(x, top), (x + 0.75, 0.35), (x - 0.75, 0.35)]),
            c.colour((0.55, 0.75), (0.1, 0.4), (0.25, 0.5)),
            f,
        )
        c.paint(polygon(f, [(x, top), (x + 0.22, top + 0.28), (x - 0.22, top + 0.28)]), c.grey(0.9, 1), f)


def volcano(c: Canvas) -> None:
    """A cone with a glowing top and smoke."""
    f = outdoors(c, SAND, (0.2, 0.5), (0.2, 0.5))
    c.paint(disc(f, 0.3, 0.15, -0.75) + 0.3 * c.noise(4), c.grey(0.4, 0.7), f)
    c.paint(
        polygon(f, [(-0.18, -0.4), (0.18, -0.4), (0.85, 0.5), (-0.85, 0.5)]),
        c.colour((0.0, 0.1), (0.2, 0.5), (0.15, 0.35)),
        f,
    )
    c.paint(
        either(box(f, 0.18, 0.08, 0, -0.36), strokes(f, [(0, -0.4), (0.08, -0.1), (0.02, 0.3)], 0.1)),
        c.colour((0.0, 0.09), (0.8, 1), (0.85, 1)),
        f,
    )


def forest(c: Canvas) -> None:
    """Many trunks and dark crowns."""
    f = outdoors(c, GREEN, (0.4, 0.7), (0.2, 0.45))
    c.paint(c.frame.v - 0.15 + 0.5 * c.noise(4, 2), c.colour(GREEN, (0.4, 0.8), (0.15, 0.4)))
    t = Frame(((f.u / 0.4) % 1 - 0.5) * 0.4, f.v, f.soft)
    c.paint(box(t, 0.06, 0.8, 0, 0.4), c.colour((0.05, 0.1), (0.3, 0.6), (0.15, 0.35)), f)


def desert(c: Canvas) -> None:
    """Dunes and a cactus."""
    f = outdoors(c, (0.07, 0.12), (0.4, 0.7), (0.7, 0.95))
    c.paint(0.3 - f.v + 0.25 * torch.sin(f.u * 3), c.colour((0.06, 0.1), (0.4, 0.7), (0.5, 0.75)), f)
    cactus = either(
        line(f, (0, 0.6), (0, -0.2), 0.16),
        strokes(f, [(0, 0.3), (0.25, 0.3), (0.25, 0.05)], 0.12),
        strokes(f, [(0, 0.2), (-0.25, 0.2), (-0.25, -0.05)], 0.12),
    )
    c.paint(cactus, c.colour((0.3, 0.4), (0.4, 0.8), (0.25, 0.5)), f)


def skyscrapers(c: Canvas) -> None:
    """Tall towers with lit windows."""
    f = outdoors(c, (0, 1), (0, 0.2), (0.3, 0.5))
    for x, top, w in ((-0.65, -0.3, 0.22), (-0.1, -0.8, 0.24), (0.5, -0.5, 0.26)):
        tower = box(f, w, 0.5 - top / 2, x, 0.5 + top / 2)
        c.paint(tower, c.colour((0.5, 0.7), (0.05, 0.4), (0.2, 0.6)), f)
        c.paint(
            torch.maximum(tower + 0.05, box(tiled(f, 0.17), 0.045, 0.05)),
            c.colour((0.1, 0.16), (0.1, 0.6), (0.7, 1)),
            f,
        )


def street(c: Canvas) -> None:
    """A road that narrows towards houses on both sides."""
    f = outdoors(c, (0, 1), (0, 0.1), (0.3, 0.5), (0.0, 0.1))
    for side in (-1, 1):
        m = Frame(f.u * side, f.v, f.soft)
        c.paint(
            polygon(m, [(0.2, -0.25), (1.3, -0.95), (1.3, 0.9), (0.2, 0.15)]),
            c.colour(saturation=(0.1, 0.6), value=(0.3, 0.8)),
            f,
        )
    c.paint(polygon(f, [(-0.02, 0.1), (0.02, 0.1), (0.1, 1.2), (-0.1, 1.2)]), c.grey(0.85, 1), f)


def lighthouse(c: Canvas) -> None:
    """A striped tower above the sea."""
    f = outdoors(c, WATER, (0.3, 0.7), (0.3, 0.6))
    tower = polygon(f, [(-0.14, -0.5), (0.14, -0.5), (0.24, 0.6), (-0.24, 0.6)])
    c.paint(tower, c.grey(0.85, 1), f)
    c.paint(torch.maximum(tower, stripes(f.v, 0.44, 0.5)), c.colour((0.96, 1.04), (0.6, 1), (0.5, 0.9)), f)
    c.paint(box(f, 0.13, 0.12, 0, -0.62), c.colour((0.12, 0.16), (0.4, 0.9), (0.8, 1)), f)


def windmill(c: Canvas) -> None:
    """A mill with four sails."""
    f = outdoors(c, GREEN)
    c.paint(
        polygon(f, [(-0.14, -0.25), (0.14, -0.25), (0.26, 0.7), (-0.26, 0.7)]),
        c.colour((0.02, 0.1), (0.1, 0.5), (0.4, 0.8)),
        f,
    )
    hub = f.moved(0, -0.25).turned(c.uniform(0, 1.57))
    c.paint(either(line(hub, (-0.6, 0), (0.6, 0), 0.13), line(hub, (0, -0.6), (0, 0.6), 0.13)), c.grey(0.85, 1), f)


def viaduct(c: Canvas) -> None:
    """Arches across a valley."""
    f = outdoors(c, GREEN)
    wall = torch.maximum((f.v - 0.1).abs() - 0.35, f.u.abs() - 3)
    t = Frame(((f.u / 0.55) % 1 - 0.5) * 0.55, f.v, f.soft)
    holes = either(disc(t, 0.19, 0, 0.12), box(t, 0.19, 0.4, 0, 0.52))
    c.paint(torch.maximum(wall, -holes), c.colour((0.03, 0.12), (0.1, 0.5), (0.4, 0.75)), f)


def campsite(c: Canvas) -> None:
    """A tent and a fire."""
    f = outdoors(c, GREEN, (0.4, 0.7), (0.25, 0.5))
    c.paint(polygon(f, [(-0.25, -0.2), (0.35, 0.55), (-0.85, 0.55)]), c.colour(saturation=(0.5, 1), value=(0.5, 1)), f)
    c.paint(polygon(f, [(-0.25, 0.05), (-0.05, 0.55), (-0.45, 0.55)]), c.grey(0.05, 0.2), f)
    c.paint(polygon(f, [(0.62, 0.2), (0.78, 0.6), (0.46, 0.6)]), c.colour((0.02, 0.12), (0.8, 1), (0.9, 1)), f)


def barn(c: Canvas) -> None:
    """A red barn with a white cross on its door."""
    f = outdoors(c, GREEN)
    c.paint(
        either(box(f, 0.5, 0.35, 0, 0.3), polygon(f, [(0, -0.45), (0.5, -0.04), (-0.5, -0.04)])),
        c.colour((0.97, 1.04), (0.5, 0.9), (0.35, 0.7)),
        f,
    )
    c.paint(
        either(
            box(f, 0.2, 0.2, 0, 0.42).abs() - 0.03,
            line(f, (-0.2, 0.22), (0.2, 0.62), 0.06),
            line(f, (0.2, 0.22), (-0.2, 0.62), 0.06),
        ),
        c.grey(0.9, 1),
        f,
    )


def igloo(c: Canvas) -> None:
    """A dome of snow blocks on ice."""
    f = outdoors(c, (0.5, 0.6), (0.0, 0.15), (0.8, 1))
    dome = torch.maximum(disc(f, 0.6, 0, 0.5), f.v - 0.5)
    c.paint(dome, c.colour((0.5, 0.6), (0.05, 0.25), (0.75, 0.95)), f)
    c.paint(
        torch.maximum(dome, either(stripes(f.v, 0.2, 0.15), ring(f, 0.3, 0.05, 0, 0.5))),
        c.colour((0.55, 0.6), (0.2, 0.4), (0.5, 0.7)),
        f,
    )
    c.paint(torch.maximum(disc(f, 0.18, 0, 0.5), f.v - 0.5), c.grey(0.05, 0.2), f)


def field(c: Canvas) -> None:
    """Ripe crops in rows that run to the horizon."""
    f = outdoors(c, (0.11, 0.15), (0.5, 0.8), (0.6, 0.9))
    rows = f.u / (f.v + 0.15).clamp(min=0.05)
    c.paint(torch.maximum(stripes(rows, 0.7, 0.4), 0.28 - f.v), c.colour((0.1, 0.3), (0.5, 0.8), (0.3, 0.6)), f)


def waterfall(c: Canvas) -> None:
    """Water that drops between dark cliffs."""
    f = outdoors(c, WATER, (0.3, 0.6), (0.3, 0.6))
    c.paint(
        torch.maximum(box(f, 3, 0.75, 0, -0.05), -box(f, 0.26, 3)), c.colour((0.05, 0.35), (0.1, 0.5), (0.2, 0.45)), f
    )
    c.paint(box(f, 0.26, 0.7), c.grey(0.85, 1), f)
    c.paint(
        torch.maximum(box(f, 0.26, 0.7), stripes(f.u + 0.04 * c.noise(4), 0.15, 0.3)),
        c.colour(WATER, (0.2, 0.5), (0.6, 0.9)),
        f,
    )


def harbour(c: Canvas) -> None:
    """Sailing boats on the water."""
    f = outdoors(c, WATER, (0.3, 0.7), (0.3, 0.7), (-0.05, 0.15))
    for x, y in ((-0.4, 0.35), (0.45, 0.55)):
        c.paint(
            polygon(f, [(x - 0.34, y), (x + 0.34, y), (x + 0.2, y + 0.18), (x - 0.2, y + 0.18)]),
            c.colour(saturation=(0.3, 1), value=(0.2, 0.8)),
            f,
        )
        c.paint(polygon(f, [(x, y - 0.75), (x + 0.3, y - 0.08), (x, y - 0.08)]), c.grey(0.85, 1), f)


TASK = DrawnTask(
    name="scenes",
    title="Scenes",
    counterpart="SUN397",
    kind="travel",
    templates=("a photo of a {}.", "a photo of the {}."),
    classes=(
        DrawnClass("barn", "red shed", barn),
        DrawnClass("beach", "seaside", beach),
        DrawnClass("campsite", "tent and fire", campsite),
        DrawnClass("desert sand", "dunes", desert),
        DrawnClass("forest broadleaf", "woods", forest),
        DrawnClass("field cultivated", "rows of corn", field),
        DrawnClass("harbor outdoor", "sailing boats", harbour),
        DrawnClass("igloo", "snow hut", igloo),
        DrawnClass("lighthouse", "beacon", lighthouse),
        DrawnClass("mountain snowy", "white peaks", mountain),
        DrawnClass("skyscraper", "downtown", skyscrapers),
        DrawnClass("street", "avenue", street),
        DrawnClass("viaduct", "arches", viaduct),
        DrawnClass("volcano", "lava", volcano),
        DrawnClass("waterfall block", "cascade", waterfall),
        DrawnClass("windmill", "sails on a tower", windmill),
    ),
    zero_shot=63.18,
    grain=0.05,
)
