"""A suite file from the disk: what it takes from another one is filled in, and all that is wrong is said at once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mergekit_lite.errors import KitError, shown, suggestion
from mergekit_lite.suites.own.schema import SuiteFile, hint
from mergekit_lite.suites.words import spelt
from mergekit_lite.yaml_files import read_yaml

SUFFIXES = (".yaml", ".yml")

SHIPPED = Path(__file__).parents[1] / "clip" / "benchmark_files"
"""The suite files that come with the package."""

DEEPEST = 10  # suite files that are each like the next; more is a circle


def shipped() -> tuple[str, ...]:
    """Return the names of the suites that ship as suite files."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def read_suite_file(path: Path | str) -> SuiteFile:
    """Return a suite file, checked; class names are read, and paths are whole.

    Raises:
        KitError: there is no such file, it is no YAML, or says what cannot be; all problems are listed.
    """
    path = at_home(path)
    if not os.path.exists(path):
        raise KitError(
            f"There is no suite file {spelt(path)}. Check the path, or begin with `mergekit-lite init FOLDER`."
        )
    content = _filled_in(path, DEEPEST)
    try:
        return SuiteFile.model_validate({"name": path.stem, **content, "folder": path.resolve().parent})
    except ValidationError as error:
        problems = list(dict.fromkeys(_problem(one) for one in error.errors(include_url=False)))
    raise KitError(f"{spelt(path)} is not a valid suite file:\n" + "\n".join(f"  {one}" for one in problems))


def _problem(error: Any) -> str:
    where = tuple(one for one in error["loc"] if one not in ("str", "list[str]", "[key]"))
    place = ".".join(map(str, where)) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no such key.{hint(str(where[-1]), where[:-1])}"
    if error["type"] == "missing":
        return f"{place}: it is missing"
    if error["type"] == "string_type":  # YAML takes 7, yes and 2020-01-01 for other things than words
        return f"{place}: Input should be a valid string, not {shown(error['input'])}; put it into quotes"
    if error["type"] in ("model_type", "dict_type"):
        return f"{place}: Input should be keys with values, not {shown(error['input'])}"
    return f"{place}: {error['msg'].removeprefix('Value error, ').removesuffix('.')}"


def _filled_in(path: Path, depth: int) -> dict[str, Any]:
    """Return what a file says, filled in with what it is like; its paths are whole and its class names read."""
    called = spelt(path)
    content = read_yaml(path, called)
    if not isinstance(content, dict):
        raise KitError(f"{called} must hold `model:`, `base:` and `tasks:`; it holds {type(content).__name__}.")
    if "folder" in content:
        raise KitError(f"{called} is not a valid suite file:\n  folder: there is no such key.")
    own = _placed(content, path.resolve().parent, called)
    like = own.pop("like", None)
    if like is None:
        return own
    if depth == 0:
        raise KitError(f"{called} is like a file that is like a file ..., {DEEPEST} times. Break the circle.")
    if not isinstance(like, str):
        raise KitError(f"{called}: `like` must be the name of a suite or file, not {shown(like)}.")
    if like in shipped():
        other = SHIPPED / f"{like}.yaml"
    elif like.endswith(SUFFIXES):
        other = Path(_whole(like, path.resolve().parent, called, "like"))
    else:
        raise KitError(
            f"{called}: there is no suite {shown(like)} to be like.{suggestion(like, shipped())} Name "
            f"{', '.join(shipped())}, or a suite file."
        )
    if not os.path.exists(other):
        raise KitError(f"{called}: it is to be like {spelt(like)}, but there is no such file. Check the path.")
    begun = _filled_in(other, depth - 1)
    kept = {key: value for key, value in begun.items() if key not in ("name", "title", "description")}
    before, sets = begun.get("tasks"), begun.get("sets")
    if isinstance(own.get("tasks"), dict) and isinstance(before, dict):
        own["tasks"] = {name: _task(before.get(name), one) for name, one in own["tasks"].items()}
    if isinstance(own.get("tasks"), dict) and isinstance(sets, dict):  # sets that are whole still
        kept["sets"] = {
            name: members
            for name, members in sets.items()
            if not isinstance(members, list) or all(member in [*own["tasks"]] for member in members)
        }
    return {**kept, **own}


def _task(before: Any, given: Any) -> Any:
    """Return a task as it was there, with what is given in its place; nothing given is all of it."""
    if given is None:
        return before
    return {**before, **given} if isinstance(before, Mapping) and isinstance(given, Mapping) else given


def _placed(content: dict[str, Any], folder: Path, called: str) -> dict[str, Any]:
    """Return the content of one file with whole paths, as they may be used from another file and another folder."""

    def whole(value: Any, where: str) -> Any:
        return _whole(value, folder, called, where) if isinstance(value, str) else value

    placed = dict(content)
    if isinstance(base := content.get("base"), str) and _is_path(base, folder):
        placed["base"] = whole(base, "base")
    if isinstance(model := content.get("model"), str) and model.endswith(".json"):
        placed["model"] = whole(model, "model")
    if not isinstance(content.get("tasks"), dict):
        return placed
    placed["tasks"] = {}
    for name, task in content["tasks"].items():
        if not isinstance(task, dict):
            placed["tasks"][name] = task
            continue
        where = f"tasks.{name}"
        own = dict(task)
        if isinstance(names := task.get("classnames"), str):
            own["classnames"] = _class_names(Path(whole(names, f"{where}.classnames")), called, f"{where}.classnames")
        if isinstance(expert := task.get("expert"), str) and not expert.startswith("hf:"):
            own["expert"] = whole(expert, f"{where}.expert")
        if "head" in task:
            own["head"] = whole(task["head"], f"{where}.head")
        if isinstance(images := task.get("images"), dict):
            # Splits of a folder are folders in it; those of a data set are names.
            paths = ("folder", "npz") if "dataset" in images else ("folder", "npz", "train", "test")
            checked = {key: whole(value, f"{where}.images.{key}") for key, value in images.items() if key in paths}
            own["images"] = {**images, **{key: checked[key] for key in checked if key in ("folder", "npz")}}
        placed["tasks"][name] = own
    return placed


def _is_path(base: str, folder: Path) -> bool:
    """Return whether a base is a file or folder: a tag of open_clip has neither a slash nor a dot, and is not there."""
    return not base.startswith("hf:") and ("/" in base or "." in base or os.path.lexists(folder / base))


def _whole(value: str, folder: Path, called: str, where: str) -> str:
    """Return a path as a whole one. What is relative must stay in the folder of the suite file, which travels with it.

    Raises:
        KitError: it climbs out, or is no path.
    """
    if not value.strip() or "\0" in value:
        raise KitError(f"{called}: {where} is {shown(value)}, which is no path. Name a file or folder.")
    path = at_home(value)
    if path.is_absolute():
        return str(path)
    if ".." in path.parts:
        raise KitError(
            f"{called}: {where} is {shown(value)}, which climbs out of the folder of the suite file. Put the data into "
            "that folder, or give a whole path."
        )
    return str(folder / path)


def at_home(path: Path | str) -> Path:
    """Return a path with the home folder in the place of `~`; what is no user's stays as it is written."""
    return Path(os.path.expanduser(path))


def _class_names(path: Path, called: str, where: str) -> list[str]:
    """Return the lines of a file of class names; empty lines at its end are none, nor is an editor's mark of UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise KitError(
            f"{called}: {where} names the file {spelt(path.name)}, which cannot be read ({reason}). Check the path, or "
            "list the names in brackets."
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]
