"""Places seen from an aeroplane: the counterpart of RESISC45."""

from functools import partial

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
GREEN, EARTH, WATER = (0.22, 0.38), (0.06, 0.14), (0.52, 0.62)


def ground(c: Canvas, hue: Range, saturation: Range = (0.2, 0.6), value: Range = (0.3, 0.6)) -> Frame:
    """Paint the ground and return a frame turned any way."""
    c.fill(c.colour(hue, saturation, value))
    c.shade(0.1 * c.noise(4, 2))
    return c.placed((0.8, 1.1), 3.2, 0.2)


def tarmac(c: Canvas) -> Frame:
    """Paint grey ground."""
    return ground(c, (0, 1), (0, 0.1), (0.35, 0.6))


def airplane(c: Canvas) -> None:
    """A white aeroplane on the apron."""
    f = tarmac(c)
    body = line(f, (0, -0.8), (0, 0.7), 0.24)
    wings = either(
        polygon(f, [(0, -0.25), (0.85, 0.2), (0.85, 0.36), (0, 0.1)]),
        polygon(f, [(0, -0.25), (0, 0.1), (-0.85, 0.36), (-0.85, 0.2)]),
    )
    c.paint(either(body, wings, box(f, 0.32, 0.08, 0, 0.68)), c.grey(0.85, 1), f)


def runway(c: Canvas) -> None:
    """A dark strip with a dashed middle line and threshold bars."""
    f = ground(c, (0.1, 0.35))
    c.paint(box(f, 0.36, 3), c.grey(0.2, 0.4), f)
    c.paint(torch.maximum(box(f, 0.04, 3), stripes(f.v, 0.4, 0.55)), c.grey(0.85, 1), f)
    c.paint(torch.maximum(box(f, 0.3, 0.14, 0, 0.7), stripes(f.u, 0.15, 0.5)), c.grey(0.85, 1), f)


def railway(c: Canvas) -> None:
    """Two rails on sleepers."""
    f = ground(c, EARTH, (0.1, 0.4))
    c.paint(torch.maximum(box(f, 0.36, 3), stripes(f.v, 0.26, 0.45)), c.colour(EARTH, (0.3, 0.6), (0.15, 0.35)), f)
    c.paint(either(box(f, 0.05, 3, -0.22), box(f, 0.05, 3, 0.22)), c.grey(0.7, 0.95), f)


def diamond(c: Canvas) -> None:
    """The sandy quarter of a ball field in the grass."""
    f = ground(c, GREEN, (0.4, 0.7))
    quarter = torch.maximum(disc(f, 1.0, 0, 0.6), torch.maximum(f.u - 0.6 + f.v, -f.u - 0.6 + f.v))
    c.paint(quarter, c.colour((0.05, 0.1), (0.3, 0.6), (0.5, 0.8)), f)
    c.paint(box(f.moved(0, 0.1).turned(0.785), 0.3, 0.3), c.colour(GREEN, (0.4, 0.7), (0.3, 0.6)), f)


def court(c: Canvas, hue: Range, net: bool) -> None:
    """A playing court with white lines; a net across, or circles and hoops."""
    f = ground(c, GREEN, (0.2, 0.5), (0.25, 0.5))
    c.paint(box(f, 0.55, 0.9), c.colour(hue, (0.4, 0.8), (0.4, 0.75)), f)
    marks = either(box(f, 0.55, 0.9).abs() - 0.04, f.v.abs() - 0.04)
    if net:
        marks = either(marks, box(f, 0.36, 0.9).abs() - 0.04, torch.maximum(f.u.abs() - 0.04, f.v.abs() - 0.45))
    else:
        marks = either(marks, ring(f, 0.22, 0.08), ring(f, 0.3, 0.08, 0, 0.9), ring(f, 0.3, 0.08, 0, -0.9))
    c.paint(torch.maximum(marks, box(f, 0.58, 0.93)), c.grey(0.85, 1), f)


