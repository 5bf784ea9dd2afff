"""Cells for a claim of the kind "X improves what it is combined with": each merge before X, and after it."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from mergekit_lite.study.records import Cell

When = Literal["before", "after"]


def before_and_after(
    starts: Iterable[str],
    *,
    pool: Sequence[str],
    evaluate: Sequence[str],
    method: str = "combined_frank_wolfe",
    seed: int = 0,
    expert_seed: int = 0,
    **parameters: Any,
) -> dict[tuple[str, When], Cell]:
    """Return (start, "before" or "after") -> cell: a merge with its defaults, and `method` started from that merge.

    Both have the same pool, tasks and seeds, so `mergekit_lite.study.run` gives pairs. What a gain is worth is said by
    the knowledge in both records (`access`, `images`, `labels`): the step from before to after sees labels, which most
    starts do not. A fair third cell starts from the same merge, and spends the same images without Frank-Wolfe.

    Args:
        starts: names of registered methods, those that see no more than `method` does.
        pool: the experts.
        evaluate: the tasks tested, and adapted to.
        method: one with a parameter `start`.
        seed: of both cells.
        expert_seed: of both cells.
        **parameters: of `method`, besides `start`.
    """
    given: dict[str, Any] = {"pool": tuple(pool), "evaluate": tuple(evaluate), "seed": seed, "expert_seed": expert_seed}
    pairs: dict[tuple[str, When], Cell] = {}
    for start in starts:
        pairs[start, "before"] = Cell(method=start, **given)
        pairs[start, "after"] = Cell(method=method, parameters={"start": start, **parameters}, **given)
    return pairs
