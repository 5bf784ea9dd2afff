"""Data-free methods: algebra that must hold exactly, TIES by hand, and bad input."""

import math
from pathlib import Path

import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods import (
    all_methods,
    fixed_coefficients,
    individual,
    pretrained,
    simple_average,
    task_arithmetic,
    ties_merging,
)
from mergekit_lite.methods.shared import ranks
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.ties import agreeing, cutoff, elect_signs, keep_agreeing, trim
from mergekit_lite.weight_files import LazyWeights, write
from mergekit_lite.weights import task_vector

DATA_FREE = ["simple_average", "task_arithmetic", "ties_merging"]


def call(name: str, *arguments: object, **parameters: object) -> dict[str, Tensor]:
    (info,) = [one for one in all_methods() if one.name == name]
    return info.function(*arguments, **parameters).weights


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    torch.testing.assert_close(left, dict(right), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", DATA_FREE)
def test_experts_equal_to_the_base_give_the_base(name: str, pico: Pico) -> None:
    close(call(name, pico.base, {"a": pico.base, "b": pico.base}), pico.base)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("simple_average", {}),
        ("task_arithmetic", {"scaling": 1.0}),
        ("ties_merging", {"scaling": 1.0, "density": 1.0}),
        ("ties_merging", {"scaling": 1.0, "density": 1.0, "merge": "mean"}),
    ],
)
def test_one_expert_with_coefficient_one_gives_the_expert(name: str, parameters: dict[str, object], pico: Pico) -> None:
    close(call(name, pico.base, {"signs": pico.experts["signs"]}, **parameters), pico.experts["signs"])


@pytest.mark.parametrize("name", DATA_FREE)
def test_the_order_of_experts_does_not_matter(name: str, pico: Pico) -> None:
    close(call(name, pico.base, pico.experts), call(name, pico.base, dict(reversed(pico.experts.items()))))


@pytest.mark.parametrize("name", DATA_FREE)
def test_experts_on_disk_give_the_same_bits(name: str, pico: Pico, tmp_path: Path) -> None:
    for task, expert in pico.experts.items():
        write(tmp_path / task, expert)
    lazy = {task: LazyWeights(tmp_path / task) for task in pico.experts}
    on_disk, in_memory = call(name, pico.base, lazy), call(name, pico.base, pico.experts)
    assert all(torch.equal(on_disk[key], in_memory[key]) for key in pico.base)


@pytest.mark.parametrize("name", DATA_FREE)
def test_half_precision_is_summed_in_float32_and_returned_as_half(name: str, pico: Pico) -> None:
    def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        return {key: tensor.to(dtype) for key, tensor in weights.items()}

    halves = [cast(one, torch.float16) for one in (pico.base, *pico.experts.values())]
    merged = call(name, halves[0], dict(zip("abc", halves[1:], strict=True)))
    singles = [cast(one, torch.float32) for one in halves]
    exact = cast(call(name, singles[0], dict(zip("abc", singles[1:], strict=True))), torch.float16)
    assert all(torch.equal(merged[key], exact[key]) for key in exact)


def test_the_average_is_the_mean_and_task_arithmetic_at_one_over_k_is_the_average(pico: Pico) -> None:
    average = simple_average(pico.base, pico.experts).weights
    close(average, {name: torch.stack([e[name] for e in pico.experts.values()]).mean(0) for name in pico.base})
    close(task_arithmetic(pico.base, pico.experts, scaling=1 / 3).weights, average)


def test_fixed_coefficients_of_one_number_are_task_arithmetic(pico: Pico) -> None:
    expected = task_arithmetic(pico.base, pico.experts, scaling=0.4).weights
    for rows in ([[0.4]], [[0.4]] * 3, [[0.4] * 4], [[0.4] * 4] * 3):
        close(fixed_coefficients(pico.base, pico.experts, coefficients=rows).weights, expected)


def test_fixed_coefficients_go_to_their_expert_and_tensor(pico: Pico) -> None:
    values = torch.rand(3, 4, generator=pico.generator, dtype=torch.float64)
    merged = fixed_coefficients(pico.base, pico.experts, coefficients=values.tolist()).weights
    close(merged, Bank.of(pico.base, pico.experts).merged(values))


