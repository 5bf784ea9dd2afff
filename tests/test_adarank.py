"""AdaRank: gradients and steps equal a plain implementation with autograd in float64, and its limits hold."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mergekit_lite.errors import KitError
from mergekit_lite.methods import adarank, all_methods, layer_wise_adamerging, resolve, simple_average, task_arithmetic
from mergekit_lite.methods.adarank_merging import RECIPES, is_masked
from mergekit_lite.methods.shared.components import Components
from mergekit_lite.methods.shared.objectives import loss_and_gradient

TASKS = {"a": 4, "b": 3, "c": 5}
MASKED = ("block.attn.weight", "block.mlp.weight")

Weights = dict[str, Tensor]


def exact(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def encode(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """One "attention" and one "MLP" of a kind, so that the names of matrices are a CLIP's."""
    hidden = images.flatten(1) @ weights["patch.weight"].T
    hidden = (hidden @ weights["block.attn.weight"].T + weights["block.attn.bias"]).tanh() * weights[
        "block.ln_1.weight"
    ]
    return normalize((hidden @ weights["block.mlp.weight"].T).tanh() @ weights["head.weight"].T, dim=1)


@dataclass
class Given:
    """Batches that are given, the same for everyone; sizes differ between tasks."""

    heads: Mapping[str, Tensor]
    given: list[dict[str, Tensor]]
    asked: list[dict[str, Any]] = field(default_factory=list)

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return encode(weights, images)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        self.asked.append({"images_per_task": images_per_task, "steps": steps, "seed": seed, "keep": keep})
        return iter(self.given[:steps])


Pool = tuple[Weights, dict[str, Weights], Given]


@pytest.fixture
def pool() -> Pool:
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = {
        "patch.weight": (6, 12),
        "block.attn.weight": (7, 6),
        "block.attn.bias": (7,),
        "block.ln_1.weight": (7,),
        "block.mlp.weight": (5, 7),
        "head.weight": (4, 5),
    }
    base = {name: noise(*shape, scale=0.5) for name, shape in shapes.items()}
    experts = {task: {name: one + noise(*one.shape, scale=0.2) for name, one in base.items()} for task in TASKS}
    heads = {task: 5 * normalize(noise(classes, 4), dim=1) for task, classes in TASKS.items()}
    given = [{task: noise(3 + place, 3, 2, 2) for place, task in enumerate(TASKS)} for _ in range(30)]
    return base, experts, Given(heads, given)


class Through(torch.autograd.Function):
    """1 or 0 in the forward pass; in the backward pass the slope of sigmoid(b / 10)."""

    @staticmethod
    def forward(context: Any, raw: Tensor) -> Tensor:
        context.save_for_backward(raw)
        return (torch.sigmoid(raw / 10) > 0.5).to(raw)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (raw,) = context.saved_tensors
        soft = torch.sigmoid(raw / 10)
        return gradients[0] * soft * (1 - soft) / 10


def naive_merge(
    origin: Weights, experts: Mapping[str, Weights], scales: Tensor, masks: Mapping[str, Tensor]
) -> Weights:
    """Return the merged weights, with autograd looking on; masks (K, R) by name, scales (K, L)."""
    merged = {}
    for layer, (name, start) in enumerate(origin.items()):
        total = start
        for k, expert in enumerate(experts.values()):
            vector = expert[name] - start
            if name in masks:
                u, s, v = torch.linalg.svd(vector, full_matrices=False)
                vector = u @ torch.diag(Through.apply(masks[name][k]) * s) @ v
            total = total + scales[k, layer] * vector
        merged[name] = total
    return merged


