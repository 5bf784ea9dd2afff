"""Grading a folder of submissions: each is merged and measured apart, kept as one JSON file, and given its points."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ValidationError

from mergekit_lite import study
from mergekit_lite.cache import cache_dir, check_writable, content_hash, file_digest, written_whole
from mergekit_lite.course import leaderboard, merging, private
from mergekit_lite.course.guard import PACKAGE
from mergekit_lite.course.plan import Plan, PlannedPool, read_plan
from mergekit_lite.course.points import Question, Score, Yard, check_places, scores
from mergekit_lite.course.submissions import Submission, submissions_in
from mergekit_lite.errors import KitError
from mergekit_lite.methods import registry
from mergekit_lite.study.records import Cell
from mergekit_lite.suites.suite import Suite
from mergekit_lite.workers import cores, side_by_side

CONTAINER = (
    "docker run --rm --network none --memory 8g --pids-limit 256 --cap-drop ALL --security-opt no-new-privileges "
    "--read-only --tmpfs /tmp:rw,size=2g -v $PWD/course:/course:ro -v $PWD/cache:/cache:ro -v $PWD/grades:/grades "
    "-e MERGEKIT_LITE_CACHE=/cache IMAGE mergekit-lite course grade /course/submissions --plan /course/plan.yaml "
    "-o /grades"
)
"""How to grade code that may attack the machine; `podman run` takes the same words. IMAGE is one that the kit is
installed in. Grade a method of your own outside first: inside, the cache is read only, and must hold all it needs."""


class Measured(BaseModel):
    """What was measured of one submission: the file ``measured/STUDENT.json``.

    Attributes:
        key: a hash of the submission's files, of what the plan asks, and of the kit.
        student: whose it is.
        examined: what it is, and what checks and tests found.
        merges: one for each pool and expert seed.
        seconds: all of it, by the clock.
    """

    key: str
    student: str
    examined: merging.Examined
    merges: list[merging.Merge] = []
    seconds: float = 0.0

    @property
    def refused(self) -> list[str]:
        """What it tried and was refused, in order, each once."""
        return list(dict.fromkeys([*self.examined.refused, *(one for merge in self.merges for one in merge.refused)]))


@dataclass(frozen=True)
class Grade:
    """One submission with its points."""

    measured: Measured
    scores: tuple[Score, ...]

    @property
    def total(self) -> float:
        """All points."""
        return round(sum(one.points for one in self.scores), 2)


@dataclass(frozen=True)
class Graded:
    """What `grade` found: the plan with its pools' tasks, the yard, a grade per student, the leaderboard's rows."""

    plan: Plan
    yard: Yard
    grades: list[Grade]
    rows: list[leaderboard.Row]


@dataclass(frozen=True)
class _Work:
    submission: Submission
    key: str
    desk: merging.Desk
    path: Path


def grade(folder: Path, plan_file: Path, output: Path, workers: int | None = None) -> Graded:
    """Grade the submissions in `folder`; what `output` holds already is not measured again.

    Args:
        folder: with a file, notebook or folder for each student.
        plan_file: see `plan.Plan`.
        output: for the measurements; reports are written by `reports.write`.
        workers: submissions at once, by default one per core.

    Raises:
        KitError: the plan or the folder is not usable (nothing was run), or a submission could not be graded for a
            reason of this machine's; all others were, and are kept.
    """
    workers = cores() if workers is None else workers
    found, plan = submissions_in(folder), read_plan(plan_file)
    check_writable(output / "measured")
    load = partial(private.suite_with, plan.suite, plan.private)
    suite = load()
    plan = merging.pools_of(plan, suite)
    yard, rows = _yard(plan, suite, workers)
    check_places(plan, yard)
    desk, asked = merging.Desk(plan, _denied(plan, plan_file, folder, output)), _asked(plan)
    work = [
        _Work(one, content_hash([one.digest, asked]), desk, output / "measured" / f"{one.student}.json")
        for one in found
    ]
    measured = _all_measured(load, work, workers)
    grades = [Grade(one, tuple(scores(plan, yard, one.examined, one.merges))) for one in measured]
    sizes = {task: count for task, (_, count) in suite.sizes.items()}
    return Graded(plan, yard, grades, [*rows, *(row for one in measured if (row := _row(one, plan, yard, sizes)))])


def _denied(plan: Plan, plan_file: Path, *folders: Path) -> tuple[Path, ...]:
    """Return what no submission may read, even where Python may read what is around it."""
    files = [plan_file, plan.private, plan.points.tests and plan.points.tests.file]
    closed = [path.absolute() for path in (cache_dir(), *files, *folders) if path]
    # The kit and Python may lie beside the plan, in the folder of the course: they must be read.
    needed = [PACKAGE, Path(sys.prefix), Path(sys.base_prefix)]
    return tuple(path for path in closed if not any(one.is_relative_to(path) for one in needed))


def _asked(plan: Plan) -> str:
    """Return a hash of all that decides what is measured, besides a submission: the plan's question and the kit."""
    files = [plan.private, plan.points.tests and plan.points.tests.file]
    code = {path.relative_to(PACKAGE).as_posix(): file_digest(path) for path in sorted(PACKAGE.rglob("*.py"))}
    return content_hash([plan.question(), [file and file_digest(file) for file in files], code])


