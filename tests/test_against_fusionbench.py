"""Our methods against FusionBench's own functions, in float32, where `fusion_bench` is installed; else skipped."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peer import Checkpoint, added, same, their, under_the_floor
from torch import Tensor, nn

from mergekit_lite.methods.averaging import simple_average, task_arithmetic
from mergekit_lite.methods.consensus_merging import tall_mask
from mergekit_lite.methods.dare_merging import dare, draws, keep_mask
from mergekit_lite.methods.fisher import merge_with_fishers
from mergekit_lite.methods.isotropic import iso_c, iso_cts
from mergekit_lite.methods.registry import Merged
from mergekit_lite.methods.regmean_merging import gram, merge_with_grams
from mergekit_lite.methods.ties import ties_merging
from mergekit_lite.methods.tsv import tsv_merging

Pool = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]

# A convolution, matrices taller, wider and square, and a vector. No dots: the names become those of parameters.
SHAPES = {
    "conv": (16, 3, 4, 4),
    "in_proj": (144, 48),
    "fc": (192, 48),
    "out": (48, 192),
    "proj": (48, 48),
    "bias": (48,),
}


@pytest.fixture(params=[2, 5, 8], ids="{} experts".format)
def pool(request: pytest.FixtureRequest) -> Pool:
    generator = torch.Generator().manual_seed(request.param)

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(*shape, generator=generator)

    base = {name: noise(shape) for name, shape in SHAPES.items()}
    experts = {}
    for task in range(request.param):
        # A task vector is a few per cent of the weights, and its singular values fall off.
        changes = {name: 0.05 * noise(shape) for name, shape in SHAPES.items()}
        for name, change in changes.items():
            if change.dim() == 2:
                left, values, right = torch.linalg.svd(change, full_matrices=False)
                changes[name] = left * values * torch.logspace(0, -2, len(values)) @ right
        experts[f"task{task}"] = {name: tensor + changes[name] for name, tensor in base.items()}
    return base, experts


def vectors_of(pool: Pool) -> list[dict[str, Tensor]]:
    base, experts = pool
    return [{name: expert[name] - base[name] for name in base} for expert in experts.values()]


def test_simple_average(pool: Pool) -> None:
    base, experts = pool
    theirs = their("method.simple_average").simple_average([dict(expert) for expert in experts.values()])
    same(simple_average(base, experts).weights, theirs, base, 1e-5)


def test_task_arithmetic(pool: Pool) -> None:
    base, experts = pool
    function = their("method.task_arithmetic.task_arithmetic").task_arithmetic_merge
    start, *tuned = (Checkpoint(weights) for weights in (base, *experts.values()))
    theirs = function(start, tuned, scaling_factor=0.3, inplace=False)
    same(task_arithmetic(base, experts).weights, theirs, base, 1e-5)


@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_ties(pool: Pool, merge: Any) -> None:
    base, experts = pool
    utilities = their("method.ties_merging.ties_merging_utils")
    rows = torch.stack([utilities.state_dict_to_vector(vector) for vector in vectors_of(pool)])
    flat = utilities.ties_merging(rows, reset_thresh=20, merge_func=merge)
    theirs = added(base, utilities.vector_to_state_dict(flat, base), 0.3)
    same(ties_merging(base, experts, merge=merge).weights, theirs, base, 1e-5)


def test_tall_masks(pool: Pool) -> None:
    vectors = vectors_of(pool)
    total = {name: torch.stack([vector[name] for vector in vectors]).sum(0) for name in vectors[0]}
    zero = {name: torch.zeros_like(tensor) for name, tensor in total.items()}
    for vector in vectors:
        masks = their("method.tall_mask.task_arithmetic").generate_task_masks(total, vector, zero, 0.4)
        for name, tensor in vector.items():
            assert torch.equal(tall_mask(tensor, total[name], 0.4).float(), masks[name])


def tsv_of_theirs(vectors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    function = their("method.task_singular_vector.utils.TSVM_utils").compute_and_sum_svd_mem_reduction
    return function(vectors, accelerator="cpu")


def iso_c_of_theirs(vectors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return their("method.isotropic_merging.iso_utils").iso_c(vectors, accelerator="cpu")


def iso_cts_of_theirs(vectors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return their("method.isotropic_merging.iso_utils").iso_cts(vectors, common_space_fraction=0.8, accelerator="cpu")


# Looser, since theirs takes SVDs in float32: from its own outcome in float64 it is up to 4e-5 away, ours 4e-6.
@pytest.mark.parametrize(
    ("merge", "theirs"), [(tsv_merging, tsv_of_theirs), (iso_c, iso_c_of_theirs), (iso_cts, iso_cts_of_theirs)]
)
def test_spectral_methods(
    pool: Pool, merge: Callable[..., Merged], theirs: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]
) -> None:
    base, experts = pool
    same(merge(base, experts, scaling=1.5).weights, added(base, theirs(vectors_of(pool)), 1.5), base, 1e-4)


def parameters(weights: dict[str, Tensor]) -> nn.Module:
    wrapped = nn.Module()
    for name, tensor in weights.items():
        wrapped.register_parameter(name, nn.Parameter(tensor.clone()))
    return wrapped


@pytest.mark.parametrize("drop", [0.0, 0.5, 0.9])
def test_dare_given_the_same_masks(pool: Pool, drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = pool
    algorithm = their("method.dare.task_arithmetic").DareTaskArithmetic(
        scaling_factor=0.3, sparsity_ratio=drop, only_on_linear_weights=False
    )
    models = {task: parameters(expert) for task, expert in experts.items()}
    kept = (
        keep_mask(tensor, drop, generator).float()
        for generator, expert in ((draws(0, task), expert) for task, expert in experts.items())
        for tensor in expert.values()
    )
    monkeypatch.setattr(torch, "rand_like", lambda like: next(kept))  # 1, above any rate, where an entry stays, else 0
    theirs = algorithm.run(
        SimpleNamespace(
            load_pretrained_model=lambda: parameters(base), model_names=list(models), load_model=models.__getitem__
        )
    )
    merged = {name: tensor.detach() for name, tensor in theirs.named_parameters()}
    same(dare(base, experts, drop=drop).weights, merged, base, 1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_fisher_merge_step(pool: Pool, normalise: bool) -> None:
    base, experts = pool
    generator = torch.Generator().manual_seed(0)
    fishers = [
        {name: 1e-5 * torch.randn(tensor.shape, generator=generator) ** 2 for name, tensor in base.items()}
        for _ in experts
    ]
    function = their("method.fisher_merging.fisher_merging").merging_with_fisher_weights
    theirs = function(stacked(experts), fishers, torch.ones(len(experts)), normalize_fisher_weight=normalise)
    ours = merge_with_fishers(base, experts, [under_the_floor(one, normalise) for one in fishers], floor=0)
    same(ours, theirs, base, 1e-4)


def stacked(experts: dict[str, dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Name of a tensor -> that tensor of each expert, as FusionBench's merge steps take them."""
    names = next(iter(experts.values()))
    return {name: [expert[name] for expert in experts.values()] for name in names}


@pytest.mark.parametrize("off_diagonal", [0.9, 0.95])
def test_regmean_merge_step(pool: Pool, off_diagonal: float) -> None:
    base, experts = pool
    generator = torch.Generator().manual_seed(0)
    sides = {name: tensor.shape[1] for name, tensor in base.items() if tensor.dim() == 2}
    inputs = [{name: torch.randn(256, side, generator=generator) for name, side in sides.items()} for _ in experts]
    # They know a layer by a name that ends in ".weight".
    given = {f"{name}.weight": tensors for name, tensors in stacked(experts).items()}
    plain = [{name: gram(rows, 1.0) for name, rows in its.items()} for its in inputs]
    found = their("method.regmean.regmean").merging_with_regmean_weights(given, plain, off_diagonal)
    ours = merge_with_grams(
        base, experts, [{name: gram(rows, off_diagonal) for name, rows in its.items()} for its in inputs]
    )
    same(ours, {name: found[f"{name}.weight"] for name in base}, base, 1e-4)
