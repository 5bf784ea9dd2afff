"""Consensus merging: keep the entries of the multi-task vector that several tasks rely on (Wang et al. 2024)."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import MILLION, Access, Coefficient, Count, Merged, method
from mergekit_lite.weights import Pool, Weights, difference, working_dtype

Threshold = Annotated[float, Field(ge=0, le=MILLION)]


def tall_mask(vector: Tensor, total: Tensor, threshold: float) -> Tensor:
    r"""Return which entries one task relies on: :math:`|\tau_k| \ge \lambda\,|\tau - \tau_k|`, boolean.

    An entry belongs to a task when the task's own change is not small against that of all others together. The
    authors' code has a strict inequality. The two differ only where both sides are equal, for instance both zero, and
    where no task changes an entry nothing is merged either way.

    Args:
        vector: :math:`\tau_k`, a task vector or one tensor of it.
        total: :math:`\tau`, the sum of all task vectors, in the same shape.
        threshold: :math:`\lambda`, at least 0; the larger, the fewer entries.
    """
    return vector.abs() >= threshold * (total - vector).abs()


@method(title="Consensus", cite="wang2024localizing", access=Access.NONE)
def consensus(
    base: Mapping[str, Tensor],
    experts: Pool,
    *,
    mask_threshold: Threshold = 0.4,
    agreement: Count = 2,
    scaling: Coefficient = 0.3,
) -> Merged:
    r"""Merge what several tasks use: :math:`\theta = \theta_0 + \lambda\, [\sum_k m_k \ge a] \odot \sum_k \tau_k`.

    Wang et al. 2024; :math:`m_k` are the tasks' TALL masks, see `tall_mask`. With an agreement of 2, entries that no
    task relies on ("catastrophic") and those that one task alone relies on ("selfish") return to the base; with 1 only
    the former.

    Args:
        base: the pre-trained weights :math:`\theta_0`.
        experts: K fine-tuned weights by task name.
        mask_threshold: threshold of the masks. The authors pick one of 0.2, 0.3, ..., 0.6 for each task by its
            validation accuracy; without data all tasks share the middle of these.
        agreement: the fewest masks that keep an entry; 2 as in the authors' configuration.
        scaling: :math:`\lambda`; the authors tune it, 0.3 as in `task_arithmetic`.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range, or
            an `agreement` larger than the pool.
    """
    if agreement > len(experts):
        raise KitError(
            f"Parameter 'agreement' of method 'consensus' is {agreement}, but the pool has {len(experts)} experts: no "
            "entry would be merged. Choose a smaller agreement or add experts."
        )
    merged: Weights = {}
    for name, start in base.items():
        # Twice over the experts: holding all their vectors would let the memory grow with the pool.
        total = torch.zeros_like(start, dtype=working_dtype(start))
        for expert in experts.values():
            total += difference(expert[name], start)
        votes = torch.zeros_like(start, dtype=torch.int32)
        for expert in experts.values():
            votes += tall_mask(difference(expert[name], start), total, mask_threshold)
        kept = total * (votes >= agreement)  # a product: it keeps a NaN, for all to see
        merged[name] = (start + scaling * kept).to(start.dtype)
    return Merged(merged)
