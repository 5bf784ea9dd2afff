"""Fixed coefficients: the simple average and task arithmetic."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mergekit_lite.methods.registry import Access, Merged, method
from mergekit_lite.weights import Weights, difference, working_dtype

# Both go tensor by tensor, so of experts that lie in files only one tensor each is in memory, and both sum in float32
# or better before they return to the base's dtype.


@method(title="Simple average", cite="wortsman2022model", access=Access.NONE)
def simple_average(base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]) -> Merged:
    r"""Average the experts: :math:`\theta = \frac{1}{K} \sum_k \theta_k` (Wortsman et al. 2022, uniform soup).

    Args:
        base: the pre-trained weights; here they only give dtype and device.
        experts: K fine-tuned weights by task name.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights.
    """
    merged: Weights = {}
    for name, start in base.items():
        total = torch.zeros_like(start, dtype=working_dtype(start))
        for expert in experts.values():
            total += expert[name].to(start.device)
        merged[name] = (total / len(experts)).to(start.dtype)
    return Merged(merged)


@method(title="Task Arithmetic", cite="ilharco2023editing", access=Access.NONE)
def task_arithmetic(
    base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]], *, scaling: float = 0.3
) -> Merged:
    r"""Add the scaled task vectors: :math:`\theta = \theta_0 + \lambda \sum_k (\theta_k - \theta_0)`.

    Ilharco et al. 2023, section 2.

    Args:
        base: the pre-trained weights :math:`\theta_0`.
        experts: K fine-tuned weights :math:`\theta_k` by task name.
        scaling: :math:`\lambda`; 0.3 is the value of AdaMerging's Table 1 for eight ViT-B/32.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights.
    """
    merged: Weights = {}
    for name, start in base.items():
        total = torch.zeros_like(start, dtype=working_dtype(start))
        for expert in experts.values():
            total += difference(expert[name], start)
        merged[name] = (start + scaling * total).to(start.dtype)
    return Merged(merged)
