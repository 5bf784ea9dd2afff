"""Looking at what is here without asking the Hugging Face hub, and who it is that may not ask it."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

_commands = 0  # that only look, now


@contextmanager
def only_looking() -> Iterator[None]:
    """Have whoever would ask the hub meanwhile fail as with HF_HUB_OFFLINE: a command that looks brings nothing."""
    global _commands
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    _commands += not before
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        _commands -= not before


def is_only_looking() -> bool:
    """Return whether it is a command that only looks, and not the user, who keeps off the hub."""
    return _commands > 0


def user_is_offline() -> bool:
    """Return whether the user set HF_HUB_OFFLINE: advice names a variable only to whom has set it."""
    return bool(constants.HF_HUB_OFFLINE) and not _commands
