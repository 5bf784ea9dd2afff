"""Soft FW-Merging: in each iteration learn how to mix the vertices that the gradient favours (Chen et al. 2025)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.gradient import (
    Sampling,
    Start,
    chosen,
    drawn,
    iteration_seed,
    mean_gradient,
    starting_point,
    vertex_pool,
)
from mergekit_lite.methods.frank_wolfe.oracle import (
    Comparison,
    Granularity,
    Oracle,
    Patchwork,
    Pick,
    compare,
    duality_gap,
    norms,
)
from mergekit_lite.methods.registry import (
    Access,
    Coefficient,
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
from mergekit_lite.methods.shared.adapting import adam, adapt
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.stopping import Kept, unsound, warn_if_stopped
from mergekit_lite.weights import Pool, Weights, in_dtypes_of

Selection = Count | Literal["top-k", "per task"]
Inner = Literal["simplex", "capped simplex", "adam"]

INITIAL = 0.3
"""What the coefficients of the first iteration start from, as in AdaMerging and in the released code."""

_CODE: dict[str, Any] = {
    "oracle": "cosine",
    "granularity": "model",
    "selection": "per task",
    "inner": "adam",
    "coefficients": "tensor",
    "inner_steps": 500,
    "inner_learning_rate": 1e-3,
    "images_per_task": 16,
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
entropy on test images, while its choice looks at labelled training images; here one objective serves both. Its choice
is FusionBench's on its layout of the tensors only, see `oracle.compare`.
"""


def soft_step(
    theta: Mapping[str, Tensor],
    vertices: Pool,
    data: TaskData,
    batches: Iterator[Mapping[str, Examples]],
    *,
    objective: Objective,
    inner: Inner,
    coefficients: Granularity,
    initial: float,
    steps: int,
    learning_rate: float,
) -> tuple[Weights, dict[str, Any]]:
    r"""Minimise the loss over the coefficients of :math:`\theta + \sum_j \lambda_j (s_j - \theta)`.

    Args:
        theta: the current weights, the base of this iteration.
        vertices: the k chosen ones; all of them are held at once, in memory or where there is room.
        data: heads and encoder.
        batches: one per step.
        objective: which loss.
        inner: "simplex" and "capped simplex" are projected gradient descent, see `simplex_projection`; "adam" is free.
        coefficients: one per vertex ("model"), or one per vertex and tensor, each tensor's on a simplex of its own.
        initial: value of all coefficients, before the projection.
        steps: how many.
        learning_rate: of gradient descent, or of Adam.

    Returns:
        New weights and a trace: "loss", "coefficients" (k, L) or (k, 1), "bank" if the vertices do not lie on the
        device, and "stopped" if loss or gradient became NaN or infinite; then the coefficients are those of the lowest
        loss.

    Raises:
        KitError: images that do not match the heads or the objective, or fewer batches than steps.
    """
    bank = Bank.of(theta, vertices)
    columns = 1 if coefficients == "model" else len(bank.shapes)
    raw = bank.base.new_full((len(vertices), columns), initial)

    def project(values: Tensor) -> None:
        raw.copy_(simplex_projection(values, capped=inner == "capped simplex"))

    if inner == "adam":
        update = adam(raw, learning_rate)
    else:
        project(raw)
        update = lambda gradient: project(raw - learning_rate * gradient)  # noqa: E731
    trace = adapt(bank, raw, data, batches, update, objective=objective, steps=steps)
    return bank.merged(raw), {**trace, "coefficients": raw.tolist()}


def simplex_projection(values: Tensor, *, capped: bool = False) -> Tensor:
    """Return the nearest point of the simplex {c >= 0, sum c = 1}, for each column of (k, L) values.

    Duchi et al. 2008, figure 1: subtract the one number for which the positive parts sum to one; sorting finds it.

    Args:
        values: (k, L), or (k,).
        capped: allow sums below one too, {c >= 0, sum c <= 1}.
    """
    table = values.reshape(len(values), -1)
    # A number subtracted from a whole column changes nothing but rounding: sums of large values would lose their
    # digits. It is a whole one, zero for values of ordinary size, as differences to it are exact.
    near = table - table.amax(dim=0).trunc()
    falling = near.sort(dim=0, descending=True).values
    counts = torch.arange(1, len(table) + 1, dtype=values.dtype, device=values.device)[:, None]
    excess = (falling.cumsum(dim=0) - 1) / counts  # what the largest 1, 2, ... k each have too much
    active = (falling > excess).sum(dim=0, keepdim=True)  # so many stay positive; the largest always does
    projected = (near - excess.gather(0, active - 1)).clamp(min=0)
    if capped:
        positive = table.clamp(min=0)
        projected = torch.where(positive.sum(dim=0) <= 1, positive, projected)
    return projected.reshape(values.shape)


