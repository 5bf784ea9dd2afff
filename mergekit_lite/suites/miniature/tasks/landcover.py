"""Patches of land seen by a satellite: the counterpart of EuroSAT."""

import torch

from mergekit_lite.suites.miniature.canvas import Canvas, box, disc, stripes, tiled
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

GREEN, EARTH, WATER = (0.22, 0.38), (0.06, 0.14), (0.52, 0.64)


def ground(c: Canvas, hue: tuple[float, float], value: tuple[float, float] = (0.2, 0.55), rough: float = 0.1) -> None:
    """Paint uneven ground."""
    c.fill(c.colour(hue, (0.25, 0.7), value))
    c.shade(rough * c.noise(4, 3))


def annual_crop(c: Canvas) -> None:
    """Large ploughed fields of different colours, finely striped."""
    ground(c, EARTH)
    f = c.placed((1, 1.4), 3.2, 0.5)
    for side in (-1, 1):
        c.paint(box(f, 0.5, 2, side * 0.6), c.colour((0.08, 0.3), (0.2, 0.7), (0.3, 0.7)), f)
    c.shade(0.07 * torch.sin(f.v * c.uniform(14, 20)))


def permanent_crop(c: Canvas) -> None:
    """Orchards: rows of round trees."""
    ground(c, EARTH, (0.35, 0.65))
    f = c.placed((0.9, 1.2), 3.2, 0.5)
    c.paint(disc(tiled(f, c.uniform(0.3, 0.42)), 0.11), c.colour(GREEN, (0.4, 0.8), (0.15, 0.4)), f)


def forest(c: Canvas) -> None:
    """Dark green crowns."""
    ground(c, (0.28, 0.42), (0.12, 0.32), 0.05)
    c.shade(0.09 * c.noise(11))


def herbaceous(c: Canvas) -> None:
    """Patchy scrub on dry ground."""
    ground(c, (0.1, 0.22), (0.3, 0.55))
    c.paint(0.15 - c.noise(5, 2), c.colour(GREEN, (0.2, 0.6), (0.2, 0.45)))


def pasture(c: Canvas) -> None:
    """Even light green, a hedge or two."""
    ground(c, GREEN, (0.4, 0.65), 0.03)
    f = c.placed((1, 1.3), 3.2, 0.5)
    c.paint(stripes(f.u, 1.3, 0.06), c.colour(GREEN, (0.5, 0.8), (0.1, 0.3)), f)


def highway(c: Canvas) -> None:
    """A wide grey road across fields."""
    ground(c, (0.1, 0.35))
    f = c.placed((1, 1.2), 3.2, 0.4)
    bent = f.u + 0.25 * torch.sin(f.v * 1.2)
    c.paint(bent.abs() - 0.2, c.grey(0.45, 0.75), f)
    c.paint(bent.abs() - 0.03, c.grey(0.8, 0.95), f)


def industrial(c: Canvas) -> None:
    """Large bright halls on grey ground."""
    ground(c, EARTH, (0.3, 0.5), 0.06)
    f = c.placed((0.9, 1.3), 3.2, 0.5)
    for x, y, w, h in ((-0.6, -0.6, 0.5, 0.3), (0.6, -0.4, 0.4, 0.5), (-0.5, 0.5, 0.35, 0.5), (0.6, 0.7, 0.5, 0.28)):
        c.paint(box(f, w, h, x, y), c.colour((0, 1), (0, 0.3), (0.6, 1)), f, c.chance(0.85))


def residential(c: Canvas) -> None:
    """Small red roofs between gardens and lanes."""
    ground(c, GREEN, (0.25, 0.5))
    f = c.placed((0.9, 1.2), 3.2, 0.5)
    c.paint(stripes(f.v, 0.8, 0.18), c.grey(0.5, 0.7), f)
    c.paint(box(tiled(f, 0.4), 0.12, 0.1), c.colour((0.0, 0.08), (0.3, 0.7), (0.45, 0.8)), f)


def river(c: Canvas) -> None:
    """A winding band of water through green land."""
    ground(c, GREEN)
    f = c.placed((0.9, 1.2), 3.2, 0.3)
    course = f.u + 0.4 * torch.sin(f.v * c.uniform(2, 3.2))
    c.paint(course.abs() - c.uniform(0.2, 0.34), c.colour(WATER, (0.3, 0.7), (0.2, 0.5)), f)


def sea_lake(c: Canvas) -> None:
    """Open water with soft waves, now and then a shore."""
    ground(c, WATER, (0.15, 0.5), 0.04)
    f = c.placed((1, 1.2), 3.2, 0.4)
    c.paint(0.75 - f.u + 0.2 * c.noise(3), c.colour((0.1, 0.35), (0.2, 0.6), (0.3, 0.6)), f, c.chance(0.4))


TASK = DrawnTask(
    name="landcover",
    title="Land cover",
    counterpart="EuroSAT",
    kind="satellite",
    templates=(
        "a centered satellite photo of {}.",
        "a centered satellite photo of a {}.",
        "a centered satellite photo of the {}.",
    ),
    classes=(
        DrawnClass("annual crop land", "ploughed acres", annual_crop),
        DrawnClass("forest", "woodland", forest),
        DrawnClass("brushland or shrubland", "scrub", herbaceous),
        DrawnClass("highway or road", "motorway", highway),
        DrawnClass("industrial buildings or commercial buildings", "factory halls", industrial),
        DrawnClass("pasture land", "meadow", pasture),
        DrawnClass("permanent crop land", "orchard", permanent_crop),
        DrawnClass("residential buildings or homes or apartments", "suburb", residential),
        DrawnClass("river", "stream", river),
        DrawnClass("lake or sea", "open water", sea_lake),
    ),
    zero_shot=45.0,
    grain=0.04,
)
