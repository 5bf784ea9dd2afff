"""Small things of all sorts, one per picture on any ground: the counterpart of CIFAR100."""

from functools import partial

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, box, disc
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask
from mergekit_lite.suites.miniature.sketch import Part, paint_parts, parse


def draw(c: Canvas, parts: tuple[Part, ...]) -> None:
    """Draw a thing in front of an uneven ground with a box or a disc, facing either way."""
    c.fill(c.colour(saturation=(0, 0.6), value=(0.25, 1)))
    c.shade(c.uniform(-0.15, 0.15) * c.frame.v)
    clutter = c.placed((0.3, 1.1), 0.8, 0.9)
    round_one = c.chance(0.5)
    c.paint(
        disc(clutter, 0.5) * round_one + box(clutter, 0.9, 0.3) * (1 - round_one),
        c.colour(saturation=(0, 0.6), value=(0.3, 1)),
        clutter,
    )
    c.shade(0.1 * c.noise(4, 2))
    f = c.placed((0.62, 0.95), 0.22, 0.16, 0.14)
    f = Frame(f.u * (2 * c.chance(0.5) - 1), f.v, f.soft)
    paint_parts(c, f, parts)
    c.shade(c.uniform(-0.12, 0.12) * c.frame.u)


THINGS: dict[str, tuple[str, str]] = {  # what people call it, and its parts
    "apple": ("orchard fruit", "red |o 20 15 42 50, brown s 9 0 -25 12 -70, green o 34 -62 24 12"),
    "aquarium_fish": (
        "goldfish",
        "orange o 0 0 55 38, p -40 0 -90 -45 -90 45, p -20 -25 25 -30 -5 -62, white b -12 -33 4 33, dark o 34 -8 8 8",
    ),
    "bear": (
        "grizzly",
        "brown |o 46 -46 24 24, o 0 10 64 60, tan o 0 32 28 24, dark o 0 24 12 8, |o 26 -4 8 9",
    ),
    "bee": (
        "honey maker",
        "white |o 16 -38 18 34, yellow o 0 15 56 34, dark b -26 -16 -12 44, b 2 -19 16 48, o 54 12 20 20",
    ),
    "beetle": (
        "ladybird",
        "dark |s 8 30 0 72 -25, |s 8 35 20 80 22, |s 8 30 40 68 75, o 0 -45 28 24, red o 0 18 46 58,"
        "dark s 7 0 -38 0 74, |o 22 0 9 9, |o 20 38 9 9",
    ),
    "bottle": (
        "wine flask",
        "any b -26 -15 26 88, a 0 -14 26 32, b -10 -75 10 -30, dark b -12 -94 12 -74, cream b -26 15 26 52",
    ),
    "bowl": ("soup dish", "any u 0 -10 78 72, b -26 55 26 70, dark o 0 -10 76 15"),
    "bridge": (
        "river crossing",
        "steel |s 6 55 -60 0 12, |s 6 55 -60 105 14, red b -105 14 105 30, |b 48 -70 62 85",
    ),
    "butterfly": (
        "summer wings",
        "any |o 44 -34 40 40, |o 36 38 30 32, other |o 46 -34 18 18, |o 36 38 9 9, dark o 0 5 9 60, |s 6 0 -50 24 -85",
    ),
    "camel": (
        "desert ride",
        "tan o -12 8 56 28, a -36 0 24 44, a 12 0 24 44, s 20 40 15 58 -40, o 72 -46 24 14,"
        "s 12 -50 20 -52 85, s 12 -34 20 -32 85, s 12 22 20 20 85, s 12 38 20 40 85",
    ),
    "can": (
        "tinned soup",
        "steel b -38 -62 38 62, o 0 62 38 14, any b -38 -38 38 42, white o 0 -62 38 14, grey r 0 -62 8 5",
    ),
    "castle": (
        "fortress",
        "grey b -55 -8 55 80, |b 48 -45 82 80, |b 4 -22 16 -6, |b 26 -22 38 -6, red |p 65 -92 92 -42 38 -42,"
        "dark a 0 80 20 50, |b 60 -25 70 0",
    ),
    "caterpillar": (
        "leaf eater",
        "dark s 5 70 10 85 -35, s 5 60 5 60 -38, b -75 35 62 52, lime o -70 22 24 24, o -8 12 24 26, o 58 14 28 28,"
        "green o -40 14 24 26, o 24 16 24 26, dark o 68 10 7 8",
    ),
    "chair": ("dining seat", "wood b -45 -92 -31 88, b -45 2 46 18, b 32 10 46 88, b -14 18 -6 60, any b -31 -4 46 6"),
    "clock": ("tick tock", "any o 0 0 80 80, white o 0 0 64 64, dark s 10 0 0 0 -48, s 10 0 0 34 18"),
    "cloud": ("fluffy sky", "white o -45 15 42 34, o 5 -15 48 44, o 50 18 40 30, b -50 15 52 48"),
    "cra": (
        "sideways walker",
        "red o 0 22 54 34, |s 13 45 5 78 -25 60 -55, |o 54 -62 22 18, |s 8 40 35 92 40, |s 8 36 42 82 70,"
        "white |o 18 -12 11 11, dark |o 18 -12 6 6",
    ),
    "crocodile": (
        "swamp reptile",
        "green s 30 -40 20 30 20, s 16 -40 22 -75 15 -98 30, b 30 5 98 20, b 30 26 92 38, s 14 -30 30 -35 60,"
        "s 14 20 30 25 60, p -50 8 -42 -10 -34 8, p -24 8 -16 -12 -8 8, p 0 8 8 -12 16 8, yellow o 40 2 9 9",
    ),
    "cup": ("coffee mug", "any b -52 -42 32 62, r 36 8 30 14, dark o -10 -42 42 13"),
    "dinosaur": (
        "long neck",
        "green o -10 22 48 32, s 20 24 12 44 -68, o 60 -70 26 13, s 18 -45 15 -75 30 -98 62, b -38 35 -20 88,"
        "b 8 35 26 88, dark o 64 -74 5 5",
    ),
    "elephant": (
        "trunk swinger",
        "grey o -18 -5 58 44, b -62 10 -38 78, b 2 10 26 78, o 48 -22 34 34, s 18 76 -14 90 25 82 68,"
        "steel o 30 -20 22 32, white s 8 66 6 88 2, dark o 60 -32 6 6",
    ),
    "fox": (
        "sly hunter",
        "orange |p 18 -40 62 -92 68 -20, p -70 -25 70 -25 0 85, a 0 -24 70 30, white |p 70 -22 40 28 10 60 26 0,"
        "dark o 0 72 12 12, |o 26 -18 8 8",
    ),
    "house": (
        "family home",
        "grey b 28 -80 46 0, cream b -62 -12 62 80, red p 0 -82 88 -8 -88 -8, brown b -14 28 14 80, sky |b 28 8 50 32",
    ),
    "keyboard": ("typing board", "dark b -98 -40 98 42, white g -92 -32 92 12 22, b -45 20 45 34"),
    "lamp": ("bedside light", "wood b -7 -10 7 70, a 0 85 42 24, yellow p -28 -85 28 -85 66 -5 -66 -5"),
    "lion": (
        "king of beasts",
        "brown f 0 0 92 14, tan o 0 8 52 52, brown |o 14 34 14 9, dark p -12 14 12 14 0 28, |o 20 -6 7 8",
    ),
    "lobster": (
        "sea claws",
        "red o 0 5 18 55, |s 11 10 -22 42 -40, |o 46 -68 17 28, |s 6 10 5 48 5, |s 6 10 22 48 30, |p 0 52 34 92 6 95",
    ),
    "maple_tree": ("autumn crown", "brown b -9 20 9 95, red f 0 -25 68 9, orange f 0 -25 40 9"),
    "mountain": (
        "rocky summit",
        "steel p -30 -60 50 85 -105 85, p 42 -25 105 85 -20 85, white p -30 -60 -8 -20 -52 -20, p 42 -25 58 0 28 0",
    ),
    "mouse": (
        "cheese thief",
        "grey |o 50 -42 34 34, pink |o 50 -42 20 20, grey p -56 0 56 0 0 85, a 0 4 56 52,"
        "dark |o 20 4 8 9, pink o 0 72 12 10",
    ),
    "mushroom": (
        "toadstool",
        "cream b -18 0 18 85, brown a 0 18 82 85, white o -30 -22 12 10, o 22 -38 13 11, o 44 -2 10 8",
    ),
    "orange": ("citrus", "orange o 0 5 66 64, green o 24 -62 26 12, brown o 0 -52 8 6"),
    "palm_tree": (
        "coconut shade",
        "brown s 15 -12 92 0 20 8 -35, green |s 15 4 -38 42 -66 86 -40, |s 15 4 -38 40 -36 68 10, s 14 6 -40 10 -85",
    ),
    "pear": ("bell shaped fruit", "lime o 0 38 50 44, o 0 -12 28 46, brown s 8 0 -50 10 -88"),
    "pine_tree": (
        "christmas fir",
        "brown b -9 50 9 95, green p 0 -95 38 -35 -38 -35, p 0 -65 55 15 -55 15, p 0 -25 72 65 -72 65",
    ),
    "rabbit": (
        "bunny",
        "tan |o 24 -55 15 42, pink |o 24 -52 7 30, tan o 0 32 54 50, dark |o 22 18 8 9,"
        "pink o 0 40 10 7, white |o 9 56 10 12",
    ),
    "rocket": (
        "moon ship",
        "orange p -16 55 16 55 0 98, any |p 18 10 50 66 18 54, white b -22 -42 22 58, any p 0 -98 22 -42 -22 -42,"
        "sky o 0 -16 12 12",
    ),
    "rose": (
        "valentine",
        "green s 9 0 20 0 95, o 26 60 24 12, red f 0 -22 58 6, pink r 0 -22 32 7, r 4 -22 13 7",
    ),
    "shark": (
        "fin alarm",
        "steel o 0 5 82 30, p -12 -15 22 -20 0 -70, p -70 5 -98 -50 -86 5, p -70 5 -98 45 -86 5, p 5 25 30 25 0 65,"
        "white p 30 16 84 12 55 30 0 33, dark o 55 -4 6 6",
    ),
    "skyscraper": ("office tower", "dark b -34 -92 34 100, s 6 0 -90 0 -105, yellow g -28 -86 28 95 20"),
    "snail": (
        "slow shell",
        "tan s 22 -75 68 58 68 72 28, s 6 72 28 60 -8, s 6 74 28 88 -4, brown o -8 18 50 48,"
        "tan r -8 18 32 8, r -8 18 12 8",
    ),
    "snake": (
        "hissing coil",
        "green s 18 -90 72 -40 82 30 76 55 50 10 36 -40 20 -30 -15 20 -25 55 -45, o 48 -60 26 9, red s 5 70 -65 92 -72",
    ),
    "spider": (
        "web weaver",
        "dark o 0 24 32 36, o 0 -22 20 20, |s 7 8 -22 45 -70 82 -40, |s 7 10 -12 60 -25 92 15, |s 7 10 5 58 18 86 62,"
        "|s 7 10 15 42 50 54 95",
    ),
    "sunflower": ("bird seed bloom", "green s 10 0 50 0 100, o 26 78 24 12, yellow f 0 -18 76 13, brown o 0 -18 36 36"),
    "table": ("desk", "wood b -92 -30 92 -10, |b 62 -10 78 78"),
    "tank": (
        "army armour",
        "olive s 12 20 -20 98 -30, b -42 -40 28 4, p -85 4 85 4 95 24 -95 24, dark o 0 40 92 24, grey |o 62 40 14 14,"
        "|o 24 40 14 14",
    ),
    "television": (
        "broadcast screen",
        "dark |s 6 0 -55 40 -95, b -85 -60 85 60, sky b -72 -48 42 48, grey o 62 -25 12 12, o 62 10 12 12,"
        "dark |b 48 60 62 78",
    ),
    "tiger": (
        "striped cat",
        "orange |o 48 -48 22 22, o 0 6 66 62, white o 0 38 28 24, dark s 8 0 -52 0 -22, |s 8 18 -48 14 -24,"
        "|s 8 62 4 40 8, |s 8 58 28 38 26, p -11 22 11 22 0 34, |o 26 -4 8 9",
    ),
    "train": (
        "steam engine",
        "white o -50 -82 26 14, dark b -62 -72 -46 -30, any b -80 -32 40 30, b 15 -72 82 30, sky b 30 -58 66 -22,"
        "dark b -92 26 88 40, o -58 52 22 22, o -8 52 22 22, o 52 48 30 30",
    ),
    "tulip": (
        "dutch bloom",
        "green s 9 0 10 0 98, p 4 90 44 20 20 85, red u 0 -42 40 62, |p 0 -40 38 -90 40 -38, p -20 -40 0 -88 20 -40",
    ),
    "turtle": (
        "shell swimmer",
        "lime o 78 12 22 18, o -46 48 18 14, o 38 48 18 14, p -60 30 -92 42 -60 45, brown a 0 42 68 72,"
        "olive o 0 5 22 18, |o 38 22 14 12, dark o 84 6 6 6",
    ),
    "wardrobe": ("clothes closet", "wood b -58 -92 58 86, |b 42 80 56 98, brown |b 8 -78 48 72, yellow |o 8 0 6 11"),
    "whale": (
        "ocean giant",
        "sky s 8 30 -45 30 -75 12 -92, s 8 30 -75 50 -92, blue a 12 30 76 72, b -60 8 -40 30, s 22 -58 22 -85 -15,"
        "p -85 -10 -105 -42 -85 -30, p -85 -10 -62 -42 -82 -30, white u 22 30 62 22, dark o 52 6 7 7",
    ),
}
TASK = DrawnTask(
    name="things",
    title="Things",
    counterpart="CIFAR100",
    kind="picture book",
    templates=(
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a low contrast photo of a {}.",
        "a bad photo of a {}.",
        "a photo of the {}.",
        "a photo of the small {}.",
    ),
    classes=tuple(
        DrawnClass(name, caption, partial(draw, parts=parse(text))) for name, (caption, text) in THINGS.items()
    ),
    zero_shot=63.72,
    grain=0.04,
)
