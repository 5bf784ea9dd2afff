"""Our methods against FusionBench's own functions, in float32, where `fusion_bench` is installed; else skipped."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_lite.methods.averaging import simple_average, task_arithmetic
from mergekit_lite.methods.consensus_merging import tall_mask
from mergekit_lite.methods.isotropic import iso_c, iso_cts
from mergekit_lite.methods.registry import Merged
from mergekit_lite.methods.ties import ties_merging
from mergekit_lite.methods.tsv import tsv_merging

Pool = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]

# A convolution, matrices that are taller, wider and square, and a vector. No dots: the names become those of buffers.
SHAPES = {
    "conv": (16, 3, 4, 4),
    "in_proj": (144, 48),
    "fc": (192, 48),
    "out": (48, 192),
    "proj": (48, 48),
    "bias": (48,),
}


def their(module: str) -> Any:
    """Import a module of FusionBench, or skip: it may be missing, or lack one of its many dependencies."""
    return pytest.importorskip(f"fusion_bench.{module}", exc_type=ImportError)


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


def same(merged: Merged, theirs: dict[str, Tensor], base: dict[str, Tensor], tolerance: float) -> None:
    """Compare what was added to the base: against the base itself the differences would seem small."""
    assert merged.weights.keys() == theirs.keys()
    for name, tensor in theirs.items():
        difference = (merged.weights[name] - tensor).norm() / (tensor - base[name]).norm()
        assert difference < tolerance, f"{name}: {difference:.1e}"


def added(base: dict[str, Tensor], vector: dict[str, Tensor], scaling: float) -> dict[str, Tensor]:
    return {name: start + scaling * vector[name] for name, start in base.items()}


def module(weights: dict[str, Tensor]) -> torch.nn.Module:
    """Wrap weights as buffers: of parameters, FusionBench 0.2.33 refuses to add task vectors (a TypeError)."""
    wrapped = torch.nn.Module()
    for name, tensor in weights.items():
        wrapped.register_buffer(name, tensor)
    return wrapped


def test_simple_average(pool: Pool) -> None:
    base, experts = pool
    theirs = their("method.simple_average").simple_average([dict(expert) for expert in experts.values()])
    same(simple_average(base, experts), theirs, base, 1e-5)


def test_task_arithmetic(pool: Pool) -> None:
    base, experts = pool
    function = their("method.task_arithmetic.task_arithmetic").task_arithmetic_merge
    start, *tuned = (module(weights) for weights in (base, *experts.values()))
    theirs = function(start, tuned, scaling_factor=0.3, inplace=False).state_dict()
    same(task_arithmetic(base, experts), theirs, base, 1e-5)


@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_ties(pool: Pool, merge: Any) -> None:
    base, experts = pool
    utilities = their("method.ties_merging.ties_merging_utils")
    rows = torch.stack([utilities.state_dict_to_vector(vector) for vector in vectors_of(pool)])
    flat = utilities.ties_merging(rows, reset_thresh=20, merge_func=merge)
    theirs = added(base, utilities.vector_to_state_dict(flat, base), 0.3)
    same(ties_merging(base, experts, merge=merge), theirs, base, 1e-5)


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
    same(merge(base, experts, scaling=1.5), added(base, theirs(vectors_of(pool)), 1.5), base, 1e-4)
