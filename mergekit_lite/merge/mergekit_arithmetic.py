"""What mergekit computes for five of its merge methods, tensor by tensor; our own code, from what the program does.

Each model has a weight and a density of its own. Two things differ from the methods of the papers as this kit has them:
trimming looks at each tensor by itself, and what agrees in sign is averaged by the models' weights.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mergekit_lite.weights import difference, working_dtype

SMALLEST = 1e-8
"""Sums of weights smaller than this divide nothing."""


def largest(delta: Tensor, density: float, *, rescale: bool = False) -> Tensor:
    """Keep the int(density * n) entries of largest magnitude of one tensor, at least one, and zero the others.

    Args:
        delta: of one model.
        density: in (0, 1].
        rescale: enlarge what stays until the sum of magnitudes is what it was.
    """
    kept = max(1, int(density * delta.numel()))
    if kept >= delta.numel():
        return delta
    mask = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    # stable: which of several equal magnitudes stay is a matter of their order, not of chance
    mask[delta.abs().reshape(-1).argsort(descending=True, stable=True)[:kept]] = True
    return _kept(delta, mask.view_as(delta), rescale=rescale)


def drawn(delta: Tensor, density: float, generator: torch.Generator, *, rescale: bool) -> Tensor:
    """Keep each entry of one tensor with the probability `density`, and set the others to zero.

    Args:
        delta: of one model.
        density: in (0, 1].
        generator: of the model; it runs along the tensors.
        rescale: enlarge what stays until the sum of magnitudes is what it was (not by 1 / density as in the paper).
    """
    chance = torch.rand(delta.shape, generator=generator).to(delta.device)
    if density >= 1:
        return delta
    return _kept(delta, chance < density, rescale=rescale)


def _kept(delta: Tensor, mask: Tensor, *, rescale: bool) -> Tensor:
    kept = delta * mask
    after = kept.abs().sum()
    return kept * (delta.abs().sum() / after) if rescale and after > 0 else kept


def linear(tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool) -> Tensor:
    """Return the weighted sum of tensors of one shape, divided by the sum of weights if `normalize`."""
    dtype = working_dtype(tensors[0])
    total = torch.zeros_like(tensors[0], dtype=dtype)
    for weight, tensor in zip(weights, tensors, strict=True):
        total += weight * tensor.to(dtype)
    return total / sum(weights) if normalize else total


def added(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    sparsified: Sequence[Callable[[Tensor], Tensor]],
    *,
    elect: bool,
    normalize: bool,
    scale: float,
) -> Tensor:
    """Return base + scale * (the weighted sum of sparsified differences), for one tensor.

    Args:
        base: the tensor before fine-tuning.
        tensors: that of each model.
        weights: of the models.
        sparsified: what each model's difference goes through first.
        elect: leave out of each entry what has not the sign of the weighted sum; a sum of zero counts as positive.
        normalize: divide by the sum of the weights: with `elect` in each entry by that of the models that are left.
        scale: lambda.
    """
    deltas = torch.stack([keep(difference(tensor, base)) for tensor, keep in zip(tensors, sparsified, strict=True)])
    shaped = torch.tensor(weights, dtype=deltas.dtype, device=deltas.device).view(-1, *[1] * base.ndim)
    weighted = deltas * shaped
    divisor: Tensor = shaped.sum(dim=0)
    if elect:
        sign = torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
        agree = weighted.sign() == sign
        weighted, divisor = weighted * agree, (shaped * agree).sum(dim=0)
    total = weighted.sum(dim=0)
    if normalize:
        total = total / torch.where(divisor.abs() < SMALLEST, torch.ones_like(divisor), divisor)
    return base.to(total.dtype) + scale * total
