"""AdaRank: learn on unlabelled test images which singular components of the task vectors stay (Lee et al. 2026)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mergekit_lite.methods.registry import (
    Access,
    Coefficient,
    Count,
    Merged,
    Positive,
    Share,
    Steps,
    TaskData,
    Watch,
    method,
)
from mergekit_lite.methods.shared.adapting import adam, adapt
from mergekit_lite.methods.shared.components import Components
from mergekit_lite.methods.shared.stopping import warn_if_stopped
from mergekit_lite.weights import Pool, Weights, in_dtypes_of, widest

Origin = Literal["base", "mean"]
Learned = Literal["both", "masks", "coefficients"]

ON = 0.1
"""What the raw masks of components that stay start from, and those of the others from its negative."""

RECIPES: dict[str, dict[str, Any]] = {
    "task arithmetic": {"origin": "base", "initial": 0.3, "kept": 1.0},
    "task arithmetic, 20 tasks": {"origin": "base", "initial": 0.05, "kept": 1.0},
    "CART": {"origin": "mean", "initial": 2.3, "kept": 0.16},
    "CART, 14 tasks": {"origin": "mean", "initial": 2.8, "kept": 0.32},
    "CART, 20 tasks": {"origin": "mean", "initial": 2.4, "kept": 0.32},
}
"""The authors' settings for ViT-B/32, eight tasks where nothing else is said; all with 16 images and 10,000 steps."""


@method(title="AdaRank", cite="lee2026adarank", access=Access.UNLABELLED)
def adarank(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    origin: Origin = "base",
    initial: Coefficient = 0.3,
    kept: Annotated[float, Field(ge=0, le=1)] = 1.0,
    learned: Learned = "both",
    steps: Steps = 10_000,
    learning_rate: Positive = 1e-3,
    images_per_task: Count = 16,
    share: Share = 1.0,
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Learn masks on singular components, and coefficients: :math:`O + \sum_k \lambda_k U_k (m_k \odot S_k) V_k^\top`.

    Lee et al. 2026 (arXiv 2503.22178). :math:`U_k S_k V_k^\top = \theta_k - O` is a thin singular value decomposition,
    for each weight matrix of the attention and of the MLP; :math:`m_k` is 1 where a raw mask :math:`b_k` is above 0,
    else 0. All other tensors are :math:`O + \sum_k \lambda_k (\theta_k - O)`. As in
    `layer_wise_adamerging`, Adam lowers the sum over tasks of the mean entropy of predictions; here it changes the
    masks, and one coefficient per expert and tensor. The gradient passes straight through the step from b to m, see
    `Components.gradient`. A raw mask starts 0.1 away from 0, so that at the default learning rate the first of them
    turns after about 100 steps: fewer steps learn coefficients only.

    Args:
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name; the decompositions of all of them are held on the device.
        data: heads, encoder and images. The tasks adapted to are those of `data.heads`; the pool may be another.
        origin: O, the "base" (on task arithmetic), or the "mean" of the experts (on CART).
        initial: value that every coefficient starts from; see `RECIPES` for that which goes with the mean.
        kept: share of the components, the first int(R * kept) of each matrix, that are there at the start.
        learned: masks and coefficients, or one of them while the other stays as it starts.
        steps: Adam steps.
        learning_rate: of Adam, with betas (0.9, 0.999) and no weight decay.
        images_per_task: images of each task in a step.
        share: of each task's images, the part that is ever seen, drawn once.
        seed: which images are drawn when.
        watch: called with step and merged weights before the first and after each step.

    Returns:
        The merged weights of the last step; the trace has "loss" (one value per step, measured before the step's
        update), "coefficients" ("experts", "tensors", and "values", [expert][tensor]), "kept" (for each matrix by name
        the number of components that each expert has left), "stopped" if the optimisation ended early, and "bank" if
        the task vectors did not lie on the device.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range, or
            images that do not match the heads.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; masks and coefficients of the lowest loss are kept.
    """
    start = (
        {name: tensor.to(widest(base)) for name, tensor in base.items()} if origin == "base" else mean(base, experts)
    )
    parts = Components.of(start, experts, [name for name in base if is_masked(name, base[name])])
    parts.coefficients.fill_(initial)
    for mask in parts.masks.values():
        mask.fill_(-ON)[:, : int(mask.shape[1] * kept)] = ON
    learns = torch.ones_like(parts.raw)
    learns[: parts.coefficients.numel()] = float(learned != "masks")
    learns[parts.coefficients.numel() :] = float(learned != "coefficients")
    update = adam(parts.raw, learning_rate)
    batches = data.batches(images_per_task=images_per_task, steps=steps, seed=seed, keep=share)
    trace = adapt(
        parts, parts.raw, data, batches, lambda gradient: update(gradient * learns), objective="entropy", steps=steps,
        watch=watch,
    )  # fmt: skip
    warn_if_stopped(trace)
    values = parts.coefficients.tolist()
    trace["coefficients"] = {"experts": list(experts), "tensors": list(base), "values": values}
    trace["kept"] = {name: (mask > 0).sum(dim=1).tolist() for name, mask in parts.masks.items()}
    return Merged(in_dtypes_of(base, parts.merged(parts.raw)), trace=trace)


def is_masked(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a weight matrix of the attention or of the MLP of a block, by the authors' rule."""
    inside = "attn" in name or "mlp" in name
    return inside and "ln" not in name and "bias" not in name and tensor.dim() == 2


def mean(base: Mapping[str, Tensor], experts: Pool) -> Weights:
    """Return the average of the experts, not rounded to the base's dtype."""
    wide = widest(base)
    return {
        name: sum((expert[name].to(start.device, wide) for expert in experts.values()), start.new_zeros((), dtype=wide))
        / len(experts)
        for name, start in base.items()
    }
