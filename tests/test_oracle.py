"""The linear minimisation oracle: scores equal flattened ones, the gap is a certificate, the projection is exact."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.oracle import (
    Comparison,
    Granularity,
    Patchwork,
    Pick,
    compare,
    duality_gap,
    inner_products,
    norms,
)
from mergekit_lite.methods.frank_wolfe.soft import simplex_projection
from mergekit_lite.weight_files import LazyWeights, write

SHAPES = {"conv": (4, 3, 2, 2), "bias": (5,), "matrix": (6, 4)}


def model(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


GRADIENT, THETA = model(1), model(2)
VERTICES = {name: model(seed) for seed, name in enumerate(("a", "b", "c", "d"), 10)}


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten() for name in SHAPES])


def by_products(
    gradient: dict[str, Tensor] = GRADIENT, vertices: dict[str, dict[str, Tensor]] = VERTICES
) -> Comparison:
    return compare(THETA, gradient, vertices)


def by_cosines(gradient: dict[str, Tensor] = GRADIENT, vertices: dict[str, dict[str, Tensor]] = VERTICES) -> Comparison:
    return compare(THETA, gradient, vertices, norms(vertices, tuple(gradient)))


def nearest_by_faces(values: Tensor, *, capped: bool) -> Tensor:
    """Return the nearest point of the simplex by trying each of its faces, and for the capped one the orthant too."""
    best, nearest = torch.inf, values
    for size in range(len(values) + 1):
        for face in itertools.combinations(range(len(values)), size):
            on = list(face)
            candidates = []
            if size:
                point = torch.zeros_like(values)
                point[on] = values[on] + (1 - values[on].sum()) / size
                candidates.append(point)
            if capped:
                free = torch.zeros_like(values)
                free[on] = values[on]
                candidates.append(free)
            for point in candidates:
                allowed = bool((point >= -1e-12).all()) and float(point.sum()) <= 1 + 1e-12
                distance = float((point - values).square().sum())
                if allowed and distance < best:
                    best, nearest = distance, point
    return nearest


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_simplex_projection_is_the_nearest_point(size: int, capped: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    columns = 2 * torch.randn(size, 40, generator=generator, dtype=torch.float64)
    columns[:, 0], columns[:, 1], columns[:, 2] = 0, -3, 1 / size  # corners: all zero, all negative, already there
    columns[:, 3:10] /= 10
    projected = simplex_projection(columns, capped=capped)
    for found, values in zip(projected.T, columns.T, strict=True):
        torch.testing.assert_close(found, nearest_by_faces(values, capped=capped), rtol=0, atol=1e-12)
        torch.testing.assert_close(found, simplex_projection(values, capped=capped))
    assert (projected >= 0).all()
    total = projected.sum(dim=0)
    assert ((total <= 1 + 1e-12) if capped else (total - 1).abs() < 1e-12).all()


@pytest.mark.parametrize("whole", [2e6, 2.0**24, -1e7])
def test_the_simplex_projection_keeps_the_digits_of_large_values(whole: float) -> None:
    wide = simplex_projection(torch.tensor([whole + 0.5, whole, whole], dtype=torch.float64))
    torch.testing.assert_close(wide, torch.tensor([2 / 3, 1 / 6, 1 / 6], dtype=torch.float64))
    rounded = torch.tensor([whole + 2, whole, whole]) if abs(whole) > 4e6 else torch.tensor([whole + 0.5, whole, whole])
    expected = [1.0, 0, 0] if abs(whole) > 4e6 else [2 / 3, 1 / 6, 1 / 6]
    torch.testing.assert_close(simplex_projection(rounded), torch.tensor(expected))


def test_scores_of_whole_models_equal_those_of_flattened_models() -> None:
    for score, vertex in zip(by_products().totals().values(), VERTICES.values(), strict=True):
        assert score == pytest.approx(float(flat(GRADIENT) @ flat(vertex)), rel=1e-12)
    for score, vertex in zip(by_cosines().totals().values(), VERTICES.values(), strict=True):
        summed = sum(
            float(torch.nn.functional.cosine_similarity(GRADIENT[name].flatten(), vertex[name].flatten(), dim=0))
            for name in SHAPES
        )
        assert score == pytest.approx(summed, rel=1e-10)
    assert by_cosines().scores.abs().max() <= 1


def test_the_cosines_of_a_tensor_that_is_split_count_more_than_once() -> None:
    parted = {
        name: {"conv": one["conv"], "bias": one["bias"], "upper": one["matrix"][:3], "lower": one["matrix"][3:]}
        for name, one in {"gradient": GRADIENT, "theta": THETA, **VERTICES}.items()
    }
    gradient, theta = parted.pop("gradient"), parted.pop("theta")
    split = compare(theta, gradient, parted, norms(parted, tuple(gradient)))
    assert split.totals() != pytest.approx(by_cosines().totals())
    plain = compare(theta, gradient, parted)
    assert plain.totals() == pytest.approx(by_products().totals())  # inner products do not see it


def test_inner_products_of_half_precision_models_are_formed_in_float64() -> None:
    half = {name: {key: tensor.bfloat16() for key, tensor in one.items()} for name, one in VERTICES.items()}
    wide = {name: {key: tensor.double() for key, tensor in one.items()} for name, one in half.items()}
    assert torch.equal(inner_products(GRADIENT, half), inner_products(GRADIENT, wide))


def test_vertices_in_files_give_the_same_bits(tmp_path: Path) -> None:
    lazy = {}
    for name, vertex in VERTICES.items():
        write(tmp_path / f"{name}.safetensors", {"odd": torch.zeros(1, dtype=torch.bfloat16), **vertex})
        lazy[name] = LazyWeights(tmp_path / f"{name}.safetensors")
    assert torch.equal(inner_products(GRADIENT, lazy), inner_products(GRADIENT, VERTICES))
    assert torch.equal(norms(lazy, tuple(GRADIENT)), norms(VERTICES, tuple(GRADIENT)))


def test_a_gradient_of_rounding_noise_does_not_count() -> None:
    noisy = {**GRADIENT, "bias": 1e-15 * GRADIENT["bias"]}
    assert by_products(noisy).still.tolist() == [False, True, False]
    # float32 knows fewer digits, so that more of it is noise
    single = {name: tensor.float() for name, tensor in {**GRADIENT, "bias": 1e-6 * GRADIENT["bias"]}.items()}
    assert by_products(single).still.tolist() == [False, True, False]
    assert not by_products({**GRADIENT, "bias": 1e-6 * GRADIENT["bias"]}).still.any()
    answer = by_cosines(noisy)
    assert (answer.scores[:, 1] == 0).all()
    (pick,) = answer.lowest("tensor")
    assert pick["bias"] is None  # it stays where it is
    mixed = Patchwork(pick, VERTICES, THETA)
    assert torch.equal(mixed["bias"], THETA["bias"])
    assert torch.equal(mixed["matrix"], VERTICES[str(pick["matrix"])]["matrix"])


def test_a_gradient_that_is_zero_everywhere_leaves_all_tensors_and_makes_no_nan() -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in GRADIENT.items()}
    answer = by_cosines(zero)
    (pick,) = answer.lowest("tensor")
    assert set(pick.values()) == {None}
    assert (duality_gap(answer.own, answer.products, "tensor"), answer.descent(pick)) == (0, 0)


def test_a_vertex_tensor_of_zeros_has_cosine_zero() -> None:
    vertices = {**VERTICES, "b": {**VERTICES["b"], "bias": torch.zeros(5, dtype=torch.float64)}}
    table = by_cosines(vertices=vertices).scores
    assert table[1, 1] == 0
    assert table.isfinite().all()


def test_of_equal_scores_the_first_vertex_is_picked() -> None:
    twins = by_products(vertices={"first": VERTICES["a"], "second": VERTICES["a"]})
    assert set(twins.lowest("model")[0].values()) == {"first"}
    assert set(twins.lowest("tensor")[0].values()) == {"first"}


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_picks_are_best_first_and_none_comes_twice(granularity: Granularity) -> None:
    top = by_products().lowest(granularity, 2)
    picks: list[Pick] = []
    for gradient in (GRADIENT, GRADIENT, model(5)):
        picks += by_products(gradient).lowest(granularity, taken=picks)
    assert picks[:2] == top  # twice the same gradient: its best, then its second best
    expected = by_products().products
    for column, name in enumerate(SHAPES):
        assert len({pick[name] for pick in picks}) == 3
        scores = expected.sum(dim=1) if granularity == "model" else expected[:, column]
        assert top[0][name] == tuple(VERTICES)[int(scores.argmin())]


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_the_gap_is_not_negative_in_the_hull_and_zero_at_an_optimal_vertex(granularity: Granularity) -> None:
    products = inner_products(GRADIENT, VERTICES)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        shares = torch.rand(4, generator=generator, dtype=torch.float64)
        shares /= shares.sum()
        inside = {
            name: sum(share * one[name] for share, one in zip(shares, VERTICES.values(), strict=True))
            for name in SHAPES
        }
        own = inner_products(GRADIENT, {"theta": inside})[0]
        assert duality_gap(own, products, granularity) > 0
    (pick,) = by_products().lowest(granularity)
    optimum = Patchwork(pick, VERTICES, THETA)
    own = inner_products(GRADIENT, {"theta": optimum})[0]
    assert duality_gap(own, products, granularity) == pytest.approx(0, abs=1e-12)


def test_the_gap_of_several_gradients_is_that_of_their_sum() -> None:
    parts = [model(seed) for seed in (30, 31, 32)]
    whole = {name: sum(part[name] for part in parts) for name in SHAPES}
    answers = [by_cosines(part) for part in parts]
    own, products = (
        torch.stack(each).sum(dim=0) for each in zip(*((one.own, one.products) for one in answers), strict=True)
    )
    flat_gap = max(float(flat(whole) @ (flat(THETA) - flat(vertex))) for vertex in VERTICES.values())  # type: ignore[arg-type]
    assert duality_gap(own, products, "model") == pytest.approx(flat_gap, rel=1e-12)


def test_descent_is_the_gap_of_the_chosen_vertex() -> None:
    exact = by_products()
    gap = duality_gap(exact.own, exact.products, "model")
    assert exact.descent(exact.lowest("model")[0]) == pytest.approx(gap, rel=1e-12)
    cosine = by_cosines()
    (pick,) = cosine.lowest("model")
    vertex = VERTICES[str(pick["bias"])]
    assert cosine.descent(pick) == pytest.approx(float(flat(GRADIENT) @ (flat(THETA) - flat(vertex))), rel=1e-12)


def test_nan_in_a_vertex_is_named() -> None:
    broken = {**VERTICES, "c": {**VERTICES["c"], "bias": torch.full((5,), torch.nan, dtype=torch.float64)}}
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'c': 'bias'\."):
        inner_products(GRADIENT, broken)
