"""Stained tissue under the microscope: the counterpart of PCAM. Only what lies in the middle decides."""

from functools import partial

import torch
from torch import Tensor

from mergekit_lite.suites.miniature.canvas import SIDE, Canvas, Frame, ellipse, stripes
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

CELLS = 16  # cells across the lattice that nuclei are scattered on


def scattered(c: Canvas, f: Frame, period: Tensor, jitter: float) -> tuple[Frame, Tensor, Tensor]:
    """Return the frame around the nucleus in each cell of a jittered lattice, and two random numbers for it."""
    row = (f.v / period).floor()
    aside = 0.5 * (row % 2)  # rows are staggered like bricks
    column = (f.u / period + aside).floor()
    place = ((row % CELLS) * CELLS + column % CELLS).long().flatten(1)

    def of_nucleus() -> Tensor:
        table = torch.from_numpy(c.rng.random((c.n, CELLS * CELLS), dtype="float32"))
        return table.gather(1, place).view(c.n, SIDE, SIDE)

    x = f.u - (column - aside + 0.5 + jitter * (of_nucleus() - 0.5)) * period
    y = f.v - (row + 0.5 + jitter * (of_nucleus() - 0.5)) * period
    return Frame(x, y, f.soft), of_nucleus(), of_nucleus()


def nuclei(c: Canvas, period: Tensor, size: Tensor, ragged: Tensor, dark: Tensor, where: Tensor) -> None:
    """Paint nuclei of about radius `size` where `where` is 1; `ragged` (0 to 1) makes them uneven in size and shape."""
    f = c.placed((1, 1), 3.2, 0.5, 0.0)
    f = Frame(f.u + 0.12 * c.noise(3), f.v + 0.12 * c.noise(3), f.soft)  # else the lattice shows
    near, large, turn = scattered(c, f, period, 0.55)
    near = near.turned(6.3 * turn)
    radius = size * (1 + ragged * (1.2 * large - 0.6))
    long = 1 + 0.55 * ragged * turn
    shape = ellipse(near, radius * long, radius / long)
    violet = c.colour((0.68, 0.77), (0.4, 0.7), (0.6, 0.75)) * (1 - dark * (0.6 + 0.4 * large)).unsqueeze(1)
    c.paint(shape, violet, f, where)
    c.blend((0.6 * ragged * (-shape / radius).clamp(0, 1)) * where, (violet * 1.7).clamp(0, 1))


def draw(c: Canvas, tumour: bool) -> None:
    """Draw pink tissue; small even nuclei everywhere, but in the middle of a tumour large, uneven and crowded ones."""
    stain = c.colour((0.84, 0.95), (0.12, 0.45), (0.75, 0.98))
    c.fill(stain)
    uneven = c.noise(4)
    c.shade(0.1 * uneven)
    fibres = c.placed((1, 1.4), 3.2, 0.5)
    bent = fibres.v + 0.2 * uneven
    c.paint(stripes(bent, c.uniform(0.25, 0.5), 0.3), stain * 0.9, fibres, c.chance(0.5) * 0.7)
    c.paint(c.uniform(0.7, 1.1) - uneven, c.grey(0.88, 0.98))  # fat and gaps
    middle = (c.frame.u**2 + c.frame.v**2).sqrt() + 0.25 * c.noise(3)
    ill = (middle < c.uniform(0.55, 0.95)).float()
    if not tumour:  # now and then a tumour that stays at the edge, which does not count
        ill = (middle > 1.05).float() * c.chance(0.25)
    nuclei(c, c.uniform(0.28, 0.5), c.uniform(0.08, 0.13), c.uniform(0, 0.6), c.uniform(0.1, 0.5), 1 - ill)
    nuclei(c, c.uniform(0.36, 0.55), c.uniform(0.11, 0.2), c.uniform(0.25, 1), c.uniform(0.15, 0.6), ill)


TASK = DrawnTask(
    name="tissue",
    title="Tissue",
    counterpart="PCAM",
    kind="microscope",
    templates=("this is a photo of {}",),
    classes=(
        DrawnClass("lymph node", "healthy cells", partial(draw, tumour=False)),
        DrawnClass("lymph node containing metastatic tumor tissue", "cancer", partial(draw, tumour=True)),
    ),
    zero_shot=60.64,
    grain=0.03,
)
