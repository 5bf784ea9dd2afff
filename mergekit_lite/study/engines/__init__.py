"""Where cells are computed: in processes of this machine, on a Ray cluster, as SLURM jobs, or by your own engine.

An engine is any object with ``submit(function, *arguments)``, such as an executor of `concurrent.futures` or a client
of dask. Those that the kit knows by name are started for a study and ended with it.
"""

import importlib
import importlib.util
import os
import shlex
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from mergekit_lite.cache import ENGINE
from mergekit_lite.errors import KitError, shown, suggestion

VARIABLE = ENGINE
"""Environment variable that names the engine where `study.run` is not told one: ``ray address=auto``."""


class Handle(Protocol):
    """What is being computed.

    Where it also has ``cancel()``, that is called for what nobody waits for any more; where it has
    ``add_done_callback(function)``, as futures have, it is not asked again and again whether it is done.
    """

    def done(self) -> bool:
        """Return whether it has ended, well or not."""

    def result(self) -> Any:
        """Return what the function returned, or raise what went wrong."""


@runtime_checkable
class Engine(Protocol):
    """What computes functions elsewhere.

    Where it also has ``batch()``, a context manager, all is submitted inside: a scheduler gets one array of jobs.
    """

    def submit(self, function: Any, /, *arguments: Any) -> Handle:
        """Start ``function(*arguments)``, all of which pickle, and return at once."""


class _Known(NamedTuple):
    module: str
    package: str  # that it needs, and the extra of the kit that brings it
    extra: str
    options: tuple[str, ...]  # as its module says, which need not be imported to check them


PROCESSES = "processes"
"""The default: one process per core, or per GPU, of this machine."""

_KNOWN = {
    "ray": _Known(
        "mergekit_lite.study.engines.ray_cluster", "ray", "ray", ("address", "cpus", "gpus", "retries", "patience")
    ),
    "slurm": _Known(
        *("mergekit_lite.study.engines.slurm", "submitit", "slurm"),
        ("partition", "minutes", "gpus", "account", "memory_gb", "cpus", "at_once", "local"),
    ),
}


def chosen(engine: str | Engine | None) -> str | Engine | None:
    """Return the engine that a study was given, else the one that the environment names; None for the default.

    Raises:
        KitError: it is neither the name of an engine nor an object with `submit`, or it is not installed.
    """
    if engine is None:
        engine = os.environ.get(VARIABLE) or None
    if engine is not None and not isinstance(engine, str):
        if not callable(getattr(engine, "submit", None)):
            raise KitError(
                f"{shown(engine)} is no engine. Give {', '.join(names())}, or an object with "
                "`submit(function, *arguments)`, such as an executor of concurrent.futures."
            )
        return engine
    return None if engine is None or check_engine(engine) == PROCESSES else engine


def names() -> tuple[str, ...]:
    """Return the names of the engines that the kit knows."""
    return (PROCESSES, *_KNOWN)


def installed() -> dict[str, str]:
    """Return for each known engine which version of the package behind it is installed, or how to install it."""
    found = {PROCESSES: "here"}
    for name, known in _KNOWN.items():
        there = importlib.util.find_spec(known.package) is not None
        found[name] = f"{known.package} {version(known.package)}" if there else _to_install(known)
    return found


def check_named(text: str) -> str:
    """Check that ``NAME key=value ...`` names an engine and options that it has, installed or not; return its name.

    Raises:
        KitError: it has another form, or no engine has that name or such an option.
    """
    name, options = _parsed(text)
    if name == PROCESSES:
        if options:
            raise KitError(f"The engine '{PROCESSES}' has no options. Leave {', '.join(options)} out.")
        return name
    wanted = _KNOWN[name].options
    for option in options:
        if option not in wanted:
            raise KitError(
                f"The engine '{name}' has no option '{option}'.{suggestion(option, wanted)} "
                f"Options: {', '.join(wanted)}."
            )
    return name


def check_engine(text: str) -> str:
    """Check that an engine can be had under ``NAME key=value ...``, without starting anything, and return its name.

    Raises:
        KitError: see `check_named`; or its package is not installed.
    """
    name = check_named(text)
    if name != PROCESSES and importlib.util.find_spec(_KNOWN[name].package) is None:
        known = _KNOWN[name]
        raise KitError(
            f"The engine '{name}' needs the package {known.package}, which is not installed: {_to_install(known)}."
        )
    return name


def _to_install(known: _Known) -> str:
    return f'pip install "mergekit-lite[{known.extra}]"'


def engine_called(text: str | Engine, device: torch.device) -> AbstractContextManager[Engine]:
    """Return a context that holds the engine called so, for cells on `device`; what was started for it ends with it.

    An engine that is an object already is handed back, and stays open.

    Raises:
        KitError: see `check_engine`; or it cannot be reached.
    """
    if not isinstance(text, str):
        return nullcontext(text)
    check_engine(text)
    name, options = _parsed(text)
    started: AbstractContextManager[Engine] = importlib.import_module(_KNOWN[name].module).engine(device, **options)
    return started


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    try:
        name, *pairs = shlex.split(text)
    except ValueError as error:
        raise KitError(f"{shown(text)} names no engine ({error}). Write `NAME key=value ...`.") from error
    if name not in names():
        raise KitError(f"There is no engine '{name}'.{suggestion(name, names())} Engines: {', '.join(names())}.")
    options = dict[str, str]()
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and value and key.isidentifier()) or key in options:
            raise KitError(f"{shown(text)}: '{pair}' is no option of its own. Write `{name} key=value ...`, each once.")
        options[key] = value
    return name, options
