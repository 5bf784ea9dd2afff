"""Handwritten digits, the counterpart of MNIST: real ones to learn and test on, drawn ones for pre-training.

The real ones are the 1,797 that scikit-learn ships, a part of E. Alpaydin and C. Kaynak's Optical Recognition of
Handwritten Digits (UCI, 1998).
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from mergekit_lite.suites.miniature.canvas import Canvas, Frame, glyph
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask


def draw(c: Canvas, digit: str) -> None:
    """Draw a white digit, bent and slanted as by hand, in a stroke of varying weight, as coarse as the real ones."""
    f = c.placed(size=(0.85, 1.05), turn=0.2, shift=0.06, stretch=0.15).scaled(0.7, 1)
    slant = c.uniform(-0.3, 0.3)
    f = Frame(f.u + slant * f.v + 0.12 * c.noise(3), f.v + 0.12 * c.noise(3), f.soft)
    ink = glyph(c, f, digit)
    c.blend((ink * c.uniform(1.0, 2.2)).clamp(0, 1), c.grey(0.8, 1.0))
    c.pixels = enlarged(avg_pool2d(c.pixels, 4))


def enlarged(images: Tensor) -> Tensor:
    """Return pictures (N, C, 8, 8) smoothly enlarged to 32 x 32, in [0, 1]."""
    return interpolate(images, (32, 32), mode="bicubic").clamp(0, 1)


def real() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 8 x 8 digits, smoothly enlarged to 32 x 32, and their labels."""
    from sklearn.datasets import load_digits  # takes 1.4 s, which no process should wait for that draws no digits

    stored = load_digits()
    images = torch.from_numpy(stored.images).float().unsqueeze(1) / 16
    large = enlarged(images).expand(-1, 3, -1, -1)
    return (large * 255 + 0.5).to(torch.uint8), torch.from_numpy(stored.target).long()


CAPTIONS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASK = DrawnTask(
    name="digits",
    title="Digits",
    counterpart="MNIST",
    kind="handwriting",
    templates=('a photo of the number: "{}".',),
    classes=tuple(DrawnClass(str(d), word, partial(draw, digit=str(d))) for d, word in enumerate(CAPTIONS)),
    zero_shot=48.26,
    grain=0.02,
    real=real,
)
