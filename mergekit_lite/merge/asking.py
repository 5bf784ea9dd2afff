"""What somebody asks for on the command line becomes a job."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mergekit_lite.errors import KitError, shown
from mergekit_lite.merge import material
from mergekit_lite.merge.jobs import Asked, Job, asked_of, check_no_data, of_places, shown_place
from mergekit_lite.merge.material import names_as_stored
from mergekit_lite.merge.target import in_dtype
from mergekit_lite.methods import load_method
from mergekit_lite.methods.parameters import filled_in
from mergekit_lite.methods.registry import MethodInfo, get
from mergekit_lite.suites.checkpoints.layouts import Names
from mergekit_lite.suites.words import spelt

RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Wish:
    """What was asked for, as it was written; see the command's help."""

    method: str
    bases: Sequence[str]
    experts: Mapping[str, str]
    parameters: Mapping[str, Any]
    suite: str | None = None
    tasks: str | None = None
    names: Names | None = None
    exclude: Sequence[str] = ()
    whole: bool = False
    seed: int | None = None
    device: str | None = None


def job_of(wish: Wish) -> Job:
    """Return the job that is asked for; of the models' files only headers are read.

    Raises:
        KitError: something that is asked for is not there, or does not fit the rest.
    """
    if len(wish.bases) > 1:
        raise KitError(
            f"--base is given {len(wish.bases)} times ({spelt(', '.join(wish.bases))}). Models are merged from one: "
            "leave the others out."
        )
    if wish.device is not None:
        _check_device(wish.device)
    if wish.method.endswith(RECIPES):
        return _by_recipe(wish)
    info = chosen_method(wish.method)
    filled_in(info.parameters, wish.parameters)
    if wish.suite is not None:
        return _on_suite(wish, info)
    if wish.tasks is not None:
        raise KitError("--tasks names tasks of a suite. Add --suite, or leave --tasks out.")
    check_no_data(info, wish.parameters)
    if not wish.bases:
        raise KitError("Name the model before fine-tuning: --base PLACE. (With --suite it is the suite's.)")
    if not wish.experts:
        raise KitError("Name the models to merge: --expert NAME=PLACE for each of them.")
    return of_places(_material(wish, wish.bases[0], wish.experts), asked_of(info, wish.parameters, wish.seed))


def _material(wish: Wish, base: str, experts: Mapping[str, str]) -> material.Material:
    return material.gathered(
        base,
        experts,
        names=wish.names or "fused",
        whole=wish.whole,
        exclude=wish.exclude,
        device=wish.device or "cpu",
    )


def _on_suite(wish: Wish, info: MethodInfo) -> Job:
    from mergekit_lite.merge.with_suite import of_suite  # open_clip takes seconds
    from mergekit_lite.suites import load_suite

    alone = {"--names split": wish.names == "split", "--exclude": bool(wish.exclude), "--whole": wish.whole}
    if given := [option for option, there in alone.items() if there]:
        raise KitError(
            f"{given[0]} is for merges without --suite: on a suite the image encoder is merged, under the names by "
            "which open_clip runs it. Leave one of the two out."
        )
    assert wish.suite is not None
    return of_suite(
        load_suite(wish.suite, wish.device),
        info,
        wish.parameters,
        base=wish.bases[0] if wish.bases else None,
        experts=wish.experts,
        tasks=wish.tasks,
        seed=wish.seed,
    )


def _by_recipe(wish: Wish) -> Job:
    """Return the job that a mergekit file describes."""
    others = {
        "--base": wish.bases,
        "--expert": wish.experts,
        "-p": wish.parameters,
        "--suite": wish.suite,
        "--tasks": wish.tasks,
    }
    if given := [option for option, value in others.items() if value]:
        raise KitError(f"A mergekit file says itself what is merged, and how. Leave {given[0]} out.")
    from mergekit_lite.merge import mergekit_yaml

    recipe = mergekit_yaml.read(Path(wish.method), seed=wish.seed)
    base = recipe.base or next(iter(recipe.models.values()))
    found = material.gathered(
        base,
        recipe.models,
        names=wish.names or names_as_stored(base),  # mergekit trims each tensor as it is stored
        whole=True,
        exclude=wish.exclude,
        device=wish.device or "cpu",
    )
    if recipe.base is None:  # the first of the models gives the format, and is merged with the others
        found = replace(found, notes=())
    title = f"mergekit's {recipe.words.get('merge_method', 'recipe')}"
    job = of_places(found, Asked(title, Path(wish.method).name, {}, recipe.merge, "tensors", recipe.words))
    return job if recipe.dtype is None else replace(job, target=in_dtype(job.target, recipe.dtype))