def questions(plan: Plan) -> dict[Question, PlannedPool]:
    """Return what each submission merges: each pool with the experts of each seed."""
    return {(name, seed): pool for name, pool in plan.pools.items() for seed in plan.expert_seeds}


def _yard(plan: Plan, suite: Suite, workers: int) -> tuple[Yard, list[leaderboard.Row]]:
    """Measure the kit's own methods on the plan's pools; what is recorded in the cache is not computed again."""
    asked = {
        question: Cell(
            method="individual",
            pool=pool.tasks,
            evaluate=pool.evaluate,
            expert_seed=question[1],
            corruption=pool.corruption,
        )
        for question, pool in questions(plan).items()
    }
    named = {method for _, place in plan.points.places() for method in (place.floor, place.ceiling)}
    methods = dict.fromkeys(("individual", *leaderboard.BASELINES, *sorted(named)))
    cells = {
        (method, question): cell.model_copy(update={"method": method, "adapt": _shown(plan, method, question[0])})
        for method in methods
        for question, cell in asked.items()
    }
    records = study.run(suite, cells, workers=workers)
    by_method = {method: {question: records[method, question].accuracy for question in asked} for method in methods}
    titles = {method: registry.get(method).title for method in methods}
    private_task = private.task_in(plan.private).name if plan.private else None
    yard = Yard(by_method["individual"], by_method, titles, private_task)
    sizes = {task: count for task, (_, count) in suite.sizes.items()}
    rows = []
    if asked:
        words = {question: _called(question, plan) for question in asked}
        individual = {words[question]: records["individual", question] for question in asked}
        for method in methods:
            if not registry.get(method).reference:
                own = {words[question]: records[method, question] for question in asked}
                rows.append(leaderboard.row(method, own, individual, sizes, baseline=True))
    return yard, rows


def _shown(plan: Plan, method: str, pool: str) -> tuple[str, ...]:
    info = registry.get(method)
    takes = "data" in info.resources and info.access is not registry.Access.CALIBRATION
    return plan.pools[pool].adapt if takes else ()


def _called(question: Question, plan: Plan) -> str:
    """Return what a column of the leaderboard is called."""
    return question[0] if len(plan.expert_seeds) == 1 else f"{question[0]}, experts {question[1]}"


def _all_measured(load: partial[Suite], work: Sequence[_Work], workers: int) -> list[Measured]:
    """Return the measurements in the order of `work`, and say how it goes; what fails costs the others nothing."""
    known = {one.submission.student: there for one in work if (there := _kept(one))}
    missing = [one for one in work if one.submission.student not in known]
    if known:
        print(f"{len(known)} of {len(work)} submissions are measured already.", flush=True)
    failures = []
    for done, (one, outcome) in enumerate(side_by_side(load, _measured, missing, workers), start=len(known) + 1):
        student = one.submission.student
        try:
            known[student] = outcome()
            print(f"[{done}/{len(work)}] {student}: {known[student].seconds:.0f} s", flush=True)
        except Exception as error:
            failures.append(
                f"{student}: {error if isinstance(error, KitError) else f'{type(error).__name__}: {error}'}"
            )
            print(f"[{done}/{len(work)}] {student}: not graded", flush=True)
    if failures:
        raise KitError(
            f"{len(failures)} of {len(work)} submissions could not be graded; the others are kept and will not be "
            "measured again.\n" + "\n".join(failures)
        )
    return [known[one.submission.student] for one in work]


def _kept(work: _Work) -> Measured | None:
    try:
        found = Measured.model_validate_json(work.path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.key == work.key else None


def _measured(suite: Suite, work: _Work) -> Measured:
    """Measure one submission and keep that, whatever the submission does."""
    begun, path, desk = time.perf_counter(), work.submission.path, work.desk
    examined = merging.examine(path, desk)
    merges = []
    if not examined.problem:
        merges = [merging.merge(suite, path, examined, name, seed, desk) for name, seed in questions(desk.plan)]
    seconds = round(time.perf_counter() - begun, 1)
    measured = Measured(
        key=work.key, student=work.submission.student, examined=examined, merges=merges, seconds=seconds
    )
    with written_whole(work.path) as temporary:
        temporary.write_text(measured.model_dump_json(indent=1), encoding="utf-8")
    return measured


def _row(measured: Measured, plan: Plan, yard: Yard, sizes: Mapping[str, int]) -> leaderboard.Row | None:
    """Return the leaderboard's row of a submission, None if it did not merge every pool."""
    merges = {(one.pool, one.expert_seed): one for one in measured.merges if not one.problem}
    if not merges or merges.keys() != yard.individual.keys():
        return None
    named = {_called(question, plan): question for question in merges}
    return leaderboard.row_of(
        measured.student,
        (measured.examined.title, measured.examined.access),
        {words: merges[question].accuracy for words, question in named.items()},
        {words: yard.individual[question] for words, question in named.items()},
        [one.seconds for one in merges.values()],
        sizes,
    )
