"""DARE: drop entries of each task vector at random and rescale the others (Yu et al. 2024)."""

import hashlib
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mergekit_lite.methods.registry import Access, Coefficient, Merged, method
from mergekit_lite.weights import Pool, Weights, difference, working_dtype

Drop = Annotated[float, Field(ge=0, lt=1)]


def draws(seed: int, expert: str) -> torch.Generator:
    """Return what the masks of one expert are drawn from; it depends on the seed and the expert's name alone."""
    digest = hashlib.sha256(repr((seed, expert)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]))


def keep_mask(start: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Return which entries of one tensor of one task vector stay: boolean, in shape and on the device of `start`.

    One generator runs along an expert's whole task vector: what is drawn for an entry depends on how many entries are
    before it, and not on what its tensor is called or where the next one begins. So the draw is the same for an expert
    wherever it stands in the pool, whoever else is in it, whichever library named its tensors, and on every device: it
    is made on the CPU.

    Args:
        start: the tensor that the mask is for.
        drop: probability of an entry to be dropped, in [0, 1).
        generator: of `draws`, after the masks of all tensors before this one.
    """
    return (torch.rand(start.shape, generator=generator) >= drop).to(start.device)


@method(title="DARE", cite="yu2024dare", access=Access.NONE)
def dare(
    base: Mapping[str, Tensor],
    experts: Pool,
    *,
    drop: Drop = 0.9,
    scaling: Coefficient = 0.3,
    seed: int = 0,
) -> Merged:
    r"""Thin out each task vector, then add: :math:`\theta = \theta_0 + \lambda \sum_k \frac{m_k \odot \tau_k}{1 - p}`.

    Yu et al. 2024. The masks :math:`m_k` are Bernoulli with mean 1 - p, so the expected merge is that of task
    arithmetic, and with p = 0 it is task arithmetic bit for bit. All tensors are thinned out, biases and normalisation
    included, as in the authors' code; FusionBench can restrict it to linear layers, and drops half by default.

    Args:
        base: the pre-trained weights :math:`\theta_0`.
        experts: K fine-tuned weights by task name.
        drop: p, the probability of an entry to be dropped, in [0, 1); 0.9 is among the rates that the paper finds
            harmless for small task vectors.
        scaling: :math:`\lambda`; 0.3 as in `task_arithmetic`.
        seed: which entries are dropped; see `draws` and `keep_mask`.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a `drop` outside [0, 1).
    """
    generators = {task: draws(seed, task) for task in experts}
    merged: Weights = {}
    for name, start in base.items():
        total = torch.zeros_like(start, dtype=working_dtype(start))
        for task, expert in experts.items():
            kept = keep_mask(start, drop, generators[task])
            total += difference(expert[name], start) * kept / (1 - drop)  # a product: it keeps a NaN, for all to see
        merged[name] = (start + scaling * total).to(start.dtype)
    return Merged(merged)
