"""A merge that is described by a file of mergekit's: read, checked, and run as mergekit runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from mergekit_lite.errors import KitError, shown, suggestion
from mergekit_lite.merge.mergekit_arithmetic import added, drawn, largest, linear
from mergekit_lite.merge.ways import Merge
from mergekit_lite.methods.dare_merging import draws
from mergekit_lite.methods.parameters import check_seed
from mergekit_lite.methods.registry import Merged
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import Pool, check_finite, is_finite
from mergekit_lite.yaml_files import read_yaml

Method = Literal["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]

NORMALIZES = {"linear", "ties"}
"""Which methods divide by the sum of weights unless the file says otherwise."""

RESCALES = {"dare_linear", "dare_ties"}
"""Which methods give what is kept the sum of magnitudes of all, unless the file says otherwise."""

UNSUPPORTED = {
    "slices": "layers of different models are put together",
    "modules": "parts of different models are put together",
    "tokenizer_source": "a tokenizer is built",
    "tokenizer": "a tokenizer is built",
    "chat_template": "a template is chosen",
    "parameters.int8_mask": "masks are kept in bytes to save memory, which changes nothing: leave it out",
    "parameters.select_topk": "another method is meant",
}
"""What a file may say in mergekit and not here, and what it would mean."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class _Own(_Part):
    """Parameters of one model."""

    weight: float | None = Field(default=None, ge=-1e6, le=1e6)
    density: float | None = Field(default=None, gt=0, le=1)


class _All(_Own):
    """Parameters of the merge; weight and density are for models that have none of their own."""

    normalize: bool | None = None
    rescale: bool | None = None
    scale: float = Field(default=1.0, alias="lambda", ge=-1e6, le=1e6)


class _Model(_Part):
    model: str
    parameters: _Own = _Own()


class _File(_Part):
    merge_method: Method
    models: list[_Model] = Field(min_length=1)
    base_model: str | None = None
    parameters: _All = _All()
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "_File":
        if self.merge_method != "linear" and self.base_model is None:
            raise ValueError(f"{self.merge_method} needs a `base_model`, from which differences are taken")
        if self.merge_method == "linear" and self.base_model is not None:
            raise ValueError(
                "linear takes no `base_model`: list that model among `models`, with a weight, or leave it out"
            )
        for one in self.models:
            given = one.parameters.weight if one.parameters.weight is not None else self.parameters.weight
            if given is None and one.model != self.base_model:
                raise ValueError(f"the model '{one.model}' has no `weight`, and `parameters` has none for all")
        return self


@dataclass(frozen=True)
class Recipe:
    """What a file asks for.

    Attributes:
        base: where the base model is, if one is named.
        models: name -> where the model is; names differ even where places do not.
        merge: does it.
        words: what the file says, for the card.
        dtype: of the output, if the file names one.
    """

    base: str | None
    models: Mapping[str, str]
    merge: Merge
    words: Mapping[str, str]
    dtype: torch.dtype | None = None


