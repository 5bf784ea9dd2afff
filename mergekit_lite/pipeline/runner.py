"""Runs a profile's notebooks through papermill: all is checked first, and what is still valid is not run again.

A notebook that fails costs the others nothing: they run, and what failed is told at the end.
"""

import ast
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat

from mergekit_lite.cache import ENGINE, SHARD, cache_dir, content_hash, file_digest
from mergekit_lite.errors import KitError, shown, suggestion
from mergekit_lite.pipeline.execution import Failed, ShareDone, execute, for_kernels
from mergekit_lite.pipeline.profiles import Profile
from mergekit_lite.syntax import dumped, plain

KINDS: dict[str, type] = {kind.__name__: kind for kind in (str, int, float, bool)}
"""The types that a notebook's parameter may have: those that a line of a profile can hold."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's `parameters` cell: ``steps: int = 500``."""

    name: str
    kind: type
    default: Any

    def takes(self, value: object) -> bool:
        """Say whether `value` is of this parameter's type, finite, and text if it is one; a float needs no point."""
        if isinstance(value, str) and value.encode(errors="ignore").decode() != value:  # half a character
            return False
        if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
            return False
        return type(value) is self.kind or (self.kind is float and type(value) is int)


def run_profile(
    profile: Profile,
    root: Path,
    only: str | None = None,
    force: bool = False,
    shard: str | None = None,
    engine: str | None = None,
) -> list[Path]:
    """Execute the notebooks of `profile` into ``build/<profile>/`` and return the executed files.

    Args:
        profile: what to run.
        root: the project's folder.
        only: run this notebook alone.
        force: run again even what is still valid: same template, parameters, library and torch.
        shard: ``i/n``: compute a share of the cells only, see `study.shards`; by default what the environment says. A
            notebook that needs others' cells ends there, well, and is not among what is returned.
        engine: what computes the cells, see `study.engines`; by default what the environment names, else the profile.

    Raises:
        KitError: an unknown notebook or suite, an unknown or ill-typed parameter, no such shard, or no such engine or
            one that is not installed (nothing was run); or notebooks that failed (all others were run).
    """
    if only is not None and only not in profile.notebooks:
        hint = suggestion(only, profile.notebooks)
        there = ", ".join(profile.notebooks)
        raise KitError(f"Profile '{profile.name}' has no notebook '{only}'.{hint} Notebooks: {there}.")
    shard = os.environ.get(SHARD) or None if shard is None else shard
    if shard is not None:
        from mergekit_lite.study import shards  # brings torch

        shards.parsed(shard)
    engine = os.environ.get(ENGINE) or profile.engine if engine is None else engine
    if engine is not None:
        from mergekit_lite.study import engines  # brings torch

        engines.check_engine(engine)
    checked = {name: check_parameters(profile, name, root) for name in profile.notebooks}
    library = library_hash()
    folder = root / "build" / profile.name
    executed, stale = [], []
    for name in [only] if only else profile.notebooks:
        template, target = root / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb"
        executed.append(target)
        if not force and run_of(target).get("stamp") == stamp(template, checked[name], library):
            print(f"{name}: unchanged since it was run, nothing to do (--force runs it again).", flush=True)
        else:
            stale.append((name, template, target))
    if stale:
        _check_suites(profile, (checked[name].get("suite") for name, *_ in stale))
        if profile.budget:
            print(f"What profile {profile.name} takes when nothing is there yet:\n{profile.budget}", flush=True)
    failures: dict[str, Failed] = {}
    waiting: list[str] = []
    for name, template, target in stale:
        given = ", ".join(f"{key}={value!r}" for key, value in checked[name].items())
        print(f"{name}: running{f' with {given}' if given else ''}", flush=True)
        stamped = {"profile": profile.name, "stamp": stamp(template, checked[name], library)}
        try:
            with for_kernels(SHARD, shard), for_kernels(ENGINE, engine):
                seconds = execute(template, target, checked[name], stamped)
            print(f"{name}: done in {seconds:.0f} s", flush=True)
        except ShareDone as done:
            waiting.append(name)
            executed.remove(target)
            print(f"{name}: its share is computed up to cell [{done.cell}]", flush=True)
        except Failed as failed:
            failures[name] = failed
            print(f"{name}: failed ({textwrap.shorten(failed.reason, 120, placeholder=' ...')})", flush=True)
    if waiting:
        print(_what_next(profile.name, waiting, str(shard)), flush=True)
    if failures:
        raise KitError(_told(failures, len(executed) + len(waiting), profile.name))
    return executed