def chosen_method(text: str) -> MethodInfo:
    """Return the method that `text` names: one of the kit's, or ``FILE.py:NAME``, which is loaded.

    Raises:
        KitError: there is no such method, or it is no merge but a row that merges are compared with.
    """
    file, colon, name = text.rpartition(":")
    if text.endswith(".py") or (colon and file.endswith(".py")):
        found = load_method(text if text.endswith(".py") else file)
        names = [info.function.__name__ for info in found]
        if not text.endswith(".py") and name not in names:
            raise KitError(f"{spelt(file)} defines no method '{spelt(name)}'. Methods there: {', '.join(names)}.")
        if text.endswith(".py") and len(found) > 1:
            raise KitError(f"{spelt(text)} defines several methods. Say which one: {spelt(text)}:{names[0]}.")
        info = found[0] if text.endswith(".py") else found[names.index(name)]
    else:
        info = get(text)
    if info.reference:
        raise KitError(
            f"'{info.name}' is no merge but a row that merges are compared with. `mergekit-lite evaluate` measures the "
            "base and the experts themselves."
        )
    return info


def parsed(given: Sequence[str]) -> dict[str, Any]:
    """Return parameters out of texts ``KEY=VALUE``; a value is read as in YAML.

    Raises:
        KitError: a text without ``=``, a name that comes twice, or a value that is no YAML.
    """
    found: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key.strip():
            raise KitError(f"-p {shown(one)} has no '='. Write -p NAME=VALUE, such as -p scaling=0.3.")
        if key in found:
            raise KitError(f"Parameter '{spelt(key)}' is given twice. Give it once.")
        if key == "seed":
            raise KitError("The seed is no parameter of a method. Write --seed instead of -p seed=.")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise KitError(f"-p {shown(one)}: the value is no YAML. Write a number, a word, or [a, list].") from error
    return found


def named(given: Sequence[str]) -> dict[str, str]:
    """Return name -> place out of texts ``NAME=PLACE``.

    Raises:
        KitError: a text without ``=``, without a name or a place, or a name that comes twice.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, place = one.partition("=")
        if not equals or not name.strip() or not place:
            raise KitError(
                f"--expert {shown(one)} is not NAME=PLACE. Give each expert a name, such as --expert birds=runs/birds."
            )
        if name in found:
            both = f"{spelt(found[name])} and {spelt(place)}"
            raise KitError(f"Two experts are called '{spelt(name)}' ({both}). Give each a name of its own.")
        found[name.strip()] = place
    return found


def command_of(wish: Wish, folder: Path) -> str:
    """Return the command that asked for it, without paths of this machine."""
    words = ["mergekit-lite", "merge", _method_place(wish.method)]
    for base in wish.bases:
        words += ["--base", shown_place(base)]
    for name, place in wish.experts.items():
        words += ["--expert", f"{name}={shown_place(place)}"]
    for name, value in wish.parameters.items():
        words += ["-p", f"{name}={yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0]}"]
    words += ["--suite", shown_place(wish.suite)] if wish.suite else []
    words += ["--tasks", wish.tasks] if wish.tasks else []
    words += ["--names", wish.names] if wish.names else []
    for pattern in wish.exclude:
        words += ["--exclude", pattern]
    words += ["--whole"] if wish.whole else []
    words += ["--seed", str(wish.seed)] if wish.seed is not None else []
    words += ["--device", wish.device] if wish.device else []
    return spelt(shlex.join([*words, "-o", shown_place(str(folder))]))


def _method_place(method: str) -> str:
    file, colon, name = method.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{shown_place(file)}:{name}"
    return shown_place(method) if method.endswith((".py", *RECIPES)) else method


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        words = str(error).partition("\n")[0]
        raise KitError(f"Device '{spelt(device)}' cannot be used here ({spelt(words)}). Use 'cpu'.") from error
