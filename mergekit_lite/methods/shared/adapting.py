"""Learning the merging coefficients of a bank, the core of AdaMerging and of soft Frank-Wolfe's inner loop."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Examples, Objective, TaskData, Watch
from mergekit_lite.methods.shared.objectives import loss_and_gradient
from mergekit_lite.methods.shared.stopping import Kept, unsound
from mergekit_lite.weights import Weights

Update = Callable[[Tensor], None]
"""Changes the coefficients in place, given their gradient."""


class Mergeable(Protocol):
    """What `adapt` learns about: a bank, or anything else that merges with raw values and gives their gradient."""

    @property
    def place(self) -> str:
        """Where the task vectors lie, in words, if that is not the device."""

    def merged(self, coefficients: Tensor, /) -> Weights:
        """Return the weights that these values lead to."""

    def gradient(self, gradients: Mapping[str, Tensor], /) -> Tensor:
        """Return the loss's gradient with respect to the values from that by tensor name."""


def adam(raw: Tensor, learning_rate: float) -> Update:
    """Return the update of Adam, with betas (0.9, 0.999) and no weight decay."""
    optimiser = torch.optim.Adam([raw], lr=learning_rate, betas=(0.9, 0.999))

    def update(gradient: Tensor) -> None:
        raw.grad = gradient
        optimiser.step()

    return update


def adapt(
    bank: Mergeable,
    raw: Tensor,
    data: TaskData,
    batches: Iterator[Mapping[str, Examples]],
    update: Update,
    *,
    objective: Objective,
    steps: int,
    clamp: bool = False,
    watch: Watch | None = None,
    path: bool = False,
) -> dict[str, Any]:
    """Minimise the loss over the coefficients `raw`, (K, L) or (K, 1), or whatever `bank` merges with, in place.

    Returns:
        The trace: "loss", and "stopped" if the optimisation ended early, then the coefficients are those of the lowest
        loss; with `path` also "path", the first column of the coefficients as used, before the first and after each
        step; and "bank", where the task vectors lie, if that is not the device.

    Raises:
        KitError: images that do not match the heads or the objective, or fewer batches than steps.
    """
    losses: list[float] = []
    trace: dict[str, Any] = {"loss": losses} | ({"bank": bank.place} if bank.place else {})
    kept = Kept(raw.clone())
    if path:
        trace["path"] = [effective(raw, clamp)[:, 0].tolist()]
    weights = bank.merged(effective(raw, clamp))
    if watch:
        watch(0, weights)
    for step, batch in enumerate(islice(batches, steps), 1):
        loss, gradients = loss_and_gradient(data, weights, batch, objective)
        gradient = coefficient_gradient(bank, raw, gradients, clamp)
        if reason := unsound(loss, [gradient]):
            raw.copy_(kept.state)
            trace["stopped"] = kept.stopped(f"step {step}", reason)
            return trace
        losses.append(loss)
        if loss < kept.loss:
            kept = Kept(raw.clone(), loss, f"step {step}")
        update(gradient)
        if path:
            trace["path"].append(effective(raw, clamp)[:, 0].tolist())
        weights = bank.merged(effective(raw, clamp))
        if watch:
            watch(step, weights)
    check_steps(len(losses), steps)
    return trace


def check_steps(done: int, steps: int) -> None:
    """Raise a KitError if the batches ended before the steps did."""
    if done < steps:
        raise KitError(f"The data gave {done} batches for {steps} steps. Ask for fewer steps or give more.")


def effective(raw: Tensor, clamp: bool) -> Tensor:
    """Return the coefficients that the merge uses: those learned, clamped to [0, 1] if asked for."""
    return raw.clamp(0, 1) if clamp else raw


def coefficient_gradient(bank: Mergeable, raw: Tensor, gradients: Mapping[str, Tensor], clamp: bool) -> Tensor:
    """Return dL/d(raw), in the shape of `raw`, from dL/dtheta by tensor name.

    Through the clamp the gradient passes inside [0, 1] and on its borders. So did torch.clamp when the paper was
    written; newer releases of torch stop it there, and a coefficient that starts at 0 or 1 would stay for ever.
    """
    gradient = bank.gradient(gradients).sum_to_size(raw.shape)
    return gradient * ((raw >= 0) & (raw <= 1)) if clamp else gradient
