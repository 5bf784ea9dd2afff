"""Fisher merging and RegMean against naive loops, hand-made numbers and closed forms, in float64."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from conftest import GivenData, Pico
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.averaging import simple_average
from mergekit_lite.methods.fisher import diagonal_fisher, fisher_merging, merge_with_fishers, unit_norm
from mergekit_lite.methods.regmean_merging import gram, layer_grams, merge_with_grams, regmean
from mergekit_lite.weight_files import LazyWeights, write

Weights = dict[str, Tensor]


def close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(dict(left), dict(right), rtol=tolerance, atol=tolerance)


def reversed_pool(experts: Mapping[str, Weights]) -> dict[str, Weights]:
    return {task: experts[task] for task in reversed(list(experts))}


def on_disk(experts: Mapping[str, Weights], folder: Path) -> dict[str, LazyWeights]:
    for task, expert in experts.items():
        write(folder / task, expert)
    return {task: LazyWeights(folder / task) for task in experts}


# Fisher merging


@pytest.fixture
def shown(pico: Pico) -> GivenData:
    return pico.data(steps=1)


def squared_gradients(pico: Pico, task: str, image: Tensor) -> list[tuple[float, Weights]]:
    """Probability and squared gradient of each class, by one separate backward pass each."""
    found = []
    for label in range(len(pico.heads[task])):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in pico.experts[task].items()}
        logs = (pico.encode(leaves, image[None]) @ pico.heads[task].T).log_softmax(dim=1)
        logs[0, label].backward()
        squares = {name: leaf.grad.square() for name, leaf in leaves.items() if leaf.grad is not None}
        found.append((logs[0, label].exp().item(), squares))
    return found


def test_fisher_is_the_expected_squared_gradient_of_single_images(pico: Pico, shown: GivenData) -> None:
    task, images = "signs", shown.given[0]["signs"]
    expected = {name: torch.zeros_like(tensor) for name, tensor in pico.base.items()}
    for image in images:
        for probability, squares in squared_gradients(pico, task, image):
            for name in expected:
                expected[name] += probability * squares[name] / len(images)
    close(diagonal_fisher(shown, pico.experts[task], task, images, classes="all"), expected)


def test_fisher_knows_no_batches(pico: Pico, shown: GivenData) -> None:
    expert, images = pico.experts["signs"], pico.images(6)
    whole, two, four = (
        diagonal_fisher(shown, expert, "signs", part, classes="all") for part in (images, images[:2], images[2:])
    )
    close(whole, {name: (2 * two[name] + 4 * four[name]) / 6 for name in whole})


def test_drawn_classes_follow_the_predictions(pico: Pico, shown: GivenData) -> None:
    image = shown.given[0]["digits"][:1]
    candidates = squared_gradients(pico, "digits", image[0])
    once = diagonal_fisher(shown, pico.experts["digits"], "digits", image, seed=5)
    assert any(torch.allclose(once["proj"], squares["proj"]) for _, squares in candidates)
    often = diagonal_fisher(shown, pico.experts["digits"], "digits", image.expand(400, -1, -1, -1))
    expected = torch.stack([probability * squares["proj"] for probability, squares in candidates]).sum(0)
    assert (often["proj"] - expected).norm() < 0.2 * expected.norm()


def test_the_seed_decides_what_is_drawn(pico: Pico, shown: GivenData) -> None:
    images = pico.images(12)
    first, again, other = (
        diagonal_fisher(shown, pico.experts["textures"], "textures", images, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first["proj"], again["proj"])
    assert not torch.equal(first["proj"], other["proj"])


def test_equal_fishers_give_the_average(pico: Pico) -> None:
    same = {name: torch.rand_like(tensor) for name, tensor in pico.base.items()}
    close(
        merge_with_fishers(pico.base, pico.experts, [same] * 3, floor=1e-6),
        simple_average(pico.base, pico.experts).weights,
    )


def test_fisher_merging_by_hand() -> None:
    base = {"w": torch.tensor([7.0, 7, 7], dtype=torch.float64)}
    experts = {"a": {"w": torch.tensor([1.0, 2, 1]).double()}, "b": {"w": torch.tensor([3.0, 6, 5]).double()}}
    fishers = [{"w": torch.tensor([1.0, 0, 2]).double()}, {"w": torch.tensor([3.0, 0, 0]).double()}]
    close(merge_with_fishers(base, experts, fishers, floor=1), {"w": torch.tensor([14 / 6, 4, 2], dtype=torch.float64)})
    merged = merge_with_fishers(base, experts, fishers, floor=1e-9)
    close(merged, {"w": torch.tensor([2.5, 4, 1]).double()}, tolerance=1e-8)


def test_fisher_merging_weighs_each_expert_by_its_own_task(pico: Pico, shown: GivenData) -> None:
    raw = [diagonal_fisher(shown, pico.experts[task], task, shown.given[0][task], seed=3) for task in pico.experts]
    merged = fisher_merging(pico.base, pico.experts, shown, images=5, seed=3).weights
    close(merged, merge_with_fishers(pico.base, pico.experts, map(unit_norm, raw), floor=1e-6))
    assert shown.asked == [{"images_per_task": 5, "steps": 1, "seed": 3, "keep": None}]
    plain = fisher_merging(pico.base, pico.experts, shown, normalise=False, floor=0.1, seed=3).weights
    close(plain, merge_with_fishers(pico.base, pico.experts, raw, floor=0.1))
    assert not torch.allclose(merged["proj"], plain["proj"])


def test_normalised_fishers_have_norm_one_over_all_parameters() -> None:
    fisher = {"a": torch.tensor([1.0, 2]), "b": torch.tensor([[2.0]])}
    close(unit_norm(fisher), {"a": torch.tensor([1 / 3, 2 / 3]), "b": torch.tensor([[2 / 3]])}, tolerance=1e-7)
    close(unit_norm({"a": torch.zeros(3)}), {"a": torch.zeros(3)})


@pytest.mark.parametrize("classes", ["drawn", "all"])
def test_fisher_merging_of_one_expert_is_the_expert(classes: str, pico: Pico, shown: GivenData) -> None:
    one = {"signs": pico.experts["signs"]}
    close(fisher_merging(pico.base, one, shown, classes=classes).weights, one["signs"])  # type: ignore[arg-type]


def test_fisher_merging_in_any_order_and_from_disk(pico: Pico, shown: GivenData, tmp_path: Path) -> None:
    merged = fisher_merging(pico.base, pico.experts, shown).weights
    close(merged, fisher_merging(pico.base, reversed_pool(pico.experts), shown).weights)
    lazy = fisher_merging(pico.base, on_disk(pico.experts, tmp_path), shown).weights
    assert all(torch.equal(merged[name], lazy[name]) for name in pico.base)


def test_fisher_merging_of_half_precision_returns_half_precision(pico: Pico, shown: GivenData) -> None:
    halves = [{name: tensor.half() for name, tensor in one.items()} for one in (pico.base, *pico.experts.values())]
    data = replace(shown, given=[{task: images.float() for task, images in shown.given[0].items()}])
    merged = fisher_merging(halves[0], dict(zip(pico.experts, halves[1:], strict=True)), data, classes="all").weights
    exact = fisher_merging(pico.base, pico.experts, shown, classes="all").weights
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
    close({name: tensor.double() for name, tensor in merged.items()}, exact, tolerance=0.02)


def test_an_expert_without_images_of_its_task_is_named(pico: Pico, shown: GivenData) -> None:
    pool = {**pico.experts, "cats": pico.base}
    with pytest.raises(KitError, match=r"calibration images of its own task; there are none for 'cats'\. Adapt to all"):
        fisher_merging(pico.base, pool, shown)


def test_nan_in_an_expert_or_an_image_is_named(pico: Pico, shown: GivenData) -> None:
    shown.given[0]["textures"][1, 0, 0, 0] = float("nan")
    with pytest.raises(KitError, match="Expert 'textures' predicts NaN for an image of its own task"):
        fisher_merging(pico.base, pico.experts, shown)
    pico.experts["signs"]["ln.bias"][0] = float("nan")
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'signs': 'ln\.bias'"):
        fisher_merging(pico.base, pico.experts, shown)


# RegMean


@dataclass
class TwoLayers:
    """Patches of 12 values through two linear layers with a tanh in between; images are given by task."""

    heads: Mapping[str, Tensor]
    pictures: dict[str, Tensor]
    forwarded: list[int] = field(default_factory=list)

    @staticmethod
    def layers(weights: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        patches = torch.nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
        return patches, (patches @ weights["fc.weight"].T + weights["fc.bias"]).tanh()

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        hidden = self.layers(weights, images)[1]
        return torch.nn.functional.normalize((hidden @ weights["out.weight"].T).mean(dim=1), dim=1)

    def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        self.forwarded.append(len(images))
        patches, hidden = self.layers(weights, images)
        return {"fc.weight": patches.flatten(0, 1), "out.weight": hidden.flatten(0, 1)}

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        return iter([{task: images[:images_per_task] for task, images in self.pictures.items()}] * steps)


Pool = tuple[Weights, dict[str, Weights], TwoLayers]


@pytest.fixture
def pool() -> Pool:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = {"fc.weight": noise(7, 12), "fc.bias": noise(7), "out.weight": noise(5, 7), "position": noise(4, 4)}
    experts = {
        task: {name: tensor + 0.3 * noise(*tensor.shape) for name, tensor in base.items()} for task in ("a", "b", "c")
    }
    heads = {task: noise(3, 5) for task in experts}
    # a task's images have a direction of their own, so that weighting the inputs matters
    pictures = {task: noise(10, 3, 4, 4) + 2 * noise(1, 3, 4, 4) for task in experts}
    return base, experts, TwoLayers(heads, pictures)


def test_gram_keeps_the_diagonal_and_scales_the_rest() -> None:
    inputs = torch.tensor([[1.0, 2], [3, 4]], dtype=torch.float64)
    assert torch.equal(gram(inputs, 1.0), torch.tensor([[5.0, 7], [7, 10]]).double())
    assert torch.equal(gram(inputs, 0.5), torch.tensor([[5.0, 3.5], [3.5, 10]]).double())
    assert gram(inputs.half(), 0.5).dtype == torch.float32


def test_regmean_is_the_least_squares_solution(pool: Pool) -> None:
    base, experts, data = pool
    data.pictures["b"] = data.pictures["b"][:6]  # fewer images, yet the same say: the mean over rows counts
    rows, outputs = [], []
    for task, expert in experts.items():
        inputs = data.inputs(expert, data.pictures[task])["out.weight"]
        rows.append(inputs / len(inputs) ** 0.5)
        outputs.append(rows[-1] @ expert["out.weight"].T)
    expected = torch.linalg.lstsq(torch.cat(rows), torch.cat(outputs)).solution.T
    merged = regmean(base, experts, data, off_diagonal=1.0).weights
    torch.testing.assert_close(merged["out.weight"], expected, rtol=0, atol=1e-11)
    assert not torch.allclose(expected, simple_average(base, experts).weights["out.weight"], atol=1e-3)


def test_regmean_is_the_papers_equation(pool: Pool) -> None:
    base, experts, data = pool
    grams = [
        layer_grams(data, expert, data.pictures[task], off_diagonal=0.9, batch_size=32)
        for task, expert in experts.items()
    ]
    merged = regmean(base, experts, data).weights
    for name in ("fc.weight", "out.weight"):
        pulled = sum(expert[name] @ one[name] for expert, one in zip(experts.values(), grams, strict=True))
        expected = pulled @ torch.linalg.inv(sum(one[name] for one in grams))
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-11)
    close(merged, merge_with_grams(base, experts, grams))


def test_regmean_averages_whatever_is_no_linear_layer(pool: Pool) -> None:
    base, experts, data = pool
    merged, average = regmean(base, experts, data).weights, simple_average(base, experts).weights
    assert list(merged) == list(base)
    for name in ("fc.bias", "position"):
        torch.testing.assert_close(merged[name], average[name], rtol=0, atol=1e-14)


def test_without_off_diagonals_each_column_is_a_weighted_mean(pool: Pool) -> None:
    base, experts, data = pool
    shares = {
        task: data.inputs(expert, data.pictures[task])["fc.weight"].square().mean(0) for task, expert in experts.items()
    }
    expected = sum(expert["fc.weight"] * shares[task] for task, expert in experts.items()) / sum(shares.values())
    merged = regmean(base, experts, data, off_diagonal=0.0).weights
    torch.testing.assert_close(merged["fc.weight"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("off_diagonal", [0.0, 0.9, 1.0])
def test_regmean_of_one_expert_is_the_expert(off_diagonal: float, pool: Pool) -> None:
    base, experts, data = pool
    close(regmean(base, {"b": experts["b"]}, data, off_diagonal=off_diagonal).weights, experts["b"], tolerance=1e-11)


def test_exactly_the_images_asked_for_are_used(pool: Pool) -> None:
    base, experts, data = pool
    parts = regmean(base, experts, data, images=7, batch_size=3).weights
    assert data.forwarded == [3, 3, 1] * 3
    close(parts, regmean(base, experts, data, images=7, batch_size=7).weights)
    few = {task: images[:7] for task, images in data.pictures.items()}
    close(parts, regmean(base, experts, replace(data, pictures=few)).weights)


def test_regmean_in_any_order_and_from_disk(pool: Pool, tmp_path: Path) -> None:
    base, experts, data = pool
    merged = regmean(base, experts, data).weights
    close(merged, regmean(base, reversed_pool(experts), data).weights)
    lazy = regmean(base, on_disk(experts, tmp_path), data).weights
    assert all(torch.equal(merged[name], lazy[name]) for name in base)


def test_regmean_of_half_precision_returns_half_precision(pool: Pool) -> None:
    base, experts, data = pool
    halves = {task: {name: tensor.half() for name, tensor in one.items()} for task, one in experts.items()}
    grams = [
        layer_grams(data, expert, data.pictures[task], off_diagonal=0.9, batch_size=32)
        for task, expert in experts.items()
    ]
    merged = merge_with_grams({name: tensor.half() for name, tensor in base.items()}, halves, grams)
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
    close({name: tensor.double() for name, tensor in merged.items()}, merge_with_grams(base, experts, grams), 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_sum_of_grams_names_the_layer_and_the_way_out(dtype: torch.dtype, pool: Pool) -> None:
    base, experts, data = pool
    few = {task: images[:1].to(dtype) for task, images in data.pictures.items()}
    short = replace(data, pictures={**few, "b": few["a"], "c": few["a"]})  # four different rows for twelve inputs
    cast = {task: {name: tensor.to(dtype) for name, tensor in one.items()} for task, one in experts.items()}
    start = {name: tensor.to(dtype) for name, tensor in base.items()}
    with pytest.raises(
        KitError, match=r"inputs of 'fc\.weight' have a singular sum.*more images, or a smaller off_dia"
    ):
        regmean(start, cast, short, off_diagonal=1.0)
    assert regmean(start, cast, short).weights.keys() == base.keys()
    for images in data.pictures.values():
        images[:, 0, ::2, ::2] = 0  # one input is always zero: that no off_diagonal makes up for
    with pytest.raises(KitError, match=r"inputs of 'fc\.weight' have a singular sum"):
        regmean(base, experts, data)


def test_grams_of_other_tensors_are_refused(pool: Pool) -> None:
    base, experts, _ = pool
    eye = {"fc.weight": torch.eye(12).double()}
    with pytest.raises(KitError, match=r"differ in 'fc\.weight'"):
        merge_with_grams(base, experts, [eye, {}, eye])
    with pytest.raises(KitError, match="differ in 'visual'"):
        merge_with_grams(base, experts, [{"visual": torch.eye(2)}] * 3)


def test_regmean_names_bad_experts_images_and_tasks(pool: Pool) -> None:
    base, experts, data = pool
    with pytest.raises(KitError, match="there are none for 'cats'"):
        regmean(base, {**experts, "cats": base}, data)
    data.pictures["c"][0, 0, 0, 0] = float("nan")
    with pytest.raises(KitError, match=r"NaN or infinite inputs of the layer 'fc\.weight'"):
        regmean(base, experts, data)
    experts["b"]["fc.bias"][2] = float("inf")
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'b': 'fc\.bias'"):
        regmean(base, experts, data)
    with pytest.raises(KitError, match=r"Parameter 'off_diagonal' of method 'regmean' cannot be 1\.5"):
        regmean(base, experts, data, off_diagonal=1.5)
