"""FW-Merging: the steps converge as Frank-Wolfe must, and both variants equal plain re-implementations in float64."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pico
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from mergekit_lite.errors import KitError
from mergekit_lite.methods.adamerging import layer_wise_adamerging, task_wise_adamerging
from mergekit_lite.methods.averaging import simple_average, task_arithmetic
from mergekit_lite.methods.frank_wolfe import gradient as gradients
from mergekit_lite.methods.frank_wolfe.gradient import drawn, mean_gradient
from mergekit_lite.methods.frank_wolfe.hard import RECIPES as HARD
from mergekit_lite.methods.frank_wolfe.hard import hard_frank_wolfe, hard_step, towards
from mergekit_lite.methods.frank_wolfe.oracle import Granularity, Patchwork, compare, duality_gap, inner_products
from mergekit_lite.methods.frank_wolfe.soft import RECIPES as SOFT
from mergekit_lite.methods.frank_wolfe.soft import simplex_projection, soft_frank_wolfe
from mergekit_lite.methods.registry import Access, Examples, all_methods, get, resolve
from mergekit_lite.methods.ties import ties_merging
from mergekit_lite.weight_files import LazyWeights, write

Weights = Mapping[str, Tensor]


def exact(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@dataclass
class Labelled:
    """Twelve images per task with labels; each seed draws them in another order, and an epoch shows all of them."""

    heads: Mapping[str, Tensor]
    encode: Callable[[Weights, Tensor], Tensor]
    images: Mapping[str, Tensor]
    labels: Mapping[str, Tensor] | None
    asked: list[dict[str, int | float | None]] = field(default_factory=list)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Examples]]:
        self.asked.append({"images_per_task": images_per_task, "steps": steps, "seed": seed, "keep": keep})
        kept = self.rows(seed, None if isinstance(keep, float) else keep)
        rows = cycle(kept)
        for _ in range(steps):
            some = list(islice(rows, min(images_per_task, len(kept))))
            yield {task: self.some(task, some) for task in self.heads}

    def rows(self, seed: int, keep: int | None) -> list[int]:
        return torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()[:keep]

    def some(self, task: str, rows: list[int]) -> Examples:
        return self.images[task][rows] if self.labels is None else (self.images[task][rows], self.labels[task][rows])


@pytest.fixture
def data(pico: Pico) -> Labelled:
    images = {task: pico.images(12) for task in pico.heads}
    labels = {task: torch.arange(12) % len(head) for task, head in pico.heads.items()}
    return Labelled(pico.heads, pico.encode, images, labels)


run_hard = partial(hard_frank_wolfe, samples=8)
run_soft = partial(soft_frank_wolfe, samples=8, inner_steps=4, images_per_task=4, iterations=3)


def naive_loss(data: Labelled, weights: Weights, rows: list[int], tasks: list[str]) -> Tensor:
    assert data.labels is not None
    losses = [
        cross_entropy(data.encode(weights, data.images[task][rows]) @ data.heads[task].T, data.labels[task][rows])
        for task in tasks
    ]
    return torch.stack(losses).sum()


def naive_gradient(data: Labelled, weights: Weights, rows: list[int], tasks: list[str]) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    naive_loss(data, leaves, rows, tasks).backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@dataclass
class Quadratic:
    """f(x) = |A (x - target)|^2 / 2 over the hull of random models of two tensors."""

    vertices: dict[str, dict[str, Tensor]]
    target: Tensor
    matrix: Tensor

    @classmethod
    def random(cls, seed: int) -> "Quadratic":
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        vertices = {f"v{place}": {"w": noise(3, 2), "b": noise(2)} for place in range(7)}
        return cls(vertices, noise(8), noise(8, 8))

    def value(self, weights: Weights) -> float:
        return float((self.matrix @ (self.flat(weights) - self.target)).square().sum() / 2)

    def gradient(self, weights: Weights) -> dict[str, Tensor]:
        slope = self.matrix.T @ self.matrix @ (self.flat(weights) - self.target)
        return {"w": slope[:6].view(3, 2), "b": slope[6:]}

    def line_minimum(self, weights: Weights, vertex: Weights) -> float:
        way = self.matrix @ (self.flat(vertex) - self.flat(weights))
        rest = self.matrix @ (self.flat(weights) - self.target)
        # At the vertex itself there is no way to go.
        return min(max(float(-(rest @ way) / (way @ way).clamp(min=1e-30)), 0), 1)

    def minimum(self) -> float:
        """Accelerated projected gradient descent on the coefficients of the vertices."""
        images = torch.stack([self.matrix @ (self.flat(one) - self.target) for one in self.vertices.values()])
        gram = images @ images.T
        rate = 1 / float(torch.linalg.eigvalsh(gram).max())
        shares = ahead = torch.full((7,), 1 / 7, dtype=torch.float64)
        for step in range(1, 4000):
            previous, shares = shares, simplex_projection(ahead - rate * gram @ ahead)
            ahead = shares + (step - 1) / (step + 2) * (shares - previous)
        return float(shares @ gram @ shares / 2)

    def bound(self) -> float:
        """Return 2 L D^2, with the curvature L and the diameter D of the hull."""
        points = torch.stack([self.flat(one) for one in self.vertices.values()])
        return 2 * float(torch.linalg.matrix_norm(self.matrix, 2) ** 2 * torch.cdist(points, points).max() ** 2)

    @staticmethod
    def flat(weights: Weights) -> Tensor:
        return torch.cat([weights["w"].flatten(), weights["b"]])


@pytest.mark.parametrize("seed", range(3))
def test_a_convex_quadratic_falls_at_the_known_rate(seed: int) -> None:
    problem = Quadratic.random(seed)
    lowest, bound = problem.minimum(), problem.bound()
    theta: dict[str, Tensor] = problem.vertices["v0"]
    before = problem.value(theta)
    for t in range(300):
        theta, _, answer = hard_step(
            theta, problem.gradient(theta), problem.vertices, rate=2 / (t + 2), granularity="model"
        )
        gap = duality_gap(answer.own, answer.products, "model")
        assert gap >= before - lowest - 1e-9  # the gap is an upper bound, whatever the minimum
        before = problem.value(theta)
        assert lowest - 1e-9 <= before <= lowest + bound / (t + 3)  # theta is x_{t+1} now
    assert before - lowest < 0.02 * (problem.value(problem.vertices["v0"]) - lowest)


@pytest.mark.parametrize("seed", range(3))
def test_exact_line_search_never_rises_and_keeps_the_rate(seed: int) -> None:
    problem = Quadratic.random(seed)
    lowest, bound = problem.minimum(), problem.bound()
    theta: dict[str, Tensor] = problem.vertices["v0"]
    before = problem.value(theta)
    for t in range(300):
        gradient = problem.gradient(theta)
        (pick,) = compare(theta, gradient, problem.vertices).lowest("model")
        vertex = Patchwork(pick, problem.vertices, theta)
        theta = towards(theta, vertex, problem.line_minimum(theta, vertex))
        after = problem.value(theta)
        assert after <= before + 1e-12
        assert after <= lowest + bound / (t + 3)
        before = after


def test_choosing_by_tensor_reaches_below_the_hull_of_whole_models() -> None:
    problem = Quadratic.random(0)

    def reached(granularity: Granularity) -> tuple[float, float]:
        theta: dict[str, Tensor] = problem.vertices["v0"]
        for t in range(400):
            rate = 2 / (t + 2)
            theta, _, answer = hard_step(
                theta, problem.gradient(theta), problem.vertices, rate=rate, granularity=granularity
            )
        return problem.value(theta), duality_gap(answer.own, answer.products, granularity)

    (whole, _), (parts, gap) = reached("model"), reached("tensor")
    assert parts < problem.minimum() <= whole + 1e-9
    assert gap >= 0


@pytest.mark.parametrize("together", [3, 4, 8, 100])
def test_the_gradient_is_that_of_the_summed_mean_loss(
    together: int, pico: Pico, data: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "TOGETHER", together)
    rows, tasks = data.rows(3, 8), list(pico.heads)
    batch = drawn(data, 8, 3)
    loss, gradient = mean_gradient(data, pico.base, batch, "cross-entropy")
    assert loss == pytest.approx(float(naive_loss(data, pico.base, rows, tasks)), rel=1e-12)
    exact(gradient, naive_gradient(data, pico.base, rows, tasks))
    _, alone = mean_gradient(data, pico.base, batch, "cross-entropy", tasks=["signs"])
    exact(alone, naive_gradient(data, pico.base, rows, ["signs"]))


def test_a_tensor_that_the_loss_does_not_reach_has_gradient_zero_and_stays(pico: Pico, data: Labelled) -> None:
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    experts = {task: {**expert, "unused": one} for task, expert in pico.experts.items()}
    merged = run_hard({**pico.base, "unused": zero}, experts, data, start="base")
    assert merged.weights["unused"] == 0
    assert merged.trace["tensors"][-1] == "unused"
    assert [picks[-1] for picks in merged.trace["chosen"]] == [None] * 3


def test_an_empty_batch_and_no_batch_are_clear_errors(pico: Pico, data: Labelled) -> None:
    data.images = {**data.images, "signs": data.images["signs"][:0]}
    data.labels = None
    data.some = lambda task, rows: data.images[task][:4]  # type: ignore[method-assign]
    with pytest.raises(KitError, match=r"Without images: signs; without head: none"):
        run_hard(pico.base, pico.experts, data)
    data.batches = lambda **_: iter(())  # type: ignore[method-assign]
    with pytest.raises(KitError, match=r"Without images: digits, signs, textures; without head: none"):
        run_hard(pico.base, pico.experts, data)


@pytest.mark.parametrize("run", [run_hard, run_soft])
def test_an_objective_that_the_images_do_not_go_with_is_refused(run: Any, pico: Pico, data: Labelled) -> None:
    with pytest.raises(KitError, match=r"'digits' have labels, .* 'entropy'\. .* 'unlabelled test'"):
        run(pico.base, pico.experts, data, objective="entropy")
    data.labels = None
    with pytest.raises(KitError, match=r"'digits' have no labels, .* 'cross-entropy'\. .* 'labelled train'"):
        run(pico.base, pico.experts, data)


@pytest.mark.parametrize("name", ["hard_frank_wolfe", "soft_frank_wolfe"])
def test_the_objective_decides_the_data_access(name: str) -> None:
    info = get(name)
    assert info.access_with({}) is Access.LABELLED
    assert info.access_with({"objective": "cross-entropy"}) is Access.LABELLED
    assert info.access_with({"objective": "entropy"}) is Access.UNLABELLED


@pytest.mark.parametrize("recipes", [("hard_frank_wolfe", HARD), ("soft_frank_wolfe", SOFT)])
def test_recipes_are_valid_and_the_papers_is_the_default(recipes: tuple[str, dict[str, Any]]) -> None:
    name, known = recipes
    assert list(known) == ["paper", "released", "fusionbench"]
    for parameters in known.values():
        resolve(name, parameters)
    assert resolve(name, known["paper"]) == resolve(name, {})


def test_one_whole_step_lands_on_the_vertex(pico: Pico, data: Labelled) -> None:
    for granularity in ("model", "tensor"):
        alone = run_hard(
            pico.base,
            {"signs": pico.experts["signs"]},
            data,
            iterations=1,
            step_size=1.0,
            granularity=granularity,
            start="base",
        )
        exact(alone.weights, pico.experts["signs"])
        assert alone.trace["step"] == [1.0]


def test_steps_shrink_and_trace_is_json(pico: Pico, data: Labelled) -> None:
    merged = run_hard(pico.base, pico.experts, data, iterations=4, step_size=0.15, granularity="model")
    trace = merged.trace
    assert trace["step"] == pytest.approx([0.15, 0.1, 0.075, 0.06])
    assert trace["vertices"] == ["digits", "signs", "textures"]
    assert all(len(trace[key]) == 4 for key in ("loss", "gap", "descent", "chosen", "scores"))
    for choice, table in zip(trace["chosen"], trace["scores"], strict=True):
        assert choice == min(table, key=table.__getitem__)
    assert json.loads(json.dumps(trace, allow_nan=False)) == trace


def test_the_loss_falls(pico: Pico, data: Labelled) -> None:
    steps = run_hard(pico.base, pico.experts, data, iterations=12, step_size=0.03, start="base", samples=12).trace
    assert steps["loss"][-1] < steps["loss"][0]
    for inner in ("capped simplex", "adam"):
        mixed = run_soft(
            pico.base, pico.experts, data, inner=inner, inner_steps=30, samples=12, images_per_task=12,
            inner_learning_rate=0.01,
        ).trace  # fmt: skip
        assert mixed["loss"][-1] < mixed["loss"][0]


@pytest.mark.parametrize("run", [run_hard, run_soft])
def test_the_order_of_the_pool_changes_nothing(run: Any, pico: Pico, data: Labelled) -> None:
    one = run(pico.base, pico.experts, data, start="base")
    turned = run(pico.base, dict(reversed(pico.experts.items())), data, start="base")
    assert turned.trace == one.trace
    assert all(torch.equal(turned.weights[name], one.weights[name]) for name in pico.base)


@pytest.mark.parametrize(
    ("start", "method"),
    [
        ("simple_average", simple_average),
        ("task_arithmetic", task_arithmetic),
        ("ties_merging", ties_merging),
        ("pretrained", None),
        ("base", None),
    ],
)
@pytest.mark.parametrize("run", [run_hard, run_soft])
def test_without_iterations_the_start_is_returned(
    run: Any, start: str, method: Any, pico: Pico, data: Labelled
) -> None:
    merged = run(pico.base, pico.experts, data, iterations=0, start=start)
    expected = method(pico.base, pico.experts).weights if method else pico.base
    assert all(torch.equal(merged.weights[name], expected[name]) for name in pico.base)
    assert data.asked == []


def test_adamerging_as_a_start_sees_the_same_data_and_objective(pico: Pico, data: Labelled) -> None:
    merged = run_hard(pico.base, pico.experts, data, iterations=0, start="task_wise_adamerging", seed=5)
    expected = task_wise_adamerging(pico.base, pico.experts, data, objective="cross-entropy", seed=5)
    exact(merged.weights, expected.weights)
    assert merged.trace["start"] == {"method": "task_wise_adamerging", "trace": expected.trace}


def test_a_start_that_cannot_be_had_is_a_clear_error(pico: Pico, data: Labelled) -> None:
    with pytest.raises(KitError, match=r"There is no method 'task_arithmetik'\. Did you mean 'task_arithmetic'\?"):
        run_hard(pico.base, pico.experts, data, start="task_arithmetik")
    with pytest.raises(KitError, match=r"The start 'individual' gives one model per task\."):
        run_hard(pico.base, pico.experts, data, start="individual")
    calibrated = next(info.name for info in all_methods() if info.access is Access.CALIBRATION)
    with pytest.raises(KitError, match=rf"The start '{calibrated}' needs data of the kind 'calibration inputs'"):
        run_hard(pico.base, pico.experts, data, start=calibrated)


def test_the_start_as_a_vertex_closes_the_hull(pico: Pico, data: Labelled) -> None:
    merged = run_hard(pico.base, pico.experts, data, iterations=6, include_start=True, start="base", step_size=1.0)
    assert merged.trace["vertices"] == ["digits", "signs", "start", "textures"]
    assert all(gap >= -1e-12 for gap in merged.trace["gap"])
    with pytest.raises(KitError, match=r"An expert is called 'start', as the starting point is\."):
        run_hard(pico.base, {"start": pico.experts["signs"]}, data, include_start=True)


def test_ties_inside_keeps_the_largest_entries_of_the_step(pico: Pico, data: Labelled) -> None:
    merged = run_hard(
        pico.base,
        pico.experts,
        data,
        iterations=1,
        merge="ties_merging",
        start="base",
        granularity="model",
    )
    vertex = merged.trace["chosen"][0]
    alone = ties_merging(pico.base, {vertex: pico.experts[vertex]}, scaling=0.3)
    exact(merged.weights, alone.weights)


def test_fixed_sampling_repeats_the_images_and_fresh_draws_others(pico: Pico, data: Labelled) -> None:
    run_hard(pico.base, pico.experts, data, seed=4)
    assert data.asked == [{"images_per_task": 8, "steps": 1, "seed": 4, "keep": 8}] * 3
    data.asked.clear()
    run_hard(pico.base, pico.experts, data, seed=4, sampling="fresh")
    assert len({asked["seed"] for asked in data.asked}) == 3
    data.asked.clear()
    run_soft(pico.base, pico.experts, data, iterations=1)
    assert data.asked[1] == {"images_per_task": 4, "steps": 4, "seed": 0, "keep": 8}
    data.asked.clear()
    run_soft(pico.base, pico.experts, data, iterations=1, sampling="fresh")
    assert data.asked[1] == {"images_per_task": 4, "steps": 4, "seed": 0, "keep": None}


@pytest.mark.parametrize("run", [run_hard, run_soft])
def test_the_watcher_sees_every_iteration(run: Any, pico: Pico, data: Labelled) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    merged = run(pico.base, pico.experts, data, iterations=3, start="base", watch=seen.__setitem__)
    assert list(seen) == [0, 1, 2, 3]
    exact(seen[0], pico.base)
    exact(seen[3], merged.weights)


@pytest.mark.parametrize("objective", ["cross-entropy", "entropy"])
@pytest.mark.parametrize("coefficients", ["model", "tensor"])
@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_simplex_coefficients_are_shares(
    granularity: Granularity, coefficients: Granularity, objective: Any, pico: Pico, data: Labelled
) -> None:
    if objective == "entropy":
        data.labels = None
    for inner in ("simplex", "capped simplex"):
        merged = run_soft(
            pico.base, pico.experts, data, selection=2, inner=inner, inner_learning_rate=0.1, granularity=granularity,
            coefficients=coefficients, objective=objective,
        )  # fmt: skip
        for learned, step in zip(merged.trace["inner"], merged.trace["step"], strict=True):
            values = torch.tensor(learned["coefficients"], dtype=torch.float64)
            assert values.shape == (2, 4 if coefficients == "tensor" else 1)
            assert (values >= 0).all()
            total = values.sum(dim=0)
            assert ((total <= 1 + 1e-12) if inner == "capped simplex" else (total - 1).abs() < 1e-12).all()
            assert step == pytest.approx(float(total.mean()))
        assert json.loads(json.dumps(merged.trace, allow_nan=False)) == merged.trace


def test_soft_steps_on_the_simplex_equal_plain_projected_gradient_descent(pico: Pico, data: Labelled) -> None:
    rows, tasks = data.rows(0, 8), list(pico.heads)
    theta: dict[str, Tensor] = pico.base
    merged = run_soft(
        pico.base, pico.experts, data, selection=2, iterations=2, inner_learning_rate=0.1, images_per_task=8
    )
    for t in range(2):
        gradient = naive_gradient(data, theta, rows, tasks)
        products = {
            name: sum(float((gradient[key] * expert[key]).sum()) for key in theta)
            for name, expert in pico.experts.items()
        }
        picks = sorted(products, key=products.__getitem__)[:2]
        assert merged.trace["chosen"][t] == picks
        shares = torch.full((2,), 0.5, dtype=torch.float64)
        for _ in range(4):
            leaf = shares.clone().requires_grad_()
            mixed = {
                key: start + sum(leaf[j] * (pico.experts[pick][key] - start) for j, pick in enumerate(picks))
                for key, start in theta.items()
            }
            naive_loss(data, mixed, rows, tasks).backward()
            assert leaf.grad is not None
            shares = simplex_projection(shares - 0.1 * leaf.grad)
        exact([row[0] for row in merged.trace["inner"][t]["coefficients"]], shares.tolist())
        theta = {key: sum(shares[j] * pico.experts[pick][key] for j, pick in enumerate(picks)) for key in theta}  # type: ignore[misc]
    exact(merged.weights, theta)


def cosines(gradient: Weights, model: Weights) -> dict[str, float]:
    return {
        key: float(cosine_similarity(gradient[key].flatten(), model[key].flatten(), dim=0, eps=0)) for key in gradient
    }


def test_the_released_soft_recipe_equals_a_plain_loop(pico: Pico, data: Labelled) -> None:
    recipe = {**SOFT["released"], "iterations": 2, "inner_steps": 5, "images_per_task": 4, "sampling": "fixed"}
    data.heads = {task: data.heads[task] for task in ("textures", "digits")}  # fewer tasks than models
    merged = soft_frank_wolfe(pico.base, pico.experts, data, samples=8, **recipe)
    theta: dict[str, Tensor] = pico.base
    for t in range(2):
        picks: list[str] = []
        for task in data.heads:
            gradient = naive_gradient(data, theta, data.rows(0, 8), [task])
            summed = {name: sum(cosines(gradient, expert).values()) for name, expert in pico.experts.items()}
            picks.append(min((name for name in summed if name not in picks), key=summed.__getitem__))
        assert merged.trace["chosen"][t] == picks
        raw = torch.full((2, 4), 0.01 if t else 0.3, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([raw], lr=1e-3)
        vectors = [{key: pico.experts[pick][key] - theta[key] for key in theta} for pick in picks]

        def mixed(raw: Tensor, start: Weights = theta, vectors: Any = vectors) -> dict[str, Tensor]:
            return {
                key: start[key] + raw[0, column] * vectors[0][key] + raw[1, column] * vectors[1][key]
                for column, key in enumerate(start)
            }

        rows = cycle(data.rows(0, 8))
        for _ in range(5):
            optimiser.zero_grad()
            naive_loss(data, mixed(raw), list(islice(rows, 4)), list(data.heads)).backward()
            optimiser.step()
        theta = mixed(raw.detach())
    exact(merged.weights, theta)


@pytest.mark.parametrize("name", ["released", "fusionbench"])
def test_the_hard_recipes_of_released_code_equal_a_plain_loop(name: str, pico: Pico, data: Labelled) -> None:
    recipe = {**HARD[name], "sampling": "fixed"}
    merged = hard_frank_wolfe(pico.base, pico.experts, data, samples=8, **recipe)
    if name == "released":
        theta = layer_wise_adamerging(pico.base, pico.experts, data, objective="cross-entropy").weights
    else:
        theta = task_arithmetic(pico.base, pico.experts, scaling=0.3).weights
    pool = {**pico.experts, "start": theta}
    for t in range(recipe["iterations"]):
        gradient = naive_gradient(data, theta, data.rows(0, 8), list(data.heads))
        tables = {vertex: cosines(gradient, model) for vertex, model in pool.items()}
        if name == "released":
            picks = {key: min(pool, key=lambda vertex: tables[vertex][key]) for key in theta}
        else:
            picks = dict.fromkeys(theta, min(pool, key=lambda vertex: sum(tables[vertex].values())))
        rate = 2 / (t + 2) * recipe["step_size"]
        theta = {key: start + rate * (pool[picks[key]][key] - start) for key, start in theta.items()}
    exact(merged.weights, theta)


def test_per_task_uses_each_model_once_and_stops_with_the_pool(pico: Pico, data: Labelled) -> None:
    merged = run_soft(pico.base, pico.experts, data, selection="per task", oracle="cosine")
    assert all(sorted(picks) == ["digits", "signs", "textures"] for picks in merged.trace["chosen"])
    pool = {task: pico.experts[task] for task in ("digits", "signs")}
    fewer = run_soft(pico.base, pool, data, selection="per task", iterations=1).trace
    assert sorted(fewer["chosen"][0]) == ["digits", "signs"]
    assert len(fewer["scores"][0]) == 2  # no gradient is measured for a task that has nothing left to choose from


@pytest.mark.parametrize("selection", ["top-k", "per task"])
def test_the_images_of_an_iteration_are_asked_for_once(selection: Any, pico: Pico, data: Labelled) -> None:
    run_soft(pico.base, pico.experts, data, selection=selection, iterations=2)
    assert [asked["steps"] for asked in data.asked] == [1, 4] * 2


def test_another_selection_than_there_is_says_which_there_are() -> None:
    with pytest.raises(KitError, match=r"selection: int \| 'top-k' \| 'per task' = 'top-k'"):
        resolve("soft_frank_wolfe", {"selection": "one a task"})


def test_more_vertices_than_models_are_a_clear_error(pico: Pico, data: Labelled) -> None:
    with pytest.raises(KitError, match=r"^4 vertices cannot be chosen from 3: digits, signs, textures\."):
        run_soft(pico.base, pico.experts, data, selection=4)
    assert (
        len(run_soft(pico.base, pico.experts, data, selection=4, include_start=True, iterations=1).trace["chosen"][0])
        == 4
    )
    assert len(run_soft(pico.base, {"a": pico.base}, data, iterations=1).trace["chosen"][0]) == 1


def spoilt(data: Labelled, bad: int) -> list[float]:
    """Let the encoder give NaN from call number `bad` on."""
    calls: list[float] = []
    encode = data.encode

    def spoil(weights: Weights, images: Tensor) -> Tensor:
        calls.append(0)
        return encode(weights, images) * (float("nan") if len(calls) >= bad else 1)

    data.encode = spoil
    return calls


def test_a_loss_that_becomes_nan_keeps_the_best_weights(pico: Pico, data: Labelled) -> None:
    watched: list[dict[str, Tensor]] = []
    spoilt(data, 4)
    with pytest.warns(RuntimeWarning, match=r"^Stopped at iteration 4: the loss became nan\. .* lowest loss") as caught:
        merged = run_hard(
            pico.base, pico.experts, data, iterations=6, step_size=1.0, watch=lambda _, weights: watched.append(weights)
        )
    assert caught[0].filename == __file__
    losses = merged.trace["loss"]
    assert len(losses) == 3
    exact(merged.weights, watched[losses.index(min(losses))])
    assert f"the state of iteration {losses.index(min(losses)) + 1}, " in merged.trace["stopped"]
    json.dumps(merged.trace, allow_nan=False)


@pytest.mark.parametrize("run", [run_hard, run_soft])
def test_a_loss_that_is_nan_from_the_start_keeps_the_start(run: Any, pico: Pico, data: Labelled) -> None:
    spoilt(data, 1)
    with pytest.warns(RuntimeWarning, match=r"Stopped at iteration 1: .* Kept is the state of the start\."):
        merged = run(pico.base, pico.experts, data, start="base")
    exact(merged.weights, pico.base)


@pytest.mark.parametrize("selection", ["top-k", "per task"])
def test_soft_stops_when_a_gradient_is_nan(selection: Any, pico: Pico, data: Labelled) -> None:
    measuring = 1 if selection == "top-k" else 3
    spoilt(data, measuring + 4 + measuring)  # in the second choice
    with pytest.warns(RuntimeWarning, match=r"Stopped at iteration 2: "):
        merged = run_soft(pico.base, pico.experts, data, selection=selection)
    assert len(merged.trace["loss"]) == 1
    exact(merged.weights, pico.base)  # the only weights with a measured loss


@pytest.mark.parametrize("inner", ["simplex", "adam"])
@pytest.mark.parametrize("bad", [1, 3])
def test_soft_stops_when_the_inner_loss_is_nan(inner: Any, bad: int, pico: Pico, data: Labelled) -> None:
    spoilt(data, 1 + bad)
    with pytest.warns(RuntimeWarning, match=rf"^Within iteration 1: Stopped at step {bad}: ") as caught:
        merged = run_soft(pico.base, pico.experts, data, inner=inner)
    assert [one.filename for one in caught] == [__file__]  # one warning, about this call
    trace = merged.trace
    best_inner = min(trace["inner"][0]["loss"], default=float("inf"))
    if best_inner < trace["loss"][0]:
        assert not torch.equal(merged.weights["proj"], pico.base["proj"])
    else:
        exact(merged.weights, pico.base)
    json.dumps(trace, allow_nan=False)


def test_float32_gives_float32_close_to_float64(pico: Pico, data: Labelled) -> None:
    def single(weights: Weights) -> dict[str, Tensor]:
        return {name: tensor.float() for name, tensor in weights.items()}

    wide = [run(pico.base, pico.experts, data).weights for run in (run_hard, run_soft)]
    data.images = single(data.images)
    experts = {task: single(expert) for task, expert in pico.experts.items()}
    narrow = [run(single(pico.base), experts, data).weights for run in (run_hard, run_soft)]
    for one, other in zip(narrow, wide, strict=True):
        torch.testing.assert_close(one, single(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", ["model", "tensor"])
@pytest.mark.parametrize("run", [run_hard, run_soft])
def test_experts_in_files_give_the_same_bits(
    run: Any, granularity: Granularity, pico: Pico, data: Labelled, tmp_path: Path
) -> None:
    lazy = {}
    for task, expert in pico.experts.items():
        write(tmp_path / f"{task}.safetensors", expert)
        lazy[task] = LazyWeights(tmp_path / f"{task}.safetensors")
    for oracle in ("inner product", "cosine"):
        one = run(pico.base, pico.experts, data, granularity=granularity, oracle=oracle)
        other = run(pico.base, lazy, data, granularity=granularity, oracle=oracle)
        assert other.trace == one.trace
        assert all(torch.equal(other.weights[name], one.weights[name]) for name in pico.base)


def test_experts_are_opened_once(pico: Pico, data: Labelled) -> None:
    opened: list[str] = []

    class Counted(dict[str, dict[str, Tensor]]):
        def items(self) -> Any:
            opened.append("all")
            return super().items()

        def __getitem__(self, name: str) -> dict[str, Tensor]:
            opened.append(name)
            return super().__getitem__(name)

    run_hard(pico.base, Counted(pico.experts), data, start="base")
    assert opened.count("all") <= 2  # once for the check of the pool, once for the merge
    assert set(opened) == {"all"}
    assert inner_products(pico.base, pico.experts).shape == (3, 4)
