"""The public pool, on which students compare a method with the kit's own before they hand it in.

What the kit's methods reach there is measured once and shipped as `public.json`: those that learn from images take
minutes. Measure it anew with ``python -m mergekit_lite.course.public`` when a method's code changed.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from mergekit_lite import study
from mergekit_lite.cache import written_whole
from mergekit_lite.course.leaderboard import Row, row
from mergekit_lite.methods import MethodInfo, all_methods
from mergekit_lite.methods.frank_wolfe.soft import RECIPES
from mergekit_lite.study import Cell, Record
from mergekit_lite.suites.suite import Suite
from mergekit_lite.workers import cores

FILE = Path(__file__).parent / "public.json"

POOL = ("scenes", "vehicles", "signs", "textures")

QUESTION = Cell(method="individual", pool=POOL, evaluate=POOL)
"""What the individual experts reach on the public pool; every other method is asked the same."""

MERGES = tuple(
    info.name
    for info in all_methods()
    if info.function.__module__.startswith("mergekit_lite.methods.")
    and not info.reference
    and info.name not in ("fixed_coefficients", "multi_task_training")  # alone it is Task Arithmetic; and no merge
)
"""The kit's methods that are measured."""

_STEPS = {"steps": 200, "learning_rate": 0.01, "images_per_task": 8}
_MIXING = {"iterations": 4, "inner_steps": 40, "inner_learning_rate": 0.01, "images_per_task": 8, "samples": 80}
SCHEDULES = {name: _STEPS for name in MERGES if "adamerging" in name or name == "adarank"} | {
    "soft_frank_wolfe": RECIPES["released"] | _MIXING
}
"""The book's one schedule for what adapts: with the authors' own, the defaults, none converges on the miniature."""


def asked(method: str) -> Cell:
    """Return the cell that asks `method` what the experts were asked: with its defaults, or the book's schedule."""
    return QUESTION.model_copy(update={"method": method, "parameters": SCHEDULES.get(method, {})})


def shipped() -> dict[str, Record]:
    """Return the kit's records of the public pool by method's name, without their traces."""
    return {one["cell"]["method"]: Record.model_validate(one) for one in json.loads(FILE.read_text(encoding="utf-8"))}


def baselines(suite: Suite) -> list[Row]:
    """Return the rows of the kit's methods on the public pool."""
    records, sizes = shipped(), _test_images(suite)
    individual = {"public": records.pop("individual")}
    return [row(name, {"public": one}, individual, sizes, baseline=True) for name, one in records.items()]


def tried(suite: Suite, info: MethodInfo, name: str) -> Row:
    """Return the row of a method on the public pool, computed here unless its record is there.

    Args:
        suite: the miniature.
        info: the method, with its default parameters.
        name: of the row.

    Raises:
        KitError: the method failed.
    """
    suite.prepare(POOL, cores())
    # One process: to start a second takes longer than what it would save.
    records = study.run(suite, {"individual": QUESTION, "own": asked(info.name)}, workers=1)
    individual, own = ({"public": records[one]} for one in ("individual", "own"))
    return row(name, own, individual, _test_images(suite))


def write(records: Iterable[Record], path: Path = FILE) -> None:
    """Write records without what grows with a method's steps."""
    # A NaN would be no JSON; it could stand in a trace only.
    kept = [one.model_copy(update={"trace": {}, "curve": []}).model_dump(mode="json") for one in records]
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _test_images(suite: Suite) -> dict[str, int]:
    return {task: suite.sizes[task][1] for task in POOL}


if __name__ == "__main__":
    from mergekit_lite.suites import load_suite

    write(study.run(load_suite("miniature", "cpu"), [asked(name) for name in ("individual", *MERGES)]))
