"""Tests of assignment 1, a point each: a mistake in one part costs that part alone."""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BASE = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[0.0], [-1.0]])}
EXPERT = {"a": torch.tensor([1.5, 2.0, 1.0]), "b": torch.tensor([[4.0], [-1.0]])}
VECTOR = {"a": torch.tensor([0.5, 0.0, -2.0]), "b": torch.tensor([[4.0], [0.0]])}
OTHER = {"a": torch.tensor([-1.0, 1.0, -1.0]), "b": torch.tensor([[1.0], [0.0]])}


def copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def same(found: Any, wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted), (
        f"tensors {list(found)} instead of {list(wanted)}"
    )
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


def test_task_vector(module: ModuleType) -> None:
    same(module.task_vector(copies(EXPERT), copies(BASE)), VECTOR)


def test_task_vector_leaves_its_arguments_alone(module: ModuleType) -> None:
    expert, base = copies(EXPERT), copies(BASE)
    module.task_vector(expert, base)["a"].zero_()
    same(expert, EXPERT)
    same(base, BASE)


def test_combined(module: ModuleType) -> None:
    wanted = {
        name: start + 0.5 * VECTOR[name] - 2 * OTHER[name]
        for name, start in BASE.items()
    }
    same(
        module.combined(copies(BASE), [copies(VECTOR), copies(OTHER)], [0.5, -2.0]),
        wanted,
    )


def test_combined_leaves_the_base_alone(module: ModuleType) -> None:
    base = copies(BASE)
    same(module.combined(base, [copies(VECTOR)], [1.0]), EXPERT)
    same(base, BASE)


def test_cosine_is_of_the_whole_vectors(module: ModuleType) -> None:
    product, lengths = -0.5 + 2 + 4, math.sqrt(0.25 + 4 + 16) * math.sqrt(4)
    assert math.isclose(
        module.cosine(copies(VECTOR), copies(OTHER)), product / lengths, rel_tol=1e-5
    )


def test_cosine_with_zero_is_zero(module: ModuleType) -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in VECTOR.items()}
    found = module.cosine(copies(VECTOR), zero)
    assert isinstance(found, float)
    assert found == 0.0


def test_conflict_share_counts_contested_entries_only(module: ModuleType) -> None:
    # Both change entries 0 and 2 of a, and entry 0 of b; they disagree in the first.
    assert math.isclose(
        module.conflict_share([copies(VECTOR), copies(OTHER)]), 1 / 3, rel_tol=1e-6
    )


def test_conflict_share_of_three(module: ModuleType) -> None:
    third = {"a": torch.tensor([0.0, -1.0, 5.0]), "b": torch.tensor([[2.0], [3.0]])}
    assert math.isclose(
        module.conflict_share([copies(VECTOR), copies(OTHER), third]),
        3 / 4,
        rel_tol=1e-6,
    )


def test_conflict_share_without_contest(module: ModuleType) -> None:
    assert module.conflict_share([copies(VECTOR)]) == 0


def test_trimmed_has_one_threshold(module: ModuleType) -> None:
    wanted = {"a": torch.tensor([0.0, 0.0, -2.0]), "b": torch.tensor([[4.0], [0.0]])}
    same(module.trimmed(copies(VECTOR), 0.4), wanted)


def test_trimmed_keeps_at_least_one(module: ModuleType) -> None:
    wanted = {"a": torch.zeros(3), "b": torch.tensor([[4.0], [0.0]])}
    same(module.trimmed(copies(VECTOR), 0.01), wanted)


def test_trimmed_keeps_all_and_changes_nothing(module: ModuleType) -> None:
    vector = copies(OTHER)
    same(module.trimmed(vector, 1.0), OTHER)
    module.trimmed(vector, 0.2)
    same(vector, OTHER)