@pytest.mark.parametrize("rows", [[[0.3]] * 2, [[0.3] * 3] * 3, [[0.3], [0.3] * 4, [0.3]], []])
def test_fixed_coefficients_of_another_shape_are_refused(rows: list[list[float]], pico: Pico) -> None:
    with pytest.raises(KitError, match=r"3 experts of 4 tensors\. Give 1 or 3 rows, each of 1 or 4 numbers"):
        fixed_coefficients(pico.base, pico.experts, coefficients=rows)


def test_task_arithmetic_adds_scaled_task_vectors(pico: Pico) -> None:
    vectors = [task_vector(expert, pico.base) for expert in pico.experts.values()]
    expected = {name: pico.base[name] + 0.4 * sum(one[name] for one in vectors) for name in pico.base}
    close(task_arithmetic(pico.base, pico.experts, scaling=0.4).weights, expected)


def test_references_are_the_base_and_each_expert(pico: Pico) -> None:
    close(pretrained(pico.base, {}).weights, pico.base)
    reference = individual(pico.base, pico.experts)
    close(dict(reference.for_task("signs")), pico.experts["signs"])
    close(dict(reference.for_task("a task without an expert")), pico.base)


# TIES, by hand: ten parameters in two tensors, two experts.
FIRST = torch.tensor([5.0, -4, 3, -2, 1, 0.5, 0.25, 0, 6, -0.125])
SECOND = torch.tensor([-1.0, -7, -8, 2, 0.5, 0, 0, 9, -6, 0.125])


def split(vector: Tensor) -> dict[str, Tensor]:
    return {"matrix": vector[:4].view(2, 2).clone(), "vector": vector[4:].clone()}


def least(vector: Tensor, density: float) -> float:
    return cutoff({"x": torch.zeros_like(vector)}, {"x": vector}, density)


@pytest.mark.parametrize(
    ("density", "kept"), [(0.2, 3), (0.29, 3), (0.3, 4), (0.05, 1), (1e-300, 1), (0.999, 10), (1.0, 10)]
)
def test_trim_keeps_the_authors_count(density: float, kept: int) -> None:
    distinct = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])
    trimmed = trim(distinct, least(distinct, density))
    assert trimmed.count_nonzero() == kept
    assert torch.equal(trimmed[-kept:], distinct[-kept:])


def test_trim_cuts_the_count_like_int_does() -> None:
    # 100 * 0.29 is 28.999... in binary: int() makes it 28, and the k-th smallest itself stays as well.
    assert least(torch.arange(1.0, 101), 0.29) == 72


def test_trim_keeps_all_that_tie_with_the_smallest_kept() -> None:
    tied = torch.tensor([1.0, -1, 1, 5, 0])
    assert torch.equal(trim(tied, least(tied, 0.2)), tied)
    assert torch.equal(trim(tied, least(tied, 0.1)), torch.tensor([0.0, 0, 0, 5, 0]))


@pytest.mark.parametrize("density", [0.2, 1e-300])
def test_of_a_few_weights_at_least_one_stays(density: float) -> None:
    base, expert = {"x": torch.zeros(4)}, {"x": torch.tensor([1.0, -3, 2, 0])}
    merged = ties_merging(base, {"a": expert}, density=density, scaling=1.0)
    assert merged.weights["x"].tolist() == [0, -3, 0, 0]


def test_trim_looks_at_each_task_vector_alone_and_leaves_its_input() -> None:
    both = torch.stack([FIRST, 100 * SECOND])
    before = both.clone()
    trimmed = trim(both, torch.tensor([[least(vector, 0.2)] for vector in both]))
    assert torch.equal(both, before)
    assert trimmed[0].nonzero().flatten().tolist() == [0, 1, 8]
    assert trimmed[1].nonzero().flatten().tolist() == [1, 2, 7]


def test_signs_are_those_of_the_sum_and_zero_where_it_is_zero() -> None:
    vectors = torch.tensor([[3.0, -1, 2, 0, 1], [-1, 2, -2, 0, 1]])
    assert elect_signs(vectors).tolist() == [1, 1, 0, 0, 1]
    assert elect_signs(-vectors).tolist() == [-1, -1, 0, 0, -1]


