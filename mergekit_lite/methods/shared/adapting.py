"""Learning the merging coefficients of a bank by Adam, the core of AdaMerging and of soft Frank-Wolfe's inner loop."""

import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Examples, TaskData, Watch
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.objectives import loss_and_gradient


def adapt(
    bank: Bank,
    raw: Tensor,
    data: TaskData,
    batches: Iterator[Mapping[str, Examples]],
    *,
    steps: int,
    learning_rate: float,
    clamp: bool,
    watch: Watch | None = None,
    path: bool = False,
) -> dict[str, Any]:
    """Minimise the loss over the coefficients `raw`, (K, L) or (K, 1), in place.

    The loss is the entropy where a batch holds images, the cross-entropy where it holds labels too.

    Returns:
        The trace: "loss", and "stopped" if the optimisation ended early; with `path` also "path", the first column of
        the coefficients as used, before the first and after each step.

    Raises:
        KitError: images that do not match the heads, or fewer batches than steps.
    """
    optimiser = torch.optim.Adam([raw], lr=learning_rate, betas=(0.9, 0.999))
    losses: list[float] = []
    best, best_raw = math.inf, raw.clone()
    trace: dict[str, Any] = {"loss": losses}
    if path:
        trace["path"] = [effective(raw, clamp)[:, 0].tolist()]
    weights = bank.merged(effective(raw, clamp))
    if watch:
        watch(0, weights)
    for step, batch in enumerate(islice(batches, steps), 1):
        loss, gradients = loss_and_gradient(data, weights, batch)
        gradient = coefficient_gradient(bank, raw, gradients, clamp)
        if not (math.isfinite(loss) and torch.isfinite(gradient).all()):
            raw.copy_(best_raw)
            trace["stopped"] = _lost(step, loss, losses)
            warnings.warn(trace["stopped"], RuntimeWarning, stacklevel=5)
            return trace
        losses.append(loss)
        if loss < best:
            best, best_raw = loss, raw.clone()
        raw.grad = gradient
        optimiser.step()
        if path:
            trace["path"].append(effective(raw, clamp)[:, 0].tolist())
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


def _lost(step: int, loss: float, losses: list[float]) -> str:
    """Say that, where and with what result the optimisation was stopped."""
    what = f"the loss became {loss}" if not math.isfinite(loss) else "the gradient became NaN or infinite"
    if not losses:
        return f"The optimisation stopped at step {step}: {what}. The initial coefficients are kept."
    lowest = min(range(len(losses)), key=losses.__getitem__)
    return (
        f"The optimisation stopped at step {step}: {what}. Kept are the coefficients of step {lowest + 1}, "
        f"those of the lowest loss ({losses[lowest]:.4g})."
    )
