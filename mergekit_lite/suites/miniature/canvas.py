"""A canvas for many small pictures at once: shapes are distance fields, painted with soft edges on a whole batch.

Coordinates run from -1 (left, top) to 1 (right, bottom). A shape is a function of a `Frame`, the batch's coordinates
after a random turn, stretch and shift, and gives the signed distance to its outline (negative inside). Numbers come
from NumPy's generator, whose stream is fixed for a given seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

SIDE = 32  # pixels
GLYPH_SIDE = 48  # glyphs are rendered once at this size and then sampled
Range = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """Coordinates of a batch: `u`, `v` (n, 32, 32), and `soft` (n, 1, 1), the width of a pixel in these units."""

    u: Tensor
    v: Tensor
    soft: Tensor

    def moved(self, x: Tensor | float = 0.0, y: Tensor | float = 0.0) -> "Frame":
        """Return the frame with its origin at (x, y)."""
        return Frame(self.u - x, self.v - y, self.soft)

    def turned(self, angle: Tensor | float) -> "Frame":
        """Return the frame turned clockwise by `angle` radians."""
        angle = torch.as_tensor(angle)
        cos, sin = angle.cos(), angle.sin()
        return Frame(cos * self.u + sin * self.v, cos * self.v - sin * self.u, self.soft)

    def scaled(self, x: Tensor | float, y: Tensor | float | None = None) -> "Frame":
        """Return the frame in which a shape appears `x` times wider and `y` (default `x`) times higher."""
        y = x if y is None else y
        return Frame(self.u / x, self.v / y, self.soft / ((torch.as_tensor(x) + torch.as_tensor(y)) / 2))


class Canvas:
    """A batch of `n` pictures being painted, with the random numbers for it."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.n, self.rng = n, rng
        self.pixels = torch.zeros(n, 3, SIDE, SIDE)
        axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
        self.frame = Frame(
            axis.expand(n, SIDE, SIDE), axis[:, None].expand(n, SIDE, SIDE), torch.full((n, 1, 1), 2 / SIDE)
        )

    # random numbers, one per picture

    def uniform(self, low: float, high: float) -> Tensor:
        """Return (n, 1, 1) numbers in [low, high)."""
        return torch.from_numpy(self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32))

    def chance(self, probability: float) -> Tensor:
        """Return (n, 1, 1) ones with this probability, else zeros."""
        return (self.uniform(0, 1) < probability).float()

    def placed(self, size: Range = (0.8, 1.0), turn: float = 0.0, shift: float = 0.1, stretch: float = 0.1) -> Frame:
        """Return a frame moved by up to `shift`, turned by up to `turn` radians, scaled within `size` and stretched."""
        scale, aspect = self.uniform(*size), self.uniform(-stretch, stretch).exp()
        frame = self.frame.moved(self.uniform(-shift, shift), self.uniform(-shift, shift)).turned(
            self.uniform(-turn, turn)
        )
        return frame.scaled(scale * aspect, scale / aspect)

    def colour(self, hue: Range = (0, 1), saturation: Range = (0.4, 1), value: Range = (0.3, 1)) -> Tensor:
        """Return (n, 3, 1, 1) random colours; hue 0 is red, 1/3 green, 2/3 blue, and may run past 1."""
        h, s, v = self.uniform(*hue), self.uniform(*saturation), self.uniform(*value)
        channels = [v - v * s * (torch.minimum((k + h * 6) % 6, 4 - (k + h * 6) % 6).clamp(0, 1)) for k in (5, 3, 1)]
        return torch.stack(channels, dim=1)

    def grey(self, low: float, high: float) -> Tensor:
        """Return (n, 3, 1, 1) random greys."""
        return self.colour(saturation=(0, 0), value=(low, high))

    def noise(self, cells: int, octaves: int = 1) -> Tensor:
        """Return (n, 32, 32) smooth noise in about [-1, 1]: `cells` blobs across, each octave finer by half."""
        total = torch.zeros(self.n, SIDE, SIDE)
        for octave in range(octaves):
            count = min(cells * 2**octave, SIDE) + 1
            coarse = torch.from_numpy(self.rng.uniform(-1, 1, (self.n, 1, count, count)).astype(np.float32))
            total += interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=True)[:, 0] / 2**octave
        return total

    # painting

    def fill(self, colour: Tensor) -> None:
        """Cover everything with one colour per picture."""
        self.pixels = colour.expand_as(self.pixels).clone()

    def blend(self, coverage: Tensor, colour: Tensor) -> None:
        """Lay `colour` over the pictures where `coverage` (n, 32, 32) is 1, in part where it is less."""
        self.pixels = torch.lerp(self.pixels, colour.expand_as(self.pixels), coverage.unsqueeze(1))

    def paint(self, distance: Tensor, colour: Tensor, frame: Frame | None = None, when: Tensor | float = 1.0) -> None:
        """Paint the inside of a shape, its edge one pixel soft, in the pictures where `when` is 1."""
        soft = (frame or self.frame).soft
        self.blend((0.5 - distance / soft).clamp(0, 1) * when, colour)

    def shade(self, amount: Tensor) -> None:
        """Brighten or darken by (n, 32, 32) or (n, 1, 1) amounts."""
        self.pixels = self.pixels + amount.unsqueeze(1)

    def finished(self, grain: float = 0.03, light: float = 0.12) -> Tensor:
        """Return (n, 3, 32, 32) pictures in [0, 1] with sensor grain and uneven light added."""
        lighting = 1 + self.uniform(-light, light).unsqueeze(1)
        grains = torch.from_numpy(self.rng.standard_normal(self.pixels.shape, dtype=np.float32))
        return (self.pixels * lighting + grain * grains).clamp(0, 1)


# shapes: signed distance, negative inside


