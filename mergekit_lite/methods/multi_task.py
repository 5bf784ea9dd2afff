"""Traditional multi-task training: one encoder, all tasks' labelled images, no merging."""

import math
import warnings
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Access, Count, Merged, Positive, Steps, TaskData, Watch, method
from mergekit_lite.methods.shared.objectives import loss_and_gradient
from mergekit_lite.weights import is_finite, working_dtype


@method(title="Traditional multi-task training", cite="", access=Access.LABELLED, smallest_pool=0)
def multi_task_training(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    data: TaskData,
    *,
    steps: Steps = 4000,
    learning_rate: Positive = 1e-5,
    images_per_task: Count = 32,
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    """Fine-tune the base on the training images of all tasks at once: what merging would like to reach.

    Adam minimises the sum over tasks of the mean cross-entropy through each task's frozen head. No expert is used: the
    tasks are those of `data.heads`.

    Args:
        base: the pre-trained weights, where training starts.
        experts: of no influence; the pool may be empty.
        data: heads, encoder and labelled images.
        steps: Adam steps.
        learning_rate: of Adam, constant, with betas (0.9, 0.999) and no weight decay.
        images_per_task: images of each task in a step.
        seed: which images are drawn when.
        watch: called with step and weights before the first and after each step.

    Returns:
        The trained weights, in the base's dtypes; the trace has "loss" (one value a step, measured before the step's
        update), and "stopped" if training ended early.

    Raises:
        KitError: images that do not match the heads, fewer batches than steps, NaN or infinite base weights, or a
            parameter out of range.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the weights before the last step are kept.
    """
    weights = {name: start.detach().to(working_dtype(start), copy=True) for name, start in base.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=learning_rate, betas=(0.9, 0.999))
    losses: list[float] = []
    trace: dict[str, Any] = {"loss": losses}
    sound = base  # the last weights whose loss and gradient were finite
    if watch:
        watch(0, weights)
    batches = data.batches(images_per_task=images_per_task, steps=steps, seed=seed)
    for step, batch in enumerate(islice(batches, steps), 1):
        loss, gradients = loss_and_gradient(data, weights, batch)
        if not (math.isfinite(loss) and all(map(is_finite, gradients.values()))):
            trace["stopped"] = (
                f"The training stopped at step {step}: loss or gradient became NaN or infinite. Kept are the weights "
                f"of step {max(step - 2, 0)}."
            )
            warnings.warn(trace["stopped"], RuntimeWarning, stacklevel=3)
            return Merged(_like(base, sound), trace=trace)
        losses.append(loss)
        sound = {name: tensor.clone() for name, tensor in weights.items()}
        for name, tensor in weights.items():
            tensor.grad = gradients.get(name)
        optimiser.step()
        if watch:
            watch(step, weights)
    if len(losses) < steps:
        raise KitError(f"The data gave {len(losses)} batches for {steps} steps. Ask for fewer steps or give more.")
    return Merged(_like(base, weights), trace=trace)


def _like(base: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as the merge hands them over: in the base's dtypes, without their gradients."""
    return {name: weights[name].detach().to(start.dtype) for name, start in base.items()}
