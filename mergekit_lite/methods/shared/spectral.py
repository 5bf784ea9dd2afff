"""Singular value decompositions of task vectors, and the loop that merges matrices one way and the rest by the mean."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from mergekit_lite.methods.registry import Merged
from mergekit_lite.weights import Pool, Weights, difference, is_finite


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the leading singular triples: U (m, r), S (r,) in descending order, V^T (r, n), in the matrix's dtype.

    r is `rank`, or the numerical rank of the matrix where that is smaller: directions whose singular value is zero are
    arbitrary, and no method should depend on them. A zero matrix has none, r = 0.

    Args:
        matrix: (m, n), float32 or float64. Where it holds NaN or infinite values, so do all factors.
        rank: the most triples to return, at most min(m, n).
    """
    if not is_finite(matrix):  # LAPACK would stop without a name; a NaN that passes through is traced to its expert
        rows, columns = matrix.shape
        shapes = ((rows, rank), (rank,), (rank, columns))
        return tuple(matrix.new_full(shape, float("nan")) for shape in shapes)  # type: ignore[return-value]
    if matrix.dtype == torch.float64:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        kept = min(rank, _above_rounding(values, matrix))
        return left[:, :kept], values[:kept], right[:kept]
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = truncated_svd(matrix.mT, rank)
        return left.mT, values, right.mT
    # The eigenvectors of the Gram matrix A^T A are V, its eigenvalues S^2, and U = A V / S. Of a 3072 x 768 matrix this
    # takes 0.6 of the time of an SVD in float32, of a square one the same, and it is ten times as exact, although it
    # squares the condition number: the rounding of A^T A, 1e-16 of the largest S^2, hides singular values below 1e-8 of
    # the largest one. In float64 that is out of sight of a float32 matrix, whose own rounding is 6e-8. A float64 matrix
    # has no wider dtype to go to, hence the SVD above.
    double = matrix.double()
    squares, vectors = torch.linalg.eigh(double.mT @ double)
    squares, vectors = squares.flip(0), vectors.flip(1)  # eigh sorts in ascending order
    kept = min(rank, _above_rounding(squares, matrix))
    values, vectors = squares[:kept].sqrt(), vectors[:, :kept]
    left = double @ vectors / values
    return left.to(matrix.dtype), values.to(matrix.dtype), vectors.mT.to(matrix.dtype)


def polar_factor(matrix: Tensor) -> Tensor:
    r"""Return U V^T, (m, n): the nearest matrix with orthonormal columns, or rows where it is wider than tall.

    Nearest in the Frobenius norm (the orthogonal Procrustes problem). Directions that a rank-deficient matrix lacks
    are left out, so that the outcome does not depend on an arbitrary choice: its singular values are then 1 and 0.

    Args:
        matrix: (m, n), float32 or float64.
    """
    left, _, right = truncated_svd(matrix, min(matrix.shape))
    return left @ right


def _above_rounding(values: Tensor, matrix: Tensor) -> int:
    """Count the `values`, float64 in descending order, that are not zero up to the rounding of their decomposition.

    The customary bound: the largest value times the longer side times the machine epsilon.
    """
    bound = values[:1] * max(matrix.shape) * torch.finfo(torch.float64).eps
    return int((values > bound).sum())


class TaskVectors(Sequence[Tensor]):
    """The task vectors of one tensor, each computed when it is asked for, so that a large pool takes no more memory."""

    def __init__(self, name: str, start: Tensor, experts: Sequence[Mapping[str, Tensor]]) -> None:
        """Take a tensor's name, what it was before fine-tuning, and the experts that hold it."""
        self._name, self._start, self._experts = name, start, experts

    def __len__(self) -> int:
        return len(self._experts)

    def __getitem__(self, place: int) -> Tensor:  # type: ignore[override]  # nobody asks for a slice
        return difference(self._experts[place][self._name], self._start)


def total(vectors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape, one after another."""
    return reduce(torch.add, vectors)


def merge_matrices(
    base: Mapping[str, Tensor],
    experts: Pool,
    combine: Callable[[Sequence[Tensor]], Tensor],
    scaling: float,
) -> Merged:
    r"""Return :math:`\theta_0 + \lambda f(\tau_1, \dots, \tau_K)` tensor by tensor.

    f is `combine` for matrices (2-D, position embeddings included) and the mean for all other tensors, the patch
    embedding among them, which is 4-D. TSV-M and Iso were published with this rule.

    Args:
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name.
        combine: K task vectors (m, n) -> one (m, n).
        scaling: :math:`\lambda`.
    """
    merged: Weights = {}
    for name, start in base.items():
        vectors = TaskVectors(name, start, list(experts.values()))
        combined = combine(vectors) if start.dim() == 2 else total(vectors) / len(vectors)
        merged[name] = (start + scaling * combined).to(start.dtype)
    return Merged(merged)
