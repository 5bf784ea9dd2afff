"""Fixed coefficients: the simple average, task arithmetic, and coefficients given one by one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Access, Coefficient, Merged, method
from mergekit_lite.weights import Pool, Weights, difference, pieces, working_dtype

# All go tensor by tensor, so of experts that lie in files only one tensor each is in memory, and all sum in float32
# or better before they return to the base's dtype.


@method(title="Simple average", cite="wortsman2022model", access=Access.NONE)
def simple_average(base: Mapping[str, Tensor], experts: Pool) -> Merged:
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
        merged[name] = total.div_(len(experts)).to(start.dtype)
    return Merged(merged)


@method(title="Task Arithmetic", cite="ilharco2023editing", access=Access.NONE)
def task_arithmetic(base: Mapping[str, Tensor], experts: Pool, *, scaling: Coefficient = 0.3) -> Merged:
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
        vectors = weighted_sum(name, start, experts, [1.0] * len(experts))
        merged[name] = (start + scaling * vectors).to(start.dtype)
    return Merged(merged)


@method(title="Fixed coefficients", cite="yang2024adamerging", access=Access.NONE)
def fixed_coefficients(
    base: Mapping[str, Tensor],
    experts: Pool,
    *,
    coefficients: list[list[Coefficient]] = [[0.3]],  # noqa: B006 (nobody writes to it: parameters are copied when checked)
) -> Merged:
    r"""Add the task vectors with given coefficients: :math:`\theta^l = \theta_0^l + \sum_k \lambda_k^l \tau_k^l`.

    What AdaMerging learns (Yang et al. 2024, section 3.2) can so be merged again without its data;
    `mergekit_lite.analysis.published.coefficients` has those that its authors released.

    Args:
        base: the pre-trained weights with L tensors.
        experts: K fine-tuned weights by task name.
        coefficients: K rows (one per expert, in their order) of L numbers (in the order of `base`) or of one
            number for all tensors; a single row holds for every expert.

    Raises:
        KitError: coefficients of another shape, an empty pool, experts that do not fit the base, NaN or infinite
            weights.
    """
    rows, columns = len(coefficients), {len(row) for row in coefficients}
    if rows not in {1, len(experts)} or columns not in ({1}, {len(base)}):
        widths = ", ".join(str(width) for width in sorted(columns)) or "no"
        raise KitError(
            f"There are {rows} rows of {widths} coefficients, but {len(experts)} experts of {len(base)} tensors. "
            f"Give 1 or {len(experts)} rows, each of 1 or {len(base)} numbers."
        )
    by_tensor = torch.tensor(coefficients, dtype=torch.float64).expand(len(experts), len(base)).T.tolist()
    merged: Weights = {}
    for (name, start), column in zip(base.items(), by_tensor, strict=True):
        merged[name] = (start + weighted_sum(name, start, experts, column)).to(start.dtype)
    return Merged(merged)


def weighted_sum(name: str, start: Tensor, experts: Pool, coefficients: Sequence[float]) -> Tensor:
    r"""Return :math:`\sum_k \lambda_k (\theta_k - \theta_0)` of one tensor, in its working dtype, piece by piece.

    Args:
        name: of the tensor.
        start: the tensor before fine-tuning, :math:`\theta_0`.
        experts: K fine-tuned weights.
        coefficients: :math:`\lambda_k`, one per expert.
    """
    whole = torch.zeros_like(start, dtype=working_dtype(start), memory_format=torch.contiguous_format)
    for total, origin, *ends in pieces([whole, start, *(expert[name] for expert in experts.values())]):
        vector = torch.empty_like(total)
        for end, coefficient in zip(ends, coefficients, strict=True):
            total.add_(difference(end, origin, out=vector), alpha=coefficient)
    return whole
