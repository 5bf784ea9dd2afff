"""Dishes on plates seen from above: the counterpart of Food101."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    box,
    disc,
    either,
    ellipse,
    ring,
    stripes,
    strokes,
    tiled,
)
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask
from mergekit_lite.suites.miniature.sketch import PALETTE, paint_parts, parse

Dish = Callable[[Canvas, Frame], None]


def served(c: Canvas, dish: Dish) -> None:
    """Paint a table of wood or cloth, a plate, and a dish on it turned anyhow."""
    c.fill(
        torch.lerp(
            c.colour((0.04, 0.11), (0.3, 0.7), (0.25, 0.7)),
            c.colour(saturation=(0.1, 0.7), value=(0.3, 0.95)),
            c.chance(0.5)[:, None],
        )
    )
    table = c.placed((0.8, 1.2), 1.6, 0.5)
    c.paint(stripes(table.v, 0.5, 0.1), c.grey(0.1, 0.9), table, 0.5)
    f = c.placed((0.78, 1.0), 0.0, 0.14, 0.06)
    c.paint(disc(f, 1.02, 0.05, 0.08), c.grey(0.0, 0.2), f, 0.5)  # shadow
    plate = c.chance(0.75).unsqueeze(1)
    c.paint(disc(f, 0.98), torch.lerp(c.colour(saturation=(0.2, 0.7), value=(0.25, 0.8)), c.grey(0.8, 1), plate), f)
    c.paint(ring(f, 0.78, 0.07), c.grey(0.55, 0.9), f, 0.7)
    dish(c, f.turned(c.uniform(-0.5, 0.5)).scaled(c.uniform(0.85, 1.0)))
    c.shade(0.07 * c.noise(6, 2))


def paint(c: Canvas, f: Frame, shape: Tensor, colour: str) -> None:
    """Paint a shape in a colour of the palette."""
    c.paint(shape, c.colour(*PALETTE[colour]), f)


def around(f: Frame, count: int, distance: float) -> list[Frame]:
    """Return frames at `count` places on a circle."""
    angles = [2 * np.pi * k / count for k in range(count)]
    return [f.moved(distance * float(np.cos(a)), distance * float(np.sin(a))) for a in angles]


def sketched(c: Canvas, f: Frame, text: str) -> None:
    """Draw a dish from its parts."""
    paint_parts(c, f, parse(text))


def pizza(c: Canvas, f: Frame) -> None:
    """Crust, cheese, slices of sausage, cuts."""
    f = f.turned(c.uniform(0, 1))
    paint(c, f, disc(f, 0.82), "toast")
    c.paint(disc(f, 0.68) + 0.05 * c.noise(5), c.colour((0.08, 0.13), (0.5, 0.8), (0.8, 1)), f)
    paint(c, f, either(*(disc(g, 0.15) for g in [*around(f, 5, 0.45), f])), "red")
    paint(c, f, disc(tiled(f.turned(0.5), 0.42), 0.05) + 2 * (disc(f, 0.6) > 0), "green")
    paint(c, f, torch.maximum(stripes(f.turned(0.3).u, 3, 0.02), disc(f, 0.82)), "toast")


def donuts(c: Canvas, f: Frame) -> None:
    """A glazed ring with sprinkles."""
    paint(c, f, ring(f, 0.47, 0.55), "toast")
    glaze = ring(f, 0.47, 0.42) + 0.05 * c.noise(5)
    c.paint(glaze, c.colour((0.85, 1.1), (0.3, 0.8), (0.3, 1)), f)
    for turn in (0.3, 1.2):
        c.paint(torch.maximum(box(tiled(f.turned(turn), 0.36), 0.06, 0.025), glaze + 0.1), c.colour(value=(0.8, 1)), f)


def waffles(c: Canvas, f: Frame) -> None:
    """A square of pits with butter and syrup."""
    whole = box(f, 0.64, 0.64)
    paint(c, f, whole, "toast")
    pits = torch.maximum(box(tiled(f.moved(0.16, 0.16), 0.32), 0.1, 0.1), whole + 0.03)
    c.paint(pits, c.colour((0.05, 0.09), (0.6, 0.9), (0.3, 0.5)), f)
    paint(c, f, box(f.turned(0.6), 0.16, 0.16), "yellow")


def fries(c: Canvas, f: Frame) -> None:
    """A heap of sticks."""
    for k in range(7):
        g = f.turned(c.uniform(-0.9, 0.9)).moved(0.2 * (k % 4) - 0.3, c.uniform(-0.25, 0.25))
        c.paint(box(g, 0.09, 0.5), c.colour((0.11, 0.14), (0.5, 0.9), (0.7, 1)), g)
        paint(c, g, box(g, 0.015, 0.5, 0.09), "toast")


def spaghetti(c: Canvas, f: Frame) -> None:
    """Twisted strands under a red sauce."""
    nest = disc(f, 0.72) + 0.08 * c.noise(5)
    paint(c, f, nest, "golden")
    strands = stripes(((f.u + 0.3) ** 2 + f.v**2).sqrt() + 0.12 * c.noise(5), 0.2, 0.3)
    c.paint(torch.maximum(nest, strands), c.colour((0.07, 0.1), (0.6, 0.9), (0.5, 0.7)), f)
    c.paint(disc(f, 0.38) + 0.15 * c.noise(6), c.colour((0.0, 0.04), (0.7, 0.95), (0.4, 0.7)), f)
    paint(c, f, ellipse(f.turned(0.7), 0.14, 0.07, 0.05, 0), "green")


def caprese(c: Canvas, f: Frame) -> None:
    """Tomato and mozzarella in turns around a leaf of basil."""
    for k, g in enumerate(around(f, 8, 0.5)):
        paint(c, g, disc(g, 0.26), "steel")
        paint(c, g, disc(g, 0.22), "white" if k % 2 else "red")
    paint(c, f, either(*(ellipse(f.turned(a), 0.2, 0.1, 0.16, 0) for a in (0.4, 2.5, 4.6))), "green")


def sushi(c: Canvas, f: Frame) -> None:
    """Rolls of rice in dark seaweed."""
    core = c.colour((-0.05, 0.4), (0.6, 0.9), (0.7, 1))
    for x, y in ((-0.42, -0.35), (0.42, -0.35), (0, 0.05), (-0.42, 0.45), (0.42, 0.45)):
        paint(c, f, disc(f, 0.31, x, y), "dark")
        paint(c, f, disc(f, 0.24, x, y), "white")
        c.paint(disc(f, 0.12, x, y), core, f)


def soup(c: Canvas, f: Frame) -> None:
    """A bowl of noodles in broth with half an egg, onion and meat."""
    paint(c, f, disc(f, 0.9), "dark")
    broth = disc(f, 0.76)
    c.paint(broth, c.colour((0.06, 0.1), (0.6, 0.9), (0.5, 0.75)), f)
    waves = torch.maximum(stripes(f.v + 0.1 * torch.sin(6 * f.u) + 0.06 * c.noise(4), 0.2, 0.4), disc(f, 0.66))
    paint(c, f, waves, "golden")
    sketched(c, f, "pink o -30 -22 30 20, brown r -30 -22 18 6, white o 32 -18 24 30, orange o 32 -16 13 15")
    paint(c, f, torch.maximum(disc(tiled(f, 0.3), 0.06), disc(f, 0.28, 0, 0.4)), "lime")


def steak(c: Canvas, f: Frame) -> None:
    """Meat with a rim of fat and marks of the grill, and green beside it."""
    meat = ellipse(f, 0.68, 0.46, -0.05, -0.08) + 0.1 * c.noise(3)
    c.paint(meat - 0.05, c.colour((0.06, 0.1), (0.2, 0.4), (0.7, 0.9)), f)
    c.paint(meat, c.colour((0.01, 0.06), (0.5, 0.75), (0.3, 0.5)), f)
    paint(c, f, torch.maximum(stripes(f.turned(0.7).u, 0.26, 0.3), meat + 0.05), "dark")
    paint(c, f, disc(f, 0.2, 0.35, 0.6) + 0.12 * c.noise(9), "green")


def salmon(c: Canvas, f: Frame) -> None:
    """An orange fillet with white lines, and lemon."""
    fillet = ellipse(f, 0.8, 0.36, 0.0, -0.15)
    c.paint(fillet, c.colour((0.02, 0.06), (0.55, 0.8), (0.8, 1)), f)
    lines = torch.maximum(stripes(f.u + 0.5 * f.v.abs(), 0.3, 0.2), fillet + 0.06)
    paint(c, f, lines, "cream")
    sketched(c, f, "yellow o 30 48 24 24, cream r 30 48 16 6, green o -35 45 28 14")


def onion_rings(c: Canvas, f: Frame) -> None:
    """Golden rings on one another."""
    for g in (*around(f.turned(c.uniform(0, 6)), 4, 0.42), f):
        c.paint(ring(g, 0.27, 0.2), c.colour((0.05, 0.07), (0.5, 0.8), (0.35, 0.5)), g)
        c.paint(ring(g, 0.27, 0.14), c.colour((0.08, 0.11), (0.5, 0.8), (0.75, 0.95)), g)


def salad(c: Canvas, f: Frame) -> None:
    """Leaves, tomatoes, olives and cubes of cheese."""
    c.paint(disc(f, 0.72) + 0.14 * c.noise(7, 2), c.colour((0.22, 0.32), (0.5, 0.9), (0.4, 0.75)), f)
    f = f.turned(c.uniform(0, 6))
    for k, g in enumerate(around(f, 7, 0.46)):
        shape = box(g.turned(0.5), 0.12, 0.12) if k % 3 == 0 else disc(g, 0.15)
        paint(c, g, shape, ("white", "red", "dark")[k % 3])
    paint(c, f, ring(f, 0.18, 0.08), "violet")


def scoops(c: Canvas, f: Frame) -> None:
    """Three scoops in three colours with a wafer."""
    paint(c, f, box(f.turned(0.5), 0.09, 0.75, 0.25, -0.1), "toast")
    for g in around(f, 3, 0.3):
        c.paint(disc(g, 0.37) + 0.05 * c.noise(6), c.colour(saturation=(0.15, 0.5), value=(0.75, 1)), g)
        c.paint(disc(g, 0.1, -0.1, -0.12), c.grey(0.9, 1), g, 0.6)
    paint(c, f, disc(f, 0.12, 0, -0.05), "red")


def burger(c: Canvas, f: Frame) -> None:
    """A bun with sesame, tilted so that its layers show."""
    paint(c, f, ellipse(f, 0.68, 0.26, 0, 0.42), "toast")
    paint(c, f, box(f, 0.74, 0.1, 0, 0.3), "brown")
    paint(c, f, box(f, 0.72, 0.06, 0, 0.16), "yellow")
    paint(c, f, box(f, 0.76, 0.07, 0, 0.07) + 0.06 * c.noise(8), "lime")
    paint(c, f, torch.maximum(ellipse(f, 0.7, 0.68, 0, 0.02), f.v), "toast")
    sketched(c, f, "cream o -30 -28 7 5, o 5 -45 7 5, o 32 -22 7 5, o -2 -18 7 5")


def hot_dog(c: Canvas, f: Frame) -> None:
    """A sausage in a long bun with a line of mustard."""
    paint(c, f, ellipse(f, 0.88, 0.42, 0, 0), "toast")
    sketched(c, f, "red s 32 -70 0 70 0")
    zigzag = strokes(f, [(-0.66, 0.08), (-0.4, -0.08), (-0.13, 0.08), (0.13, -0.08), (0.4, 0.08), (0.66, -0.08)], 0.09)
    paint(c, f, zigzag, "yellow")


def pancakes(c: Canvas, f: Frame) -> None:
    """A leaning stack with syrup and butter."""
    for k in range(3):
        c.paint(disc(f, 0.6, 0, 0.22 - 0.17 * k), c.colour((0.05, 0.08), (0.6, 0.8), (0.4, 0.55)), f)
        c.paint(disc(f, 0.57, 0, 0.19 - 0.17 * k), c.colour((0.08, 0.11), (0.45, 0.7), (0.75, 0.95)), f)
    c.paint(disc(f, 0.34, 0.05, -0.1) + 0.14 * c.noise(5), c.colour((0.04, 0.07), (0.7, 0.95), (0.35, 0.55)), f)
    paint(c, f, box(f.turned(0.4), 0.13, 0.13, 0, -0.12), "yellow")


def cake(c: Canvas, f: Frame) -> None:
    """A dark wedge with layers of cream, a cherry on top."""
    wedge = "p -80 25 75 -55 75 20"
    paint(c, f, box(f.moved(0, 0.25), 0.78, 0.22), "chocolate")
    paint(c, f, box(f, 0.78, 0.05, 0, 0.24), "cream")
    paint(c, f, box(f, 0.78, 0.05, 0, -0.02), "chocolate")
    sketched(c, f, f"brown {wedge}, cream o 45 -22 22 14, red o 45 -32 12 12")


def mussels(c: Canvas, f: Frame) -> None:
    """Open dark shells with orange flesh."""
    for g in around(f.turned(c.uniform(0, 6)), 5, 0.5):
        g = g.turned(c.uniform(0, 6))
        c.paint(ellipse(g, 0.36, 0.22), c.colour((0.6, 0.7), (0.3, 0.7), (0.08, 0.25)), g)
        c.paint(ellipse(g, 0.24, 0.12), c.colour((0.06, 0.1), (0.6, 0.9), (0.8, 1)), g)


def eggs(c: Canvas, f: Frame) -> None:
    """Three halves of eggs filled with yellow, with parsley between."""
    sketched(c, f, "green f 0 -8 72 9, steel o -38 -32 30 36, o 38 -32 30 36, o 0 40 30 36")
    sketched(
        c, f, "white o -38 -32 26 32, o 38 -32 26 32, o 0 40 26 32, yellow f -38 -30 17 7, f 38 -30 17 7, f 0 42 17 7"
    )


DISHES: dict[str, tuple[str, Dish]] = {
    "pizza": ("pepperoni slices", pizza),
    "donuts": ("glazed rings", donuts),
    "waffles": ("belgian breakfast", waffles),
    "french fries": ("chips", fries),
    "spaghetti bolognese": ("noodles in meat sauce", spaghetti),
    "caprese salad": ("tomato and mozzarella", caprese),
    "sushi": ("rice rolls", sushi),
    "ramen": ("noodle broth", soup),
    "steak": ("grilled beef", steak),
    "grilled salmon": ("fish fillet", salmon),
    "onion rings": ("fried hoops", onion_rings),
    "greek salad": ("feta and olives", salad),
    "ice cream": ("frozen scoops", scoops),
    "hamburger": ("patty in a bun", burger),
    "hot dog": ("frankfurter", hot_dog),
    "pancakes": ("syrup stack", pancakes),
    "chocolate cake": ("dark dessert", cake),
    "mussels": ("open shells", mussels),
    "deviled eggs": ("egg halves", eggs),
}
TASK = DrawnTask(
    name="food",
    title="Food",
    counterpart="Food101",
    kind="menu",
    templates=("a photo of {}, a type of food.",),
    classes=tuple(DrawnClass(name, caption, partial(served, dish=dish)) for name, (caption, dish) in DISHES.items()),
    zero_shot=82.36,
    grain=0.04,
)
