"""AdaMerging: the coefficient gradient and the whole optimisation equal a plain autograd implementation in float64."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conftest import GivenData, Pico
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods import (
    Merged,
    get,
    layer_wise_adamerging,
    layer_wise_adamerging_plus,
    task_wise_adamerging,
    task_wise_adamerging_plus,
    ties_merging,
)
from mergekit_lite.methods.shared.adapting import coefficient_gradient, effective
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.objectives import loss_and_gradient, mean_entropy
from mergekit_lite.methods.ties import keep_agreeing

METHODS = {
    1: task_wise_adamerging,
    4: layer_wise_adamerging,
}  # by columns of coefficients; the pico model has 4 tensors


def exact(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def naive_clamp(raw: Tensor) -> Tensor:
    """Clamp to [0, 1] with gradient one on the borders, which torch.clamp has in some releases and not in others."""
    return torch.where((raw < 0) | (raw > 1), raw.detach().clamp(0, 1), raw)


def naive_merge(pico: Pico, raw: Tensor, clamp: bool) -> dict[str, Tensor]:
    """Add up scaled task vectors with autograd looking on."""
    used = naive_clamp(raw) if clamp else raw
    merged = {}
    for layer, (name, start) in enumerate(pico.base.items()):
        column = 0 if raw.shape[1] == 1 else layer
        merged[name] = start + sum(
            used[k, column] * (expert[name] - start) for k, expert in enumerate(pico.experts.values())
        )
    return merged


def naive_loss(pico: Pico, raw: Tensor, images: Mapping[str, Tensor], clamp: bool) -> Tensor:
    """One forward a task, entropy by its definition."""
    merged = naive_merge(pico, raw, clamp)
    loss = torch.zeros((), dtype=torch.float64)
    for task, head in pico.heads.items():
        chances = torch.softmax(pico.encode(merged, images[task]) @ head.T, dim=1)
        loss = loss + -(chances * torch.log(chances)).sum(dim=1).mean()
    return loss


def starts(columns: int, pico: Pico) -> Tensor:
    """Coefficients inside, outside and exactly on the borders of [0, 1]."""
    raw = 2 * torch.rand(3, columns, dtype=torch.float64, generator=pico.generator) - 0.5
    raw[0, 0], raw[1, -1] = 0.0, 1.0
    raw[2, 0] = -0.2
    return raw


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("columns", [1, 4])
def test_the_coefficient_gradient_is_the_one_that_autograd_finds(columns: int, clamp: bool, pico: Pico) -> None:
    raw = starts(columns, pico)
    data = pico.data(steps=1)
    expected = raw.clone().requires_grad_()
    loss = naive_loss(pico, expected, data.given[0], clamp)
    loss.backward()

    bank = Bank.of(pico.base, pico.experts)
    measured, gradients = loss_and_gradient(data, bank.merged(effective(raw, clamp)), data.given[0], "entropy")
    gradient = coefficient_gradient(bank, raw, gradients, clamp)
    assert measured == pytest.approx(loss.item(), rel=1e-12)
    assert expected.grad is not None
    exact(gradient, expected.grad)
    if clamp:  # the cases that tell conventions apart really are in the test
        assert expected.grad[0, 0] != 0  # on the border the gradient passes
        assert expected.grad[2, 0] == 0  # outside it does not


def test_off_the_borders_the_clamp_is_torch_clamp() -> None:
    raw = torch.tensor([-0.7, -0.1, 0.2, 0.9, 1.1], dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(naive_clamp(raw).square().sum(), raw)
    (theirs,) = torch.autograd.grad(raw.clamp(0, 1).square().sum(), raw)
    assert torch.equal(ours, theirs)
    assert torch.equal(naive_clamp(raw), effective(raw, True))


@pytest.mark.parametrize("initial", [0.3, 0.0, 1.0, 0.002])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("columns", [1, 4])
def test_five_steps_equal_plain_autograd(columns: int, clamp: bool, initial: float, pico: Pico) -> None:
    data = pico.data(steps=5)
    raw = torch.full((3, columns), initial, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    losses = []
    for images in data.given:
        optimiser.zero_grad()
        loss = naive_loss(pico, raw, images, clamp)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    merged = METHODS[columns](
        pico.base, pico.experts, data, steps=5, learning_rate=1e-2, initial=initial, clamp=clamp, seed=7, share=0.5
    )
    assert data.asked == [{"images_per_task": 32, "steps": 5, "seed": 7, "keep": 0.5}]
    assert merged.trace["loss"] == pytest.approx(losses, rel=1e-10)
    used = raw.detach().clamp(0, 1) if clamp else raw.detach()
    found = torch.tensor(merged.trace["coefficients"]["values"], dtype=torch.float64)
    exact(found, used)
    exact(merged.weights, naive_merge(pico, used, clamp))


def test_the_trace_names_rows_and_columns_and_is_json(pico: Pico) -> None:
    data = pico.data(steps=2)
    layers = layer_wise_adamerging(pico.base, pico.experts, data, steps=2).trace
    assert layers["coefficients"]["experts"] == ["digits", "signs", "textures"]
    assert layers["coefficients"]["tensors"] == ["conv1.weight", "ln.weight", "ln.bias", "proj"]
    assert [len(row) for row in layers["coefficients"]["values"]] == [4, 4, 4]
    assert len(layers["loss"]) == 2
    assert "stopped" not in layers
    tasks = task_wise_adamerging(pico.base, pico.experts, data, steps=2).trace
    assert tasks["coefficients"]["tensors"] == ["all"]
    assert json.loads(json.dumps(tasks)) == tasks
    assert "path" not in layers


@pytest.mark.parametrize("merge", [task_wise_adamerging, task_wise_adamerging_plus])
def test_the_path_of_task_wise_coefficients_goes_from_the_start_to_the_end(
    merge: Callable[..., Merged], pico: Pico
) -> None:
    data = pico.data(steps=3)
    long, short = (merge(pico.base, pico.experts, data, steps=steps, learning_rate=0.5).trace for steps in (3, 2))
    assert len(long["path"]) == 4
    assert long["path"][0] == [0.3] * 3
    for trace in (long, short):
        assert [[value] for value in trace["path"][-1]] == trace["coefficients"]["values"]
    assert long["path"][:3] == short["path"]
    assert all(0 <= value <= 1 for values in long["path"] for value in values)  # as used, not as learned


@pytest.mark.parametrize("merge", [task_wise_adamerging, layer_wise_adamerging])
def test_no_steps_give_task_arithmetic(merge: Callable[..., Merged], pico: Pico) -> None:
    plain = get("task_arithmetic").function(pico.base, pico.experts, scaling=0.3).weights
    torch.testing.assert_close(merge(pico.base, pico.experts, pico.data(steps=0), steps=0).weights, plain)


def test_the_loss_falls(pico: Pico) -> None:
    data = pico.data(steps=1)
    data.given *= 60
    losses = layer_wise_adamerging(pico.base, pico.experts, data, steps=60, learning_rate=1e-2).trace["loss"]
    assert losses[-1] < losses[0] - 0.1


def test_the_watcher_sees_every_step_and_the_end(pico: Pico) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    merged = layer_wise_adamerging(pico.base, pico.experts, pico.data(steps=3), steps=3, watch=seen.__setitem__)
    assert list(seen) == [0, 1, 2, 3]
    exact(seen[3], merged.weights)
    plain = get("task_arithmetic").function(pico.base, pico.experts, scaling=0.3).weights
    exact(seen[0], plain)  # not overwritten by the steps after it


def test_the_tasks_adapted_to_may_differ_from_the_pool(pico: Pico) -> None:
    data = pico.data(steps=2)
    pool = {task: pico.experts[task] for task in ("signs", "textures")}
    few = GivenData({"digits": data.heads["digits"]}, data.encode, [{"digits": one["digits"]} for one in data.given])
    merged = layer_wise_adamerging(pico.base, pool, few, steps=2)
    assert merged.trace["coefficients"]["experts"] == ["signs", "textures"]
    weights = get("task_arithmetic").function(pico.base, pool, scaling=0.3).weights
    alone = mean_entropy(data.encode(weights, few.given[0]["digits"]), data.heads["digits"])
    assert merged.trace["loss"][0] == pytest.approx(alone.item(), rel=1e-10)


@pytest.mark.parametrize("columns", [1, 4])
def test_the_plus_variants_adapt_task_vectors_processed_by_ties(columns: int, pico: Pico) -> None:
    data = pico.data(steps=3)
    plus = {1: task_wise_adamerging_plus, 4: layer_wise_adamerging_plus}[columns]
    merged = plus(pico.base, pico.experts, data, steps=3, density=0.4)
    kept = Bank.of(pico.base, pico.experts).vectors
    keep_agreeing(kept, 0.4)
    assert 0 < kept.count_nonzero() < 0.4 * kept.numel()
    columns_of = Bank.of(pico.base, pico.experts).columns
    processed = {
        task: {key: start + row[columns_of[key]].view(start.shape) for key, start in pico.base.items()}
        for task, row in zip(pico.experts, kept, strict=True)
    }
    expected = METHODS[columns](pico.base, processed, data, steps=3)
    exact(merged.weights, expected.weights)


def test_before_any_step_the_plus_variants_are_ties_merging(pico: Pico) -> None:
    start = layer_wise_adamerging_plus(pico.base, pico.experts, pico.data(steps=0), steps=0)
    exact(start.weights, ties_merging(pico.base, pico.experts, density=0.2, scaling=0.3).weights)


def test_with_labels_the_loss_is_the_cross_entropy_and_its_gradient_that_of_autograd(pico: Pico) -> None:
    data = pico.data(steps=1)
    labels = {task: torch.arange(len(images)) % len(pico.heads[task]) for task, images in data.given[0].items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in pico.base.items()}
    expected = sum(
        torch.nn.functional.nll_loss((pico.encode(leaves, images) @ pico.heads[task].T).log_softmax(1), labels[task])
        for task, images in data.given[0].items()
    )
    assert isinstance(expected, Tensor)
    batch = {task: (images, labels[task]) for task, images in data.given[0].items()}
    loss, gradients = loss_and_gradient(data, pico.base, batch, "cross-entropy")
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    exact(gradients, dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values())), strict=True)))


def test_the_loss_of_one_task_needs_that_task_only(pico: Pico) -> None:
    data = pico.data(steps=1)
    images = data.given[0]["signs"]
    loss, _ = loss_and_gradient(data, pico.base, {"signs": images}, "entropy", tasks=["signs"])
    assert loss == pytest.approx(mean_entropy(data.encode(pico.base, images), pico.heads["signs"]).item(), rel=1e-12)


def test_a_tensor_that_the_loss_does_not_reach_keeps_its_coefficients(pico: Pico) -> None:
    unused = {"logit_scale": torch.zeros((), dtype=torch.float64)}
    experts = {
        task: {**expert, "logit_scale": torch.ones((), dtype=torch.float64)} for task, expert in pico.experts.items()
    }
    merged = layer_wise_adamerging({**pico.base, **unused}, experts, pico.data(steps=3), steps=3)
    values = torch.tensor(merged.trace["coefficients"]["values"])
    assert merged.trace["coefficients"]["tensors"][-1] == "logit_scale"
    assert values[:, -1].tolist() == [pytest.approx(0.3)] * 3
    assert (values[:, :-1] != 0.3).all()


def test_float32_base_gives_float32_weights_close_to_float64(pico: Pico) -> None:
    data = pico.data(steps=5)
    wide = layer_wise_adamerging(pico.base, pico.experts, data, steps=5).weights

    def single(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.float() for name, tensor in weights.items()}

    images = [single(one) for one in data.given]
    narrow = GivenData(data.heads, data.encode, images)  # heads stay float64: they follow the features' dtype
    experts = {task: single(expert) for task, expert in pico.experts.items()}
    merged = layer_wise_adamerging(single(pico.base), experts, narrow, steps=5).weights
    torch.testing.assert_close(merged, single(wide), rtol=1e-5, atol=1e-6)


def spoilt(pico: Pico, steps: int, bad: int, how: str) -> GivenData:
    """Return data whose encoder gives NaN features, or a NaN gradient behind good features, at step `bad`."""
    data = pico.data(steps)
    calls = iter(range(1, steps + 1))

    def encode(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        features = pico.encode(weights, images)
        if next(calls) != bad:
            return features
        if how == "loss":
            return features * float("nan")
        # sqrt has an infinite slope at zero, and infinity times zero is NaN: right value, wrong gradient.
        return features + (weights["proj"].sum() * 0).abs().sqrt()

    return GivenData(data.heads, encode, data.given)


@pytest.mark.parametrize(("how", "what"), [("loss", "the loss became nan"), ("gradient", "the gradient became NaN")])
def test_a_loss_that_becomes_nan_keeps_the_best_coefficients(how: str, what: str, pico: Pico) -> None:
    data = spoilt(pico, 6, 5, how)
    lowest: list[dict[str, Tensor]] = []
    with pytest.warns(RuntimeWarning, match=rf"^Stopped at step 5: {what}.* lowest loss") as caught:
        merged = layer_wise_adamerging(
            pico.base, pico.experts, data, steps=6, watch=lambda _, weights: lowest.append(weights)
        )
    assert caught[0].filename == __file__
    losses = merged.trace["loss"]
    assert len(losses) == 4
    best = losses.index(min(losses))
    assert f"Kept is the state of step {best + 1}, " in merged.trace["stopped"]
    exact(merged.weights, lowest[best])  # watched before that step's update
    json.dumps(merged.trace, allow_nan=False)


def test_a_loss_that_is_nan_from_the_start_keeps_the_initial_coefficients(pico: Pico) -> None:
    data = spoilt(pico, 2, 1, "loss")
    with pytest.warns(
        RuntimeWarning, match=r"Stopped at step 1: the loss became nan\. Kept is the state of the start\."
    ):
        merged = task_wise_adamerging(pico.base, pico.experts, data, steps=2)
    assert merged.trace["loss"] == []
    assert merged.trace["coefficients"]["values"] == [[0.3]] * 3


def test_images_that_do_not_match_the_heads_are_clear_errors(pico: Pico) -> None:
    data = pico.data(steps=1)
    data.given[0]["textures"] = data.given[0]["textures"][:0]
    data.given[0]["birds"] = data.given[0].pop("signs")
    message = (
        r"^Each step needs images of every task that has a head\. Without images: signs, textures; "
        r"without head: birds; heads: digits, signs, textures\.$"
    )
    with pytest.raises(KitError, match=message):
        layer_wise_adamerging(pico.base, pico.experts, data, steps=1)


@pytest.mark.parametrize("merge", [*METHODS.values(), task_wise_adamerging_plus, layer_wise_adamerging_plus])
def test_the_cross_entropy_is_not_taken_for_the_entropy_where_labels_are_missing(
    merge: Callable[..., Merged], pico: Pico
) -> None:
    with pytest.raises(KitError, match=r"'digits' have no labels.* objective 'cross-entropy'\. .* 'labelled train'"):
        merge(pico.base, pico.experts, pico.data(steps=1), steps=1, objective="cross-entropy")


def test_too_few_batches_are_a_clear_error(pico: Pico) -> None:
    with pytest.raises(KitError, match=r"The data gave 2 batches for 3 steps\."):
        layer_wise_adamerging(pico.base, pico.experts, pico.data(steps=2), steps=3)


def test_nan_in_an_expert_is_found_before_the_first_step(pico: Pico) -> None:
    pico.experts["signs"]["proj"][0, 0] = float("nan")
    data = pico.data(steps=1)
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'signs': 'proj'\."):
        layer_wise_adamerging(pico.base, pico.experts, data, steps=1)
    assert data.asked == []