def read(path: Path, *, seed: int | None = None) -> Recipe:
    """Return what a mergekit file asks for.

    Args:
        path: of the file. Models in it are places: of the hub, or from the file's folder.
        seed: of the draws of DARE, 0 unless it is given.

    Raises:
        KitError: there is no such file, it is no YAML, or it asks for what mergekit has and this kit has not: all of
            that is named. Or there is a seed for a method that draws nothing.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise KitError(f"There is no mergekit file {spelt(path)}. Check the path.")
    called = spelt(path.name)
    content = read_yaml(path, called)
    if not isinstance(content, dict):
        raise KitError(f"{called} must hold `merge_method:` and `models:`; it holds {type(content).__name__}.")
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        problems = list(dict.fromkeys(_problem(one) for one in error.errors(include_url=False)))
        lines = "\n".join(f"  {one}" for one in problems)
        raise KitError(f"{called} is not a mergekit file that can be run here:\n{lines}") from error
    drawing = file.merge_method.startswith("dare")
    if seed is not None and not drawing:
        raise KitError(f"'{file.merge_method}' draws nothing at random. Leave --seed out.")
    check_seed(seed or 0)
    models = [one for one in file.models if one.model != file.base_model]
    if not models:
        raise KitError(f"{called} names no model besides the base. Add what is to be merged to `models`.")
    names = _names([one.model for one in models])
    weights = {name: _given(one, file, "weight", 1.0) for name, one in zip(names, models, strict=True)}
    densities = {name: _given(one, file, "density", 1.0) for name, one in zip(names, models, strict=True)}
    if file.merge_method == "linear" and file.parameters.normalize is not False and not sum(weights.values()):
        raise KitError(f"{called}: the weights sum to zero, and linear divides by their sum. Set `normalize: false`.")
    places = {name: _place(one.model, path.parent) for name, one in zip(names, models, strict=True)}
    dtype = file.out_dtype or file.dtype
    normalize, rescale = file.parameters.normalize, file.parameters.rescale
    return Recipe(
        base=None if file.base_model is None else _place(file.base_model, path.parent),
        models=places,
        merge=_Run(
            file.merge_method,
            weights,
            densities,
            normalize=file.merge_method in NORMALIZES if normalize is None else normalize,
            rescale=file.merge_method in RESCALES if rescale is None else rescale,
            scale=file.parameters.scale,
            seed=seed or 0,
        ),
        words={
            "merge_method": file.merge_method,
            "mergekit file": called,
            **_said(weights, densities, file),
            **({"seed": str(seed or 0)} if drawing else {}),
        },
        dtype=getattr(torch, dtype) if dtype else None,
    )


class _Run:
    """Merges as the file says; called with one tensor after another, or with all of them."""

    def __init__(
        self,
        method: Method,
        weights: Mapping[str, float],
        densities: Mapping[str, float],
        *,
        normalize: bool,
        rescale: bool,
        scale: float,
        seed: int,
    ) -> None:
        self.method, self.weights, self.densities = method, weights, densities
        self.normalize, self.rescale, self.scale = normalize, rescale, scale
        # They run along the tensors, from call to call.
        self._draws = {name: draws(seed, name) for name in weights}

    def __call__(self, base: Mapping[str, Tensor], experts: Pool) -> Merged:
        weights = [self.weights[name] for name in experts]
        merged = {}
        for name, start in base.items():
            tensors = [expert[name] for expert in experts.values()]
            if self.method == "linear":
                total = linear(tensors, weights, normalize=self.normalize)
            else:
                sparsified = [partial(self._sparsified, model) for model in experts]
                total = added(
                    start,
                    tensors,
                    weights,
                    sparsified,
                    elect=self.method in ("ties", "dare_ties"),
                    normalize=self.normalize,
                    scale=self.scale,
                )
            if not is_finite(total):
                for model, tensor in zip(["the base weights", *experts], [start, *tensors], strict=True):
                    check_finite({name: tensor}, name=model)
                raise KitError(f"The merge left NaN or infinite values in '{name}'. Choose smaller weights.")
            merged[name] = total
        return Merged(merged)

    def _sparsified(self, model: str, delta: Tensor) -> Tensor:
        density = self.densities[model]
        if self.method.startswith("dare"):
            return drawn(delta, density, self._draws[model], rescale=self.rescale)
        return largest(delta, density, rescale=self.rescale) if self.method == "ties" else delta


def _given(model: _Model, file: _File, key: Literal["weight", "density"], otherwise: float) -> float:
    for part in (model.parameters, file.parameters):
        if (value := getattr(part, key)) is not None:
            return float(value)
    return otherwise


def _names(places: list[str]) -> list[str]:
    """Return a name for each model: the last part of its place, with a number where that is not enough."""
    found: list[str] = []
    for place in places:
        name = place.rstrip("/").rpartition("/")[2].partition("@")[0] or "model"
        others = (f"{name} ({number})" for number in count(2))
        found.append(next(one for one in chain([name], others) if one not in found))
    return found


def _place(model: str, folder: Path) -> str:
    """Return where a model is: a path from the file's folder if there is one, else what is named."""
    path = Path(model).expanduser()
    return str(folder / path) if not path.is_absolute() and (folder / path).exists() else model


def _said(weights: Mapping[str, float], densities: Mapping[str, float], file: _File) -> dict[str, str]:
    """Return what the card says of the numbers."""
    sparse = file.merge_method not in ("linear", "task_arithmetic")
    return {
        "weights": ", ".join(f"{name} {weight:g}" for name, weight in weights.items()),
        **({"densities": ", ".join(f"{name} {value:g}" for name, value in densities.items())} if sparse else {}),
        "normalize": str(
            file.merge_method in NORMALIZES if file.parameters.normalize is None else file.parameters.normalize
        ),
        **({"rescale": str(file.parameters.rescale)} if sparse and file.parameters.rescale is not None else {}),
        **({"lambda": f"{file.parameters.scale:g}"} if file.merge_method != "linear" else {}),
    }


def _problem(error: Any) -> str:
    where = tuple(one for one in error["loc"] if not str(one).startswith(("function", "_")))
    place = ".".join(map(str, where)) or "the file"
    if place in UNSUPPORTED:
        return f"{place}: this is not supported ({UNSUPPORTED[place]})"
    if error["type"] == "extra_forbidden":
        part = _Own if "models" in where and "parameters" in where else _Model if "models" in where else _All
        known = [*(_File if len(where) == 1 else part).model_fields, "lambda"]
        return f"{place}: this is not supported.{suggestion(str(where[-1]), known)}"
    if where[:1] == ("merge_method",):
        method = str(error["input"])
        return (
            f"merge_method: {shown(method)} is not supported.{suggestion(method, get_args(Method))} "
            f"Supported: {', '.join(get_args(Method))}. The kit's own methods need no file: `merge METHOD --base ...`"
        )
    if isinstance(error["input"], list | dict) and {*where[-1:]} & {"weight", "density", "lambda", "normalize"}:
        return f"{place}: one number is supported, not a gradient over layers or a filter by tensor"
    if error["type"] == "missing":
        return f"{place}: it is missing"
    return f"{place}: {error['msg'].removeprefix('Value error, ').removesuffix('.')}"
