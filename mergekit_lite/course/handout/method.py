"""Your merging method. This one is worked out: change equation, name and docstring."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mergekit_lite.methods import Access, Merged, method

Weights = Mapping[str, Tensor]


@method(title="Median", cite="", access=Access.NONE)
def median(
    base: Weights,
    experts: Mapping[str, Weights],
    *,
    scaling: float = 1.0,
) -> Merged:
    """Add the task vectors' median: theta_0 + lambda * median_k (theta_k - theta_0).

    Entry by entry, an expert that pulls far away from where all others want to go does
    not move the median. That is its strength, and its weakness: it may be the only
    expert that has learnt something there.

    Args:
        base: the pre-trained weights theta_0, name -> tensor.
        experts: task -> its fine-tuned weights theta_k, with the names and shapes of
            `base`. Read them, and change neither: make new tensors.
        scaling: lambda. What stands after the * is a parameter: give it a type and a
            default.

    Returns:
        One model for all tasks: a tensor for each of `base`, in its shape and dtype.
    """
    merged = {}
    for name, start in base.items():
        vectors = torch.stack([expert[name] - start for expert in experts.values()])
        ordered, count = vectors.sort(dim=0).values, len(vectors)
        # the middle: one value if the number of experts is odd, two if it is even
        middle = ordered[(count - 1) // 2 : count // 2 + 1]
        merged[name] = start + scaling * middle.mean(dim=0)
    return Merged(merged)
