"""DARE and consensus merging: masks by hand, exact algebra, bad parameters."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.averaging import task_arithmetic
from mergekit_lite.methods.consensus_merging import consensus, tall_mask
from mergekit_lite.methods.dare_merging import dare, draws, keep_mask
from mergekit_lite.methods.registry import Merged
from mergekit_lite.weight_files import LazyWeights, write
from mergekit_lite.weights import task_vector

METHODS: list[Callable[..., Merged]] = [dare, consensus]


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    torch.testing.assert_close(left, dict(right), rtol=0, atol=1e-14)


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("merge", METHODS)
def test_experts_equal_to_the_base_give_the_base(merge: Callable[..., Merged], pico: Pico) -> None:
    assert same_bits(merge(pico.base, {"a": pico.base, "b": pico.base}).weights, pico.base)


@pytest.mark.parametrize("merge", METHODS)
def test_the_order_of_experts_does_not_matter(merge: Callable[..., Merged], pico: Pico) -> None:
    backwards = dict(reversed(pico.experts.items()))
    close(merge(pico.base, pico.experts).weights, merge(pico.base, backwards).weights)


@pytest.mark.parametrize("merge", METHODS)
def test_experts_on_disk_give_the_same_bits(merge: Callable[..., Merged], pico: Pico, tmp_path: Path) -> None:
    for task, expert in pico.experts.items():
        write(tmp_path / task, expert)
    lazy = {task: LazyWeights(tmp_path / task) for task in pico.experts}
    assert same_bits(merge(pico.base, lazy).weights, merge(pico.base, pico.experts).weights)


@pytest.mark.parametrize("merge", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_and_returned_as_half(
    merge: Callable[..., Merged], dtype: torch.dtype, pico: Pico
) -> None:
    def cast(weights: dict[str, Tensor], to: torch.dtype) -> dict[str, Tensor]:
        return {key: tensor.to(to) for key, tensor in weights.items()}

    base, experts = cast(pico.base, dtype), {task: cast(one, dtype) for task, one in pico.experts.items()}
    singles = {task: cast(one, torch.float32) for task, one in experts.items()}
    exact = cast(merge(cast(base, torch.float32), singles).weights, dtype)
    assert same_bits(merge(base, experts).weights, exact)


@pytest.mark.parametrize("merge", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_in_an_expert_are_found(merge: Callable[..., Merged], value: float, pico: Pico) -> None:
    # In every entry of the tensor: DARE drops most of them, and the masks of consensus are false wherever a NaN is.
    pico.experts["textures"]["ln.weight"].fill_(value)
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'textures': 'ln\.weight'\."):
        merge(pico.base, pico.experts)


# DARE


def test_dropping_nothing_is_task_arithmetic_bit_for_bit(pico: Pico) -> None:
    expected = task_arithmetic(pico.base, pico.experts, scaling=0.7).weights
    assert same_bits(dare(pico.base, pico.experts, drop=0.0, scaling=0.7).weights, expected)


def test_what_stays_is_rescaled_and_the_rest_is_the_base(pico: Pico) -> None:
    merged = dare(pico.base, {"signs": pico.experts["signs"]}, drop=0.75, scaling=0.5).weights
    generator = draws(0, "signs")
    for name, vector in task_vector(pico.experts["signs"], pico.base).items():
        mask = keep_mask(vector, 0.75, generator)
        torch.testing.assert_close(merged[name], pico.base[name] + 0.5 * 4 * vector * mask, rtol=0, atol=1e-14)


def test_the_share_dropped_is_the_probability() -> None:
    start = torch.zeros(400, 500)
    for drop in (0.1, 0.5, 0.9, 0.99):
        kept = keep_mask(start, drop, draws(0, "a")).double().mean()
        assert abs(kept - (1 - drop)) < 5 * (drop * (1 - drop) / start.numel()) ** 0.5  # five standard deviations


def test_the_mean_over_seeds_is_task_arithmetic(pico: Pico) -> None:
    seeds, drop = 400, 0.5
    small = {"proj": pico.base["proj"]}
    experts = {task: {"proj": expert["proj"]} for task, expert in pico.experts.items()}
    mean = torch.stack([dare(small, experts, drop=drop, seed=seed).weights["proj"] for seed in range(seeds)]).mean(0)
    vectors = torch.stack([expert["proj"] - small["proj"] for expert in experts.values()])
    deviation = 0.3 * (vectors.square().sum(0) * drop / (1 - drop) / seeds).sqrt()
    error = (mean - task_arithmetic(small, experts).weights["proj"]).abs()
    assert (error < 5 * deviation).all()
    assert error.max() > 0


def test_a_mask_depends_on_seed_expert_and_place_and_on_nothing_else() -> None:
    start = torch.zeros(50, 40)
    mask = keep_mask(start, 0.5, draws(0, "digits"))
    assert torch.equal(mask, keep_mask(start.double() + 1, 0.5, draws(0, "digits")))
    later = draws(0, "digits")
    keep_mask(start, 0.5, later)
    others = [
        keep_mask(start, 0.5, draws(1, "digits")),
        keep_mask(start, 0.5, draws(0, "signs")),
        keep_mask(start, 0.5, later),
    ]
    # Independent masks agree in half of 2000 entries; 0.06 are five standard deviations.
    assert all(abs((mask == other).double().mean() - 0.5) < 0.06 for other in others)


def test_the_draw_depends_neither_on_names_of_tensors_nor_on_where_they_are_cut(pico: Pico) -> None:
    def cut(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{name}/{row}": part for name, tensor in weights.items() for row, part in enumerate(tensor)}

    whole = dare(pico.base, pico.experts).weights
    parts = dare(cut(pico.base), {task: cut(expert) for task, expert in pico.experts.items()}).weights
    assert same_bits(parts, cut(whole))


def test_a_larger_drop_drops_more_of_the_same_entries() -> None:
    masks = [keep_mask(torch.zeros(50, 40), drop, draws(0, "a")) for drop in (0.0, 0.3, 0.6, 0.9)]
    assert masks[0].all()
    assert all((fewer <= more).all() for more, fewer in pairwise(masks))


def test_masks_do_not_depend_on_who_else_is_in_the_pool_or_on_the_global_generator(pico: Pico) -> None:
    alone = {"signs": pico.experts["signs"]}
    still = {task: pico.base for task in pico.experts} | alone
    torch.manual_seed(1)
    first = dare(pico.base, still).weights
    torch.manual_seed(2)
    assert same_bits(first, dare(pico.base, alone).weights)
    assert not same_bits(first, dare(pico.base, alone, seed=1).weights)


@pytest.mark.parametrize("drop", [1.0, -0.1])
def test_a_drop_outside_its_range_is_a_clear_error(drop: float, pico: Pico) -> None:
    with pytest.raises(KitError, match=rf"Parameter 'drop' of method 'dare' cannot be {drop} \(float\)"):
        dare(pico.base, pico.experts, drop=drop)


# Consensus

VECTORS = torch.tensor(
    [
        [1.0, 1.0, 4.0, 0.0, 2.0, -3.0],
        [1.0, 0.0, 1.0, 0.0, -2.0, 1.0],
        [1.0, 0.0, 1.0, 0.0, 2.0, 1.0],
    ]
)
# Each against half of the others' sum. Entry 0: 1 >= 1, all three. Entry 1: 1 >= 0 and twice 0 >= 0.5, one. Entry 2:
# 4 >= 1 and twice 1 >= 2.5, one. Entry 3: 0 >= 0, all. Entry 4: 2 >= 0, 2 >= 2, 2 >= 0, all.
# Entry 5: 3 >= 1, twice 1 >= 1, all.
MASKS = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1]]).bool()


def by_hand(**parameters: float) -> list[float]:
    base = torch.arange(6.0)
    experts = {name: {"x": base + vector} for name, vector in zip("abc", VECTORS, strict=True)}
    merge: Callable[..., Merged] = consensus
    return (merge({"x": base}, experts, scaling=1.0, **parameters).weights["x"] - base).tolist()


def test_a_tall_mask_compares_a_task_with_all_others_together() -> None:
    total = VECTORS.sum(dim=0)
    assert total.tolist() == [3, 1, 6, 0, 2, -1]
    assert torch.equal(tall_mask(VECTORS, total, 0.5), MASKS)
    assert torch.equal(torch.stack([tall_mask(vector, total, 0.5) for vector in VECTORS]), MASKS)


@pytest.mark.parametrize(
    ("agreement", "kept"), [(1, [3, 1, 6, 0, 2, -1]), (2, [3, 0, 0, 0, 2, -1]), (3, [3, 0, 0, 0, 2, -1])]
)
def test_consensus_keeps_what_enough_tasks_rely_on(agreement: int, kept: list[float]) -> None:
    assert by_hand(mask_threshold=0.5, agreement=agreement) == kept


def test_a_higher_threshold_keeps_less() -> None:
    # Above a half, entries 0 and 5 lose the tasks that just met it; entry 4 keeps its first and its third.
    assert by_hand(mask_threshold=0.51, agreement=2) == [0, 0, 0, 0, 2, 0]
    assert by_hand(mask_threshold=0.51, agreement=3) == [0, 0, 0, 0, 0, 0]


def test_a_threshold_of_zero_is_task_arithmetic(pico: Pico) -> None:
    merged = consensus(pico.base, pico.experts, mask_threshold=0.0, agreement=3).weights
    close(merged, task_arithmetic(pico.base, pico.experts).weights)


def test_the_vectors_of_the_masks_are_unscaled_and_the_kept_entries_are_those_of_the_sum(pico: Pico) -> None:
    merged = consensus(pico.base, pico.experts, scaling=0.4).weights
    vectors = [task_vector(expert, pico.base) for expert in pico.experts.values()]
    for name, start in pico.base.items():
        total = vectors[0][name] + vectors[1][name] + vectors[2][name]
        count = sum((one[name].abs() >= 0.4 * (total - one[name]).abs()).int() for one in vectors)
        assert isinstance(count, Tensor)
        kept = torch.where(count >= 2, total, 0)
        assert name.startswith("ln.") or 0 < kept.count_nonzero() < kept.numel()  # six entries may all agree
        torch.testing.assert_close(merged[name], start + 0.4 * kept, rtol=0, atol=1e-14)


def test_one_expert_relies_on_all_of_itself(pico: Pico) -> None:
    alone = {"signs": pico.experts["signs"]}
    close(consensus(pico.base, alone, agreement=1, scaling=1.0).weights, pico.experts["signs"])


def test_an_agreement_larger_than_the_pool_is_a_clear_error(pico: Pico) -> None:
    with pytest.raises(KitError, match=r"'agreement' of method 'consensus' is 4, but the pool has 3 experts: no entry"):
        consensus(pico.base, pico.experts, agreement=4)


@pytest.mark.parametrize(("name", "value"), [("mask_threshold", -0.1), ("agreement", 0)])
def test_parameters_of_consensus_outside_their_range_are_clear_errors(name: str, value: float, pico: Pico) -> None:
    merge: Callable[..., Merged] = consensus
    with pytest.raises(KitError, match=rf"Parameter '{name}' of method 'consensus' cannot be {value} "):
        merge(pico.base, pico.experts, **{name: value})
