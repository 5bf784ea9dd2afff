"""AdaMerging: coefficients that minimise the entropy of predictions on unlabelled test images (Yang et al. 2024)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mergekit_lite.methods.registry import (
    Access,
    Coefficient,
    Count,
    Merged,
    Objective,
    Positive,
    Share,
    Steps,
    TaskData,
    Watch,
    method,
)
from mergekit_lite.methods.shared.adapting import adam, adapt, effective
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.stopping import warn_if_stopped
from mergekit_lite.methods.ties import keep_agreeing
from mergekit_lite.weights import Pool, in_dtypes_of

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"clamp": True, "steps": 500, "images_per_task": 32},
    "fusionbench": {"clamp": False, "steps": 1000, "images_per_task": 16},
}
"""Parameters as the authors' code (two batches of 16 per task and step) and as FusionBench 0.2.33 have them."""


@method(title="Task-wise AdaMerging", cite="yang2024adamerging", access=Access.UNLABELLED)
def task_wise_adamerging(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    steps: Steps = 500,
    learning_rate: Positive = 1e-3,
    images_per_task: Count = 32,
    share: Share = 1.0,
    initial: Coefficient = 0.3,
    clamp: bool = True,
    objective: Objective = "entropy",
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Learn one coefficient per expert: :math:`\theta = \theta_0 + \sum_k \lambda_k \tau_k`.

    Yang et al. 2024, section 3.2. See `layer_wise_adamerging` for arguments, defaults, errors and trace; here the
    coefficients in the trace have one column, named "all", and "path" holds them as used before the first and after
    each step, [step][expert].
    """
    return _learn(
        base, experts, data, layers=False, density=None, steps=steps, learning_rate=learning_rate,
        images_per_task=images_per_task, share=share, initial=initial, clamp=clamp, objective=objective, seed=seed,
        watch=watch,
    )  # fmt: skip


@method(title="Task-wise AdaMerging++", cite="yang2024adamerging", access=Access.UNLABELLED)
def task_wise_adamerging_plus(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    density: Share = 0.2,
    steps: Steps = 500,
    learning_rate: Positive = 1e-3,
    images_per_task: Count = 32,
    share: Share = 1.0,
    initial: Coefficient = 0.3,
    clamp: bool = True,
    objective: Objective = "entropy",
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Learn one coefficient per expert for task vectors that TIES has trimmed and made to agree.

    Yang et al. 2024, section 3.2: :math:`\theta = \theta_0 + \sum_k \lambda_k \phi(\tau_k)`, the processed vectors
    :math:`\phi(\tau_k)` kept apart. See `layer_wise_adamerging`; `density` is as in `ties_merging`.
    """
    return _learn(
        base, experts, data, layers=False, density=density, steps=steps, learning_rate=learning_rate,
        images_per_task=images_per_task, share=share, initial=initial, clamp=clamp, objective=objective, seed=seed,
        watch=watch,
    )  # fmt: skip


@method(title="Layer-wise AdaMerging", cite="yang2024adamerging", access=Access.UNLABELLED)
def layer_wise_adamerging(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    steps: Steps = 500,
    learning_rate: Positive = 1e-3,
    images_per_task: Count = 32,
    share: Share = 1.0,
    initial: Coefficient = 0.3,
    clamp: bool = True,
    objective: Objective = "entropy",
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Learn one coefficient per expert and tensor: :math:`\theta^l = \theta_0^l + \sum_k \lambda_k^l \tau_k^l`.

    Yang et al. 2024, section 3.2; a "layer" is one parameter tensor, as in the authors' code. Adam minimises the sum
    over tasks of the mean loss. The tasks adapted to are those of `data.heads`; the pool may be another. Defaults are
    the authors', see `RECIPES`.

    Args:
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name.
        data: heads, encoder and images.
        steps: Adam steps.
        learning_rate: of Adam, with betas (0.9, 0.999) and no weight decay.
        images_per_task: images of each task in a step.
        share: of each task's images, the part that is ever seen, drawn once (the paper's Table 9 has 0.001).
        initial: value that every coefficient starts from.
        clamp: hold the coefficients in [0, 1] in the forward pass. FusionBench does not.
        objective: "entropy" of predictions on unlabelled test images, or "cross-entropy" on labelled training images,
            which the paper compares it with. It decides what `data` holds.
        seed: which images are drawn when.
        watch: called with step and merged weights before the first and after each step.

    Returns:
        The merged weights; the trace has "loss" (one value per step, measured before the step's update), "coefficients"
        ("experts", "tensors", and "values" as used, [expert][tensor]), "stopped" if the optimisation ended early, and
        "bank" if the task vectors did not lie on the device.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range, or
            images that do not match the heads or the objective.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the coefficients of the lowest loss so far are kept.
    """
    return _learn(
        base, experts, data, layers=True, density=None, steps=steps, learning_rate=learning_rate,
        images_per_task=images_per_task, share=share, initial=initial, clamp=clamp, objective=objective, seed=seed,
        watch=watch,
    )  # fmt: skip


@method(title="Layer-wise AdaMerging++", cite="yang2024adamerging", access=Access.UNLABELLED)
def layer_wise_adamerging_plus(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    density: Share = 0.2,
    steps: Steps = 500,
    learning_rate: Positive = 1e-3,
    images_per_task: Count = 32,
    share: Share = 1.0,
    initial: Coefficient = 0.3,
    clamp: bool = True,
    objective: Objective = "entropy",
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Learn one coefficient per expert and tensor for task vectors that TIES has trimmed and made to agree.

    Yang et al. 2024, section 3.2. See `task_wise_adamerging_plus` and `layer_wise_adamerging`.
    """
    return _learn(
        base, experts, data, layers=True, density=density, steps=steps, learning_rate=learning_rate,
        images_per_task=images_per_task, share=share, initial=initial, clamp=clamp, objective=objective, seed=seed,
        watch=watch,
    )  # fmt: skip


def _learn(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    layers: bool,
    density: float | None,
    steps: int,
    learning_rate: float,
    images_per_task: int,
    share: float,
    initial: float,
    clamp: bool,
    objective: Objective,
    seed: int,
    watch: Watch | None,
) -> Merged:
    """Learn one coefficient per expert, and per tensor if `layers`; with a `density`, for what TIES leaves of them."""
    bank = Bank.of(base, experts)
    if density is not None:
        keep_agreeing(bank.vectors, density, bank.write)
    raw = bank.base.new_full((len(experts), len(bank.shapes) if layers else 1), initial)
    batches = data.batches(images_per_task=images_per_task, steps=steps, seed=seed, keep=share)
    trace = adapt(
        bank, raw, data, batches, adam(raw, learning_rate), objective=objective, steps=steps, clamp=clamp, watch=watch,
        path=not layers,
    )  # fmt: skip
    warn_if_stopped(trace)
    final = effective(raw, clamp)
    tensors = list(bank.shapes) if layers else ["all"]
    trace["coefficients"] = {"experts": list(bank.experts), "tensors": tensors, "values": final.tolist()}
    return Merged(in_dtypes_of(base, bank.merged(final)), trace=trace)
