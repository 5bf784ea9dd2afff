"""FW-Merging with other methods: it is the hard variant where it must be, and starts from and merges by any other."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite import study
from mergekit_lite.errors import KitError
from mergekit_lite.methods import (
    all_methods,
    combined_frank_wolfe,
    dare,
    fisher_merging,
    get,
    hard_frank_wolfe,
    simple_average,
    task_arithmetic,
    task_wise_adamerging,
    ties_merging,
)
from mergekit_lite.methods.frank_wolfe.combined import combined_step
from mergekit_lite.methods.frank_wolfe.gradient import mean_gradient
from mergekit_lite.methods.frank_wolfe.others import checked_first
from mergekit_lite.methods.registry import Access, Examples, resolve

Weights = Mapping[str, Tensor]


def exact(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@dataclass
class Labelled:
    """The same labelled images, in the same order, for whoever asks."""

    heads: Mapping[str, Tensor]
    encode: Callable[[Weights, Tensor], Tensor]
    images: Mapping[str, Tensor]
    labels: Mapping[str, Tensor] | None

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Examples]]:
        for _ in range(steps):
            yield {task: self.some(task, images_per_task) for task in self.heads}

    def some(self, task: str, count: int) -> Examples:
        images = self.images[task][:count]
        return images if self.labels is None else (images, self.labels[task][:count])


@pytest.fixture
def data(pico: Pico) -> Labelled:
    images = {task: pico.images(12) for task in pico.heads}
    labels = {task: torch.arange(12) % len(head) for task, head in pico.heads.items()}
    return Labelled(pico.heads, pico.encode, images, labels)


run = partial(combined_frank_wolfe, samples=8)
run_hard = partial(hard_frank_wolfe, samples=8)


@pytest.mark.parametrize("oracle", ["inner product", "cosine"])
@pytest.mark.parametrize("granularity", ["model", "tensor"])
@pytest.mark.parametrize("include_start", [True, False])
def test_with_task_arithmetic_inside_it_is_the_hard_variant(
    pico: Pico, data: Labelled, oracle: Any, granularity: Any, include_start: bool
) -> None:
    given: dict[str, Any] = {
        "oracle": oracle,
        "granularity": granularity,
        "include_start": include_start,
        "iterations": 4,
    }
    ours = run(pico.base, pico.experts, data, inside="task_arithmetic", **given)
    plain = run_hard(pico.base, pico.experts, data, step_size=0.3, **given)
    exact(ours.weights, plain.weights)
    assert ours.trace["loss"] == pytest.approx(plain.trace["loss"], rel=1e-10)
    assert ours.trace["chosen"] == [[pick] for pick in plain.trace["chosen"]]
    exact(torch.tensor(ours.trace["gap"]), torch.tensor(plain.trace["gap"]))


def test_with_ties_inside_one_vertex_is_trimmed_as_in_the_hard_variant(pico: Pico, data: Labelled) -> None:
    ours = run(pico.base, pico.experts, data, inside="ties_merging", iterations=4)
    exact(ours.weights, run_hard(pico.base, pico.experts, data, merge="ties_merging", iterations=4).weights)
    assert resolve("combined_frank_wolfe", {})["inside"] == "ties_merging"


def test_with_the_average_inside_a_full_step_forgets_its_start(pico: Pico, data: Labelled) -> None:
    given: dict[str, Any] = {"inside": "simple_average", "selection": 3, "iterations": 1, "granularity": "model"}
    merged = run(pico.base, pico.experts, data, start="ties_merging", **given)
    exact(merged.weights, simple_average(pico.base, pico.experts).weights)
    assert sorted(merged.trace["chosen"][0]) == sorted(pico.experts)


@pytest.mark.parametrize("name", ["simple_average", "task_arithmetic", "ties_merging", "tsv_merging", "iso_c", "dare"])
def test_a_step_goes_part_of_the_way_to_the_merge_of_the_vertices(pico: Pico, name: str) -> None:
    theta = pico.experts["textures"]
    vertices = {task: pico.experts[task] for task in ("digits", "signs")}
    found = combined_step(theta, vertices, rate=0.25, inside=name, seed=3)
    more = {"seed": 3} if name == "dare" else {}
    merged = get(name).function(theta, vertices, **more).weights
    exact(found, {key: 0.75 * one + 0.25 * merged[key] for key, one in theta.items()})


def test_two_iterations_by_hand(pico: Pico, data: Labelled) -> None:
    theta: Weights = task_arithmetic(pico.base, pico.experts).weights
    names = sorted(pico.experts)
    for t in range(2):
        batch = {task: data.some(task, 8) for task in data.heads}
        _, gradient = mean_gradient(data, theta, batch, "cross-entropy")
        picks: list[dict[str, Tensor]] = [{}, {}]
        for key, slope in gradient.items():
            scores = torch.stack([(slope * pico.experts[name][key]).sum() for name in names])
            for pick, place in zip(picks, scores.argsort()[:2].tolist(), strict=True):
                pick[key] = pico.experts[names[place]][key]
        merged = ties_merging(theta, {"first": picks[0], "second": picks[1]}).weights
        rate = 0.8 * 2 / (t + 2)
        theta = {key: one + rate * (merged[key] - one) for key, one in theta.items()}
    exact(run(pico.base, pico.experts, data, selection=2, iterations=2, step_size=0.8).weights, dict(theta))


def test_top_k_takes_as_many_vertices_as_there_are_tasks(pico: Pico, data: Labelled) -> None:
    given: dict[str, Any] = {"iterations": 2, "granularity": "model", "inside": "ties_merging"}
    data.heads = {task: data.heads[task] for task in ("digits", "signs")}
    whole = run(pico.base, pico.experts, data, selection="top-k", **given)
    exact(whole.weights, run(pico.base, pico.experts, data, selection=2, **given).weights)
    assert [len(picks) for picks in whole.trace["chosen"]] == [2, 2]
    small = run(pico.base, {"digits": pico.experts["digits"]}, data, selection="top-k", **given)
    assert small.trace["chosen"] == [["digits"], ["digits"]]


def test_without_iterations_it_is_the_start(pico: Pico, data: Labelled) -> None:
    for start in ("task_arithmetic", "ties_merging", "tsv_merging", "iso_c", "consensus"):
        merged = run(pico.base, pico.experts, data, start=start, iterations=0)
        exact(merged.weights, get(start).function(pico.base, pico.experts).weights)
    exact(run(pico.base, pico.experts, data, start="base", iterations=0).weights, dict(pico.base))
    drawn = run(pico.base, pico.experts, data, start="dare", iterations=0, seed=4).weights
    exact(drawn, dare(pico.base, pico.experts, seed=4).weights)


def test_it_starts_from_methods_that_look_at_data(pico: Pico, data: Labelled) -> None:
    fisher = run(pico.base, pico.experts, data, start="fisher_merging", iterations=0, seed=2)
    without = Labelled(data.heads, data.encode, data.images, None)
    exact(fisher.weights, fisher_merging(pico.base, pico.experts, without, seed=2).weights)
    adapted = run(pico.base, pico.experts, data, start="task_wise_adamerging", iterations=0)
    labels = task_wise_adamerging(pico.base, pico.experts, data, objective="cross-entropy")
    exact(adapted.weights, labels.weights)
    assert adapted.trace["start"]["trace"]["loss"] == labels.trace["loss"]


def test_starts_that_need_other_data_or_give_no_single_model_are_refused(pico: Pico, data: Labelled) -> None:
    with pytest.raises(KitError, match="'regmean_plus_plus' needs data of the kind 'calibration inputs', but with"):
        checked_first("regmean_plus_plus", "entropy")
    with pytest.raises(KitError, match="'adarank' needs data of the kind 'unlabelled test', but with the objective"):
        run(pico.base, pico.experts, data, start="adarank")
    with pytest.raises(KitError, match="The start 'individual' gives one model per task"):
        run(pico.base, pico.experts, data, start="individual")
    assert checked_first("adarank", "entropy")[0].access is Access.UNLABELLED
    assert checked_first("regmean", "cross-entropy")[0].access is Access.CALIBRATION


def test_what_cannot_merge_inside_is_refused(pico: Pico, data: Labelled) -> None:
    with pytest.raises(KitError, match=r"'regmean' looks at data\. Inside an iteration only models are merged"):
        run(pico.base, pico.experts, data, inside="regmean")
    with pytest.raises(KitError, match="'pretrained' is no merge"):
        run(pico.base, pico.experts, data, inside="pretrained")
    with pytest.raises(KitError, match="There is no method 'ties'"):
        run(pico.base, pico.experts, data, inside="ties")
    with pytest.raises(KitError, match="4 vertices cannot be chosen from 3: digits, signs, textures"):
        run(pico.base, pico.experts, data, selection=4)


def test_order_of_experts_does_not_matter(pico: Pico, data: Labelled) -> None:
    merged = run(pico.base, pico.experts, data, selection=2).weights
    turned = {task: pico.experts[task] for task in reversed(pico.experts)}
    exact(run(pico.base, turned, data, selection=2).weights, merged)


def test_one_expert_and_zero_vectors_pass_through(pico: Pico, data: Labelled) -> None:
    same = dict.fromkeys(pico.experts, pico.base)
    for inside in ("task_arithmetic", "ties_merging", "tsv_merging"):
        exact(run(pico.base, same, data, start="base", inside=inside, selection=2).weights, dict(pico.base))
    one = {"signs": pico.experts["signs"]}
    given: dict[str, Any] = {"iterations": 1, "inside": "simple_average", "granularity": "model"}
    exact(run(pico.base, one, data, **given).weights, dict(one["signs"]))


def test_half_precision_is_merged_in_float32(pico: Pico, data: Labelled) -> None:
    halves = {task: {name: one.half() for name, one in expert.items()} for task, expert in pico.experts.items()}
    data.images = {task: images.float() for task, images in data.images.items()}
    data.heads = {task: head.float() for task, head in data.heads.items()}
    merged = run({name: one.half() for name, one in pico.base.items()}, halves, data, selection=2).weights
    assert {one.dtype for one in merged.values()} == {torch.float16}


def test_what_is_drawn_inside_differs_between_iterations(pico: Pico, data: Labelled) -> None:
    given: dict[str, Any] = {"inside": "dare", "start": "base", "granularity": "model", "selection": 3}
    seen: list[Weights] = []
    run(pico.base, pico.experts, data, iterations=2, watch=lambda t, theta: seen.append(theta), seed=1, **given)
    first, second = (seen[t + 1]["proj"] != seen[t]["proj"] for t in range(2))
    assert first.any()
    assert (first != second).any()
    again = run(pico.base, pico.experts, data, iterations=2, seed=1, **given).weights
    assert torch.equal(again["proj"], seen[2]["proj"])


def test_a_loss_that_becomes_nan_keeps_the_best_so_far(pico: Pico, data: Labelled) -> None:
    data.images["signs"][0] = float("nan")
    with pytest.warns(RuntimeWarning, match="Stopped at iteration 1: the loss became nan"):
        merged = run(pico.base, pico.experts, data)
    exact(merged.weights, task_arithmetic(pico.base, pico.experts).weights)


def test_the_trace_is_json_and_the_method_stands_after_the_soft_variant(pico: Pico, data: Labelled) -> None:
    trace = run(pico.base, pico.experts, data, selection=2).trace
    assert json.loads(json.dumps(trace)) == trace
    names = [info.name for info in all_methods()]
    assert names.index("combined_frank_wolfe") == names.index("soft_frank_wolfe") + 1


def test_before_and_after_are_cells_of_one_question() -> None:
    pairs = study.before_and_after(["tsv_merging", "regmean"], pool=("a", "b"), evaluate=("a",), inside="iso_c", seed=3)
    assert list(pairs) == [
        ("tsv_merging", "before"), ("tsv_merging", "after"), ("regmean", "before"), ("regmean", "after"),
    ]  # fmt: skip
    before, after = pairs["regmean", "before"], pairs["regmean", "after"]
    assert (before.method, before.parameters, before.seed) == ("regmean", {}, 3)
    assert (after.method, after.parameters) == ("combined_frank_wolfe", {"start": "regmean", "inside": "iso_c"})
    assert after.pool == before.pool == ("a", "b")
