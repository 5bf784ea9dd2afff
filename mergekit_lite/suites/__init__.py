"""Where encoders, heads, experts and images come from."""

import importlib
import re
from difflib import get_close_matches

import torch

from mergekit_lite.errors import KitError
from mergekit_lite.suites.suite import Split, Suite, Task

SUITES = {
    "miniature": "mergekit_lite.suites.miniature",
    "clip-vit-b-32": "mergekit_lite.suites.clip",
    "clip-vit-b-16": "mergekit_lite.suites.clip",
    "clip-vit-l-14": "mergekit_lite.suites.clip",
}
"""Name -> module with `load(name, device)`; imported when asked for, since open_clip takes seconds."""

FAMILY = re.compile(r"@[\w.-]+$", re.ASCII)
"""What may follow the name of a real suite: whose converted experts it merges, such as ``clip-vit-b-32@OC-8``."""

__all__ = ["SUITES", "Split", "Suite", "Task", "check_name", "load_suite"]


def check_name(name: str) -> str:
    """Return the name in `SUITES` that `name` begins with: all of it, or what stands before an @ and a family.

    Raises:
        KitError: there is no such suite, or its experts come in one family only.
    """
    plain = FAMILY.sub("", name)
    if plain not in SUITES:
        close = get_close_matches(name, SUITES, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise KitError(f"There is no suite '{name}'.{hint} Suites: {', '.join(SUITES)}.")
    if plain != name and plain == "miniature":
        raise KitError(f"There is no suite '{name}': the miniature makes its own experts. Leave '@...' out.")
    return plain


def load_suite(name: str, device: str | None = None) -> Suite:
    """Return the suite called `name` on `device` (by default a GPU if there is one, else the CPU).

    Raises:
        KitError: there is no such suite or no such device, or its base weights cannot be fetched.
    """
    module = SUITES[check_name(name)]
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KitError(f"Device '{device}' cannot be used here ({error}). Use 'cpu', or leave it out.") from error
    suite: Suite = importlib.import_module(module).load(name, torch.device(device))
    return suite
