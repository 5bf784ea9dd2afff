"""The linear minimisation oracle of Frank-Wolfe over models: which vertices does the gradient ask for?

With granularity "model" the feasible set is the convex hull of whole models. With "tensor" it is the product, over
tensors, of the hulls of the candidates for that tensor, so that each tensor may go to another model.
All products are formed in float64 and tensor by tensor: of a pool in files, one tensor of one model is in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mergekit_lite.weights import check_finite

Models = Mapping[str, Mapping[str, Tensor]]

Oracle = Literal["inner product", "cosine"]
"""By what vertices are compared: their inner product with the gradient, or the sum over tensors of cosines with it."""

Granularity = Literal["model", "tensor"]

Pick = Mapping[str, str | None]
"""Name of a tensor -> the vertex it goes to, or None where it stays."""

ROUNDING = 100.0
"""A tensor's gradient counts as zero below so many units of rounding of the largest one (root mean squares compared).

The key bias of attention has gradient zero, since the softmax does not see it. Rounding leaves something of random
direction there, whose cosine would be an arbitrary number up to 1. A hundred units are 1.2e-5 in float32; in the
miniature's encoder the key biases have 1e-8 of the largest gradient, all other tensors 2e-2 or more.
"""


class Selection(NamedTuple):
    """What the oracle answers.

    Attributes:
        picks: the chosen vertices, best first.
        scores: for each gradient (V,) scores, the lower the better; with granularity "tensor" their sum over tensors.
        gap: the Frank-Wolfe duality gap of the sum of all gradients.
        descent: <g, theta - s>, the first-order decrease of the loss on the way to the first pick.
    """

    picks: list[Pick]
    scores: list[Tensor]
    gap: float
    descent: float


def select(
    theta: Mapping[str, Tensor],
    gradients: Iterable[Mapping[str, Tensor]],
    vertices: Models,
    *,
    each: int,
    oracle: Oracle,
    granularity: Granularity,
    lengths: Tensor | None = None,
) -> Selection:
    """Pick `each` vertices for every gradient, none of them twice, until there are no more.

    One gradient and `each` = k are the top k of the paper; a gradient a task and `each` = 1 the released code's choice.

    Args:
        theta: the current weights.
        gradients: one or more; each has every tensor of the vertices. They are taken one by one.
        vertices: V models; of vertices with equal scores the first one is picked.
        each: how many for one gradient.
        oracle: how vertices are compared.
        granularity: whether all tensors go to the same vertex.
        lengths: (V, L) from `norms`, if they are known already.

    Raises:
        KitError: NaN or infinite values in a vertex.
    """
    names = tuple(vertices)
    picks: list[Pick] = []
    rated: list[Tensor] = []
    # The gap belongs to the whole loss; inner products are linear, so those of its parts can be added up.
    own = torch.zeros(len(theta), dtype=torch.float64)
    whole = torch.zeros(len(names), len(theta), dtype=torch.float64)
    descent = 0.0
    for gradient in gradients:
        products = inner_products(gradient, vertices)
        here = inner_products(gradient, {"theta": theta})[0]
        if oracle == "cosine" and lengths is None:
            lengths = norms(vertices, tuple(gradient))
        rating = scores(products, gradient, oracle, granularity, lengths)
        found = lowest(rating, gradient, names, count=each, taken=picks)
        if not picks:
            descent = _descent(here, products, found[0], names)
        picks += found
        rated.append(rating.sum(dim=1) if granularity == "tensor" else rating)
        own += here
        whole += products
        if len(picks) >= len(names):
            break
    return Selection(picks[: len(names)], rated, duality_gap(own, whole, granularity), descent)


def inner_products(gradient: Mapping[str, Tensor], vertices: Models) -> Tensor:
    """Return <g_l, s_l>, (V, L), float64 on the CPU: a row a vertex, a column a tensor, in the order of `gradient`.

    Raises:
        KitError: NaN or infinite values in a vertex (the gradient's are for the caller to look at).
    """
    columns = []
    for name, direction in gradient.items():
        column = [_dot(direction, vertex[name].to(direction.device)) for vertex in vertices.values()]
        columns.append(torch.stack(column).cpu())
    products = torch.stack(columns, dim=1)
    for row, (name, vertex) in zip(products, vertices.items(), strict=True):
        if not row.isfinite().all():
            check_finite(vertex, name=f"expert '{name}'")
    return products


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of two tensors in float64.

    They are widened piece by piece: a piece stays in the cache of a core (a tenth of the time of whole tensors), and on
    a GPU pieces are large enough to keep it busy. Not torch.dot: its last bits depend on where in memory, or in a
    mapped file, a tensor happens to start.
    """
    size = 2**24 if left.is_cuda else 2**16
    pieces = zip(left.flatten().split(size), right.flatten().split(size), strict=True)
    return torch.stack([(a.double() * b.double()).sum() for a, b in pieces]).sum()


def norms(vertices: Models, names: Sequence[str]) -> Tensor:
    """Return the Euclidean length of each vertex's tensors `names`, (V, L), float64 on the CPU."""
    return torch.stack([_lengths(Patchwork(dict.fromkeys(names, vertex))) for vertex in vertices.values()])


def scores(
    products: Tensor,
    gradient: Mapping[str, Tensor],
    oracle: Oracle,
    granularity: Granularity,
    lengths: Tensor | None = None,
) -> Tensor:
    """Return what the oracle compares, the lower the better: (V,) for whole models, (V, L) for single tensors.

    The cosine is taken tensor by tensor and summed, so a bias weighs as much as a matrix. It is zero where the vertex
    is zero, which has no direction, and where the gradient is, see `negligible`.

    Args:
        products: (V, L) from `inner_products`.
        gradient: the gradient they were formed with.
        oracle: how vertices are compared.
        granularity: whether the tensors' scores are added up.
        lengths: (V, L) from `norms`; the inner product does without.
    """
    if oracle == "cosine":
        assert lengths is not None
        sizes = _lengths(gradient) * lengths
        empty = (sizes == 0) | negligible(gradient)
        products = torch.where(empty, 0.0, products / sizes)
    return products.sum(dim=1) if granularity == "model" else products


def negligible(gradient: Mapping[str, Tensor]) -> Tensor:
    """Return for which tensors the gradient is zero but for rounding, (L,) bool; see `ROUNDING`."""
    entries = torch.tensor([max(direction.numel(), 1) for direction in gradient.values()], dtype=torch.float64)
    sizes = _lengths(gradient) / entries.sqrt()
    unit = max(torch.finfo(direction.dtype).eps for direction in gradient.values())
    return sizes <= ROUNDING * unit * sizes.max()


def lowest(
    rating: Tensor, gradient: Mapping[str, Tensor], names: Sequence[str], *, count: int = 1, taken: Sequence[Pick] = ()
) -> list[Pick]:
    """Return the `count` vertices of lowest score that are not taken, best first; of equals the first in `names`.

    With single tensors, those whose gradient is negligible stay: there every vertex is as good as any other.

    Args:
        rating: (V,) or (V, L) scores.
        gradient: the gradient they were formed with.
        names: of the V vertices.
        count: how many.
        taken: earlier picks that are not to be repeated, with single tensors not for the same tensor.
    """
    whole = rating.dim() == 1
    keys = list(gradient)
    table = rating.reshape(len(names), -1).clone()
    for pick in taken:
        for column, key in enumerate(keys[: table.shape[1]]):
            if (vertex := pick[key]) is not None:
                table[names.index(vertex), column] = torch.inf
    order = table.argsort(dim=0, stable=True)[:count].tolist()
    if whole:
        return [dict.fromkeys(keys, names[row[0]]) for row in order]
    still = negligible(gradient).tolist()
    return [
        {key: None if stays else names[place] for key, place, stays in zip(keys, row, still, strict=True)}
        for row in order
    ]


def duality_gap(own: Tensor, products: Tensor, granularity: Granularity) -> float:
    """Return the Frank-Wolfe gap, the largest <g, theta - s> over the feasible set (Jaggi 2013, section 2).

    Where theta is feasible it is zero or more, and bounds from above how far a convex loss is from its minimum.
    It is negative only for a theta outside the hull, such as a pre-trained model that is no vertex.

    Args:
        own: (L,) inner products of gradient and theta.
        products: (V, L) inner products of gradient and vertices.
        granularity: of the feasible set.
    """
    downhill = own - products
    return float(downhill.sum(dim=1).max() if granularity == "model" else downhill.amax(dim=0).sum())


def _descent(own: Tensor, products: Tensor, pick: Pick, names: Sequence[str]) -> float:
    """Return <g, theta - s> for the vertex that `pick` describes."""
    moving = [(column, names.index(vertex)) for column, vertex in enumerate(pick.values()) if vertex is not None]
    return sum(float(own[column] - products[place, column]) for column, place in moving)


def simplex_projection(values: Tensor, *, capped: bool = False) -> Tensor:
    """Return the nearest point of the simplex {c >= 0, sum c = 1}, for each column of (k, L) values.

    Duchi et al. 2008, figure 1: subtract the one number for which the positive parts sum to one; sorting finds it.

    Args:
        values: (k, L), or (k,).
        capped: allow sums below one too, {c >= 0, sum c <= 1}.
    """
    table = values.reshape(len(values), -1)
    falling = table.sort(dim=0, descending=True).values
    counts = torch.arange(1, len(table) + 1, dtype=values.dtype, device=values.device)[:, None]
    excess = (falling.cumsum(dim=0) - 1) / counts  # what the largest 1, 2, ... k each have too much
    active = (falling > excess).sum(dim=0, keepdim=True)  # so many stay positive; the largest always does
    projected = (table - excess.gather(0, active - 1)).clamp(min=0)
    if capped:
        positive = table.clamp(min=0)
        projected = torch.where(positive.sum(dim=0) <= 1, positive, projected)
    return projected.reshape(values.shape)


@dataclass(frozen=True, eq=False)
class Patchwork(Mapping[str, Tensor]):
    """A vertex of the product of hulls: each tensor from the model that was picked for it, read when asked for."""

    parts: Mapping[str, Mapping[str, Tensor]]

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def assembled(pick: Pick, vertices: Models, theta: Mapping[str, Tensor]) -> Patchwork:
    """Return the model that `pick` describes: tensors of vertices, and of `theta` where they stay."""
    return Patchwork({name: theta if vertex is None else vertices[vertex] for name, vertex in pick.items()})


def _lengths(weights: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean length of each tensor, (L,), float64 on the CPU."""
    return torch.stack([tensor.double().norm().cpu() for tensor in weights.values()])