def naive_loss(weights: Mapping[str, Tensor], heads: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for task, head in heads.items():
        logs = torch.log_softmax(encode(weights, images[task]) @ head.T, dim=1)
        loss = loss + -(logs.exp() * logs).sum(dim=1).mean()
    return loss


def mean(experts: Mapping[str, Weights]) -> Weights:
    first = next(iter(experts.values()))
    return {name: torch.stack([expert[name] for expert in experts.values()]).mean(0) for name in first}


def naive_adarank(
    pool: Pool, origin: Weights, initial: float, ratio: float, steps: int, rate: float
) -> tuple[Any, Any]:
    """Return merged weights and losses of a plain loop."""
    base, experts, data = pool
    scales = torch.full((len(experts), len(base)), initial, dtype=torch.float64, requires_grad=True)
    masks = {}
    for name in MASKED:
        rank = min(base[name].shape)
        raw = torch.where(torch.arange(rank) < int(rank * ratio), 0.1, -0.1).double()
        masks[name] = raw.repeat(len(experts), 1).requires_grad_()
    optimiser = torch.optim.Adam([scales, *masks.values()], lr=rate, betas=(0.9, 0.999))
    losses = []
    for images in data.given[:steps]:
        optimiser.zero_grad()
        loss = naive_loss(naive_merge(origin, experts, scales, masks), data.heads, images)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        return naive_merge(origin, experts, scales, masks), losses


def test_the_gradient_is_the_one_that_autograd_finds(pool: Pool) -> None:
    base, experts, data = pool
    parts = Components.of(base, experts, MASKED)
    generator = torch.Generator().manual_seed(0)
    parts.raw.copy_(torch.randn(len(parts.raw), generator=generator, dtype=torch.float64))
    scales = parts.coefficients.clone().requires_grad_()
    masks = {name: mask.clone().requires_grad_() for name, mask in parts.masks.items()}
    loss = naive_loss(naive_merge(base, experts, scales, masks), data.heads, data.given[0])
    loss.backward()
    measured, gradients = loss_and_gradient(data, parts.merged(parts.raw), data.given[0], "entropy")
    assert measured == pytest.approx(loss.item(), rel=1e-10)
    leaves = [scales, *masks.values()]
    expected = torch.cat([one.grad.flatten() for one in leaves if one.grad is not None])
    exact(parts.gradient(gradients), expected)
    assert all((mask > 0).any() and (mask < 0).any() for mask in masks.values())  # both kinds are in the test
    assert (expected != 0).all()  # what is switched off has a gradient too


@pytest.mark.parametrize(("form", "initial", "ratio"), [("base", 0.3, 1.0), ("base", 0.3, 0.5), ("mean", 2.3, 0.4)])
def test_twenty_steps_equal_plain_autograd(pool: Pool, form: Any, initial: float, ratio: float) -> None:
    base, experts, data = pool
    origin = base if form == "base" else mean(experts)
    expected, losses = naive_adarank(pool, origin, initial, ratio, 20, 2e-2)
    merged = adarank(
        base, experts, data, origin=form, initial=initial, kept=ratio, steps=20, learning_rate=2e-2, seed=5, share=0.5
    )
    assert data.asked == [{"images_per_task": 16, "steps": 20, "seed": 5, "keep": 0.5}]
    assert merged.trace["loss"] == pytest.approx(losses, rel=1e-8)
    exact(merged.weights, expected, 1e-8)
    counts = {tuple(row) for row in merged.trace["kept"].values()}
    assert counts != {(int(6 * ratio),) * 3}, "no mask has turned, so that the test shows coefficients only"


def test_before_the_first_step_it_is_task_arithmetic(pool: Pool) -> None:
    base, experts, data = pool
    exact(adarank(base, experts, data, steps=0).weights, task_arithmetic(base, experts).weights, 1e-12)
    half = adarank(base, experts, data, steps=0, initial=0.5).weights
    exact(half, task_arithmetic(base, experts, scaling=0.5).weights, 1e-12)


@pytest.mark.parametrize("initial", [0.3, 2.3])
def test_around_the_mean_task_vectors_cancel(pool: Pool, initial: float) -> None:
    base, experts, data = pool
    merged = adarank(base, experts, data, steps=0, origin="mean", initial=initial).weights
    exact(merged, simple_average(base, experts).weights, 1e-12)


def test_with_all_masks_off_matrices_of_blocks_stay(pool: Pool) -> None:
    base, experts, data = pool
    merged, added = adarank(base, experts, data, steps=0, kept=0.0).weights, task_arithmetic(base, experts).weights
    for name in base:
        exact(merged[name], base[name] if name in MASKED else added[name], 1e-12)


def test_a_rank_is_cut_and_not_rounded(pool: Pool) -> None:
    base, experts, data = pool
    kept = adarank(base, experts, data, steps=0, kept=0.59).trace["kept"]
    assert kept == {"block.attn.weight": [3, 3, 3], "block.mlp.weight": [2, 2, 2]}  # int(6 * 0.59), int(5 * 0.59)


def test_with_frozen_masks_it_is_adamerging(pool: Pool) -> None:
    base, experts, data = pool
    ours = adarank(base, experts, data, steps=20, learning_rate=1e-2, learned="coefficients")
    theirs = layer_wise_adamerging(base, experts, data, steps=20, learning_rate=1e-2, clamp=False)
    exact(ours.weights, theirs.weights, 1e-9)
    exact(torch.tensor(ours.trace["coefficients"]["values"]), torch.tensor(theirs.trace["coefficients"]["values"]))


def test_with_frozen_coefficients_only_masks_move(pool: Pool) -> None:
    base, experts, data = pool
    merged = adarank(base, experts, data, steps=20, learning_rate=2e-2, learned="masks")
    added = task_arithmetic(base, experts).weights
    for name in base:
        assert torch.allclose(merged.weights[name], added[name]) == (name not in MASKED)
    assert {value for row in merged.trace["coefficients"]["values"] for value in row} == {0.3}


def test_a_mask_turns_after_a_hundred_steps_at_the_default_rate(pool: Pool) -> None:
    base, experts, data = pool
    few = adarank(base, experts, data, steps=20)
    assert few.trace["kept"] == {"block.attn.weight": [6] * 3, "block.mlp.weight": [5] * 3}
    data.given = data.given * 4
    more = adarank(base, experts, data, steps=120)
    assert min(more.trace["kept"]["block.attn.weight"]) < 6


def test_uniform_predictions_have_no_gradient(pool: Pool) -> None:
    base, experts, data = pool
    data.heads = {task: torch.zeros_like(head) for task, head in data.heads.items()}
    merged = adarank(base, experts, data, steps=3).weights
    exact(merged, task_arithmetic(base, experts).weights, 1e-12)


def test_an_expert_like_the_base_and_low_rank_experts_change_nothing_of_the_others(pool: Pool) -> None:
    base, experts, data = pool
    experts["b"] = {name: one.clone() for name, one in base.items()}
    experts["c"]["block.mlp.weight"] = base["block.mlp.weight"] + torch.outer(torch.ones(5), torch.ones(7)).double()
    expected, _ = naive_adarank(pool, base, 0.3, 1.0, 20, 2e-2)
    exact(adarank(base, experts, data, steps=20, learning_rate=2e-2).weights, expected, 1e-8)


def test_order_of_experts_does_not_matter(pool: Pool) -> None:
    base, experts, data = pool
    merged = adarank(base, experts, data, steps=10, learning_rate=2e-2).weights
    turned = {task: experts[task] for task in reversed(TASKS)}
    exact(adarank(base, turned, data, steps=10, learning_rate=2e-2).weights, merged, 1e-9)


@pytest.mark.parametrize("form", ["base", "mean"])
def test_one_expert_is_learned_too(pool: Pool, form: Any) -> None:
    base, experts, data = pool
    one = {"b": experts["b"]}
    merged = adarank(base, one, data, steps=5, origin=form, initial=1.0).weights
    assert merged.keys() == base.keys()
    if form == "mean":
        exact(merged, one["b"], 1e-12)


def test_which_tensors_have_masks() -> None:
    matrix = torch.zeros(2, 2)
    for name in ("resblocks.0.attn.in_proj_weight", "resblocks.0.mlp.c_fc.weight", "layers.1.self_attn.k_proj.weight"):
        assert is_masked(name, matrix)
    assert not is_masked("resblocks.0.attn.in_proj_bias", matrix[0])
    assert not is_masked("resblocks.0.ln_1.weight", matrix[0])
    assert not is_masked("positional_embedding", matrix)
    assert not is_masked("conv1.weight", torch.zeros(2, 2, 2, 2))


def test_half_precision_comes_back_in_half_precision(pool: Pool) -> None:
    base, experts, data = pool
    halves = {task: {name: one.bfloat16() for name, one in expert.items()} for task, expert in experts.items()}
    data.heads = {task: head.float() for task, head in data.heads.items()}
    data.given = [{task: images.float() for task, images in batch.items()} for batch in data.given]
    start = {name: one.bfloat16() for name, one in base.items()}
    for form in ("base", "mean"):
        merged = adarank(start, halves, data, steps=2, origin=form).weights
        assert {one.dtype for one in merged.values()} == {torch.bfloat16}


def test_the_trace_is_json_and_watch_sees_each_step(pool: Pool) -> None:
    base, experts, data = pool
    seen: list[int] = []
    trace = adarank(base, experts, data, steps=3, watch=lambda step, weights: seen.append(step)).trace
    assert json.loads(json.dumps(trace)) == trace
    assert seen == [0, 1, 2, 3]
    assert trace["coefficients"]["experts"] == list(TASKS)
    assert trace["coefficients"]["tensors"] == list(base)


def test_a_loss_that_becomes_nan_keeps_the_best_so_far(pool: Pool) -> None:
    base, experts, data = pool
    data.given[2]["a"][0] = float("nan")
    with pytest.warns(RuntimeWarning, match="Stopped at step 3: the loss became nan"):
        merged = adarank(base, experts, data, steps=5, learning_rate=2e-2)
    best = min(range(2), key=lambda step: merged.trace["loss"][step])
    again = adarank(base, experts, data, steps=best, learning_rate=2e-2)
    exact(merged.weights, again.weights)


def test_the_recipes_can_be_run_and_bad_parameters_are_refused(pool: Pool) -> None:
    for parameters in RECIPES.values():
        resolve("adarank", parameters)
    with pytest.raises(KitError, match=r"Parameter 'kept' of method 'adarank' cannot be 1\.5"):
        adarank(*pool, kept=1.5)
    (info,) = [one for one in all_methods() if one.name == "adarank"]
    assert str(info.access) == "unlabelled test"
