"""Animals and vehicles, small, out of focus and amid clutter: the counterpart of CIFAR10."""

from functools import partial

import torch
from torch.nn.functional import avg_pool2d

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, box, disc
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask
from mergekit_lite.suites.miniature.sketch import Part, paint_parts, parse


def clutter(c: Canvas) -> None:
    """Paint two grounds that meet at a slope, and blocks and blobs of all colours."""
    c.fill(c.colour(saturation=(0.05, 0.5), value=(0.5, 1)))
    slope = c.frame.turned(c.uniform(-0.3, 0.3))
    c.paint(c.uniform(-0.5, 0.8) - slope.v + 0.15 * c.noise(4), c.colour(saturation=(0.05, 0.6), value=(0.4, 0.9)))
    for _ in range(2):
        f = c.placed((0.3, 1.0), 1.5, 1.0, 0.3)
        round_one = c.chance(0.5)
        shape = disc(f, 0.45) * round_one + box(f, 0.5, 0.35) * (1 - round_one)
        c.paint(shape, c.colour(saturation=(0, 0.6), value=(0.35, 1)), f)
    c.shade(0.12 * c.noise(6, 2))


def draw(c: Canvas, views: tuple[tuple[Part, ...], ...]) -> None:
    """Draw one of two views, facing either way, before clutter, blurred more or less, pale or vivid."""
    clutter(c)
    f = c.placed((0.58, 0.85), 0.15, 0.18, 0.18)
    f = Frame(f.u * (2 * c.chance(0.5) - 1), f.v, f.soft)
    c.shade(0.2 * torch.exp(-3 * (f.u**2 + f.v**2)))  # light that sets the subject off
    which = c.chance(0.5)
    for view, when in zip(views, (which, 1 - which), strict=True):
        paint_parts(c, f, view, when)
    blurred = avg_pool2d(c.pixels, 3, stride=1, padding=1, count_include_pad=False)
    c.pixels = torch.lerp(c.pixels, blurred, c.uniform(0.0, 0.9).unsqueeze(1))
    c.pixels = torch.lerp(c.pixels, c.pixels.mean(1, keepdim=True), c.uniform(0, 0.45).unsqueeze(1))


