"""Shards of a grid, for machines that share no disk: each computes its part, and the records are brought together."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mergekit_lite.errors import KitError, shown


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


def parsed(text: str) -> tuple[int, int]:
    """Return i and n of the shard ``i/n``.

    Raises:
        KitError: the text has another form, or not 1 <= i <= n.
    """
    part, _, parts = text.strip().partition("/")
    # Of so few digits that Python turns them into a number; `isdecimal` alone takes those of any script.
    if all(one.isascii() and one.isdecimal() and len(one) < 10 for one in (part, parts)) and (
        1 <= int(part) <= int(parts)
    ):
        return int(part), int(parts)
    raise KitError(f"{shown(text)} names no shard. Write i/n, such as 1/8 for the first of eight and 8/8 for the last.")


def share(jobs: Sequence[_Job], text: str) -> list[_Job]:
    """Return the jobs of shard ``i/n``: sorted by cost, the long ones first, they are dealt out in hands of n.

    It depends on the grid alone, not on what is recorded, nor on the order of its cells, nor on the machine. Of each
    hand every shard gets one, the one that is its own by its key if there is one: so a cell of two grids falls to the
    same shard more often than not, and is computed once.

    Raises:
        KitError: the text is not ``i/n`` with 1 <= i <= n.
    """
    part, parts = parsed(text)
    order = sorted(jobs, key=lambda job: (tuple(-one for one in job.cost), job.key))
    mine = []
    for first in range(0, len(order), parts):
        hand = order[first : first + parts]
        given = dict[int, _Job]()
        for job in hand:
            given.setdefault(int(job.key, 16) % parts, job)
        dealt = {job.key for job in given.values()}
        free = [one for one in range(parts) if one not in given]
        given |= zip(free, [job for job in hand if job.key not in dealt], strict=False)
        mine += [given[part - 1]] if part - 1 in given else []
    return mine
