"""RegMean: linear layers that reproduce every expert's outputs in the least-squares sense (Jin et al. 2023)."""

from collections.abc import Iterable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Access, Count, LayerData, Merged, method
from mergekit_lite.methods.shared.calibration import calibration_images
from mergekit_lite.weights import Pool, Weights, check_finite, difference, first_three, is_finite, working_dtype


@method(title="RegMean", cite="jin2023dataless", access=Access.CALIBRATION)
def regmean(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: LayerData,
    *,
    images: Count = 256,
    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 0.9,
    batch_size: Count = 32,
    seed: int = 0,
) -> Merged:
    r"""Merge linear layers by least squares: :math:`W = \big(\sum_k W_k G_k\big) \big(\sum_k G_k\big)^{-1}`.

    Jin et al. 2023, section 3. :math:`G_k` is the Gram matrix of what goes into the layer when expert k sees
    images of its own task; W is written (out, in) here, so it stands to the left. All other tensors are averaged:
    biases, norms, the patch, class and position embeddings. Sums of Gram matrices are held for one pool, and those of
    one expert; together about 1.1 GB for ViT-B/32 in float32, however large the pool.

    Args:
        base: the pre-trained weights; the merge does not depend on them.
        experts: K fine-tuned weights by task name.
        data: layer inputs and calibration images of the experts' tasks.
        images: how many images of its own task an expert's Gram matrices are formed from, 256 as in FusionBench.
        off_diagonal: factor of the Gram matrices' entries off the diagonal, the paper's alpha: mostly 0.9 there, 0.95
            in FusionBench for CLIP. It regularises: behind a layer norm some inputs all but follow from the others.
        batch_size: images in one forward pass. Exactly `images` are used whatever it is, and only rounding depends on
            it.
        seed: which images are drawn.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range, an
            expert whose task has no images, or Gram matrices whose sum cannot be inverted.
    """
    calibration = calibration_images(data, experts, images=images, seed=seed)

    def grams_of(task: str) -> Weights:
        # copies, because tensors of a file may start at any address, and products of such tensors round differently
        expert = {name: tensor.clone() for name, tensor in experts[task].items()}
        check_finite(expert, name=f"expert '{task}'")
        return layer_grams(data, expert, calibration[task], off_diagonal=off_diagonal, batch_size=batch_size)

    return Merged(merge_with_grams(base, experts, map(grams_of, experts)))


def layer_grams(
    data: LayerData, weights: Mapping[str, Tensor], images: Tensor, *, off_diagonal: float, batch_size: int
) -> Weights:
    """Return name of a linear layer's weight (out, in) -> Gram matrix (in, in) of its inputs for `images`."""
    total: Weights = {}
    for part in images.split(batch_size):
        for name, inputs in data.inputs(weights, part).items():
            share = gram(inputs, off_diagonal).mul_(len(part) / len(images))
            total[name] = total[name].add_(share) if name in total else share
    return total


def gram(inputs: Tensor, off_diagonal: float) -> Tensor:
    """Return the Gram matrix (in, in) of inputs (rows, in), off its diagonal multiplied by `off_diagonal`.

    It is divided by the number of rows, as in the authors' code: a task counts alike however many images it has. The
    paper's equation has the plain product; with equally many images of each task there is no difference.
    """
    rows = inputs.to(working_dtype(inputs))
    product = rows.T @ rows / len(rows)
    diagonal = product.diagonal().clone()
    product *= off_diagonal
    product.diagonal().copy_(diagonal)
    return product


def merge_with_grams(
    base: Mapping[str, Tensor],
    experts: Pool,
    grams: Iterable[Mapping[str, Tensor]],
) -> Weights:
    """Return the least-squares merge of all tensors that have Gram matrices, and the average of the others.

    The equation is applied to the task vectors, which is the same and rounds less: the base's own rounding does not
    pass through the inverse.

    Args:
        base: weights that all experts started from.
        experts: K fine-tuned weights by task name; they are read tensor by tensor.
        grams: for each expert, in the same order, name of a weight (out, in) -> Gram matrix (in, in). They are asked
            for one after another: a generator has to hold one at a time only.

    Returns:
        The merged weights, in the dtypes of `base`.

    Raises:
        KitError: experts with Gram matrices for different tensors, or a sum of Gram matrices that cannot be inverted.
        ValueError: more or fewer sets of Gram matrices than experts.
    """
    pulled = {name: torch.zeros_like(start, dtype=working_dtype(start)) for name, start in base.items()}
    totals: Weights = {}
    for place, (expert, its) in enumerate(zip(experts.values(), grams, strict=True)):
        differing = [f"'{name}'" for name in its.keys() ^ (totals.keys() if place else its.keys() & base.keys())]
        if differing:
            raise KitError(
                f"Base and experts must have Gram matrices for the same tensors, but differ in "
                f"{first_three(sorted(differing))}. Form them with the same encoder."
            )
        for name, start in base.items():
            vector = difference(expert[name], start)
            if name in its:
                weight = its[name].to(vector)
                pulled[name] += vector @ weight
                totals[name] = totals[name] + weight if place else weight
            else:
                pulled[name] += vector / len(experts)
    for name, total in totals.items():
        pulled[name] = _solve(name, pulled[name], total)
    return {name: (start + pulled[name]).to(start.dtype) for name, start in base.items()}


def _solve(name: str, pulled: Tensor, total: Tensor) -> Tensor:
    """Return X with ``X @ total == pulled``, solved in float64."""
    if not is_finite(total):
        raise KitError(f"NaN or infinite inputs of the layer '{name}'. Check the experts and the calibration images.")
    exact = total.double()
    factor, failed = torch.linalg.cholesky_ex(exact)
    # What is left of an input once those before it have explained all they can: 0 if it is a combination of them, and
    # nothing but rounding errors of the Gram matrix below this bound.
    left = factor.diagonal().square() / exact.diagonal()
    if failed or left.min() < 16 * len(total) ** 0.5 * torch.finfo(total.dtype).eps:
        raise KitError(
            f"The Gram matrices of the inputs of '{name}' have a singular sum, so it does not determine the merged "
            "weights. Take more images, or a smaller off_diagonal."
        )
    return torch.cholesky_solve(pulled.double().T, factor).T.to(pulled)
