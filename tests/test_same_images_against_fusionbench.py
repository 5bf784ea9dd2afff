"""Methods that look at images against FusionBench's own code, given the same images in the same order, in float32.

Their loops run unchanged on a small vision transformer. What they ask of a program around them (a loader, a fabric, a
log) is stood in for.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from open_clip.transformer import VisionTransformer
from peer import Checkpoint, apart, same, their, under_the_floor
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from mergekit_lite.methods.adamerging import RECIPES as ADAMERGING
from mergekit_lite.methods.fisher import diagonal_fisher, merge_with_fishers
from mergekit_lite.methods.frank_wolfe.hard import RECIPES as HARD
from mergekit_lite.methods.frank_wolfe.soft import RECIPES as SOFT
from mergekit_lite.methods.frank_wolfe.soft import simplex_projection
from mergekit_lite.methods.registry import Examples, Merged, get

CLASSES = {"digits": 10, "signs": 4, "textures": 7}
OTHERS = ("one more", "another", "the last")
SIDE, WIDTH = 32, 32

Weights = dict[str, Tensor]
Labelled = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Given:
    """Data whose batches are given: whoever asks gets those that come next."""

    heads: Mapping[str, Tensor]
    encode: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    given: Iterator[Mapping[str, Examples]]

    def batches(self, **asked: Any) -> Iterator[Mapping[str, Examples]]:
        return self.given


class Small:
    """A vision transformer in open_clip's layout, three experts with a head and three without, and images of noise."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = VisionTransformer(SIDE, 8, WIDTH, layers=2, heads=2, mlp_ratio=4.0, output_dim=16)
        self.base = {name: near(tensor, 0.1) for name, tensor in self.module.state_dict().items()}
        self.experts = {
            task: {name: near(tensor, 0.2) for name, tensor in self.base.items()} for task in (*CLASSES, *OTHERS)
        }
        self.heads = {task: 100 * normalize(torch.randn(classes, 16), dim=1) for task, classes in CLASSES.items()}

    def draw(self, count: int) -> Labelled:
        """Return for each task `count` images with labels."""
        return {
            task: (torch.randn(count, 3, SIDE, SIDE), torch.randint(classes, (count,)))
            for task, classes in CLASSES.items()
        }

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return normalize(functional_call(self.module, dict(weights), (images,)), dim=1)

    def logits(self, module: nn.Module, images: Tensor, task: str) -> Tensor:
        return normalize(module(images), dim=1) @ self.heads[task].T

    def wrapped(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a module of its own with these weights."""
        own = copy.deepcopy(self.module)
        own.load_state_dict(dict(weights))
        return own

    def merge(self, method: str, given: Iterable[Mapping[str, Examples]], **parameters: Any) -> Merged:
        """Let our method merge, shown the given batches one after another."""
        data = Given(self.heads, self.encode, iter(given))
        return get(method).function(self.base, self.experts, data=data, **parameters)


def near(tensor: Tensor, share: float) -> Tensor:
    """Return a tensor that differs by noise, even where all entries are equal."""
    return tensor + share * (0.1 + tensor.std()) * torch.randn_like(tensor)


@pytest.fixture
def small() -> Small:
    return Small()


def algorithm(small: Small, **settings: Any) -> MagicMock:
    """Return what FusionBench's loops take for themselves: these settings, our images, and nothing of what they log."""
    fabric = MagicMock()
    fabric.setup.side_effect = lambda *given: given
    fabric.backward.side_effect = lambda loss, **options: loss.backward(**options)
    return MagicMock(compute_logits=small.logits, fabric=fabric, tasks=list(CLASSES), is_debug_mode=False, **settings)


def loaders(batches: Iterable[Labelled]) -> dict[str, Iterator[tuple[Tensor, Tensor]]]:
    """Return for each task what its loader gives one after another."""
    batches = list(batches)
    return {task: iter([batch[task] for batch in batches]) for task in CLASSES}


def single_images(batches: Iterable[Labelled]) -> dict[str, Iterator[tuple[Tensor, Tensor]]]:
    """Return the same, image by image."""
    return {
        task: iter([(image[None], label[None]) for batch in its for image, label in zip(*batch, strict=True)])
        for task, its in loaders(batches).items()
    }


def layer_wise(start: nn.Module, tuned: list[nn.Module], initial: float, clamp: bool = False) -> Any:
    """Return FusionBench's merged model, all coefficients with the same value."""
    wrapper = their("models.wrappers.layer_wise_fusion")
    coefficients = wrapper.get_layer_wise_weights(len(tuned), len(list(start.parameters())), initial)
    return wrapper.LayerWiseMergedModel(coefficients, start, tuned, clamp_weights=clamp)


def unloaded(merged: Any) -> nn.Module:
    with torch.no_grad():
        return merged.merge_and_unload()


@pytest.mark.parametrize("clamp", [False, True])
def test_adamerging_learns_the_same_coefficients(small: Small, clamp: bool) -> None:
    steps = 20
    given = [small.draw(16) for _ in range(steps)]
    theirs = their("method.adamerging.layer_wise_adamerging").LayerWiseAdaMergingAlgorithm.test_time_adaptation(
        algorithm(
            small,
            config=SimpleNamespace(optimizer="adam", lr=1e-3, max_steps=steps),
            modelpool=SimpleNamespace(model_names=list(CLASSES)),
            get_shuffled_test_loader_iter=loaders(given).__getitem__,
        ),
        layer_wise(small.wrapped(small.base), list(map(small.wrapped, small.experts.values())), 0.3, clamp),
    )
    unlabelled = [{task: images for task, (images, _) in batch.items()} for batch in given]
    recipe = ADAMERGING["fusionbench"] | {"steps": steps, "clamp": clamp}
    ours = small.merge("layer_wise_adamerging", unlabelled, **recipe)
    learned = theirs.merge_weight.detach()
    assert (learned - 0.3).abs().max() > 0.01
    assert (torch.tensor(ours.trace["coefficients"]["values"]) - learned).abs().max() < 1e-6
    same(ours.weights, unloaded(theirs).state_dict(), small.base, 1e-5)


@pytest.mark.parametrize(("granularity", "theirs"), [("model", "task"), ("tensor", "layer")])
def test_hard_frank_wolfe_goes_the_same_way(small: Small, granularity: str, theirs: str) -> None:
    recipe = HARD["fusionbench"] | {"granularity": granularity, "samples": 5}
    given = [small.draw(5) for _ in range(recipe["iterations"])]
    code = their("method.fw_merging.fw_hard")
    own = algorithm(
        small,
        loss_fn="cross_entropy",
        dataset_size=5,
        modelpool=SimpleNamespace(model_names=list(small.experts)),
        get_shuffled_loader_iter=single_images(given).__getitem__,
    )
    start = code.task_arithmetic_merge(Checkpoint(small.base), list(small.experts.values()), 0.3, inplace=False)
    pool = {name: Checkpoint(weights) for name, weights in (*small.experts.items(), ("start", start))}
    theta, chosen = start, []
    for t in range(len(given)):
        gradient = code.FrankWolfeHardAlgorithm.frank_wolfe_iteration(own, small.wrapped(theta))
        taken: Any = [] if theirs == "task" else {name: [] for name in theta}
        vertex, names, *_ = code.FrankWolfeHardAlgorithm.frank_wolfe_selection(own, gradient, pool, taken, theirs)
        theta = code.task_arithmetic_merge(theta, [vertex], 2 / (t + 2) * recipe["step_size"], inplace=False)
        chosen.append(names if theirs == "task" else list(names.values()))
    ours = small.merge("hard_frank_wolfe", given, **recipe)
    assert ours.trace["chosen"] == chosen
    same(ours.weights, theta, small.base, 1e-5)


def test_soft_frank_wolfe_goes_the_same_way(small: Small) -> None:
    recipe = SOFT["fusionbench"] | {"iterations": 3, "inner_steps": 10, "samples": 5, "objective": "cross-entropy"}
    choices = [small.draw(5) for _ in range(recipe["iterations"])]
    inner = [[small.draw(16) for _ in range(recipe["inner_steps"])] for _ in choices]
    read = {1: single_images(choices), 16: loaders(batch for batches in inner for batch in batches)}
    own = algorithm(
        small,
        ada_loss="cross_entropy",
        ada_iters=recipe["inner_steps"],
        dataset_size=5,
        modelpool=SimpleNamespace(model_names=list(small.experts)),
        get_shuffled_train_loader_iter=lambda task, batch_size=1: read[batch_size][task],
    )
    code = their("method.fw_merging.fw_soft").FrankWolfeSoftAlgorithm
    pool = {name: Checkpoint(weights) for name, weights in small.experts.items()}
    theta, chosen, learned = small.wrapped(small.base), [], []
    for t in range(len(choices)):
        names: list[str] = []
        for task in CLASSES:
            gradient = code.frank_wolfe_iteration(own, theta.requires_grad_(True), task)
            names.append(code.frank_wolfe_selection(own, gradient, pool, names)[1])
        vertices = [small.wrapped(pool[name]) for name in names]
        merged = layer_wise(theta, vertices, recipe["later_initial"] if t else 0.3)
        theta = unloaded(code.run_adamerging(own, merged))
        chosen.append(names)
        learned.append(merged.merge_weight.detach())
    ours = small.merge(
        "soft_frank_wolfe",
        (batch for choice, batches in zip(choices, inner, strict=True) for batch in (choice, *batches)),
        **recipe,
    )
    assert ours.trace["chosen"] == chosen
    found = torch.tensor([step["coefficients"] for step in ours.trace["inner"]])
    assert (found - torch.stack(learned)).abs().max() < 1e-6
    same(ours.weights, theta.state_dict(), small.base, 1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_projection_onto_the_simplex(scale: float) -> None:
    function = their("method.fw_merging.fw_soft").projection_simplex_sort
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 21):
        values = scale * torch.randn(size, 8, generator=generator)
        theirs = torch.stack([function(column) for column in values.T], dim=1)
        # large numbers that are summed up lose digits in theirs
        assert (simplex_projection(values) - theirs).abs().max() <= 1e-6 * max(1.0, scale)


def fisher_of_theirs(small: Small, task: str, images: Tensor, batch: int) -> Weights:
    """Return an expert's Fisher information by FusionBench's rule, with our encoder.

    The gradient of the sum, over the images of a batch and all classes, of sqrt(p) log p is squared as a whole.
    """
    total = {name: torch.zeros_like(tensor) for name, tensor in small.base.items()}
    for part in images.split(batch):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in small.experts[task].items()}
        logs = (small.encode(leaves, part) @ small.heads[task].T).log_softmax(dim=1)
        gradients = torch.autograd.grad((logs.detach().exp().sqrt() * logs).sum(), list(leaves.values()))
        for entries, gradient in zip(total.values(), gradients, strict=True):
            entries += gradient.square() / len(images)
    return total


