"""The registry of merging methods: a typed function and one decorator are a whole plug-in.

The signature is the schema. Positional arguments and the names in `RESOURCES` are handed in by whoever runs the method;
the remaining keyword-only arguments are its parameters, checked against their types before any work is done.
"""

import ast
import difflib
import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, Protocol, get_args, get_origin, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from mergekit_lite.cache import code_lines, content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.weights import Weights, check_finite, check_floating, check_same, is_finite

RESOURCES = ("base", "experts", "data", "seed", "watch")
"""Argument names that are not parameters: what a method works on, its random seed, and who watches it."""

Watch = Callable[[int, Weights], None]
"""Called by adaptive methods with the step (0 = before the first) and the merged weights of that moment."""

# Ranges that several methods share; pydantic checks them, type checkers see the plain type.
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]

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
        own: weights of single tasks that take the place of `weights` there (only the reference of individual experts).
        trace: what happened on the way, in types that JSON knows.
    """

    weights: Weights
    own: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
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
        """Return name of a weight (out, in) -> the inputs (rows, in) it is multiplied with, a row an image and token.

        All linear layers are there, the attention's fused input projection and its output projection included.
        """


@dataclass(frozen=True)
class MethodInfo:
    """One registered method; `resources` are the names out of `RESOURCES` that its function takes."""

    name: str
    title: str
    cite: str
    access: Access
    function: Callable[..., Merged]
    parameters: type[BaseModel]
    resources: tuple[str, ...]

    def access_with(self, parameters: Mapping[str, Any]) -> Access:
        """Return the data access with these parameters: a parameter `objective` decides it, whatever the default."""
        return OBJECTIVES.get(parameters.get("objective", ""), self.access)


_METHODS: dict[str, MethodInfo] = {}


def method(
    *, title: str, cite: str, access: Access, smallest_pool: int = 1
) -> Callable[[Callable[_P, Merged]], Callable[_P, Merged]]:
    """Register a merging method under its function's name.

    The registered function checks its parameters and the pool (same names, shapes and floating dtypes everywhere, at
    least `smallest_pool` experts) before the method sees them, and what it returns for NaN, so that the method's own
    lines are its equations.

    Args:
        title: name in tables.
        cite: key in the book's bibliography; empty for a reference row.
        access: what data it sees.
        smallest_pool: the fewest experts it makes sense for.

    Raises:
        KitError: a parameter has no type or no default, or another method has that name.
    """

    def register(function: Callable[_P, Merged]) -> Callable[_P, Merged]:
        name = function.__name__
        taken = _METHODS.get(name)
        # The same module may register again: that is a notebook cell run twice.
        if taken and taken.function.__module__ != function.__module__:
            raise KitError(f"There already is a method '{name}' in {taken.function.__module__}. Choose another name.")
        schema, resources = _schema(function)

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> Merged:
            given = {key: value for key, value in kwargs.items() if key not in resources}
            kept = {key: value for key, value in kwargs.items() if key in resources}
            handed = inspect.signature(function).bind(*args, **kept, **resolve(name, given))
            base, experts = handed.arguments["base"], handed.arguments["experts"]
            check_pool(base, experts, smallest=smallest_pool)
            with torch.no_grad():
                merged = function(*handed.args, **handed.kwargs)
                _check_outcome(name, merged, base, experts)
            return merged

        _METHODS[name] = MethodInfo(name, title, cite, access, checked, schema, resources)
        return checked

    return register


def _schema(function: Callable[..., Merged]) -> tuple[type[BaseModel], tuple[str, ...]]:
    """Return the pydantic model of the parameters and the names of the resources."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    resources = []
    for name, argument in inspect.signature(function).parameters.items():
        if name in RESOURCES:
            resources.append(name)
        elif argument.kind is not argument.KEYWORD_ONLY or name not in hints or argument.default is argument.empty:
            raise KitError(
                f"Parameter '{name}' of method '{function.__name__}' must be keyword-only with a type and a default, "
                f"such as `*, {name}: float = 0.3`."
            )
        else:
            fields[name] = (hints[name], argument.default)
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(function.__name__, __config__=config, **fields), tuple(resources)


def check_pool(base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]], *, smallest: int = 1) -> None:
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


def _check_outcome(
    name: str, merged: Merged, base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Raise a KitError that names the culprit if the merged weights hold a NaN or an infinity.

    Looking at the one outcome spares a second reading of the pool, and every sum carries a NaN through to it.
    """
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
    """Return the method called `name`.

    Raises:
        KitError: there is none; the names that exist are listed.
    """
    if name not in _METHODS:
        raise KitError(f"There is no method '{name}'.{_suggestion(name, _METHODS)} Methods: {', '.join(_METHODS)}.")
    return _METHODS[name]


def all_methods() -> tuple[MethodInfo, ...]:
    """Return every registered method, in the order of registration."""
    return tuple(_METHODS.values())


def resolve(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of method `name` with defaults filled in.

    Types are strict: ``"0.3"`` is no float and ``1.5`` no int; an int is taken for a float.

    Raises:
        KitError: unknown method, or a parameter that is unknown, ill-typed or out of its range.
    """
    schema = get(name).parameters
    try:
        return schema.model_validate(dict(parameters)).model_dump()
    except ValidationError as error:
        problems = " ".join(_problem(name, schema, one["loc"][0], one["msg"], one["input"]) for one in error.errors())
    raise KitError(f"{problems} Parameters of '{name}': {_listing(schema)}.")


def _problem(name: str, schema: type[BaseModel], where: str | int, message: str, value: Any) -> str:
    """Say in one or two sentences what is wrong with one parameter."""
    if where not in schema.model_fields:
        return f"Method '{name}' has no parameter '{where}'.{_suggestion(str(where), schema.model_fields)}"
    text = f"Parameter '{where}' of method '{name}' cannot be {value!r} ({type(value).__name__}): {message}."
    if isinstance(value, str) and "number" in message:
        text += " (In YAML, 1e-3 is a text: write 1.0e-3 or 0.001, without quotes.)"
    return text


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _listing(schema: type[BaseModel]) -> str:
    """Return names, types and defaults of all parameters."""
    fields = schema.model_fields.items()
    return ", ".join(f"{name}: {_type_name(one.annotation)} = {one.default!r}" for name, one in fields) or "none"


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(repr(choice) for choice in get_args(kind))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def code_fingerprint(name: str) -> str:
    """Return 16 hexadecimal digits that change when the code behind method `name` changes.

    Hashed are the method's module and, of this package, the `methods` and `weights` modules that it imports, directly
    or not; blank lines and lines that hold only a comment do not count.
    """
    function = get(name).function
    sources: dict[str, list[str]] = {}
    waiting = [function.__module__]
    while waiting:
        module = waiting.pop()
        if module in sources:
            continue
        # A method of a notebook has no module file: there its own lines are what can change.
        path = _module_file(module)
        source = path.read_text(encoding="utf-8") if path else inspect.getsource(function)
        sources[module] = code_lines(source)
        waiting += _imported(inspect.cleandoc(source) if path is None else source)
    return content_hash(sources)


def _module_file(module: str) -> Path | None:
    try:
        found = importlib.util.find_spec(module)
    except (ValueError, ModuleNotFoundError):  # __main__ of a notebook; a name that is no module but lies in one
        return None
    return Path(found.origin) if found and found.has_location and found.origin else None


def _imported(source: str) -> list[str]:
    """Return the `methods` and `weights` modules of this package that a source text imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module only together with its second half.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    wanted = [one for one in names if one == "mergekit_lite.weights" or one.startswith("mergekit_lite.methods.")]
    return [one for one in wanted if _module_file(one)]
