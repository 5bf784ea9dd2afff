"""The registry of merging methods: a typed function and one decorator are a whole plug-in.

Positional arguments and the names in `RESOURCES` are handed in by whoever runs the method; the remaining keyword-only
arguments are its parameters.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, Protocol

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.methods.parameters import check_seed, filled_in, schema_of
from mergekit_lite.weights import (
    Pool,
    Weights,
    check_finite,
    check_floating,
    check_same,
    first_three,
    is_finite,
    mismatches,
    private,
)

Watch = Callable[[int, Weights], None]
"""Called by adaptive methods with the step (0 = before the first) and the merged weights of that moment."""

# Ranges that several methods share; pydantic checks them, type checkers see the plain type. A million is far more than
# any experiment needs, and far less than what overflows float32, or never ends.
MILLION = 10**6
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=MILLION)]
Coefficient = Annotated[float, Field(ge=-MILLION, le=MILLION)]
Count = Annotated[int, Field(ge=1, le=MILLION)]
Steps = Annotated[int, Field(ge=0, le=MILLION)]

Examples = Tensor | tuple[Tensor, Tensor]
"""Images (N, 3, H, W), or a pair of images and labels (N,)."""

_P = ParamSpec("_P")


class Access(StrEnum):
    """What data a method sees, besides the models; a column of every table."""

    NONE = "none"
    CALIBRATION = "calibration inputs"
    UNLABELLED = "unlabelled test"
    LABELLED = "labelled train"


Objective = Literal["entropy", "cross-entropy"]
"""Type of a parameter `objective`: what a method minimises, and so what it must see."""

OBJECTIVES = {"entropy": Access.UNLABELLED, "cross-entropy": Access.LABELLED}


@dataclass(frozen=True)
class Merged:
    """What a method returns.

    Attributes:
        weights: one model for all tasks.
        own: weights of single tasks that take the place of `weights` there; for references only.
        trace: what happened on the way, in types that JSON knows.
    """

    weights: Weights
    own: Pool = field(default_factory=dict)
    trace: dict[str, Any] = field(default_factory=dict)

    def for_task(self, name: str) -> Mapping[str, Tensor]:
        """Return the weights that task `name` is evaluated with."""
        return {**self.weights, **self.own[name]} if name in self.own else self.weights


class TaskData(Protocol):
    """What a method may see of the tasks' data. Which split, and whether with labels, follows from its data access."""

    @property
    def heads(self) -> Mapping[str, Tensor]:
        """Task -> zero-shot head (C, D), rows normalised, times the logit scale."""

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return L2-normalised features (N, D) of images (N, 3, H, W), differentiable in the weights."""

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Examples]]:
        """Yield for each step one mapping task -> images (n, 3, H, W), or -> a pair of images and labels (n,).

        An epoch passes over all images of a task before one is seen again. With `keep`, only so many of each task's
        images (an int), or this share of them (a float in (0, 1], at least one image), are ever seen, drawn once; what
        is kept is part of any larger choice. A batch that would be larger than what is kept holds all of it once.
        """


class LayerData(TaskData, Protocol):
    """Task data that also shows what goes into each linear layer."""

    def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
        """Return name of a weight (out, in) -> the inputs (rows, in) it is multiplied with, one per image and token.

        All linear layers are there, the attention's fused input projection and its output projection included.
        """


@dataclass(frozen=True)
class MethodInfo:
    """One registered method.

    Attributes:
        name: what cells call it: its function's name, after ``folder/file:`` if a file was loaded, see `load_method`.
        title: name in tables.
        cite: key in the book's bibliography; empty if there is none.
        access: what data it sees, see `access_with`.
        function: the method with all checks; ``function.__wrapped__`` is the bare one.
        parameters: its parameters as a pydantic model.
        resources: the names out of `RESOURCES` that it takes.
        reference: whether it may answer with weights of single tasks.
        source: the file that `load_method` read it from, for other processes to do the same.
    """

    name: str
    title: str
    cite: str
    access: Access
    function: Callable[..., Merged]
    parameters: type[BaseModel]
    resources: tuple[str, ...]
    reference: bool = False
    source: Path | None = None

    def access_with(self, parameters: Mapping[str, Any]) -> Access:
        """Return the data access with these parameters: a parameter `objective` decides it, whatever the default."""
        return OBJECTIVES.get(parameters.get("objective", ""), self.access)


_METHODS: dict[str, MethodInfo] = {}
"""By function name; what comes from a file, by the file's whole path without suffix, a colon and the function name."""

_sources: list[Path] = []  # the files that are being loaded, the innermost last


def method(
    *, title: str, cite: str, access: Access, smallest_pool: int = 1, reference: bool = False
) -> Callable[[Callable[_P, Merged]], Callable[_P, Merged]]:
    """Register a merging method under its function's name.

    The registered function checks its parameters and the pool (same names, shapes and floating dtypes everywhere, at
    least `smallest_pool` experts) before the method sees them, and what it returns (names, shapes, dtypes, NaN), so
    that the method's own lines are its equations. What the method gets to see is its own: a copy of the base, the
    experts each opened once; whatever it writes there, the caller's weights stay as they are.

    Args:
        title: name in tables.
        cite: key in the book's bibliography; empty if there is none.
        access: what data it sees.
        smallest_pool: the fewest experts it makes sense for.
        reference: it is no merge but a row to compare with, and may answer with weights of single tasks.

    Raises:
        KitError: a parameter has no type or no default, or another method has that name.
    """

    def register(function: Callable[_P, Merged]) -> Callable[_P, Merged]:
        name = function.__name__
        schema, resources = schema_of(function)

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> Merged:
            check_seed(kwargs.get("seed", 0))
            given = {key: value for key, value in kwargs.items() if key not in resources}
            kept = {key: value for key, value in kwargs.items() if key in resources}
            handed = inspect.signature(function).bind(*args, **kept, **filled_in(schema, given))
            base, experts = handed.arguments["base"], dict(handed.arguments["experts"].items())
            check_pool(base, experts, smallest=smallest_pool)
            own = {expert: private(weights) for expert, weights in experts.items()}
            handed.arguments.update(base=private(base), experts=own)
            with torch.no_grad():
                merged = function(*handed.args, **handed.kwargs)
                _check_outcome(name, merged, base, experts, reference=reference)
            return merged

        source = _sources[-1] if _sources else None
        qualified = f"{source.parent.name}/{source.stem}:{name}" if source else name
        _add(MethodInfo(qualified, title, cite, access, checked, schema, resources, reference, source))
        return checked

    return register