class Classifier(nn.Module):
    """An expert as FusionBench asks it for logits."""

    def __init__(self, small: Small, task: str) -> None:
        super().__init__()
        self.encoder, self.task, self.small = small.wrapped(small.experts[task]), task, small

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.small.logits(self.encoder, images, self.task))


class Trainer:
    """Batches of images as FusionBench asks for them."""

    def __init__(self, images: Tensor, batch: int) -> None:
        self._train_batch_size = batch
        self.batches = [{"images": part} for part in images.split(batch)]

    def get_train_dataloader(self) -> list[dict[str, Tensor]]:
        return self.batches

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs


def test_fisher_differs_by_what_is_squared_and_by_where_the_floor_is(small: Small) -> None:
    # With logits of CLIP's scale an expert with random weights is never in doubt, and its Fisher information is zero.
    small.heads = {task: head / 10 for task, head in small.heads.items()}
    small.experts = {task: small.experts[task] for task in CLASSES}
    count, batch = 16, 8
    images = {task: images for task, (images, _) in small.draw(count).items()}
    models, trainers = [Classifier(small, task) for task in CLASSES], [Trainer(its, batch) for its in images.values()]
    found = their("method.fisher_merging.fisher_merging").fisher_merging(models, trainers, [], [count] * len(models))
    theirs = {name.removeprefix("encoder."): tensor.detach() for name, tensor in found.items()}

    def merged(fishers: list[Weights]) -> Weights:
        return merge_with_fishers(small.base, small.experts, map(under_the_floor, fishers), floor=0)

    both_as_theirs = merged([fisher_of_theirs(small, task, its, batch) for task, its in images.items()])
    same(both_as_theirs, theirs, small.base, 1e-4)
    data = Given(small.heads, small.encode, iter([]))
    floor_as_theirs = merged(
        [diagonal_fisher(data, small.experts[task], task, its, classes="all") for task, its in images.items()]
    )
    ours = small.merge("fisher_merging", [images], images=count, classes="all").weights
    assert apart(floor_as_theirs, theirs, small.base) > 0.3
    assert 0.01 < apart(ours, floor_as_theirs, small.base) < 0.1
