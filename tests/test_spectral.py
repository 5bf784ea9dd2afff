"""Singular value decompositions, TSV-M and Iso: against plain full SVDs, exact algebra, and matrices without rank."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.isotropic import common_and_own, flattened_sum, iso_c, iso_cts, subspace_sizes
from mergekit_lite.methods.registry import Merged
from mergekit_lite.methods.shared.spectral import polar_factor, truncated_svd
from mergekit_lite.methods.tsv import orthogonalised_sum, tsv_merging
from mergekit_lite.weight_files import LazyWeights, write

METHODS = [tsv_merging, iso_c, iso_cts]
DTYPES = [torch.float64, torch.float32]
SHAPES = [(40, 24), (24, 40), (24, 24)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decaying(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix whose singular values fall from 1 to 1e-3: as task vectors have them, and distinct."""
    left, right = (
        torch.linalg.qr(noise(rows, rows, seed=seed))[0],
        torch.linalg.qr(noise(columns, columns, seed=-seed))[0],
    )
    smaller = min(rows, columns)
    return left[:, :smaller] * torch.logspace(0, -3, smaller, dtype=torch.float64) @ right[:smaller]


def three(shape: tuple[int, int]) -> list[Tensor]:
    return [decaying(*shape, seed=seed) for seed in (1, 2, 3)]


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def full_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix.double(), full_matrices=False)


def plain_polar(matrix: Tensor) -> Tensor:
    left, _, right = full_svd(matrix)
    return left @ right


# The three combinations once more, in full SVDs and float64, as their papers write them down.


def plain_tsv(vectors: list[Tensor]) -> Tensor:
    rank = int(min(vectors[0].shape) / len(vectors))
    triples = [full_svd(vector) for vector in vectors]
    left = plain_polar(torch.cat([one[0][:, :rank] for one in triples], dim=1))
    right = plain_polar(torch.cat([one[2][:rank] for one in triples]))
    return left @ torch.diag(torch.cat([one[1][:rank] for one in triples])) @ right


def plain_iso_c(vectors: list[Tensor]) -> Tensor:
    left, values, right = full_svd(torch.stack(vectors).double().sum(0))
    return left @ torch.diag(torch.full_like(values, float(values.mean()))) @ right


def plain_iso_cts(vectors: list[Tensor]) -> Tensor:
    size, tasks = min(vectors[0].shape), len(vectors)
    own = round((size - int(0.8 * size)) / tasks)
    left, values, right = full_svd(torch.stack(vectors).double().sum(0))
    left, values, right = left[:, : size - own * tasks], values[: size - own * tasks], right[: size - own * tasks]
    outside = [full_svd(vector.double() - left @ left.T @ vector.double()) for vector in vectors]
    lefts = torch.cat([left, *(one[0][:, :own] for one in outside)], dim=1)
    spectrum = torch.cat([values, *(one[1][:own] for one in outside)])
    rights = torch.cat([right, *(one[2][:own] for one in outside)])
    assert lefts.shape[1] == len(spectrum) == len(rights) == size
    return spectrum.mean() * plain_polar(lefts) @ plain_polar(rights)


COMBINATIONS = [
    (orthogonalised_sum, plain_tsv),
    (flattened_sum, plain_iso_c),
    (lambda vectors: common_and_own(vectors, 0.8), plain_iso_cts),
]