def keep(info: MethodInfo) -> None:
    """Register a method that another process registered, and sent.

    Raises:
        KitError: another method has its name.
    """
    _add(info)


def _add(info: MethodInfo) -> None:
    """Register a method in the place of an earlier version of itself.

    Raises:
        KitError: another method has that name, unless both come from files.
    """
    name, module = info.function.__name__, info.function.__module__
    key = f"{info.source.with_suffix('').as_posix()}:{name}" if info.source else name
    for place, other in list(_METHODS.items()):
        if other.function.__name__ != name:
            continue
        # The same module: a notebook's cell that runs twice. The same file: it was loaded, and imported too.
        if other.function.__module__ == module or _file(other) == _file(info):
            if place != key:
                del _METHODS[place]
        elif not (info.source and other.source):
            raise KitError(f"There already is a method '{name}' in {other.function.__module__}. Choose another name.")
    _METHODS[key] = info


def _file(info: MethodInfo) -> str:
    return inspect.unwrap(info.function).__code__.co_filename


@contextmanager
def registering(source: Path) -> Iterator[None]:
    """Let what is registered inside come from the file `source`, and take the place of what came from it before.

    If anything is raised inside, all stays as it was.
    """
    before = dict(_METHODS)
    for place in [place for place, info in before.items() if info.source == source]:
        del _METHODS[place]
    _sources.append(source)
    try:
        yield
    except BaseException:
        _METHODS.clear()
        _METHODS.update(before)
        raise
    finally:
        _sources.pop()


def check_pool(base: Mapping[str, Tensor], experts: Pool, *, smallest: int = 1) -> None:
    """Check that the pool can be merged; of experts in files only the headers are read.

    Raises:
        KitError: too few experts, integer tensors, or an expert that does not fit the base.
    """
    if len(experts) < smallest:
        there = ", ".join(experts) or "none"
        raise KitError(f"The pool has too few experts: {smallest} or more are needed, there: {there}. Add experts.")
    if not base:
        raise KitError("The base weights are empty: there is nothing to merge. Give the image encoder's parameters.")
    check_floating(base, name="the base weights")
    for name, expert in experts.items():
        check_same(base, expert, name=f"expert '{name}'")


def _check_outcome(name: str, merged: Any, base: Mapping[str, Tensor], experts: Pool, *, reference: bool) -> None:
    """Check that `merged` is one whole model without NaN, and with `reference` that the single tasks' are too.

    For NaN the outcome is looked at, which spares a second reading of the pool: every sum carries a NaN through to it.

    Raises:
        KitError: it is not; the message names tensors, and whose weights held the NaN.
    """
    if not isinstance(merged, Merged):
        raise KitError(f"Method '{name}' returned {type(merged).__name__}. Return `Merged(weights)`.")
    if merged.own and not reference:
        raise KitError(
            f"Method '{name}' returned weights of single tasks (`own`), which only a reference does: a merge is one "
            "model for all. Return it in `weights`, or register the method with `reference=True`."
        )
    for weights in (merged.weights, *merged.own.values()):
        problems = mismatches(base, weights)
        if problems:
            raise KitError(
                f"Method '{name}' returned weights that do not fit the base: {first_three(problems)}. Return every "
                "tensor of the base, in its shape and dtype."
            )
    for expert, weights in merged.own.items():
        check_finite(weights, name=f"expert '{expert}'")
    broken = [key for key, tensor in merged.weights.items() if not is_finite(tensor)]
    if not broken:
        return
    check_finite({key: base[key] for key in broken}, name="the base weights")
    for expert, weights in experts.items():
        check_finite({key: weights[key] for key in broken}, name=f"expert '{expert}'")
    raise KitError(f"Method '{name}' left NaN or infinite values in '{broken[0]}'. Choose smaller coefficients.")


def get(name: str) -> MethodInfo:
    """Return the method called `name`, see `MethodInfo`; of a file's method the function's name is enough.

    Raises:
        KitError: there is none, or several files define it; the names that exist are listed.
    """
    if name in _METHODS:
        return _METHODS[name]
    found = [info for key, info in _METHODS.items() if key.endswith((f":{name}", f"/{name}"))]
    if len(found) > 1:
        names = ", ".join(f"'{info.name}'" for info in found)
        raise KitError(f"Several files define a method '{name}'. Say which one: {names}.")
    if not found:
        known = [info.function.__name__ for info in _METHODS.values()]
        raise KitError(f"There is no method '{name}'.{suggestion(name, known)} Methods: {', '.join(known)}.")
    return found[0]


def all_methods() -> tuple[MethodInfo, ...]:
    """Return every registered method, in the order of registration."""
    return tuple(_METHODS.values())


def resolve(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of method `name` with defaults filled in.

    Types are strict: ``"0.3"`` is no float and ``1.5`` no int; an int is taken for a float.

    Raises:
        KitError: unknown method, or a parameter that is unknown, ill-typed or out of its range.
    """
    return filled_in(get(name).parameters, parameters)
