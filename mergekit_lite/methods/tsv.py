"""TSV-M: the leading singular vectors of all tasks side by side, made orthogonal (Gargiulo et al. 2025)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergekit_lite.methods.registry import Access, Coefficient, Merged, method
from mergekit_lite.methods.shared.spectral import merge_matrices, polar_factor, truncated_svd
from mergekit_lite.weights import Pool


def orthogonalised_sum(vectors: Sequence[Tensor]) -> Tensor:
    r"""Return :math:`U_\perp \mathrm{diag}(S)\, V_\perp^T` of K task vectors (m, n); the sum, were they orthogonal.

    U, S and V hold the leading min(m, n) // K singular triples of each task side by side; U and V are replaced by the
    nearest matrices with orthonormal columns. More tasks than min(m, n) leave no triple for anyone, and the outcome is
    zero, as in the authors' code. Identical tasks share their directions: the outcome is then the truncated task
    vector, where an SVD would fill up with arbitrary directions.
    """
    rank = min(vectors[0].shape) // len(vectors)
    triples = [truncated_svd(vector, rank) for vector in vectors]
    left, values, right = (list(parts) for parts in zip(*triples, strict=True))
    return polar_factor(torch.cat(left, dim=1)) * torch.cat(values) @ polar_factor(torch.cat(right))


@method(title="TSV-M", cite="gargiulo2025tsv", access=Access.NONE)
def tsv_merging(base: Mapping[str, Tensor], experts: Pool, *, scaling: Coefficient = 1.0) -> Merged:
    r"""Merge task singular vectors: :math:`\theta = \theta_0 + \alpha\, U_\perp \mathrm{diag}(S)\, V_\perp^T`.

    Gargiulo et al. 2025, for each matrix alone; see `orthogonalised_sum` for the factors. Other tensors add the mean
    of the task vectors, likewise times :math:`\alpha`.

    Args:
        base: the pre-trained weights :math:`\theta_0`.
        experts: K fine-tuned weights by task name.
        scaling: :math:`\alpha`; 1, the plain formula, is also FusionBench's setting.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights.
    """
    return merge_matrices(base, experts, orthogonalised_sum, scaling)