def _what_next(profile: str, waiting: list[str], shard: str) -> str:
    who = "1 notebook waits" if len(waiting) == 1 else f"{len(waiting)} notebooks wait"
    return (
        f"Shard {shard}: {who} for cells of the other shards ({', '.join(waiting)}).\n"
        f"When all shards have ended, bring their records together on each machine (here: {cache_dir('records')}),\n"
        "  mergekit-lite records merge FOLDER ...\n"
        "and run the same shards again: cells further down ask for records too, often by what the first ones say. When "
        f"no notebook waits any more, or little is left, one machine does the rest:\n  mergekit-lite run {profile}"
    )


def _told(failures: Mapping[str, Failed], asked: int, profile: str) -> str:
    """Return what failed and why; a reason that several notebooks share, such as a full disk, is said once."""
    alike: dict[str, list[str]] = {}
    for name, failed in failures.items():
        where = name if failed.cell is None else f"{name} (cell [{failed.cell}])"
        alike.setdefault(failed.reason, []).append(where)
    rest = asked - len(failures)
    lines = [f"{len(failures)} of {asked} notebooks failed{f'; the other {rest} are done' if rest else ''}."]
    lines += [f"{', '.join(names)}: {reason}" for reason, names in alike.items()]
    if any(failed.kept for failed in failures.values()):
        lines.append(f"How far they came: build/{profile}/NOTEBOOK.failed.ipynb.")
    lines.append("Finished records are kept: run the same command again to resume from there.")
    return "\n".join(lines)


def check_parameters(profile: Profile, notebook: str, root: Path) -> dict[str, Any]:
    """Return the parameters that `profile` gives to `notebook`, its suite included.

    Raises:
        KitError: there is no such notebook, or a parameter is unknown or has another type than the notebook says.
    """
    where = f"profiles/{profile.name}.yaml, notebook '{notebook}'"
    path = root / "notebooks" / f"{notebook}.ipynb"
    if not os.path.lexists(path):
        there = sorted(one.stem for one in path.parent.glob("*.ipynb"))
        hint = suggestion(notebook, there)
        raise KitError(f"{where}: there is no notebooks/{path.name}.{hint} Notebooks: {', '.join(there) or 'none'}.")
    known = notebook_parameters(path)
    given = profile.notebooks[notebook]
    if "suite" in known:
        given = {"suite": profile.suite, **given}
    problems = []
    for name, value in given.items():
        one = known.get(name)
        if one is None:
            problems.append(f"It has no parameter '{name}'.{suggestion(name, known)}")
        elif not one.takes(value):
            what = f"{shown(value)} ({type(value).__name__})"
            problems.append(f"Parameter '{name}' must be {one.kind.__name__}, not {what}.")
            if isinstance(value, float) and not math.isfinite(value):
                problems.append("Numbers must be finite.")
            if isinstance(value, str) and one.kind in (int, float):
                problems.append("Numbers stand without quotes, and YAML takes 1e-3 for text: write 1.0e-3.")
    if problems:
        listing = ", ".join(f"{one.name}: {one.kind.__name__} = {one.default!r}" for one in known.values()) or "none"
        raise KitError(f"{where}: {' '.join(problems)} Parameters: {listing}.")
    return dict(given)


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """Return name -> parameter of the cell tagged ``parameters``, whose lines read ``name: type = value``.

    Raises:
        KitError: the file is no notebook, or a line of that cell is anything else.
    """
    for cell in read_notebook(path).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            try:
                lines = ast.parse(cell.source).body
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
                raise KitError(f"{path.name}: the cell tagged `parameters` is no Python ({error}). Mend it.") from error
            return {one.name: one for one in (_parameter(line, cell.source, path.name) for line in lines)}
    return {}


