"""AdaMerging: coefficients that minimise the entropy of predictions on unlabelled test images (Yang et al. 2024)."""

import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.bank import Bank
from mergekit_lite.methods.registry import Access, Count, Merged, Positive, Steps, UnlabelledData, Watch, method
from mergekit_lite.weights import Weights


@method(title="Task-wise AdaMerging", cite="yang2024adamerging", access=Access.UNLABELLED)
def task_wise_adamerging(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    data: UnlabelledData,
    *,
    steps: Steps = 500,
    learning_rate: Positive = 1e-3,
    images_per_task: Count = 32,
    initial: float = 0.3,
    clamp: bool = True,
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Learn one coefficient an expert: :math:`\theta = \theta_0 + \sum_k \lambda_k \tau_k`.

    Yang et al. 2024, section 3.2. See `layer_wise_adamerging` for arguments, defaults, errors and trace; here the
    coefficients in the trace have one column, named "all".
    """
    bank = Bank.of(base, experts)
    raw = bank.vectors.new_full((len(experts), 1), initial)
    batches = data.batches(images_per_task=images_per_task, steps=steps, seed=seed)
    trace = adapt(bank, raw, data, batches, steps=steps, learning_rate=learning_rate, clamp=clamp, watch=watch)
    return _merged(bank, raw, base, ["all"], trace, clamp=clamp)


@method(title="Layer-wise AdaMerging", cite="yang2024adamerging", access=Access.UNLABELLED)
def layer_wise_adamerging(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    data: UnlabelledData,
    *,
    steps: Steps = 500,
    learning_rate: Positive = 1e-3,
    images_per_task: Count = 32,
    initial: float = 0.3,
    clamp: bool = True,
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Learn one coefficient an expert and tensor: :math:`\theta^l = \theta_0^l + \sum_k \lambda_k^l \tau_k^l`.

    Yang et al. 2024, section 3.2; a "layer" is one parameter tensor, as in the authors' code. Adam minimises the sum
    over tasks of the mean entropy of the predictions. The tasks adapted to are those of `data.heads`; the pool may be
    another. Defaults are the authors': they draw two batches of 16 images a task and step.

    Args:
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name.
        data: heads, encoder and unlabelled images.
        steps: Adam steps.
        learning_rate: of Adam, with betas (0.9, 0.999) and no weight decay.
        images_per_task: images of each task in a step.
        initial: value that every coefficient starts from.
        clamp: hold the coefficients in [0, 1] in the forward pass. FusionBench does not.
        seed: which images are drawn when.
        watch: called with step and merged weights before the first and after each step.

    Returns:
        The merged weights; the trace has "loss" (one value a step, measured before the step's update), "coefficients"
        ("experts", "tensors", and "values" as used, [expert][tensor]), and "stopped" if the optimisation ended early.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range, or
            images that do not match the heads.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the coefficients of the lowest loss so far are kept.
    """
    bank = Bank.of(base, experts)
    raw = bank.vectors.new_full((len(experts), len(bank.shapes)), initial)
    batches = data.batches(images_per_task=images_per_task, steps=steps, seed=seed)
    trace = adapt(bank, raw, data, batches, steps=steps, learning_rate=learning_rate, clamp=clamp, watch=watch)
    return _merged(bank, raw, base, list(bank.shapes), trace, clamp=clamp)


def adapt(
    bank: Bank,
    raw: Tensor,
    data: UnlabelledData,
    batches: Iterator[Mapping[str, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    clamp: bool,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Minimise the entropy over the coefficients `raw`, (K, L) or (K, 1), in place.

    Returns:
        The trace: "loss", and "stopped" if the optimisation ended early.

    Raises:
        KitError: images that do not match the heads, or fewer batches than steps.
    """
    optimiser = torch.optim.Adam([raw], lr=learning_rate, betas=(0.9, 0.999))
    losses: list[float] = []
    best, best_raw = math.inf, raw.clone()
    trace: dict[str, Any] = {"loss": losses}
    weights = bank.merged(effective(raw, clamp))
    if watch:
        watch(0, weights)
    for step, images in enumerate(islice(batches, steps), 1):
        loss, gradients = entropy_gradient(data, weights, images)
        gradient = coefficient_gradient(bank, raw, gradients, clamp)
        if not (math.isfinite(loss) and torch.isfinite(gradient).all()):
            raw.copy_(best_raw)
            trace["stopped"] = _lost(step, loss, losses)
            warnings.warn(trace["stopped"], RuntimeWarning, stacklevel=4)
            return trace
        losses.append(loss)
        if loss < best:
            best, best_raw = loss, raw.clone()
        raw.grad = gradient
        optimiser.step()
        weights = bank.merged(effective(raw, clamp))
        if watch:
            watch(step, weights)
    if len(losses) < steps:
        raise KitError(f"The data gave {len(losses)} batches for {steps} steps. Ask for fewer steps or give more.")
    return trace


def effective(raw: Tensor, clamp: bool) -> Tensor:
    """Return the coefficients that the merge uses: those learned, clamped to [0, 1] if asked for."""
    return raw.clamp(0, 1) if clamp else raw


def coefficient_gradient(bank: Bank, raw: Tensor, gradients: Mapping[str, Tensor], clamp: bool) -> Tensor:
    """Return dL/d(raw), in the shape of `raw`, from dL/dtheta by tensor name.

    Through the clamp the gradient passes inside [0, 1] and on its borders. So did torch.clamp when the paper was
    written; newer releases of torch stop it there, and a coefficient that starts at 0 or 1 would stay for ever.
    """
    gradient = bank.gradient(gradients).sum_to_size(raw.shape)
    return gradient * ((raw >= 0) & (raw <= 1)) if clamp else gradient


def mean_entropy(features: Tensor, head: Tensor) -> Tensor:
    """Return the mean Shannon entropy, in nats, of the predictions for features (N, D) under a head (C, D)."""
    logs = torch.log_softmax(features @ head.to(features).T, dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def entropy_gradient(
    data: UnlabelledData, weights: Mapping[str, Tensor], images: Mapping[str, Tensor]
) -> tuple[float, Weights]:
    """Return the summed mean entropies of all tasks and their gradient by tensor name.

    The encoder is shared, so the images of all tasks go through it as one batch; only the heads are separate.
    Tensors that the loss does not depend on are left out.

    Raises:
        KitError: the tasks of the images are not those of the heads, or a task has no images.
    """
    tasks = tuple(data.heads)
    empty = [task for task in tasks if task not in images or len(images[task]) == 0]
    extra = [task for task in images if task not in data.heads]
    if empty or extra or not tasks:
        raise KitError(
            f"Each step needs images of every task that has a head. Without images: {', '.join(empty) or 'none'}; "
            f"without head: {', '.join(extra) or 'none'}; heads: {', '.join(tasks) or 'none'}."
        )
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    with torch.enable_grad():
        features = data.encode(leaves, torch.cat([images[task] for task in tasks]))
        parts = features.split([len(images[task]) for task in tasks])
        entropies = [mean_entropy(part, data.heads[task]) for task, part in zip(tasks, parts, strict=True)]
        loss = torch.stack(entropies).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = zip(leaves, gradients, strict=True)
    return loss.item(), {name: gradient for name, gradient in found if gradient is not None}


def _lost(step: int, loss: float, losses: list[float]) -> str:
    """Say that, where and with what result the optimisation was stopped."""
    what = f"the loss became {loss}" if not math.isfinite(loss) else "the gradient became NaN or infinite"
    if not losses:
        return f"AdaMerging stopped at step {step}: {what}. The initial coefficients are kept."
    lowest = min(range(len(losses)), key=losses.__getitem__)
    return (
        f"AdaMerging stopped at step {step}: {what}. Kept are the coefficients of step {lowest + 1}, "
        f"those of the lowest loss ({losses[lowest]:.4g})."
    )


def _merged(
    bank: Bank, raw: Tensor, base: Mapping[str, Tensor], tensors: list[str], trace: dict[str, Any], *, clamp: bool
) -> Merged:
    """Return the merge with the final coefficients, in the base's dtypes, and write these into the trace."""
    final = effective(raw, clamp)
    trace["coefficients"] = {"experts": list(bank.experts), "tensors": tensors, "values": final.tolist()}
    weights = {name: tensor.to(base[name].dtype) for name, tensor in bank.merged(final).items()}
    return Merged(weights, trace=trace)
