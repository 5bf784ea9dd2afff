"""Soft FW-Merging: in each iteration learn how to mix the vertices that the gradient favours (Chen et al. 2025)."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.gradient import (
    Sampling,
    choose,
    chosen,
    iteration_seed,
    starting_point,
    stop_message,
    vertex_pool,
)
from mergekit_lite.methods.frank_wolfe.oracle import (
    Granularity,
    Models,
    Oracle,
    Pick,
    assembled,
    norms,
    simplex_projection,
)
from mergekit_lite.methods.registry import (
    Access,
    Count,
    Examples,
    Merged,
    Objective,
    Positive,
    Steps,
    TaskData,
    Watch,
    method,
)
from mergekit_lite.methods.shared.adapting import adapt, coefficient_gradient
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.objectives import loss_and_gradient
from mergekit_lite.weights import Weights

Choice = Literal["top-k", "one a task"]
Inner = Literal["simplex", "capped simplex", "adam"]

_CODE: dict[str, Any] = {
    "oracle": "cosine",
    "granularity": "model",
    "selection": "one a task",
    "inner": "adam",
    "coefficients": "tensor",
    "inner_steps": 500,
    "inner_learning_rate": 1e-3,
    "images_per_task": 16,
    "initial": 0.3,
    "start": "base",
    "sampling": "fresh",
}

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "oracle": "inner product",
        "granularity": "model",
        "selection": "top-k",
        "inner": "simplex",
        "coefficients": "model",
        "iterations": 15,
        "start": "base",
        "sampling": "fixed",
    },
    "released": {**_CODE, "iterations": 5, "later_initial": 1e-2},
    "fusionbench": {**_CODE, "iterations": 10, "later_initial": 1e-8},
}
"""Parameters by source: the paper, the commands in the authors' repository, the configuration of FusionBench 0.2.33.

