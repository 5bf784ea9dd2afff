"""FusionBench's own functions, and how far our merge is from theirs: for the tests that compare with it.

They are skipped where `fusion_bench` is not installed. Where it is, an import that fails is an error, so that no test
goes missing unnoticed.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

Weights = Mapping[str, Tensor]

FLOOR = 1e-6
"""Of Fisher information, in FusionBench and here."""


def their(module: str) -> Any:
    """Import a module of FusionBench, or skip."""
    pytest.importorskip("fusion_bench")
    return importlib.import_module(f"fusion_bench.{module}")


class Checkpoint(dict[str, Tensor]):
    """Weights that FusionBench takes for a module: to parameters version 0.2.33 refuses to add task vectors."""

    def to(self, device: str) -> "Checkpoint":
        return self

    def state_dict(self, keep_vars: bool = False) -> "Checkpoint":
        return self

    def load_state_dict(self, weights: Weights) -> None:
        self.update(weights)


def apart(ours: Weights, theirs: Weights, base: Weights) -> float:
    """Return the norm of the difference over all tensors, divided by that of what theirs adds to the base."""
    assert ours.keys() == theirs.keys()
    gap = sum(float((ours[name] - tensor).double().square().sum()) for name, tensor in theirs.items())
    return (gap / sum(float((tensor - base[name]).double().square().sum()) for name, tensor in theirs.items())) ** 0.5


def same(ours: Weights, theirs: Weights, base: Weights, tolerance: float) -> None:
    """Compare tensor by tensor what was added to the base: against the base itself the differences would seem small."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        difference = apart({name: ours[name]}, {name: tensor}, base)
        assert difference < tolerance, f"{name}: {difference:.1e}"


def added(base: Weights, vector: Weights, scaling: float) -> dict[str, Tensor]:
    """Return base plus scaled task vector."""
    return {name: start + scaling * vector[name] for name, start in base.items()}


def under_the_floor(fisher: Weights, normalise: bool = True) -> dict[str, Tensor]:
    """Return the weights of an expert's parameters by FusionBench's rule: the floor comes before the norm."""
    norm = torch.stack([entries.norm() for entries in fisher.values()]).norm() + FLOOR if normalise else 1.0
    return {name: (entries + FLOOR) / norm for name, entries in fisher.items()}