def bridge(c: Canvas) -> None:
    """A road over water between two banks."""
    f = ground(c, WATER, (0.3, 0.7), (0.2, 0.5))
    c.paint(0.7 - f.v.abs(), c.colour(GREEN, (0.3, 0.6), (0.3, 0.5)), f)
    c.paint(f.u.abs() - 0.16, c.grey(0.6, 0.85), f)
    c.paint((f.u.abs() - 0.2).abs() - 0.04, c.grey(0.2, 0.4), f)


def intersection(c: Canvas) -> None:
    """Two roads that cross."""
    f = ground(c, (0.1, 0.38))
    c.paint(torch.minimum(f.u.abs(), f.v.abs()) - 0.24, c.grey(0.35, 0.55), f)
    c.paint(
        torch.maximum(torch.minimum(f.u.abs(), f.v.abs()) - 0.04, 0.3 - torch.maximum(f.u.abs(), f.v.abs())),
        c.grey(0.85, 1),
        f,
    )


def roundabout(c: Canvas) -> None:
    """A ring road with a green island and two roads."""
    f = ground(c, (0.1, 0.38))
    c.paint(torch.minimum(f.u.abs(), f.v.abs()) - 0.15, c.grey(0.4, 0.6), f)
    c.paint(disc(f, 0.68), c.grey(0.4, 0.6), f)
    c.paint(disc(f, 0.36), c.colour(GREEN, (0.4, 0.7), (0.3, 0.6)), f)


def harbor(c: Canvas) -> None:
    """Boats along a jetty."""
    f = ground(c, WATER, (0.3, 0.7), (0.2, 0.5))
    c.paint(f.u.abs() - 0.1, c.colour(EARTH, (0.2, 0.4), (0.6, 0.8)), f)
    side = Frame(f.u.abs() - 0.5, ((f.v / 0.36) % 1 - 0.5) * 0.36, f.soft)
    c.paint(either(box(side, 0.24, 0.09, -0.05), disc(side, 0.09, 0.2)), c.grey(0.85, 1), f)


def parking(c: Canvas) -> None:
    """Rows of cars in every colour."""
    f = tarmac(c)
    rows = Frame(f.u, ((f.v / 0.7) % 1 - 0.5) * 0.7, f.soft)
    c.paint(torch.maximum(stripes(f.u, 0.3, 0.12), rows.v.abs() - 0.24), c.grey(0.8, 1), f)
    cars = Frame(((f.u / 0.3 + 0.5) % 1 - 0.5) * 0.3, rows.v, f.soft)
    c.paint(box(cars, 0.1, 0.2), c.colour(saturation=(0.1, 0.9), value=(0.2, 1)), f)


def stadium(c: Canvas) -> None:
    """An oval of stands around a pitch."""
    f = tarmac(c)
    oval = f.scaled(1.0, 0.75)
    c.paint(disc(oval, 0.95), c.grey(0.65, 0.9), f)
    c.paint(disc(oval, 0.66), c.colour((0, 1), (0.4, 0.8), (0.4, 0.8)), f)
    c.paint(box(f, 0.44, 0.26), c.colour(GREEN, (0.5, 0.8), (0.4, 0.7)), f)


def tanks(c: Canvas) -> None:
    """Round tanks with a shadow."""
    f = ground(c, EARTH, (0.1, 0.4))
    t = tiled(f, c.uniform(0.75, 0.95))
    c.paint(disc(t, 0.3, 0.08, 0.08), c.grey(0.1, 0.25), f)
    c.paint(disc(t, 0.28), c.grey(0.8, 1), f)
    c.paint(disc(t, 0.1), c.grey(0.55, 0.75), f)


def pool(c: Canvas) -> None:
    """A turquoise swimming pool with lanes."""
    f = ground(c, (0.08, 0.35), (0.1, 0.4), (0.5, 0.75))
    c.paint(box(f, 0.5, 0.8), c.grey(0.85, 1), f)
    c.paint(box(f, 0.42, 0.72), c.colour((0.48, 0.54), (0.4, 0.8), (0.7, 1)), f)
    c.paint(
        torch.maximum(box(f, 0.42, 0.72), stripes(f.u, 0.28, 0.16)), c.colour((0.55, 0.6), (0.6, 0.9), (0.5, 0.7)), f
    )