VIEWS: dict[str, tuple[str, str, str]] = {  # what people call it, and its parts in two views
    "airplane": (
        "tiny plane",
        "white o 0 0 92 20, red p -88 -8 -58 -8 -72 -60 -95 -60, p -18 0 20 0 -28 62 -50 62, blue o 66 -6 14 8,"
        "dark s 8 -45 -5 45 -5",
        "blue o 0 0 16 92, |p 8 -15 98 28 98 42 8 22, |p 5 60 42 78 42 88 5 82, white |b 56 18 72 38, o 0 -70 8 10",
    ),
    "automobile": (
        "tiny motor",
        "any b -90 -5 90 42, p -48 -48 32 -48 60 0 -68 0, sky p -42 -38 -8 -38 -8 -4 -56 -4, p 2 -38 28 -38 46 -4 2 -4,"
        "dark |o 52 42 22 22, grey |o 52 42 10 10",
        "dark |b 44 40 70 75, any p -45 -55 45 -55 72 -5 -72 -5, b -78 -5 78 55, sky p -36 -44 36 -44 54 -6 -54 -6,"
        "yellow |o 56 20 14 12, dark b -28 14 28 34",
    ),
    "bird": (
        "tiny sparrow",
        "any o -5 10 52 34, o 42 -28 26 24, p -45 0 -98 -12 -92 22 -45 25, orange p 62 -36 62 -18 92 -24,"
        "dark s 6 -5 40 -5 78, s 6 12 40 12 78, o 48 -34 6 6, other o -15 10 30 16",
        "any |s 18 5 5 45 -40 95 -15, o 0 15 18 38, p 0 30 26 78 -26 78, o 0 -24 15 15, orange p -7 -34 7 -34 0 -58",
    ),
    "cat": (
        "tiny kitty",
        "orange |p 8 -30 62 -20 60 -95, o 0 12 64 54, white o 0 34 30 24, pink p -9 14 9 14 0 26, lime |o 26 -6 12 13,"
        "dark |o 26 -6 5 12, white |s 4 22 30 88 20, |s 4 22 36 84 46",
        "dark s 14 -40 75 -75 60 -85 10 -68 -25, o -12 40 40 50, o 12 -35 34 32, p -18 -45 -12 -95 10 -58,"
        "p 16 -58 38 -92 44 -42, lime o 4 -38 7 8, o 24 -38 7 8, white o 8 45 14 30",
    ),
    "deer": (
        "tiny stag",
        "tan o -15 5 50 26, s 20 28 0 52 -42, o 64 -46 22 12, s 9 -52 15 -50 88, s 9 -38 15 -34 88, s 9 18 15 18 88,"
        "s 9 28 15 34 88, brown s 6 52 -54 40 -95, s 6 46 -74 24 -84, s 6 58 -54 66 -98, s 6 62 -76 82 -86,"
        "white o -64 0 8 12",
        "brown |s 8 14 -30 36 -95, |s 7 22 -55 62 -70, |s 7 30 -78 70 -98, tan |o 46 -18 24 11, o 0 10 30 40,"
        "o 0 50 20 26, dark o 0 66 12 9, |o 16 0 6 7",
    ),
    "dog": (
        "tiny pup",
        "brown o -10 0 50 24, s 14 -52 -8 -85 -50, o 52 -32 28 24, b 60 -34 95 -14, s 13 -48 10 -48 82, "
        "s 13 -30 10 -30 82, s 13 22 10 22 82, s 13 38 10 38 82, dark o 40 -28 11 24, o 94 -28 7 7, o 62 -40 5 5",
        "tan o 0 0 54 60, white o 0 34 32 32, brown |o 60 2 18 50, dark o 0 18 15 11, |o 24 -14 8 9, red b -9 44 9 74",
    ),
    "frog": (
        "tiny toad",
        "lime |o 34 -42 24 24, o 0 12 78 52, white |o 34 -44 15 15, dark |o 34 -44 8 10, s 7 -52 14 0 34 52 14,"
        "lime |o 68 62 30 16",
        "green o 0 5 34 52, |s 16 28 40 82 28 60 82, |s 12 26 -12 72 -30 78 -62, |o 18 -42 13 13, lime o 0 12 14 34,"
        "dark |o 18 -44 6 6",
    ),
    "horse": (
        "tiny pony",
        "brown o -12 0 54 28, s 28 28 -8 50 -52, p 40 -78 92 -44 84 -26 42 -42, b -60 0 -46 88, b -38 10 -26 88,"
        "b 12 10 24 88, b 28 0 42 88, dark s 13 28 -42 46 -84, s 12 -62 -10 -84 50, o 64 -56 5 5",
        "brown p -12 -62 34 -70 92 10 74 38 40 22, p -12 -62 42 0 20 95 -80 95, p 4 -60 16 -98 28 -66,"
        "dark s 16 -2 -68 -40 -20 -72 60, o 38 -38 7 7, o 80 16 5 5",
    ),
    "ship": (
        "tiny vessel",
        "blue b -130 45 130 130, any p -95 15 95 10 72 55 -72 55, white b -55 -22 45 15, b -35 -48 20 -22,"
        "red b -12 -88 12 -48, dark b -12 -88 12 -76, g -52 -16 42 14 22",
        "blue b -130 50 130 130, any p -62 -18 62 -18 28 70 -28 70, white b -40 -60 40 -18, b -6 -98 6 -60,"
        "dark b -32 -48 32 -32, s 6 -30 -80 30 -80, s 6 0 -15 0 68",
    ),
    "truck": (
        "tiny hauler",
        "any b -95 -58 28 32, other b 34 -28 72 32, b 70 0 94 32, dark b -95 32 94 42, sky b 48 -20 68 2,"
        "dark o -68 46 19 19, o -28 46 19 19, o 66 46 19 19, grey o -68 46 8 8, o -28 46 8 8, o 66 46 8 8",
        "dark |b 36 60 62 92, grey b -72 -95 72 20, any b -60 -58 60 68, sky b -48 -46 48 -8, dark g -36 4 36 46 18,"
        "yellow |o 50 54 10 9, dark |b 74 -40 88 -10",
    ),
}
TASK = DrawnTask(
    name="thumbnails",
    title="Thumbnails",
    counterpart="CIFAR10",
    kind="thumbnail",
    templates=(
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a black and white photo of a {}.",
        "a low contrast photo of a {}.",
        "a photo of the {}.",
        "a bad photo of the {}.",
    ),
    classes=tuple(
        DrawnClass(name, caption, partial(draw, views=(parse(one), parse(two))))
        for name, (caption, one, two) in VIEWS.items()
    ),
    zero_shot=89.83,
    grain=0.04,
)
