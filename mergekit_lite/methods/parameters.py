"""The signature of a method is its schema: keyword-only arguments with a type and a default, checked before work."""

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mergekit_lite.errors import KitError, shown, suggestion

RESOURCES = ("base", "experts", "data", "seed", "watch", "walk")
"""Argument names that are not parameters: what a method works on, its random seed, who watches it,
and what runs the encoder block by block."""


def schema_of(function: Callable[..., Any]) -> tuple[type[BaseModel], tuple[str, ...]]:
    """Return the pydantic model of a method's parameters, named as the method, and the names of its resources.

    Raises:
        KitError: a parameter has no type or no default, or is not keyword-only.
    """
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


def filled_in(schema: type[BaseModel], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return `parameters` with defaults filled in. Types are strict, except that an int is taken for a float.

    Raises:
        KitError: a parameter that is unknown, ill-typed or out of its range.
    """
    try:
        return schema.model_validate(dict(parameters)).model_dump()
    except ValidationError as error:
        problems = " ".join(_problem(schema, one["loc"][0], one["msg"], one["input"]) for one in error.errors())
    raise KitError(f"{problems} Parameters of '{schema.__name__}': {_listing(schema)}.")


def check_seed(seed: Any) -> None:
    """Check a random seed: numpy takes none below 0, and torch none of more than 64 bits.

    Raises:
        KitError: it is no whole number from 0 to 2^32 - 1.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise KitError(f"A seed must be a whole number from 0 to {2**32 - 1}, not {shown(seed)}.")


def _problem(schema: type[BaseModel], where: str | int, message: str, value: Any) -> str:
    """Say in one or two sentences what is wrong with one parameter."""
    if where not in schema.model_fields:
        return f"Method '{schema.__name__}' has no parameter '{where}'.{suggestion(str(where), schema.model_fields)}"
    text = f"Parameter '{where}' of method '{schema.__name__}' cannot be {shown(value)} ({type(value).__name__}): "
    text += f"{message.removeprefix('Value error, ').removesuffix('.')}."
    if isinstance(value, str) and "number" in message:
        text += " (In YAML, 1e-3 is a text: write 1.0e-3 or 0.001, without quotes.)"
    return text


def _listing(schema: type[BaseModel]) -> str:
    """Return names, types and defaults of all parameters."""
    fields = schema.model_fields.items()
    return ", ".join(f"{name}: {_type_name(one.annotation)} = {one.default!r}" for name, one in fields) or "none"


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is Annotated:
        return _type_name(get_args(kind)[0])
    if get_origin(kind) is list:
        return f"list[{_type_name(get_args(kind)[0])}]"
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(_type_name, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)
