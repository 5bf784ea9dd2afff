"""Fine-tuning an image encoder on one task: how experts are made."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mergekit_lite.suites.suite import Split
from mergekit_lite.weights import Weights


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to fine-tune: AdamW without decay, one-cycle learning rate with a tenth of warm-up.

    Every task gets the same number of steps, however many images it has.
    """

    steps: int
    learning_rate: float
    batch_size: int
    seed: int = 0


def fine_tune(
    encode: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    base: Mapping[str, Tensor],
    head: Tensor,
    split: Split,
    recipe: Recipe,
) -> Weights:
    """Return `base` fine-tuned on `split` by cross-entropy through the frozen zero-shot `head` (C, D).

    Only the image encoder learns, as in the papers' experts, so that all experts stay comparable through their heads.
    """
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in base.items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    rng = np.random.default_rng(recipe.seed)
    epochs = (rng.permutation(len(split.labels)) for _ in itertools.count())
    order = itertools.chain.from_iterable(epochs)
    for _ in range(recipe.steps):
        rows = np.fromiter(itertools.islice(order, recipe.batch_size), dtype=np.int64)
        images = torch.from_numpy(split.images[rows]).to(head.device)
        labels = torch.from_numpy(split.labels[rows]).to(head.device)
        loss = cross_entropy(encode(weights, images) @ head.T, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return {name: tensor.detach() for name, tensor in weights.items()}