def disc(f: Frame, radius: Tensor | float, x: Tensor | float = 0.0, y: Tensor | float = 0.0) -> Tensor:
    """Return the distance to a disc."""
    return ((f.u - x) ** 2 + (f.v - y) ** 2).sqrt() - radius


def ring(
    f: Frame, radius: Tensor | float, width: Tensor | float, x: Tensor | float = 0.0, y: Tensor | float = 0.0
) -> Tensor:
    """Return the distance to a ring of the given full width."""
    return disc(f, radius, x, y).abs() - width / 2


def box(
    f: Frame, width: Tensor | float, height: Tensor | float, x: Tensor | float = 0.0, y: Tensor | float = 0.0
) -> Tensor:
    """Return the distance to a rectangle with the given half width and half height."""
    return torch.maximum((f.u - x).abs() - width, (f.v - y).abs() - height)


def line(f: Frame, start: tuple[float, float], end: tuple[float, float], width: Tensor | float) -> Tensor:
    """Return the distance to a straight stroke of the given full width with round ends."""
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    along = (((f.u - ax) * dx + (f.v - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return ((f.u - ax - along * dx) ** 2 + (f.v - ay - along * dy) ** 2).sqrt() - width / 2


def strokes(f: Frame, points: Sequence[tuple[float, float]], width: Tensor | float) -> Tensor:
    """Return the distance to a polyline."""
    return torch.stack([line(f, a, b, width) for a, b in pairwise(points)]).amin(0)


def polygon(f: Frame, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Return the distance to a convex polygon with corners in clockwise order as seen (y runs down)."""
    sides = []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        dx, dy = bx - ax, by - ay
        length = (dx * dx + dy * dy) ** 0.5
        sides.append(((f.u - ax) * dy - (f.v - ay) * dx) / length)
    return torch.stack(sides).amax(0)


def regular(f: Frame, sides: int, radius: float, turn: float = 0.0) -> Tensor:
    """Return the distance to a regular polygon whose corners lie on a circle; with turn 0 a corner points up."""
    angles = [turn - np.pi / 2 + 2 * np.pi * k / sides for k in range(sides)]
    return polygon(f, [(radius * float(np.cos(a)), radius * float(np.sin(a))) for a in angles])


def either(*distances: Tensor) -> Tensor:
    """Return the union of shapes."""
    return torch.stack(distances).amin(0)


def without(shape: Tensor, hole: Tensor) -> Tensor:
    """Return a shape with a hole cut out."""
    return torch.maximum(shape, -hole)


def stripes(along: Tensor, period: Tensor | float, share: Tensor | float = 0.5) -> Tensor:
    """Return the distance to stripes across `along`, which cover `share` of each period."""
    return ((along / period) % 1 - 0.5).abs() * period - share * period / 2


def tiled(f: Frame, period: Tensor | float, aspect: float = 1.0) -> Frame:
    """Return the frame repeated every `period` (vertically `aspect` times that), each tile centred on its origin."""
    u = ((f.u / period) % 1 - 0.5) * period
    v = ((f.v / (period * aspect)) % 1 - 0.5) * period * aspect
    return Frame(u, v, f.soft)


def ellipse(
    f: Frame, width: Tensor | float, height: Tensor | float, x: Tensor | float = 0.0, y: Tensor | float = 0.0
) -> Tensor:
    """Return about the distance to an ellipse with the given half width and half height."""
    size = (torch.as_tensor(width) * torch.as_tensor(height)).sqrt()
    return ((((f.u - x) / width) ** 2 + ((f.v - y) / height) ** 2).sqrt() - 1) * size


def around(f: Frame, count: int, radius: Tensor | float = 0.0) -> Frame:
    """Return the frame repeated `count` times around its origin, each copy at `radius`, its top outwards."""
    step = 2 * np.pi / count
    angle = torch.remainder(torch.atan2(f.u, -f.v) + step / 2, step) - step / 2
    distance = (f.u**2 + f.v**2).sqrt()
    return Frame(distance * angle.sin(), radius - distance * angle.cos(), f.soft)


# glyphs

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSerif-Italic",
)


@cache
def glyph_atlas(text: str) -> Tensor:
    """Return (fonts, 48, 48) coverage in [0, 1] of `text`, filling the square, in each font that matplotlib ships."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pictures = []
    for font in FONTS:
        face = ImageFont.truetype(str(folder / f"{font}.ttf"), 64)
        left, top, right, bottom = face.getbbox(text)
        picture = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
        ImageDraw.Draw(picture).text((1 - left, 1 - top), text, fill=255, font=face)
        scale = (GLYPH_SIDE - 4) / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
        square = Image.new("L", (GLYPH_SIDE, GLYPH_SIDE))
        square.paste(picture, ((GLYPH_SIDE - picture.width) // 2, (GLYPH_SIDE - picture.height) // 2))
        pictures.append(np.asarray(square, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(pictures))


def glyph(canvas: Canvas, f: Frame, text: str | Sequence[str], font: int | None = None) -> Tensor:
    """Return the coverage (n, 32, 32) of `text` filling the frame's square from -1 to 1, in a random font per picture.

    Of several texts, each picture gets one at random.
    """
    texts = [text] if isinstance(text, str) else text
    atlas = torch.stack([glyph_atlas(entry) for entry in texts])
    which = canvas.rng.integers(0, len(texts), canvas.n)
    fonts = canvas.rng.integers(0, len(FONTS), canvas.n) if font is None else np.full(canvas.n, font)
    chosen = atlas[torch.from_numpy(which), torch.from_numpy(fonts)].unsqueeze(1)
    return grid_sample(chosen, torch.stack([f.u, f.v], dim=-1), mode="bilinear", align_corners=False)[:, 0]