def _parameter(line: ast.stmt, source: str, notebook: str) -> Parameter:
    match line:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id=kind), value=ast.expr() as value):
            with suppress(ValueError, KeyError, TypeError, RecursionError, MemoryError):
                one = Parameter(name, KINDS[kind], ast.literal_eval(value))
                if one.takes(one.default):
                    return one
    words = textwrap.shorten(ast.get_source_segment(source, line) or "", 100, placeholder=" ...")
    raise KitError(
        f"{notebook}: the cell tagged `parameters` holds `{words}`. Each of its lines must read "
        f"`name: type = value`, such as `steps: int = 500`, with one of the types {', '.join(KINDS)}."
    )


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Return the notebook in `path`.

    Raises:
        KitError: the file is missing or is no notebook.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a folder, or a device that never ends
        raise KitError(f"{path.parent.name}/{path.name} cannot be read: it is no file. Move it away.")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except FileNotFoundError as error:
        raise KitError(f"There is no {path.parent.name}/{path.name}.") from error
    except OSError as error:
        raise KitError(f"{path.parent.name}/{path.name} cannot be read ({error.strerror}).") from error
    # What nbformat raises depends on what is wrong, such as no JSON, another version, or a list for an object; some of
    # it is asserted.
    except Exception as error:
        raise KitError(f"{path.parent.name}/{path.name} is not a notebook ({type(error).__name__}).") from error
    return notebook


def library_hash() -> str:
    """Return a hash of all that can change what a notebook shows: this package's code and data, torch and open_clip.

    Of code, what is computed counts, and not its docstrings, comments or annotations (`mergekit_lite.syntax`).
    """
    package = Path(__file__).parents[1]
    files = sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    # These drive a run, or use what it made: what a notebook shows is not theirs.
    drivers = (package / "pipeline", package / "cli", package / "course")
    hashes = {
        path.relative_to(package).as_posix(): _code_hash(path) if path.suffix == ".py" else file_digest(path)
        for path in files
        if not any(path.is_relative_to(driver) for driver in drivers)
    }
    return content_hash([hashes, version("torch"), version("open_clip_torch")])


def _code_hash(path: Path) -> str:
    return content_hash(dumped(plain(ast.parse(path.read_text(encoding="utf-8")))))


def stamp(template: Path, parameters: Mapping[str, Any], library: str) -> str:
    """Return the hash of all that an executed notebook depends on; see `library_hash`.

    What a suite file says is part of it, with the class names and the suite that it refers to, wherever it lies.
    """
    suite, own = parameters.get("suite"), []
    if isinstance(suite, str) and suite.endswith((".yaml", ".yml")):
        from mergekit_lite.suites import suite_path  # brings torch
        from mergekit_lite.suites.own.reading import read_suite_file

        file = read_suite_file(suite_path(suite))
        own = [file.model_dump_json().replace(str(file.folder), "")]
    return content_hash([file_digest(template), dict(parameters), library, *own])


def run_of(executed: Path) -> Mapping[str, Any]:
    """Return what an executed notebook says of its run: profile, stamp, records and seconds; empty if it does not."""
    try:
        found = read_notebook(executed).metadata.get("mergekit_lite")
    except KitError:
        return {}
    return found if isinstance(found, dict) else {}


def _check_suites(profile: Profile, named: Iterable[str | None]) -> None:
    from mergekit_lite.suites import check_name  # brings torch, which nobody should wait for when nothing is to be run

    for suite in dict.fromkeys([profile.suite, *named]):
        if suite is not None:
            try:
                check_name(suite)
            except KitError as error:
                raise KitError(f"profiles/{profile.name}.yaml: {error}") from error
