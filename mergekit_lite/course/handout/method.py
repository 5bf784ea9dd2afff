"""Your merging method. It is a worked one to begin with: change its equation, its name and its docstring."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mergekit_lite.methods import Access, Merged, method


@method(title="Median", cite="", access=Access.NONE)
def median(base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]], *, scaling: float = 1.0) -> Merged:
    r"""Add the median of the task vectors, entry by entry: theta_0 + lambda * median_k (theta_k - theta_0).

    An expert that pulls an entry far away from where all others want it does not move the median. That is its strength,
    and its weakness: it may be the only expert that has learnt something there.

    Args:
        base: the pre-trained weights theta_0, name -> tensor.
        experts: task -> its fine-tuned weights theta_k, with the names and shapes of `base`. Read them, and change
            neither: make new tensors.
        scaling: lambda. Every argument after the * is a parameter: give it a type and a default.

    Returns:
        One model for all tasks: a tensor for each name in `base`, in its shape and dtype.
    """
    merged = {}
    for name, start in base.items():
        vectors = torch.stack([expert[name] - start for expert in experts.values()])  # (K, ...)
        ordered, count = vectors.sort(dim=0).values, len(vectors)
        middle = ordered[(count - 1) // 2 : count // 2 + 1]  # one value if K is odd, two if it is even
        merged[name] = start + scaling * middle.mean(dim=0)
    return Merged(merged)