def test_entries_without_a_sign_of_their_own_follow_the_majority() -> None:
    vectors = torch.tensor([[3.0, -1, 2, 0, 1], [-1, 2, -2, 0, 1]])
    positive, negative = vectors.clone(), -vectors
    keep_agreeing(positive, 1.0)
    keep_agreeing(negative, 1.0)
    assert positive.tolist() == [[3, 0, 2, 0, 1], [0, 2, 0, 0, 1]]
    assert torch.equal(negative, -positive)
    tie = torch.tensor([[1.0, -1, 1], [0, 0, -1]])
    keep_agreeing(tie, 1.0)
    assert tie.tolist() == [[1, -1, 0], [0, 0, -1]]  # as many signs each way: zero counts as negative


def test_agreeing_keeps_entries_of_the_elected_sign() -> None:
    vectors = torch.tensor([[3.0, -1, 2], [-1, 2, 0]])
    assert torch.equal(agreeing(vectors, torch.tensor([1.0, -1, 1])), torch.tensor([[3.0, -1, 2], [0, 0, 0]]))


@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_ties_by_hand(merge: str) -> None:
    # Density 0.3 keeps four of ten: 5 -4 3 6 of the first; -7 -8 9 -6 of the second.
    # Sums 5 -11 -5 0 | 0 0 0 9 0 0: signs + - - ? ? ? ? + ? ?, two each way: no majority, so ? counts as negative.
    total = torch.tensor([5.0, -11, -8, 0, 0, 0, 0, 9, -6, 0])
    counts = torch.tensor([1.0, 2, 1, 1, 1, 1, 1, 1, 1, 1]) if merge == "mean" else 1
    base = split(torch.arange(10.0))
    experts = {"a": split(torch.arange(10.0) + FIRST), "b": split(torch.arange(10.0) + SECOND)}
    merged = ties_merging(base, experts, density=0.3, scaling=0.5, merge=merge).weights  # type: ignore[arg-type]
    close(merged, split(torch.arange(10.0) + 0.5 * total / counts))


def test_the_majority_is_that_of_the_whole_model() -> None:
    # Inside "matrix" negative signs lead, over both tensors positive ones: the undecided entry takes the positive part.
    first, second = torch.tensor([1.0, -1, -1, 0, 1, 1, 1, 1]), torch.tensor([-1.0, 0, 0, 0, 1, 1, 1, 1])
    base = split(torch.zeros(8))
    merged = ties_merging(base, {"a": split(first), "b": split(second)}, density=1.0, scaling=1.0).weights
    close(merged, split(torch.tensor([1.0, -1, -1, 0, 2, 2, 2, 2])))


def test_streamed_ties_equals_its_steps_on_flat_vectors(pico: Pico) -> None:
    bank = Bank.of(pico.base, pico.experts)
    trimmed = trim(bank.vectors, torch.tensor([[least(vector, 0.2)] for vector in bank.vectors], dtype=torch.float64))
    kept = bank.vectors.clone()
    keep_agreeing(kept, 0.2)
    assert torch.equal(kept, agreeing(trimmed, elect_signs(trimmed)))
    assert trimmed.count_nonzero(dim=1).tolist() == [int(0.2 * bank.base.numel()) + 1] * 3
    assert 0 < kept.count_nonzero() < trimmed.count_nonzero()
    flat = bank.base + 0.3 * kept.sum(0)
    expected = {name: flat[columns].view(bank.shapes[name]) for name, columns in bank.columns.items()}
    close(ties_merging(pico.base, pico.experts).weights, expected)


@pytest.mark.parametrize("name", [*DATA_FREE, "individual"])
def test_an_empty_pool_is_a_clear_error(name: str, pico: Pico) -> None:
    with pytest.raises(
        KitError, match=r"The pool has too few experts: 1 or more are needed, there: none\. Add experts"
    ):
        call(name, pico.base, {})