# Linear algebra


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_the_leading_triples_are_those_of_the_full_svd(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    matrix = decaying(*shape).to(dtype)
    left, values, right = truncated_svd(matrix, 5)
    assert left.dtype == values.dtype == right.dtype == dtype
    assert (left.shape, values.shape, right.shape) == ((shape[0], 5), (5,), (5, shape[1]))
    its_left, its_values, its_right = full_svd(matrix)
    assert relative(values, its_values[:5]) < tolerance
    assert relative(left * values @ right, its_left[:, :5] * its_values[:5] @ its_right[:5]) < tolerance
    assert relative(left.mT @ left, torch.eye(5)) < tolerance
    assert relative(right @ right.mT, torch.eye(5)) < tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_polar_factor_is_orthonormal_and_symmetrises_its_matrix(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    matrix = decaying(*shape).to(dtype)
    factor = polar_factor(matrix)
    assert relative(factor, plain_polar(matrix)) < tolerance
    gram = factor @ factor.mT if shape[0] < shape[1] else factor.mT @ factor
    assert relative(gram, torch.eye(24)) < tolerance
    stretch = factor.mT @ matrix  # positive semi-definite in a polar decomposition
    torch.testing.assert_close(stretch, stretch.mT, rtol=0, atol=10 * tolerance)
    assert torch.linalg.eigvalsh(stretch.double()).min() > -10 * tolerance


def test_float32_is_more_exact_than_an_svd_in_float32() -> None:
    # Singular values from 1 to 1e-5, on the input as rounded to float32.
    left, right = torch.linalg.qr(noise(40, 40))[0], torch.linalg.qr(noise(24, 24, seed=1))[0]
    matrix = (left[:, :24] * torch.logspace(0, -5, 24, dtype=torch.float64) @ right).float()
    its_left, _, its_right = torch.linalg.svd(matrix, full_matrices=False)
    exact = plain_polar(matrix)
    assert relative(polar_factor(matrix), exact) < 1e-6 < relative(its_left @ its_right, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_directions_without_a_singular_value_are_left_out(dtype: torch.dtype) -> None:
    thin = decaying(40, 3)
    matrix = (thin @ noise(3, 24)).to(dtype)
    left, values, right = truncated_svd(matrix, 10)
    assert (left.shape, values.shape, right.shape) == ((40, 3), (3,), (3, 24))
    assert relative(left * values @ right, matrix) < 2e-6
    spectrum = torch.linalg.svdvals(polar_factor(matrix))
    torch.testing.assert_close(spectrum[:3], torch.ones(3, dtype=dtype), rtol=0, atol=2e-6)
    assert spectrum[3:].max() < 1e-6
    torch.testing.assert_close(polar_factor(matrix) @ (matrix.mT @ matrix), matrix @ (polar_factor(matrix).mT @ matrix))


@pytest.mark.parametrize("shape", [*SHAPES, (24, 0), (0, 24), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_matrix_has_no_triples_and_a_zero_polar_factor(shape: tuple[int, int], dtype: torch.dtype) -> None:
    zero = torch.zeros(*shape, dtype=dtype)
    left, values, right = truncated_svd(zero, min(shape))
    assert (left.shape, values.shape, right.shape) == ((shape[0], 0), (0,), (0, shape[1]))
    assert torch.equal(polar_factor(zero), zero)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_the_size_of_a_matrix_does_not_matter(size: float, dtype: torch.dtype) -> None:
    matrix = decaying(40, 24).to(dtype)
    assert relative(polar_factor(size * matrix), polar_factor(matrix)) < 1e-5
    assert relative(truncated_svd(size * matrix, 4)[1], size * truncated_svd(matrix, 4)[1]) < 1e-6


# The combinations


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("combine", "plain"), COMBINATIONS)
def test_combinations_equal_plain_full_svds(
    combine: Callable[[list[Tensor]], Tensor],
    plain: Callable[[list[Tensor]], Tensor],
    dtype: torch.dtype,
    tolerance: float,
    shape: tuple[int, int],
) -> None:
    vectors = [vector.to(dtype) for vector in three(shape)]
    assert combine(vectors).dtype == dtype
    assert relative(combine(vectors), plain(vectors)) < tolerance


@pytest.mark.parametrize(("combine", "plain"), COMBINATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_task_vectors_combine_to_zero(
    combine: Callable[[list[Tensor]], Tensor], plain: object, dtype: torch.dtype
) -> None:
    zero = torch.zeros(12, 8, dtype=dtype)
    assert torch.equal(combine([zero, zero, zero]), zero)


@pytest.mark.parametrize(("combine", "plain"), COMBINATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_task_vectors_of_low_rank_combine_without_arbitrary_directions(
    combine: Callable[[list[Tensor]], Tensor], plain: object, dtype: torch.dtype
) -> None:
    # All of rank one in the same four rows and columns of twelve: nothing may appear outside.
    vectors = [torch.zeros(12, 12, dtype=dtype) for _ in range(3)]
    for seed, vector in enumerate(vectors):
        vector[:4, :4] = (noise(4, 1, seed=seed) @ noise(1, 4, seed=seed + 9)).to(dtype)
    combined = combine(vectors)
    assert 0.1 < combined[:4, :4].norm() / torch.stack(vectors).sum(0).norm() < 10
    combined[:4, :4] = 0
    assert combined.abs().max() < 1e-6


def test_identical_tasks_give_the_truncated_task_vector() -> None:
    vector = decaying(20, 12)
    left, values, right = truncated_svd(vector, 4)
    assert relative(orthogonalised_sum([vector, vector, vector]), left * values @ right) < 1e-10


def test_tasks_in_orthogonal_subspaces_are_added_without_loss() -> None:
    vectors = [torch.zeros(12, 12, dtype=torch.float64) for _ in range(3)]
    for place, vector in enumerate(vectors):
        part = slice(4 * place, 4 * place + 4)
        vector[part, part] = noise(4, 4, seed=place)
    assert relative(orthogonalised_sum(vectors), torch.stack(vectors).sum(0)) < 1e-12


def test_more_tasks_than_directions_leave_matrices_at_the_base(pico: Pico) -> None:
    experts = {f"{task}{copy}": expert for task, expert in pico.experts.items() for copy in range(2)}
    merged = tsv_merging(pico.base, experts).weights  # six tasks; "proj" is 6 by 5
    assert torch.equal(merged["proj"], pico.base["proj"])
    assert not torch.equal(merged["ln.bias"], pico.base["ln.bias"])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_spectrum_of_iso_c_is_flat_at_the_mean(shape: tuple[int, int]) -> None:
    spectrum = torch.linalg.svdvals(flattened_sum(three(shape)))
    mean = torch.linalg.svdvals(torch.stack(three(shape)).sum(0)).mean()
    torch.testing.assert_close(spectrum, mean.expand(24), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_spectrum_of_iso_cts_is_flat(shape: tuple[int, int]) -> None:
    spectrum = torch.linalg.svdvals(common_and_own(three(shape), 0.8))
    torch.testing.assert_close(spectrum, spectrum.mean().expand(24), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("smaller", "tasks", "common", "sizes"),
    [
        (768, 8, 0.8, (616, 19)),  # 154 of 768 are left, 19.25 each
        (768, 20, 0.8, (608, 8)),  # 7.7 each, rounded up
        (768, 8, 1.0, (768, 0)),
        (5, 3, 0.8, (5, 0)),  # one direction for three tasks: none
        (10, 16, 0.1, (10, 0)),  # 9 / 16 rounds up, but there are no sixteen
    ],
)
def test_common_and_own_directions_are_counted(smaller: int, tasks: int, common: float, sizes: tuple[int, int]) -> None:
    assert subspace_sizes(smaller, tasks, common) == sizes


def test_with_all_directions_common_or_one_task_iso_cts_is_iso_c(pico: Pico) -> None:
    expected = iso_c(pico.base, pico.experts).weights
    torch.testing.assert_close(iso_cts(pico.base, pico.experts, common=1.0).weights, expected, rtol=0, atol=1e-12)
    alone = {"signs": pico.experts["signs"]}
    expected = iso_c(pico.base, alone).weights
    torch.testing.assert_close(iso_cts(pico.base, alone, common=0.5).weights, expected, rtol=0, atol=1e-12)


# The methods


def test_one_expert_in_full_rank_gives_the_expert(pico: Pico) -> None:
    merged = tsv_merging(pico.base, {"signs": pico.experts["signs"]}).weights
    torch.testing.assert_close(merged, pico.experts["signs"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("merge", METHODS)
def test_experts_equal_to_the_base_give_the_base(merge: Callable[..., Merged], pico: Pico) -> None:
    merged = merge(pico.base, {"a": pico.base, "b": pico.base}).weights
    assert all(torch.equal(merged[name], start) for name, start in pico.base.items())


@pytest.mark.parametrize("merge", METHODS)
def test_the_order_of_experts_does_not_matter(merge: Callable[..., Merged], pico: Pico) -> None:
    backwards = merge(pico.base, dict(reversed(pico.experts.items()))).weights
    torch.testing.assert_close(merge(pico.base, pico.experts).weights, backwards, rtol=0, atol=1e-10)


@pytest.mark.parametrize("merge", METHODS)
def test_experts_on_disk_give_the_same_bits(merge: Callable[..., Merged], pico: Pico, tmp_path: Path) -> None:
    for task, expert in pico.experts.items():
        write(tmp_path / task, expert)
    lazy = {task: LazyWeights(tmp_path / task) for task in pico.experts}
    on_disk, in_memory = merge(pico.base, lazy).weights, merge(pico.base, pico.experts).weights
    assert all(torch.equal(on_disk[name], in_memory[name]) for name in pico.base)


@pytest.mark.parametrize(("merge", "plain"), [(tsv_merging, plain_tsv), (iso_c, plain_iso_c), (iso_cts, plain_iso_cts)])
def test_matrices_are_combined_and_other_tensors_averaged(
    merge: Callable[..., Merged], plain: Callable[[list[Tensor]], Tensor], pico: Pico
) -> None:
    merged = merge(pico.base, pico.experts, scaling=0.7).weights
    for name, start in pico.base.items():
        vectors = [expert[name] - start for expert in pico.experts.values()]
        combined = plain(vectors) if name == "proj" else torch.stack(vectors).mean(0)
        torch.testing.assert_close(merged[name], start + 0.7 * combined, rtol=0, atol=1e-10)


@pytest.mark.parametrize("merge", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_float32_and_returned_as_half(
    merge: Callable[..., Merged], dtype: torch.dtype, pico: Pico
) -> None:
    def cast(weights: dict[str, Tensor], to: torch.dtype) -> dict[str, Tensor]:
        return {key: tensor.to(to) for key, tensor in weights.items()}

    base, experts = cast(pico.base, dtype), {task: cast(one, dtype) for task, one in pico.experts.items()}
    singles = {task: cast(one, torch.float32) for task, one in experts.items()}
    exact = cast(merge(cast(base, torch.float32), singles).weights, dtype)
    merged = merge(base, experts).weights
    assert all(torch.equal(merged[name], exact[name]) for name in base)


@pytest.mark.parametrize("merge", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_in_a_matrix_are_traced_to_the_expert(
    merge: Callable[..., Merged], dtype: torch.dtype, value: float, pico: Pico
) -> None:
    base = {"proj": pico.base["proj"].to(dtype)}
    experts = {task: {"proj": expert["proj"].to(dtype)} for task, expert in pico.experts.items()}
    experts["textures"]["proj"][1, 2] = value
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'textures': 'proj'\."):
        merge(base, experts)


@pytest.mark.parametrize("common", [0.0, 1.1])
def test_a_common_share_outside_its_range_is_a_clear_error(common: float, pico: Pico) -> None:
    with pytest.raises(KitError, match=rf"Parameter 'common' of method 'iso_cts' cannot be {common} \(float\)"):
        iso_cts(pico.base, pico.experts, common=common)
