"""Shards of a grid, for machines that share no disk: each computes its part, and the records are brought together."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mergekit_lite.errors import KitError, shown

VARIABLE = "MERGEKIT_LITE_SHARD"
"""Environment variable ``i/n``: this run computes shard i of n, counted from 1; `mergekit-lite run --shard` sets it."""


class Elsewhere(KitError):
    """This shard's cells are all recorded; the others are for the other shards to compute."""

    def __init__(self, missing: int, asked: int) -> None:
        super().__init__(
            f"This shard's cells are recorded; {missing} of all {asked} are other shards'. Bring the records together "
            "(`mergekit-lite records merge FOLDER ...`), and run again."
        )


class _Costly(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def cost(self) -> tuple[bool, int, int]: ...


_Job = TypeVar("_Job", bound=_Costly)


def share(jobs: Sequence[_Job], text: str) -> list[_Job]:
    """Return the jobs of shard ``i/n``: sorted by cost, the long ones first, they are dealt out in turn.

    It depends on the grid alone, not on what is recorded, nor on the order of its cells, nor on the machine.

    Raises:
        KitError: the text is not ``i/n`` with 1 <= i <= n.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise KitError(f"{shown(text)} names no shard. Write i/n, such as 1/8 for the first of eight.")
    return sorted(jobs, key=lambda job: (tuple(-one for one in job.cost), job.key))[int(part) - 1 :: int(parts)]
