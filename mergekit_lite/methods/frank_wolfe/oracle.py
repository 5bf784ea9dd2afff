"""The linear minimisation oracle of Frank-Wolfe over models: which vertices does the gradient ask for?

With granularity "model" the feasible set is the convex hull of whole models. With "tensor" it is the product, over
tensors, of the hulls of the candidates for that tensor, so that each tensor may go to another model.
All products are formed in float64 and tensor by tensor: of a pool in files, one tensor of one model is in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mergekit_lite.weights import Pool, check_finite

Oracle = Literal["inner product", "cosine"]
"""By what vertices are compared: their inner product with the gradient, or the sum over tensors of cosines with it."""

Granularity = Literal["model", "tensor"]

Pick = Mapping[str, str | None]
"""Name of a tensor -> the vertex it goes to, or None where it stays."""

ROUNDING = 100.0
"""A tensor's gradient counts as zero below so many units of rounding of the largest one (root mean squares compared).

Where attention's keys have a bias of their own (transformers' layout of CLIP), the loss does not depend on it: the
softmax does not see it. Rounding leaves something of random direction there, whose cosine would be an arbitrary number
up to 1. A hundred units are 1.2e-5 in float32; in a small ViT the keys' biases have 1e-9 of the largest gradient, all
other tensors 1e-2 or more. In open_clip's layout, which this kit merges, queries, keys and values share one bias, whose
gradient as a whole is 7e-2 of the largest: no tensor is left out, and a third of that bias follows the others.
"""


@dataclass(frozen=True)
class Comparison:
    """What the oracle knows of V vertices and the L tensors of one gradient g at the weights theta.

    Attributes:
        vertices: their names.
        tensors: their names.
        own: (L,) inner products <g_l, theta_l>.
        products: (V, L) inner products <g_l, s_l>.
        scores: (V, L) what is compared, the lower the better; those of a whole model are added up.
        still: (L,) whether a tensor's gradient is zero but for rounding: every vertex is as good as any other there.
    """

    vertices: tuple[str, ...]
    tensors: tuple[str, ...]
    own: Tensor
    products: Tensor
    scores: Tensor
    still: Tensor

    def lowest(self, granularity: Granularity, count: int = 1, taken: Sequence[Pick] = ()) -> list[Pick]:
        """Return the `count` vertices of lowest score, best first; of equals the first one.

        Those in `taken` are not picked again: no whole model, or for no tensor the same model.
        """
        table = self.scores.clone() if granularity == "tensor" else self.scores.sum(dim=1, keepdim=True)
        for pick in taken:
            for column, name in enumerate(self.tensors[: table.shape[1]]):
                if (vertex := pick[name]) is not None:
                    table[self.vertices.index(vertex), column] = torch.inf
        order = table.argsort(dim=0, stable=True)[:count].tolist()
        if granularity == "model":
            return [dict.fromkeys(self.tensors, self.vertices[place]) for (place,) in order]
        columns = list(enumerate(self.tensors))
        still = self.still.tolist()
        return [
            {name: None if still[column] else self.vertices[row[column]] for column, name in columns} for row in order
        ]

    def descent(self, pick: Pick) -> float:
        """Return <g, theta - s>, the first-order decrease of the loss on the way to the vertex that was picked."""
        moving = [(column, self.vertices.index(name)) for column, name in enumerate(pick.values()) if name is not None]
        return sum(float(self.own[column] - self.products[place, column]) for column, place in moving)

    def totals(self) -> dict[str, float]:
        """Return the score of each vertex, summed over tensors."""
        return dict(zip(self.vertices, self.scores.sum(dim=1).tolist(), strict=True))


def compare(
    theta: Mapping[str, Tensor], gradient: Mapping[str, Tensor], vertices: Pool, lengths: Tensor | None = None
) -> Comparison:
    """Compare vertices by their inner products with the gradient, or, given their `lengths`, by cosines.

    The cosine is taken tensor by tensor and summed, so a bias weighs as much as a matrix, and what counts as a tensor
    decides: open_clip's layout of a ViT-B/32 has 151, transformers' with its separate queries, keys and values 199, and
    the same models may be ranked differently. It is zero where the vertex is zero, which has no direction, and where
    the gradient is, see `ROUNDING`.

    Args:
        theta: the current weights.
        gradient: every tensor of the vertices, in any order.
        vertices: V models; of vertices with equal scores the first one is picked.
        lengths: (V, L) from `norms`, for the tensors in the gradient's order.

    Raises:
        KitError: NaN or infinite values in a vertex.
    """
    products = inner_products(gradient, vertices)
    own = inner_products(gradient, {"theta": theta})[0]
    sizes = _lengths(gradient.values())
    still = _negligible(gradient, sizes)
    scores = products
    if lengths is not None:
        both = sizes * lengths
        scores = torch.where((both == 0) | still, 0.0, products / both)
    return Comparison(tuple(vertices), tuple(gradient), own, products, scores, still)


def duality_gap(own: Tensor, products: Tensor, granularity: Granularity) -> float:
    """Return the Frank-Wolfe gap, the largest <g, theta - s> over the feasible set (Jaggi 2013, section 2).

    Where theta is feasible it is zero or more, and bounds from above how far a convex loss is from its minimum.
    It is negative only for a theta outside that set, such as a pre-trained model that is no vertex; for a convex loss,
    no point of the set is then better than theta. The gap of a sum of losses takes the sums of the inner products.

    Args:
        own: (L,) inner products of gradient and theta.
        products: (V, L) inner products of gradient and vertices.
        granularity: of the feasible set.
    """
    downhill = own - products
    return float(downhill.sum(dim=1).max() if granularity == "model" else downhill.amax(dim=0).sum())


def inner_products(gradient: Mapping[str, Tensor], vertices: Pool) -> Tensor:
    """Return <g_l, s_l>, (V, L), float64 on the CPU: a row per vertex, a column per tensor, in the gradient's order.

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


def norms(vertices: Pool, tensors: Sequence[str]) -> Tensor:
    """Return the Euclidean length of each vertex's `tensors`, (V, L), float64 on the CPU."""
    return torch.stack([_lengths(vertex[name] for name in tensors) for vertex in vertices.values()])


def _lengths(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.double().norm().cpu() for tensor in tensors])


def _negligible(gradient: Mapping[str, Tensor], sizes: Tensor) -> Tensor:
    """Return for which tensors the gradient, of these lengths, is zero but for rounding, (L,) bool; see `ROUNDING`."""
    entries = torch.tensor([max(direction.numel(), 1) for direction in gradient.values()], dtype=torch.float64)
    spread = sizes / entries.sqrt()
    unit = max(torch.finfo(direction.dtype).eps for direction in gradient.values())
    return spread <= ROUNDING * unit * spread.max()


@dataclass(frozen=True, eq=False)
class Patchwork(Mapping[str, Tensor]):
    """The model that a pick describes: tensors of `vertices`, and of `theta` where they stay; read when asked for."""

    pick: Pick
    vertices: Pool
    theta: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        vertex = self.pick[name]
        return (self.theta if vertex is None else self.vertices[vertex])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pick)

    def __len__(self) -> int:
        return len(self.pick)
