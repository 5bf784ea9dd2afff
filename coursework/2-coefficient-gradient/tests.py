"""Tests of assignment 2, a point each: what autograd finds in float64 is right."""

import math
from types import ModuleType
from typing import Any

import torch
from mergekit_lite.course import pico
from mergekit_lite.methods import Access
from torch import Tensor

POOL = pico.make(seed=7)  # float64: what is left is rounding
VECTORS = [
    {name: expert[name] - start for name, start in POOL.base.items()}
    for expert in POOL.experts.values()
]
COEFFICIENTS = torch.rand(
    3, len(POOL.base), generator=torch.Generator().manual_seed(7), dtype=torch.float64
)
DATA = POOL.data(Access.UNLABELLED)
BATCH = next(DATA.batches(images_per_task=12, steps=1, seed=7))


def close(found: Any, wanted: Tensor, tolerance: float = 1e-9) -> None:
    assert isinstance(found, Tensor), f"a tensor, not {type(found).__name__}"
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def ours(coefficients: Tensor) -> dict[str, Tensor]:
    return {
        name: start
        + sum(coefficients[k, place] * vector[name] for k, vector in enumerate(VECTORS))
        for place, (name, start) in enumerate(POOL.base.items())
    }


def loss(weights: dict[str, Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for task, images in BATCH.items():
        chances = torch.softmax(
            DATA.encode(weights, images) @ DATA.heads[task].T, dim=1
        )
        total = total + torch.special.entr(chances).sum(dim=1).mean()
    return total


def autograd() -> tuple[float, Tensor]:
    leaves = COEFFICIENTS.clone().requires_grad_()
    with torch.enable_grad():
        value = loss(ours(leaves))
        return value.item(), torch.autograd.grad(value, leaves)[0]


WANTED_LOSS, WANTED_GRADIENT = autograd()


def test_merged(module: ModuleType) -> None:
    found = module.merged(POOL.base, VECTORS, COEFFICIENTS)
    for name, tensor in ours(COEFFICIENTS).items():
        close(found[name], tensor)


def test_merged_leaves_its_arguments_alone(module: ModuleType) -> None:
    before = {name: tensor.clone() for name, tensor in POOL.base.items()}
    found = module.merged(POOL.base, VECTORS, torch.zeros_like(COEFFICIENTS))
    for name, tensor in before.items():
        close(found[name], tensor, 0.0)
        found[name].add_(1.0)
        close(POOL.base[name], tensor, 0.0)


def test_merged_passes_gradients_on(module: ModuleType) -> None:
    leaves = COEFFICIENTS.clone().requires_grad_()
    with torch.enable_grad():
        found = module.merged(POOL.base, VECTORS, leaves)
        (gradient,) = torch.autograd.grad(loss(found), leaves)
    close(gradient, WANTED_GRADIENT)


def test_entropy(module: ModuleType) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]], dtype=torch.float64)
    wanted = (-0.25 * math.log(0.25) - 0.75 * math.log(0.75) + math.log(2)) / 2
    close(module.entropy(logits), torch.tensor(wanted, dtype=torch.float64))


def test_entropy_of_certain_predictions(module: ModuleType) -> None:
    logits = torch.tensor([[1000.0, -1000.0, 0.0]]).requires_grad_()
    with torch.enable_grad():
        value = module.entropy(logits)
        (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0.0
    assert gradient.isfinite().all(), "the gradient is no number"


def test_coefficient_gradient(module: ModuleType) -> None:
    leaves = {
        name: tensor.requires_grad_() for name, tensor in ours(COEFFICIENTS).items()
    }
    with torch.enable_grad():
        parts = torch.autograd.grad(loss(leaves), list(leaves.values()))
    close(
        module.coefficient_gradient(dict(zip(leaves, parts, strict=True)), VECTORS),
        WANTED_GRADIENT,
    )


def test_coefficient_gradient_goes_by_names(module: ModuleType) -> None:
    gradient = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    backwards = {"b": torch.tensor([[-1.0]]), "a": torch.tensor([10.0, 100.0])}
    close(
        module.coefficient_gradient(gradient, [backwards]),
        torch.tensor([[210.0, -3.0]]),
    )


def test_task_wise(module: ModuleType) -> None:
    close(
        module.task_wise(torch.tensor([[1.0, 2.0], [0.0, -3.0]])),
        torch.tensor([3.0, -3.0]),
    )


def test_loss(module: ModuleType) -> None:
    found, _ = module.loss_and_gradient(POOL.base, VECTORS, COEFFICIENTS, BATCH, DATA)
    assert math.isclose(float(found), WANTED_LOSS, rel_tol=1e-9), (
        "the loss is the sum of the tasks' mean entropies"
    )


def test_gradient_of_the_loss(module: ModuleType) -> None:
    _, found = module.loss_and_gradient(POOL.base, VECTORS, COEFFICIENTS, BATCH, DATA)
    close(found, WANTED_GRADIENT)
    assert not found.requires_grad, "no graph is needed behind the gradient"


def test_gradient_goes_downhill(module: ModuleType) -> None:
    _, found = module.loss_and_gradient(POOL.base, VECTORS, COEFFICIENTS, BATCH, DATA)
    with torch.no_grad():
        assert float(loss(ours(COEFFICIENTS - 1e-4 * found))) < WANTED_LOSS
