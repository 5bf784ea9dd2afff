"""The one exception for everything a user can mend, and the hint that most of its messages end with."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches


class KitError(ValueError):
    """Something the user can mend: the message says what was wrong, where, and what to do next.

    The command line prints it without a traceback; in a notebook or script it is an ordinary exception.
    """


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean '...'?"`` with the one of `known` that looks like `name`, or nothing if none does."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**40 else f"a number of {x.bit_length()} bits"  # Python refuses to print thousands


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100


def shown(value: object) -> str:
    """Return `value` as an error message shows it: as in Python, but of any size or depth in a line or so."""
    return _SHORT.repr(value)
