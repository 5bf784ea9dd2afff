"""Merging on a suite: its images and heads for methods that look at data, its base and experts if none are given."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.merge.jobs import SEES, Job, Model, asked_of, model_of
from mergekit_lite.merge.target import Target, like_base, plain
from mergekit_lite.methods.parameters import filled_in
from mergekit_lite.methods.registry import MethodInfo
from mergekit_lite.study import task_data
from mergekit_lite.suites.checkpoints.encoders import Encoder, as_encoder
from mergekit_lite.suites.checkpoints.opening import opened
from mergekit_lite.suites.own.models import base_checkpoint
from mergekit_lite.suites.own.own_suite import OwnSuite
from mergekit_lite.suites.suite import Suite
from mergekit_lite.suites.walking import walk_through
from mergekit_lite.suites.words import spelt

STEPS = ("steps", "iterations")
"""Parameters that say how often a method changes its weights."""


def of_suite(
    suite: Suite,
    info: MethodInfo,
    parameters: Mapping[str, Any],
    *,
    base: str | None = None,
    experts: Mapping[str, str],
    tasks: str | None = None,
    seed: int | None = None,
) -> Job:
    """Return the job of merging on a suite.

    Args:
        suite: whose tasks the method sees, as far as its data access lets it.
        info: the method.
        parameters: those that are given.
        base: a place; by default the suite's base.
        experts: name of a task -> place; by default the suite's experts of `tasks`.
        tasks: names or a set; by default those of `experts`, or all.
        seed: of the method's random draws.

    Raises:
        KitError: unknown tasks or parameters, or a checkpoint that is not an encoder like the suite's.
    """
    access = info.access_with(filled_in(info.parameters, parameters))
    pool = _pool(suite, experts, tasks)
    start, ends, models = suite.base, dict[str, Mapping[str, Tensor]](), [_suites_own(suite)]
    files = {}
    if base is None:
        own = _own_base(suite)
        layouts = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in start.items()}
        target = _filled_from(own) if own else plain(layouts)
    else:
        encoder = as_encoder(opened(base, suite.device), suite.base, what="The base")
        start = {name: tensor.clone() for name, tensor in encoder.items()}
        target, models = _filled_from(encoder), [_given("", encoder)]
        files["the base"] = encoder.view.checkpoint.files
    for name in pool:
        if name in experts:
            encoder = as_encoder(opened(experts[name], suite.device), suite.base, what=f"Expert '{name}'")
            files[f"expert '{name}'"] = encoder.view.checkpoint.files
            ends[name] = encoder
            models.append(_given(name, encoder))
        else:
            ends[name] = suite.experts[name]
            models.append(_suites_own(suite, name))
    resources: dict[str, Any] = {"data": task_data.shown(suite, pool, access)} if "data" in info.resources else {}
    if "walk" in info.resources:
        resources["walk"] = walk_through(suite)
    asked = asked_of(info, parameters, seed, **resources)
    if "watch" in info.resources:
        asked = replace(asked, steps=next((asked.parameters[one] for one in STEPS if one in asked.parameters), 0))
    words = {"suite": f"{suite.name} ({suite.title})", "tasks": ", ".join(pool), "looks at": SEES[access]}
    kinds = {name: tensor.dtype for name, tensor in start.items()}
    return Job(replace(asked, words={**words, **asked.words}), start, ends, kinds, target, tuple(models), files=files)


def _pool(suite: Suite, experts: Mapping[str, str], tasks: str | None) -> tuple[str, ...]:
    """Return the tasks whose experts are merged."""
    known = tuple(suite.tasks)
    for name in experts:
        if name not in known:
            raise KitError(
                f"Suite '{suite.name}' has no task '{spelt(name)}'.{suggestion(name, known)} With --suite an expert is "
                f"called as its task is: {', '.join(known)}."
            )
    if tasks is None:
        return tuple(experts) or known
    pool = suite.names(tasks)
    if experts and set(pool) != set(experts):
        raise KitError(
            f"--tasks names {', '.join(pool)}, but there are --expert of {', '.join(experts)}. Give an expert for each "
            "task, or leave --tasks out."
        )
    return pool


def _own_base(suite: Suite) -> Encoder | None:
    """Return the checkpoint that the base of a suite comes from, in whose format a merge is written; None if none is.

    The miniature makes its base, and the benchmark's are converted: they have no format that a library loads.
    """
    if not isinstance(suite, OwnSuite):
        return None
    return as_encoder(base_checkpoint(suite.file), suite.base, what="The base")


def _suites_own(suite: Suite, task: str = "") -> Model:
    def digest() -> str:
        return f"{suite.expert_hash(task) if task else suite.base_hash()} (the suite's hash)"

    source = suite.sources([task] if task else []).get(task or "base", "")
    return Model(task, f"suite {suite.name}" + (f": {source}" if source else ""), digest)


def _given(name: str, encoder: Encoder) -> Model:
    return model_of(name, encoder.view.checkpoint, encoder.view.layout_title)


def _filled_from(encoder: Encoder) -> Target:
    """Return the target in the format of an encoder's checkpoint, filled under the suite's names."""
    target = like_base(encoder.view)
    return replace(target, parts={name: target.parts[source] for name, source in encoder.sources.items()})