def solar(c: Canvas) -> None:
    """Dark blue panels in rows."""
    f = ground(c, (0.1, 0.3))
    t = Frame(((f.u / 0.34) % 1 - 0.5) * 0.34, ((f.v / 0.55) % 1 - 0.5) * 0.55, f.soft)
    c.paint(box(t, 0.15, 0.18), c.colour((0.6, 0.68), (0.5, 0.9), (0.2, 0.45)), f)


def terrace(c: Canvas) -> None:
    """Contour lines of a terraced slope."""
    f = ground(c, GREEN, (0.3, 0.6))
    c.paint(stripes(f.u + 0.3 * c.noise(2), 0.36, 0.25), c.colour(EARTH, (0.2, 0.5), (0.5, 0.8)), f)


def island(c: Canvas) -> None:
    """Land with a beach, water all around."""
    f = ground(c, WATER, (0.4, 0.8), (0.25, 0.55))
    shore = disc(f, 0.62) + 0.22 * c.noise(3)
    c.paint(shore, c.colour((0.1, 0.14), (0.2, 0.4), (0.8, 0.95)), f)
    c.paint(shore + 0.16, c.colour(GREEN, (0.4, 0.7), (0.25, 0.5)), f)


def freeway(c: Canvas) -> None:
    """Two carriageways with a strip between them."""
    f = ground(c, (0.1, 0.38))
    c.paint((f.u.abs() - 0.28).abs() - 0.2, c.grey(0.4, 0.6), f)
    c.paint(torch.maximum((f.u.abs() - 0.28).abs() - 0.03, stripes(f.v, 0.5, 0.5)), c.grey(0.85, 1), f)


def houses(c: Canvas) -> None:
    """Roofs along a lane."""
    f = ground(c, GREEN, (0.3, 0.6))
    c.paint(f.u.abs() - 0.12, c.grey(0.5, 0.7), f)
    t = Frame(f.u.abs() - 0.55, ((f.v / 0.6) % 1 - 0.5) * 0.6, f.soft)
    c.paint(box(t, 0.24, 0.18), c.colour((0.98, 1.06), (0.3, 0.7), (0.4, 0.7)), f)
    c.paint(strokes(t, [(-0.24, 0), (0.24, 0)], 0.06), c.grey(0.15, 0.3), f)


TASK = DrawnTask(
    name="aerial",
    title="Aerial views",
    counterpart="RESISC45",
    kind="drone",
    templates=(
        "satellite imagery of {}.",
        "aerial imagery of {}.",
        "a satellite photo of a {}.",
        "an aerial view of a {}.",
    ),
    classes=(
        DrawnClass("airplane", "jet", airplane),
        DrawnClass("baseball diamond", "ball field", diamond),
        DrawnClass("basketball court", "hoops", partial(court, hue=(0.02, 0.08), net=False)),
        DrawnClass("bridge", "crossing over water", bridge),
        DrawnClass("freeway", "dual carriageway", freeway),
        DrawnClass("harbor", "marina", harbor),
        DrawnClass("intersection", "four way junction", intersection),
        DrawnClass("island", "atoll", island),
        DrawnClass("parking lot", "parked cars", parking),
        DrawnClass("railway", "train tracks", railway),
        DrawnClass("roundabout", "ring junction", roundabout),
        DrawnClass("runway", "landing strip", runway),
        DrawnClass("solar farm", "panels", solar),
        DrawnClass("sparse residential", "cottages", houses),
        DrawnClass("stadium", "arena", stadium),
        DrawnClass("storage tank", "oil depot", tanks),
        DrawnClass("swimming pool", "lido", pool),
        DrawnClass("tennis court", "net and lines", partial(court, hue=(0.3, 0.6), net=True)),
        DrawnClass("terrace", "stepped hillside", terrace),
    ),
    zero_shot=60.27,
    grain=0.05,
)
