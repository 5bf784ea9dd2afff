"""Trials of a method on the pico pool: the same question asked in other words, and what comes back."""

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from traceback import extract_tb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.course.pico import Pico
from mergekit_lite.errors import KitError, shown
from mergekit_lite.methods.registry import Merged, MethodInfo
from mergekit_lite.weights import Weights


@dataclass(frozen=True)
class Trial:
    """What came of one call.

    Attributes:
        merged: what the method returned; None if it failed.
        failure: words on how it failed; empty if it did not.
        refused: it failed by a `KitError`, so it says itself that it takes no such pool.
        changed: whose weights it changed in place, such as "the base".
    """

    merged: Any
    failure: str = ""
    refused: bool = False
    changed: tuple[str, ...] = ()

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The merged weights, of a trial that did not fail."""
        assert isinstance(self.merged, Merged)
        return self.merged.weights


def merge(
    info: MethodInfo,
    pool: Pico,
    seed: int = 0,
    *,
    data_seed: int | None = None,
    noise: int = 0,
    registered: bool = False,
) -> Trial:
    """Call the bare method, without the registry's checks and copies, on a copy of `pool`, with default parameters.

    Args:
        info: the method.
        pool: what it merges.
        seed: what it is handed as `seed`, if it takes one.
        data_seed: draw the batches of images by this seed, whichever the method asks for.
        noise: where the global random generators stand, which a method must not depend on.
        registered: call it through the registry after all, which knows how many experts it needs.
    """
    base = {name: tensor.clone() for name, tensor in pool.base.items()}
    experts = {task: {name: tensor.clone() for name, tensor in one.items()} for task, one in pool.experts.items()}
    data = pool.data(info.access_with(info.parameters().model_dump()))
    offered = {"data": data if data_seed is None else replace(data, fixed_seed=data_seed), "seed": seed, "watch": None}
    resources = {name: offered[name] for name in info.resources if name in offered}
    function = info.function if registered else inspect.unwrap(info.function)
    try:
        with _global_generators_at(noise), torch.no_grad():
            merged = function(base, experts, **resources)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a student's file may raise anything, SystemExit among it
        return Trial(None, worded(error, info.source), isinstance(error, KitError))
    changed = ["the base"] if _differ(base, pool.base) else []
    changed += [f"expert '{task}'" for task, one in experts.items() if _differ(one, pool.experts[task])]
    return Trial(merged, changed=tuple(changed))


def worded(error: BaseException, source: Path | None) -> str:
    """Return what was raised in a line, with the line of the student's file where it came from."""
    if isinstance(error, KitError):
        return str(error)
    lines = [one for one in extract_tb(error.__traceback__) if source and Path(one.filename).parent == source.parent]
    where = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
    return f"{type(error).__name__}: {shown(str(error)) if str(error) else 'no words'}{where}."


def renamed(pool: Pico) -> Pico:
    """Return the pool under names that say nothing; each task keeps its images and the order they come in."""
    names = {task: f"task {place}" for place, task in enumerate(pool.experts, start=1)}

    def named(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return {names[task]: one for task, one in mapping.items()}

    return replace(
        pool,
        experts=named(pool.experts),
        heads=named(pool.heads),
        images={which: named(one) for which, one in pool.images.items()},
        labels={which: named(one) for which, one in pool.labels.items()},
        drawn_as=named(pool.drawn_as),
    )


def only(pool: Pico, tasks: list[str]) -> Pico:
    """Return the pool of these tasks, in this order."""

    def chosen(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return {task: mapping[task] for task in tasks}

    return replace(
        pool,
        experts=chosen(pool.experts),
        heads=chosen(pool.heads),
        images={which: chosen(one) for which, one in pool.images.items()},
        labels={which: chosen(one) for which, one in pool.labels.items()},
    )


def all_alike(pool: Pico, weights: Weights) -> Pico:
    """Return the pool with `weights` in the place of each expert."""
    return replace(pool, experts=dict.fromkeys(pool.experts, weights))


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], pool: Pico) -> float:
    """Return how far apart two models are, in lengths of a task vector of the pool (their mean)."""
    vectors = [_norm(expert, pool.base) for expert in pool.experts.values()]
    return _norm(one, other) / (sum(vectors) / len(vectors))


def along(merged: Mapping[str, Tensor], expert: Weights, base: Weights) -> tuple[float, float]:
    """Return where a merge lies on the line from the base (0) to an expert (1), and how far beside it.

    The second number is in lengths of the task vector.
    """
    vector = torch.cat([(expert[name] - start).flatten() for name, start in base.items()]).double()
    way = torch.cat([(merged[name] - start).flatten() for name, start in base.items()]).double()
    factor = float(way @ vector / (vector @ vector))
    return factor, float((way - factor * vector).norm() / vector.norm())


def _norm(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squares = [(one[name].double() - other[name].double()).square().sum() for name in other]
    return float(torch.stack(squares).sum().sqrt())


def _differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in other)


@contextmanager
def _global_generators_at(seed: int) -> Iterator[None]:
    """Put the global random generators somewhere, and back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
