"""Isotropic merging: give all directions of a merged matrix the same weight (Marczak et al. 2025)."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mergekit_lite.methods.registry import Access, Coefficient, Merged, Share, method
from mergekit_lite.methods.shared.spectral import merge_matrices, polar_factor, total, truncated_svd
from mergekit_lite.weights import Pool


def flattened_sum(vectors: Sequence[Tensor]) -> Tensor:
    r"""Return the sum of K task vectors (m, n) with its singular values replaced by their mean.

    The mean is over all min(m, n) values. Directions that the sum lacks stay out.
    """
    merged = total(vectors)
    smaller = min(merged.shape)
    left, values, right = truncated_svd(merged, smaller)
    return values.sum() / smaller * (left @ right)


def subspace_sizes(smaller: int, tasks: int, common: float) -> tuple[int, int]:
    """Return how many directions are common, and how many each task gets of the rest.

    The rest is rounded to a multiple of the number of tasks, up or down, as in FusionBench: of 768 directions with 8
    tasks and a share of 0.8, 616 are common and 19 are each task's own. Where rounding up would take more than
    there are, it is rounded down.

    Args:
        smaller: min(m, n) of a matrix.
        tasks: number of tasks K.
        common: share of the common directions, in (0, 1].
    """
    own = min(round((smaller - int(smaller * common)) / tasks), smaller // tasks)
    return smaller - own * tasks, own


def common_and_own(vectors: Sequence[Tensor], common: float) -> Tensor:
    r"""Return an isotropic matrix (m, n) of the directions that K task vectors have in common and of each one's own.

    The common ones are the leading singular vectors of the sum. Each task adds the leading ones of what its task vector
    is outside the common left space. All are made orthogonal and weighed with the mean of their singular values.
    """
    merged = total(vectors)
    smaller = min(merged.shape)
    shared, own = subspace_sizes(smaller, len(vectors), common)
    left, values, right = truncated_svd(merged, shared)
    outside = (vector - left @ (left.mT @ vector) for vector in vectors)
    lefts, spectra, rights = zip((left, values, right), *(truncated_svd(one, own) for one in outside), strict=True)
    weight = torch.cat(spectra).sum() / smaller
    return weight * (polar_factor(torch.cat(lefts, dim=1)) @ polar_factor(torch.cat(rights)))


@method(title="Iso-C", cite="marczak2025iso", access=Access.NONE)
def iso_c(base: Mapping[str, Tensor], experts: Pool, *, scaling: Coefficient = 1.5) -> Merged:
    r"""Flatten the spectrum of the sum: :math:`\theta = \theta_0 + \alpha\, \bar\sigma\, U V^T`.

    Marczak et al. 2025, isotropic merging in the common subspace: for each matrix, :math:`U \Sigma V^T` is the sum of
    the task vectors and :math:`\bar\sigma` the mean of its singular values. Other tensors add the mean of the task
    vectors, likewise times :math:`\alpha`.

    Args:
        base: the pre-trained weights :math:`\theta_0`.
        experts: K fine-tuned weights by task name.
        scaling: :math:`\alpha`; FusionBench's documentation uses 1.5 for eight ViT-B/32, its configuration 1. The
            authors tune it on validation data.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights.
    """
    return merge_matrices(base, experts, flattened_sum, scaling)


@method(title="Iso-CTS", cite="marczak2025iso", access=Access.NONE)
def iso_cts(
    base: Mapping[str, Tensor],
    experts: Pool,
    *,
    common: Share = 0.8,
    scaling: Coefficient = 1.5,
) -> Merged:
    r"""Let each task's own directions in, too: :math:`\theta = \theta_0 + \alpha\,\bar\sigma\,U_\perp V_\perp^T`.

    Marczak et al. 2025, isotropic merging in common and task-specific subspaces: the weakest directions of the sum give
    way to each task's own, see `common_and_own` and `subspace_sizes`. With one expert, or with all directions common,
    it is `iso_c`. Other tensors add the mean of the task vectors, likewise times :math:`\alpha`.

    Args:
        base: the pre-trained weights :math:`\theta_0`.
        experts: K fine-tuned weights by task name.
        common: share of the common directions, in (0, 1]; 0.8 as in the authors' configuration.
        scaling: :math:`\alpha`, see `iso_c`.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a share outside (0, 1].
    """
    return merge_matrices(base, experts, partial(common_and_own, common=common), scaling)