The paper's image experiments take 15 iterations from the pre-trained model and choose whole models. Not stated, as far
as known, are k, the inner steps and learning rate, and what the inner problem starts from. The authors' runs that are
called final differ from their commands: 15 or 20 iterations. FusionBench's inner problem minimises by default the
entropy on test images, while its choice looks at labelled training images; here one objective serves both.
"""


def soft_step(
    theta: Mapping[str, Tensor],
    vertices: Models,
    data: TaskData,
    batches: Iterator[Mapping[str, Examples]],
    *,
    inner: Inner,
    coefficients: Granularity,
    initial: float,
    steps: int,
    learning_rate: float,
) -> tuple[Weights, dict[str, Any]]:
    r"""Minimise the loss over the coefficients of :math:`\theta + \sum_j \lambda_j (s_j - \theta)`.

    Args:
        theta: the current weights, the base of this iteration.
        vertices: the k chosen ones; all of them are held in memory.
        data: heads and encoder.
        batches: one a step.
        inner: "simplex" and "capped simplex" are projected gradient descent, see `simplex_projection`; "adam" is free.
        coefficients: one a vertex ("model"), or one a vertex and tensor, each tensor's on a simplex of its own.
        initial: value of all coefficients, before the projection.
        steps: how many.
        learning_rate: of gradient descent, or of Adam.

    Returns:
        New weights and a trace: "loss", "coefficients" (k, L) or (k, 1), and "stopped" if loss or gradient became NaN
        or infinite; then the coefficients are those of the lowest loss.

    Raises:
        KitError: images that do not match the heads, or fewer batches than steps.
    """
    bank = Bank.of(theta, vertices)
    columns = 1 if coefficients == "model" else len(bank.shapes)
    raw = bank.vectors.new_full((len(vertices), columns), initial)
    if inner == "adam":
        trace = adapt(bank, raw, data, batches, steps=steps, learning_rate=learning_rate, clamp=False)
    else:
        trace = descend(
            bank, raw, data, batches, steps=steps, learning_rate=learning_rate, capped=inner == "capped simplex"
        )
    return bank.merged(raw), {**trace, "coefficients": raw.tolist()}


def descend(
    bank: Bank,
    raw: Tensor,
    data: TaskData,
    batches: Iterator[Mapping[str, Examples]],
    *,
    steps: int,
    learning_rate: float,
    capped: bool,
) -> dict[str, Any]:
    """Minimise over coefficients `raw` on the simplex by projected gradient descent, as `adapt` does without it."""
    losses: list[float] = []
    trace: dict[str, Any] = {"loss": losses}
    raw.copy_(simplex_projection(raw, capped=capped))
    lowest_loss, best = math.inf, raw.clone()
    for batch in islice(batches, steps):
        loss, gradients = loss_and_gradient(data, bank.merged(raw), batch)
        gradient = coefficient_gradient(bank, raw, gradients, clamp=False)
        if not (math.isfinite(loss) and torch.isfinite(gradient).all()):
            raw.copy_(best)
            trace["stopped"] = f"The inner optimisation stopped at step {len(losses) + 1}: loss or gradient became NaN."
            return trace
        losses.append(loss)
        if loss < lowest_loss:
            lowest_loss, best = loss, raw.clone()
        raw.copy_(simplex_projection(raw - learning_rate * gradient, capped=capped))
    if len(losses) < steps:
        raise KitError(f"The data gave {len(losses)} batches for {steps} steps. Ask for fewer steps or give more.")
    return trace


@method(title="FW-Merging (soft)", cite="chen2025fwmerging", access=Access.LABELLED)
def soft_frank_wolfe(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    data: TaskData,
    *,
    iterations: Steps = 15,
    oracle: Oracle = "inner product",
    granularity: Granularity = "model",
    selection: Choice = "top-k",
    k: Count | None = None,
    inner: Inner = "simplex",
    coefficients: Granularity = "model",
    inner_steps: Steps = 50,
    inner_learning_rate: Positive = 1e-2,
    images_per_task: Count = 16,
    initial: float = 0.3,
    later_initial: float = 1e-8,
    start: str = "base",
    include_start: bool = False,
    samples: Count = 100,
    batch_size: Count = 25,
    sampling: Sampling = "fixed",
    objective: Objective = "cross-entropy",
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Mix the best vertices: :math:`\theta_{t+1} = \theta_t + \sum_j \lambda_j (s_j - \theta_t)` with learned λ.

    Chen et al. 2025, the soft variant. Each iteration chooses vertices by the gradient at :math:`\theta_t`, then learns
    their coefficients. Where these sum to one (`inner` = "simplex"), :math:`\theta_t` itself cancels out: the same
    vertices chosen again, on the same images, give the same model again. Defaults are the paper's as far as known, see
    `RECIPES`. Arguments that are not described here are those of `hard_frank_wolfe`.

    Args:
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name.
        data: heads, encoder and images. The tasks of the loss are those of `data.heads`; the pool may be another.
        iterations: how often vertices are chosen and mixed.
        oracle: how vertices are compared.
        granularity: choose whole models, or for each "tensor".
        selection: "top-k" takes the k best for the gradient of all tasks (paper); "one a task" the best for each task's
            gradient, none of them twice, in the order of `data.heads` until the pool is used up (released code): with
            as many tasks as models that is all of them, whatever the gradient.
        k: how many "top-k" takes; by default as many as there are tasks, or all if the pool is smaller.
        inner: "simplex" learns coefficients that are non-negative and sum to one, by projected gradient descent
            (paper); "capped simplex" lets them sum to less, so that the rest stays where it is and no iteration has to
            leave its starting point; "adam" does not constrain them (released code).
        coefficients: one a vertex ("model"), or one a vertex and tensor ("tensor", released code).
        inner_steps: how many an iteration.
        inner_learning_rate: of gradient descent, or of Adam.
        images_per_task: images of each task in an inner step.
        initial: what the coefficients start from in the first iteration; they are projected first.
        later_initial: what they start from in later iterations. On the simplex equal values always become 1 / k.
        start: as in `hard_frank_wolfe`.
        include_start: as there.
        samples: images of each task that a gradient is measured on.
        batch_size: images of each task that go through the encoder at once for it, a divisor of `samples`.
        sampling: "fixed" has the choice and the inner steps see the same `samples` images all the time (paper: 100 a
            task); with "fresh" each choice sees others, and the inner steps the whole split (released code).
        objective: of the choice and of the inner steps.
        seed: which images are drawn.
        watch: called with iteration and weights before the first and after each.

    Returns:
        The merged weights. The trace has "vertices", "tensors", "start", and a value an iteration of: "loss" and "gap"
        before it; "chosen", a list of picks as in `hard_frank_wolfe`; "scores" by vertex, a list with one entry a
        gradient; "step", the sum of the coefficients, averaged over tensors; and "inner", with "loss" (one a step) and
        "coefficients", [pick][tensor] or [pick][0]. "stopped" says why it ended early. If the pool is smaller than the
        number of tasks, "one a task" measures "loss" and "gap" on the tasks that come to choose.

    Raises:
        KitError: as `hard_frank_wolfe`, and if k is larger than the pool.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the weights of the lowest loss so far are kept.
    """
    opened = dict(experts.items())
    theta, note = starting_point(start, base, opened, data, objective=objective, seed=seed)
    vertices = vertex_pool(opened, theta if include_start else None)
    tasks = tuple(data.heads)
    groups = [tasks] if selection == "top-k" else [(task,) for task in tasks]
    each = _count(selection, k, len(tasks), vertices)
    lengths = norms(vertices, tuple(base)) if oracle == "cosine" else None
    trace: dict[str, Any] = {"vertices": list(vertices), "tensors": list(base), "start": note}
    trace |= {key: [] for key in ("loss", "gap", "step", "chosen", "scores", "inner")}
    lowest_loss, best = math.inf, theta
    if watch:
        watch(0, theta)
    for t in range(iterations):
        drawn = iteration_seed(seed, t, sampling)
        loss, answer = choose(
            theta, data, vertices, groups, each=each, samples=samples, batch_size=batch_size, seed=drawn, oracle=oracle,
            granularity=granularity, lengths=lengths,
        )  # fmt: skip
        if math.isnan(loss):
            theta, trace["stopped"] = best, stop_message(t, trace["loss"])
            warnings.warn(trace["stopped"], RuntimeWarning, stacklevel=3)
            break
        if loss < lowest_loss:
            lowest_loss, best = loss, theta
        inner_samples = samples if sampling == "fixed" else None
        batches = data.batches(images_per_task=images_per_task, steps=inner_steps, seed=drawn, samples=inner_samples)
        theta, learned = soft_step(
            theta, _mixed(answer.picks, vertices, theta, granularity), data, batches, inner=inner,
            coefficients=coefficients, initial=later_initial if t else initial, steps=inner_steps,
            learning_rate=inner_learning_rate,
        )  # fmt: skip
        broken = learned.pop("stopped", None)
        trace["loss"].append(loss)
        trace["gap"].append(answer.gap)
        trace["chosen"].append([chosen(pick, granularity) for pick in answer.picks])
        trace["scores"].append([dict(zip(vertices, one.tolist(), strict=True)) for one in answer.scores])
        trace["step"].append(sum(map(sum, learned["coefficients"])) / len(learned["coefficients"][0]))
        trace["inner"].append(learned)
        if broken:
            if min(learned["loss"], default=math.inf) >= lowest_loss:
                theta = best
            trace["stopped"] = (
                f"Frank-Wolfe stopped within iteration {t + 1}, at inner step {len(learned['loss']) + 1}: the loss or "
                "its gradient became NaN or infinite. Kept are the weights of the lowest loss so far."
            )
            warnings.warn(trace["stopped"], RuntimeWarning, stacklevel=3)
            break
        if watch:
            watch(t + 1, theta)
    return Merged({name: tensor.to(base[name].dtype) for name, tensor in theta.items()}, trace=trace)


def _count(selection: Choice, k: int | None, tasks: int, vertices: Models) -> int:
    """Return how many vertices are picked for one gradient."""
    if selection == "one a task":
        return 1
    if k is not None and k > len(vertices):
        raise KitError(
            f"k = {k} vertices cannot be chosen from {len(vertices)}: {', '.join(vertices)}. "
            "Choose a smaller k, or leave it out."
        )
    return min(tasks, len(vertices)) if k is None else k


def _mixed(picks: Sequence[Pick], vertices: Models, theta: Weights, granularity: Granularity) -> Models:
    """Return the picked models by name, as `Bank.of` wants them; a patchwork of several models has only a number."""
    if granularity == "model":
        return {str(chosen(pick, granularity)): assembled(pick, vertices, theta) for pick in picks}
    return {f"pick {place}": assembled(pick, vertices, theta) for place, pick in enumerate(picks, 1)}
