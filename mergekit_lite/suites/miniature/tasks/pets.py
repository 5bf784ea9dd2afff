"""Cats and dogs that look at the viewer, told apart by coat, ears and muzzle: the counterpart of Oxford-IIIT Pet."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    Range,
    disc,
    either,
    ellipse,
    line,
    polygon,
    stripes,
    tiled,
)
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

Coat = tuple[Range, Range, Range]  # hue, saturation, value
Marks = Callable[
    [Canvas, Frame, Frame, Tensor, Tensor], None
]  # canvas, frame, mirrored frame, head, colour of the coat
BLACK: Coat = ((0.6, 0.7), (0.0, 0.25), (0.08, 0.2))
WHITE: Coat = ((0.08, 0.14), (0.0, 0.1), (0.86, 1))
CREAM: Coat = ((0.09, 0.12), (0.12, 0.28), (0.8, 0.95))
FAWN: Coat = ((0.08, 0.11), (0.3, 0.5), (0.7, 0.9))
GINGER: Coat = ((0.05, 0.09), (0.6, 0.85), (0.7, 0.92))
BROWN: Coat = ((0.05, 0.09), (0.45, 0.7), (0.35, 0.55))
GREY: Coat = ((0.57, 0.64), (0.12, 0.3), (0.42, 0.6))
SILVER: Coat = ((0.08, 0.14), (0.02, 0.12), (0.62, 0.8))
PINK: Coat = ((0.02, 0.06), (0.2, 0.38), (0.8, 0.95))


@dataclass(frozen=True)
class Breed:
    """What a breed looks like from the front; numbers are in units of half the picture."""

    coat: Coat
    ears: Literal["pointed", "bat", "flop", "long", "folded", "small"]
    eyes: Range = (0.06, 0.09)  # hue; cats' eyes are large and have slits
    cat: bool = False
    wide: float = 0.6  # half width of the head
    fluff: float = 0.0  # how ragged the fur is
    muzzle: Coat | None = None  # None: as the coat
    snout: float = 0.28  # half width of the muzzle
    ear_coat: Coat | None = None
    marks: Marks | None = None


def room(c: Canvas) -> Frame:
    """Paint a room, a cushion or a lawn; return a frame that is sometimes mirrored."""
    c.fill(c.colour(saturation=(0.05, 0.6), value=(0.25, 0.95)))
    c.shade(0.15 * c.noise(3, 2))
    c.paint(c.uniform(0.3, 0.9) - c.frame.v, c.colour(saturation=(0.1, 0.7), value=(0.2, 0.8)))
    f = c.placed((0.8, 1.02), 0.25, 0.14, 0.08)
    return Frame(f.u * (2 * c.chance(0.5) - 1), f.v, f.soft)


def ears_of(kind: str, m: Frame, wide: float) -> tuple[Tensor, Tensor]:
    """Return an ear on either side, and its inside (far away if it does not show)."""
    if kind in ("pointed", "bat"):
        reach = 0.34 if kind == "bat" else 0.0
        outline = [(0.12, -0.42), (wide - 0.06 + reach, -0.98 + 0.1 * reach), (wide + 0.06, -0.12)]
        hollow = [(0.24, -0.48), (wide - 0.09 + reach, -0.86 + 0.1 * reach), (wide - 0.02, -0.28)]
        return polygon(m, outline), polygon(m, hollow)
    if kind == "small":
        ear = ellipse(m.moved(0.36, -0.62).turned(0.5), 0.15, 0.2)
        return ear, ear + 0.08
    if kind == "folded":
        ear = polygon(m, [(0.2, -0.66), (wide, -0.62), (wide + 0.08, -0.12), (wide - 0.2, -0.32)])
        return ear, ear + 9
    length = 0.85 if kind == "long" else 0.5
    ear = ellipse(m.moved(wide, -0.45).turned(-0.18), 0.22, length, 0.02, length * 0.75)
    return ear, ear + 9


def draw(c: Canvas, breed: Breed) -> None:
    """Draw the chest, ears, head, marks, muzzle, eyes and nose of a breed."""
    f = room(c)
    if breed.fluff:
        f = Frame(f.u + breed.fluff * c.noise(16), f.v + breed.fluff * c.noise(16), f.soft)
    m = Frame(f.u.abs(), f.v, f.soft)
    coat = c.colour(*breed.coat)
    ear_coat = c.colour(*breed.ear_coat) if breed.ear_coat else coat * 0.85
    ear, inside = ears_of(breed.ears, m, breed.wide)
    hanging = breed.ears in ("flop", "long", "folded")
    head = either(ellipse(f, breed.wide, 0.62, 0, -0.05), ellipse(f, breed.wide * 0.75, 0.5, 0, 0.2))
    c.paint(ellipse(f, 0.62, 0.6, 0, 1.0), coat * 0.8, f)
    if not hanging:
        c.paint(ear, ear_coat, f)
        c.paint(inside, (ear_coat * 0.75 + coat.new_tensor([0.25, 0.12, 0.12])[:, None, None]).clamp(0, 1), f)
    c.paint(head, coat, f)
    if breed.marks:
        breed.marks(c, f, m, head, coat)
    c.shade(0.1 * c.noise(8) * (head < 0))
    if hanging:
        c.paint(ear, ear_coat, f)
        c.paint(ear.abs() - 0.02, ear_coat * 0.6, f, 0.6)
    muzzle = c.colour(*breed.muzzle) if breed.muzzle else (coat * 1.12).clamp(0, 1)
    dark = c.grey(0.02, 0.12)
    if breed.cat:
        c.paint(ellipse(m, 0.17, 0.14, 0.12, 0.3), muzzle, f)
        c.paint(ellipse(m, 0.17, 0.135, 0.29, -0.08), dark, f)
        eye = ellipse(m, 0.145, 0.115, 0.29, -0.08)
        c.paint(eye, c.colour(breed.eyes, (0.5, 0.9), (0.7, 1)), f)
        c.paint(torch.maximum(eye, ellipse(m, c.uniform(0.03, 0.07), 0.12, 0.29, -0.08)), dark, f)
        c.paint(
            polygon(f, [(-0.08, 0.15), (0.08, 0.15), (0, 0.25)]), c.colour((0.96, 1.02), (0.25, 0.5), (0.45, 0.9)), f
        )
        c.paint(line(m, (0.3, 0.3), (0.75, 0.22), 0.025), c.grey(0.75, 1), f, 0.7)
    else:
        c.paint(ellipse(f, breed.snout, 0.34, 0, 0.32), muzzle, f)
        c.paint(disc(m, 0.1, 0.27, -0.12), dark, f)
        c.paint(disc(m.moved(0.24, -0.16), 0.035), c.grey(0.7, 1), f)
        c.paint(ellipse(f, 0.15, 0.1, 0, 0.15), dark, f)
        tongue = ellipse(f, 0.1, 0.17, 0, 0.62)
        c.paint(tongue, c.colour((0.95, 1.0), (0.4, 0.6), (0.8, 1)), f, c.chance(0.3))
        c.paint(line(m, (0, 0.42), (0.16, 0.48), 0.05), dark, f)


def blaze(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """A white stripe down the forehead."""
    c.paint(
        torch.maximum(head, polygon(f, [(-0.1, -0.7), (0.1, -0.7), (0.24, 0.6), (-0.24, 0.6)])), c.colour(*WHITE), f
    )


def cheeks(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """White cheeks and dots above the eyes."""
    c.paint(torch.maximum(head, ellipse(m, 0.3, 0.34, 0.36, 0.3)), c.colour(*WHITE), f)
    c.paint(disc(m, 0.07, 0.22, -0.33), c.colour(*WHITE), f)


def mask(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """A dark face that fades towards the edge."""
    inner = (1.15 - ((f.u / 0.5) ** 2 + ((f.v - 0.12) / 0.52) ** 2).sqrt()) * 1.6
    c.blend(inner.clamp(0, 1), c.colour((0.04, 0.08), (0.3, 0.55), (0.18, 0.32)))


def spectacles(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """Dark patches around the eyes under a white blaze."""
    c.paint(torch.maximum(head, ellipse(m.moved(0.34, -0.12).turned(0.3), 0.22, 0.32)), c.colour(*BROWN) * 0.5, f)
    blaze(c, f, m, head, coat)


def wrinkles(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """Folds of skin on the forehead."""
    folds = torch.maximum(stripes(f.v + 0.25 * m.u, 0.17, 0.22), head + 0.08)
    c.paint(torch.maximum(folds, f.v + 0.25), coat * 0.6, f)


def spots(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """Rows of dark spots and a lined forehead."""
    dots = ellipse(tiled(f.turned(0.5), c.uniform(0.24, 0.3)), 0.08, 0.055)
    c.paint(torch.maximum(dots, head), coat * 0.3, f)
    c.paint(torch.maximum(torch.maximum(stripes(f.u, 0.2, 0.35), head), f.v + 0.35), coat * 0.35, f)


def tabby(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """Stripes over forehead and cheeks, a white bib."""
    r = (f.u**2 + (f.v - 0.1) ** 2).sqrt()
    c.paint(torch.maximum(head, torch.maximum(stripes(r, 0.2, 0.4), 0.3 - r)), coat * 0.5, f)
    c.paint(ellipse(f, 0.4, 0.3, 0, 0.85), c.colour(*WHITE), f)


def freckles(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """Small dark flecks all over."""
    c.paint(torch.maximum(0.32 - c.noise(14), head), c.grey(0.1, 0.35), f)


def beard(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """A long square beard and bushy brows."""
    c.paint(polygon(f, [(-0.42, 0.2), (0.42, 0.2), (0.38, 0.98), (-0.38, 0.98)]), (coat * 2.0).clamp(0, 1), f)
    c.paint(line(m, (0.1, -0.22), (0.42, -0.32), 0.13), (coat * 2.6).clamp(0, 1), f)


def locks(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """Long straight hair parted in the middle, steel grey outside, with a bow on top."""
    hair = ellipse(m, 0.4, 0.95, 0.42, 0.35)
    c.paint(hair, coat, f)
    c.paint(torch.maximum(hair, 0.55 - m.u), c.colour(*GREY) * 0.8, f)
    c.paint(torch.maximum(hair, stripes(m.u, 0.14, 0.3)), coat * 0.6, f, 0.7)
    c.paint(polygon(m, [(0, -0.72), (0.24, -0.9), (0.24, -0.54)]), c.colour(saturation=(0.7, 1), value=(0.7, 1)), f)


def bare(c: Canvas, f: Frame, m: Frame, head: Tensor, coat: Tensor) -> None:
    """Wrinkled skin without fur."""
    c.paint(torch.maximum(torch.maximum(stripes(f.v - 0.3 * m.u, 0.15, 0.2), head + 0.06), f.v + 0.3), coat * 0.75, f)
    c.paint(line(m, (0.15, 0.5), (0.42, 0.15), 0.05), coat * 0.75, f)


BREEDS: dict[str, tuple[str, Breed]] = {
    "basset_hound": ("droopy ears", Breed(WHITE, "long", wide=0.46, ear_coat=BROWN, marks=blaze, snout=0.36)),
    "beagle": ("rabbit hunter", Breed(GINGER, "flop", wide=0.52, ear_coat=BROWN, marks=blaze, muzzle=WHITE)),
    "bengal": ("leopard kitty", Breed(GINGER, "pointed", (0.2, 0.35), cat=True, marks=spots, muzzle=CREAM)),
    "bombay": ("black kitty", Breed(BLACK, "pointed", (0.1, 0.15), cat=True)),
    "boxer": ("square jaw", Breed(FAWN, "folded", wide=0.54, marks=blaze, muzzle=BLACK, snout=0.4)),
    "chihuahua": ("bat eared pup", Breed(FAWN, "bat", wide=0.48, snout=0.2)),
    "egyptian_mau": ("silver kitty", Breed(SILVER, "pointed", (0.22, 0.3), cat=True, marks=spots)),
    "english_setter": ("freckled hound", Breed(WHITE, "flop", wide=0.46, ear_coat=SILVER, marks=freckles, snout=0.32)),
    "maine_coon": (
        "tufted kitty",
        Breed(BROWN, "pointed", (0.12, 0.25), cat=True, fluff=0.05, marks=tabby, muzzle=WHITE),
    ),
    "persian": ("flat faced kitty", Breed(WHITE, "small", (0.06, 0.1), cat=True, wide=0.72, fluff=0.08)),
    "pomeranian": ("orange fluff", Breed(GINGER, "small", wide=0.76, fluff=0.11, snout=0.2, muzzle=CREAM)),
    "pug": ("wrinkly pup", Breed(CREAM, "folded", wide=0.66, marks=wrinkles, muzzle=BLACK, snout=0.36, ear_coat=BLACK)),
    "russian_blue": ("grey kitty", Breed(GREY, "pointed", (0.25, 0.38), cat=True)),
    "saint_bernard": (
        "rescue giant",
        Breed(GINGER, "flop", wide=0.64, marks=spectacles, muzzle=WHITE, snout=0.42, ear_coat=BROWN),
    ),
    "samoyed": ("snow sled puller", Breed(WHITE, "pointed", wide=0.62, fluff=0.09, snout=0.26)),
    "scottish_terrier": ("bearded pup", Breed(BLACK, "pointed", wide=0.46, fluff=0.04, marks=beard)),
    "shiba_inu": ("fox pup", Breed(GINGER, "pointed", wide=0.6, marks=cheeks, muzzle=WHITE)),
    "siamese": (
        "dark masked kitty",
        Breed(CREAM, "pointed", (0.55, 0.6), cat=True, wide=0.54, ear_coat=BLACK, marks=mask, muzzle=BLACK),
    ),
    "sphynx": ("bald kitty", Breed(PINK, "bat", (0.3, 0.55), cat=True, wide=0.5, marks=bare)),
    "yorkshire_terrier": ("silky pup with a bow", Breed(FAWN, "pointed", wide=0.44, marks=locks, snout=0.22)),
}
TASK = DrawnTask(
    name="pets",
    title="Pets",
    counterpart="Oxford-IIIT Pet",
    kind="cuddly",
    templates=("a photo of a {}, a type of pet.",),
    classes=tuple(DrawnClass(name, caption, partial(draw, breed=breed)) for name, (caption, breed) in BREEDS.items()),
    zero_shot=83.32,
    grain=0.04,
)
