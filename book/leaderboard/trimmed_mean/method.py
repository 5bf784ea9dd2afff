"""The mean of the task vectors without the extremes of each entry."""

import torch

from mergekit_lite.methods import Access, Merged, method


@method(title="Trimmed mean", cite="", access=Access.NONE)
def trimmed_mean(base, experts, *, scaling: float = 2.0, cut: int = 1) -> Merged:
    """Add the mean of the task vectors, entry by entry, without the extremes.

    Left out are the `cut` largest and `cut` smallest values. In robust statistics an
    expert that pulls an entry far away from the others is an outlier; in merging it may
    be the only one that has learnt something there. The accuracy tells which.
    """
    weights = {}
    for name, start in base.items():
        changes = torch.stack([expert[name] - start for expert in experts.values()])
        kept = (
            changes.sort(dim=0).values[cut : len(changes) - cut]
            if len(changes) > 2 * cut
            else changes
        )
        weights[name] = start + scaling * kept.mean(dim=0)
    return Merged(weights)
