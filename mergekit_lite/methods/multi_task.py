"""Traditional multi-task training: one encoder, all tasks' labelled images, no merging."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.methods.registry import Access, Count, Merged, Positive, Steps, TaskData, Watch, method
from mergekit_lite.methods.shared.adapting import check_steps
from mergekit_lite.methods.shared.objectives import loss_and_gradient
from mergekit_lite.methods.shared.stopping import Kept, unsound, warn_if_stopped
from mergekit_lite.weights import Pool, in_dtypes_of, working_dtype


@method(title="Traditional multi-task training", cite="", access=Access.LABELLED, smallest_pool=0)
def multi_task_training(
    base: Mapping[str, Tensor],
    experts: Pool,
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
        The trained weights, in the base's dtypes; the trace has "loss" (one value per step, measured before the step's
        update), and "stopped" if training ended early.

    Raises:
        KitError: images that do not match the heads, fewer batches than steps, NaN or infinite base weights, or a
            parameter out of range.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the weights of the lowest loss so far are kept.
    """
    weights = {name: start.detach().to(working_dtype(start), copy=True) for name, start in base.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=learning_rate, betas=(0.9, 0.999))
    losses: list[float] = []
    trace: dict[str, Any] = {"loss": losses}
    kept: Kept[Mapping[str, Tensor]] = Kept(base)
    if watch:
        watch(0, weights)
    batches = data.batches(images_per_task=images_per_task, steps=steps, seed=seed)
    for step, batch in enumerate(islice(batches, steps), 1):
        loss, gradients = loss_and_gradient(data, weights, batch, "cross-entropy")
        if reason := unsound(loss, gradients.values()):
            trace["stopped"] = kept.stopped(f"step {step}", reason)
            warn_if_stopped(trace)
            return Merged(in_dtypes_of(base, kept.state), trace=trace)
        losses.append(loss)
        if loss < kept.loss:
            kept = Kept({name: tensor.clone() for name, tensor in weights.items()}, loss, f"step {step}")
        for name, tensor in weights.items():
            tensor.grad = gradients.get(name)
        optimiser.step()
        if watch:
            watch(step, weights)
    check_steps(len(losses), steps)
    return Merged(in_dtypes_of(base, weights), trace=trace)