@pytest.mark.parametrize("name", DATA_FREE)
def test_bad_pools_are_clear_errors(name: str, pico: Pico) -> None:
    without = {key: tensor for key, tensor in pico.experts["signs"].items() if key != "proj"}
    with pytest.raises(KitError, match=r"weights of expert 'signs' do not fit the base weights: 'proj' is missing\."):
        call(name, pico.base, {**pico.experts, "signs": without})
    with pytest.raises(KitError, match=r"expert 'signs' .*'ln\.bias' has shape \(5,\), the base \(6,\)"):
        call(name, pico.base, {**pico.experts, "signs": {**pico.base, "ln.bias": torch.zeros(5, dtype=torch.float64)}})
    with pytest.raises(KitError, match=r"expert 'signs' .*'proj' is torch.float32, the base torch.float64"):
        call(name, pico.base, {**pico.experts, "signs": {**pico.base, "proj": pico.base["proj"].float()}})
    counter = {"count": torch.tensor(3)}
    with pytest.raises(KitError, match=r"The base weights must be floating-point, but 'count' is torch.int64"):
        call(name, {**pico.base, **counter}, {"a": {**pico.base, **counter}})
    with pytest.raises(KitError, match="The base weights are empty"):
        call(name, {}, {"a": {}})


@pytest.mark.parametrize("name", [*DATA_FREE, "individual"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_in_an_expert_are_found(name: str, value: float, pico: Pico) -> None:
    pico.experts["textures"]["ln.weight"][2] = value
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'textures': 'ln\.weight'\."):
        call(name, pico.base, pico.experts)


@pytest.mark.parametrize("name", ["pretrained", "task_arithmetic", "ties_merging"])
def test_nan_in_the_base_is_found(name: str, pico: Pico) -> None:
    pico.base["proj"][0, 0] = float("nan")
    with pytest.raises(KitError, match=r"NaN or infinite values in the base weights: 'proj'\."):
        call(name, pico.base, pico.experts)


def test_coefficients_that_overflow_are_told_apart_from_bad_weights(pico: Pico) -> None:
    with pytest.raises(
        KitError, match=r"'task_arithmetic' left NaN or infinite values in 'conv1.weight'. Choose smaller"
    ):
        task_arithmetic(pico.base, {"huge": {name: 1e304 * one for name, one in pico.base.items()}}, scaling=1e6)


def test_the_bank_lays_tensors_out_in_order_and_refuses_other_shapes(pico: Pico) -> None:
    bank = Bank.of(pico.base, pico.experts)
    assert bank.vectors.shape == (3, 6 * 48 + 6 + 6 + 30)
    coefficients = torch.rand(3, 4, dtype=torch.float64, generator=pico.generator)
    expected = dict(pico.base)
    for k, expert in enumerate(pico.experts.values()):
        for layer, (name, tensor) in enumerate(task_vector(expert, pico.base).items()):
            expected[name] = expected[name] + coefficients[k, layer] * tensor
    close(bank.merged(coefficients), expected)
    same = coefficients[:, :1]
    close(bank.merged(same), bank.merged(same.expand(3, 4)))
    with pytest.raises(KitError, match=r"shape \(4, 3\); 3 experts with 4 tensors need \(3, 4\), or \(3, 1\)"):
        bank.merged(coefficients.T)


@pytest.mark.parametrize("density", [1e-300, 0.0001, 0.05, 0.2, 0.29, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["normal", "few values", "mostly still", "large ones where the sample does not look"])
def test_the_streamed_cutoff_is_that_of_the_whole_vector(
    kind: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "SAMPLE", 500)
    values = torch.randn(10_007, generator=torch.Generator().manual_seed(1))
    if kind == "few values":
        values = (2 * values).round()
    elif kind == "mostly still":
        values *= values > 1.5
    elif kind == "large ones where the sample does not look":
        values[torch.arange(len(values)) % (len(values) // 500) != 0] += 10
    start = {"empty": torch.zeros(0), "matrix": torch.zeros(50, 100), "vector": torch.zeros(5007)}
    end = {"empty": values[:0], "matrix": values[:5000].view(50, 100), "vector": values[5000:]}
    k = len(values) - int(len(values) * density)
    assert cutoff(start, end, density) == (float(values.abs().kthvalue(k).values) if k else 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_the_streamed_cutoff_of_a_broken_vector_is_nan(value: float, density: float) -> None:
    end = {"a": torch.tensor([1.0, 2, value, 3]), "b": torch.ones(5)}
    assert math.isnan(cutoff({"a": torch.zeros(4), "b": torch.zeros(5)}, end, density))
