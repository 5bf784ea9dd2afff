"""How task vectors lie: their lengths, and the angles between them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.weights import Pool, check_same, difference, first_three


class Geometry(NamedTuple):
    """How the task vectors of K experts lie: their lengths, and the angles between them.

    Attributes:
        names: the experts, in order.
        norms: (K,) Euclidean length of each task vector, divided by that of the base weights.
        cosines: (K, K) cosine of the angle between any two; NaN where a task vector is zero and has no direction.
    """

    names: tuple[str, ...]
    norms: Tensor
    cosines: Tensor


def lengths_and_angles(base: Mapping[str, Tensor], experts: Pool) -> Geometry:
    """Return lengths and angles of the task vectors of `experts`, in float64, all P parameters taken as one vector.

    Tensors are read one after another, so K copies of the largest one have to fit into memory, not K models.

    Raises:
        KitError: names, shapes or dtypes differ, or a task vector holds NaN or infinite values.
    """
    opened = {name: experts[name] for name in experts}  # a suite opens the file anew each time it is asked
    for name, expert in opened.items():
        check_same(base, expert, name=f"the expert '{name}'")
    products = torch.zeros(len(opened), len(opened), dtype=torch.float64)
    size = 0.0
    for key, start in base.items():
        size += float(start.double().square().sum())
        vectors = torch.stack([difference(expert[key], start).flatten() for expert in opened.values()])
        for part in vectors.split(2**20, dim=1):  # float64 takes twice the memory: not of all columns at once
            part = part.double()
            products += (part @ part.T).cpu()
    squares = products.diagonal()
    broken = [f"'{name}'" for name, square in zip(opened, squares, strict=True) if not square.isfinite()]
    if broken:
        raise KitError(f"NaN or infinite values in the expert {first_three(broken)}. Fetch or train it again.")
    lengths = squares.sqrt()
    cosines = (products / (lengths[:, None] * lengths)).clamp(-1, 1)
    return Geometry(tuple(opened), lengths / size**0.5, cosines)
