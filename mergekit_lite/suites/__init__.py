"""Where encoders, heads, experts and images come from."""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergekit_lite.errors import KitError, shown, suggestion
from mergekit_lite.suites.suite import Split, Suite, Task

if TYPE_CHECKING:
    from mergekit_lite.suites.clip.there import Stock

SUITES = {
    "miniature": "mergekit_lite.suites.miniature",
    "clip-vit-b-32": "mergekit_lite.suites.clip",
    "clip-vit-b-16": "mergekit_lite.suites.clip",
    "clip-vit-l-14": "mergekit_lite.suites.clip",
}
"""Name -> module with `load(name, device)`; imported when asked for, since open_clip takes seconds. Any other module
with such a function is named by its dotted path, as in an import."""

OWN = "mergekit_lite.suites.own"
SUFFIXES = (".yaml", ".yml")
"""Ends of a suite file's name."""

FAMILY = re.compile(r"@[\w.-]{1,60}\Z", re.ASCII)
"""What may follow the name of a real suite: whose converted experts it merges, such as ``clip-vit-b-32@OC-8``."""

__all__ = ["SUITES", "Split", "Suite", "Task", "check_family", "check_name", "load_suite", "stock", "suite_path"]


def check_name(name: str) -> str:
    """Return the module that makes the suite called `name`.

    A name is one of `SUITES`, the dotted path of a module, or a suite file; behind the first two an @ and a family of
    experts may stand.

    Raises:
        KitError: there is no such suite, module or file, or its experts come in one family only.
    """
    if name.endswith(SUFFIXES):
        suite_path(name)
        return OWN
    plain = FAMILY.sub("", name)
    if plain not in SUITES and not _is_module(plain):
        raise KitError(
            f"There is no suite '{name}'.{suggestion(name, SUITES)} Suites: {', '.join(SUITES)}, a suite file such as "
            "birds.yaml, or the dotted path of a module with a function `load(name, device)`."
        )
    if plain != name and plain == "miniature":
        raise KitError(f"There is no suite '{name}': the miniature makes its own experts. Leave '@...' out.")
    return SUITES.get(plain, plain)


def suite_path(name: str) -> Path:
    """Return where the suite file called `name` lies: from the current folder, or from the nearest one above it.

    So a profile and its notebooks, which run in a folder below, name the same file.

    Raises:
        KitError: there is none.
    """
    path = Path(os.path.expanduser(name))  # not Path's own, which fails where there is no such user
    here = Path.cwd()
    for folder in (here, *here.parents):
        if os.path.isfile(folder / path):
            return folder / path
    raise KitError(
        f"There is no suite file '{name}' in {here} or above it. Check the path, or begin with "
        "`mergekit-lite init FOLDER`, which lays out an example."
    )


def check_family(name: str) -> None:
    """Check that `name` can be that of a family of experts.

    Raises:
        KitError: it cannot.
    """
    if not FAMILY.fullmatch(f"@{name}"):
        raise KitError(f"A family cannot be called {shown(name)}. Take up to 60 letters, digits, `_`, `-` and `.`.")


def stock(name: str, tasks: str | Sequence[str]) -> "list[Stock]":
    """Return what of `tasks` a suite that is fetched has on this machine already; nothing if it makes all itself.

    Raises:
        KitError: there is no such suite, or no such task.
    """
    module = importlib.import_module(check_name(name))
    found: list[Stock] = module.stock(name, tasks) if hasattr(module, "stock") else []
    return found


def _is_module(name: str) -> bool:
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError, RecursionError):  # no package above it; or a module put there by hand
        return name in sys.modules
    except Exception as error:  # to find a module imports the packages above it, and that can fail in any way
        raise KitError(f"The suite '{name}' cannot be imported: {type(error).__name__}: {error}") from error


def load_suite(name: str, device: str | None = None) -> Suite:
    """Return the suite called `name` on `device` (by default a GPU if there is one, else the CPU).

    Raises:
        KitError: there is no such suite or no such device, its module has no `load`, or its base weights cannot be
            fetched.
    """
    called = check_name(name)
    try:
        module = importlib.import_module(called)
    except Exception as error:
        raise KitError(f"The suite '{name}' cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, "load"):
        raise KitError(f"The module {module.__name__} has no function `load(name, device)` that returns a suite.")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # the device "meta" makes tensors, but they hold nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        words = str(error).partition("\n")[0]
        raise KitError(f"Device '{device}' cannot be used here ({words}). Use 'cpu', or leave it out.") from error
    suite: Suite = module.load(name, torch.device(device))
    return suite