@method(title="FW-Merging (soft)", cite="chen2025fwmerging", access=Access.LABELLED)
def soft_frank_wolfe(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    iterations: Steps = 15,
    oracle: Oracle = "inner product",
    granularity: Granularity = "model",
    selection: Selection = "top-k",
    inner: Inner = "simplex",
    coefficients: Granularity = "model",
    inner_steps: Steps = 50,
    inner_learning_rate: Positive = 1e-2,
    images_per_task: Count = 16,
    later_initial: Coefficient = 1e-8,
    start: Start = "base",
    include_start: bool = False,
    samples: Count = 100,
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
        selection: a number takes so many best ones for the gradient of all tasks, "top-k" (paper) as many as there are
            tasks, or all if the pool is smaller; "per task" (released code) the best for each task's gradient, none of
            them twice, in the order of `data.heads` until the pool is used up: with as many tasks as models that is all
            of them, whatever the gradient.
        inner: "simplex" learns coefficients that are non-negative and sum to one, by projected gradient descent
            (paper); "capped simplex" lets them sum to less, so that the rest stays where it is and no iteration has to
            leave its starting point; "adam" does not constrain them (released code).
        coefficients: one per vertex ("model"), or one per vertex and tensor ("tensor", released code).
        inner_steps: how many per iteration.
        inner_learning_rate: of gradient descent, or of Adam.
        images_per_task: images of each task in an inner step.
        later_initial: what the coefficients start from in later iterations; in the first one that is `INITIAL`. They
            are projected first: on the simplex equal values always become 1 / k.
        start: as in `hard_frank_wolfe`.
        include_start: as there.
        samples: images of each task that a gradient is measured on.
        sampling: "fixed" has the choice and the inner steps see the same `samples` images all the time (paper: 100 per
            task); with "fresh" each choice sees others, and the inner steps the whole split (released code).
        objective: of the choice and of the inner steps.
        seed: which images are drawn.
        watch: called with iteration and weights before the first and after each.

    Returns:
        The merged weights. The trace has "vertices", "tensors", "start", and a value per iteration of: "loss" and "gap"
        before it; "chosen", a list of picks as in `hard_frank_wolfe`; "scores" by vertex, a list with one entry per
        gradient; "step", the sum of the coefficients, averaged over tensors; and "inner", with "loss" (one per step)
        and "coefficients", [pick][tensor] or [pick][0]. "stopped" says why it ended early, "bank" where the vertices
        lay if that was not the device. If the pool is smaller than the number of tasks, "per task" measures "loss" and
        "gap" on the tasks that come to choose.

    Raises:
        KitError: as `hard_frank_wolfe`, and if more vertices are selected than there are.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the weights of the lowest loss so far are kept.
    """
    theta, note = starting_point(start, base, experts, data, objective=objective, seed=seed)
    vertices = vertex_pool(experts, theta if include_start else None)
    groups, each = _groups(selection, tuple(data.heads), vertices)
    lengths = norms(vertices, tuple(base)) if oracle == "cosine" else None
    trace: dict[str, Any] = {"vertices": list(vertices), "tensors": list(base), "start": note}
    trace |= {key: [] for key in ("loss", "gap", "step", "chosen", "scores", "inner")}
    kept = Kept(theta)
    if watch:
        watch(0, theta)
    for t in range(iterations):
        drawn_with = iteration_seed(seed, t, sampling)
        batch = drawn(data, samples, drawn_with)
        loss, reason = 0.0, ""
        picks: list[Pick] = []
        answers: list[Comparison] = []
        for tasks in groups:
            part, gradient = mean_gradient(data, theta, batch, objective, tasks)
            loss += part
            if reason := unsound(part, gradient.values()):
                break
            answer = compare(theta, gradient, vertices, lengths)
            picks += answer.lowest(granularity, each, taken=picks)
            answers.append(answer)
            if len(picks) == len(vertices):
                break
        if reason:
            theta, trace["stopped"] = kept.state, kept.stopped(f"iteration {t + 1}", reason)
            break
        if loss < kept.loss:
            kept = Kept(theta, loss, f"iteration {t + 1}")
        batches = data.batches(
            images_per_task=images_per_task, steps=inner_steps, seed=drawn_with,
            keep=samples if sampling == "fixed" else None,
        )  # fmt: skip
        models = {f"pick {place}": Patchwork(pick, vertices, theta) for place, pick in enumerate(picks, 1)}
        theta, learned = soft_step(
            theta, models, data, batches, objective=objective, inner=inner, coefficients=coefficients,
            initial=later_initial if t else INITIAL, steps=inner_steps, learning_rate=inner_learning_rate,
        )  # fmt: skip
        broken = learned.pop("stopped", "")
        if "bank" in learned:
            trace["bank"] = learned.pop("bank")
        trace["loss"].append(loss)
        # The gap belongs to the whole loss; inner products are linear, so those of its parts can be added up.
        own, products = (sum(getattr(one, name) for one in answers) for name in ("own", "products"))
        trace["gap"].append(duality_gap(own, products, granularity))
        trace["chosen"].append([chosen(pick, granularity) for pick in picks])
        trace["scores"].append([answer.totals() for answer in answers])
        trace["step"].append(sum(map(sum, learned["coefficients"])) / len(learned["coefficients"][0]))
        trace["inner"].append(learned)
        if broken:
            if min(learned["loss"], default=math.inf) >= kept.loss:
                theta = kept.state
            trace["stopped"] = f"Within iteration {t + 1}: {broken}"
            break
        if watch:
            watch(t + 1, theta)
    warn_if_stopped(trace)
    return Merged(in_dtypes_of(base, theta), trace=trace)


def _groups(selection: Selection, tasks: tuple[str, ...], vertices: Pool) -> tuple[list[tuple[str, ...]], int]:
    """Return of which tasks together there is a gradient, and how many vertices are picked for each."""
    if selection == "per task":
        return [(task,) for task in tasks], 1
    if selection == "top-k":
        return [tasks], min(len(tasks), len(vertices))
    if selection > len(vertices):
        raise KitError(
            f"{selection} vertices cannot be chosen from {len(vertices)}: {', '.join(vertices)}. "
            "Choose a smaller number, or leave it out."
        )
    return [tasks], selection
