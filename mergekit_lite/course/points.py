"""From what was measured to points, with reasons. Nothing is run here: other points need no other measurement."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mergekit_lite.analysis.accuracy import normalised
from mergekit_lite.course.checks import Finding
from mergekit_lite.course.merging import Examined, Merge
from mergekit_lite.course.plan import Place, Plan, Quick
from mergekit_lite.errors import KitError

Question = tuple[str, int]
"""Name of a pool, and expert seed."""

Accuracies = Mapping[Question, Mapping[str, float]]
"""Question -> task -> accuracy in percent."""

FIRST = 3
"""Checks after which the others are not tried if one fails: it runs, all tensors are there, they are finite."""


@dataclass(frozen=True)
class Score:
    """Points for one criterion, of `most`, and why."""

    criterion: str
    points: float
    most: float
    reason: str


@dataclass(frozen=True)
class Yard:
    """What submissions are measured by.

    Attributes:
        individual: the experts' own accuracy.
        methods: name of a kit's method -> its accuracy.
        titles: name of a kit's method -> its title.
        private_task: the task that no student has, if there is one.
    """

    individual: Accuracies
    methods: Mapping[str, Accuracies]
    titles: Mapping[str, str]
    private_task: str | None = None

    def kept(self, accuracy: Accuracies, criterion: str, pools: Sequence[str]) -> float:
        """Return the share (%) of the experts' accuracy that is kept on `pools`; what failed keeps 0."""
        shares = []
        for question, individual in self.individual.items():
            if question[0] in pools:
                tasks = [self.private_task] if criterion == "private" and self.private_task else list(individual)
                merged = accuracy.get(question, {})
                shares.append(normalised({task: merged.get(task, 0.0) for task in tasks}, individual))
        return fmean(shares) if shares else 0.0


def scores(plan: Plan, yard: Yard, examined: Examined, merges: Sequence[Merge]) -> list[Score]:
    """Return the points of one submission for each criterion that counts, in the plan's order."""
    ways: dict[str, Callable[[float], tuple[float, str]]] = {
        "checks": lambda most: _of_checks(most, examined.checks, examined.checks_stopped),
        "tests": lambda most: _shared(most, examined.tests, examined.tests_stopped),
        **{name: _between(plan, yard, name, place, merges) for name, place in plan.points.places()},
        "time": lambda most: _for_speed(plan.points.time, merges),
    }
    found = []
    for criterion, most in plan.points.worth().items():
        points, reason = (0.0, examined.problem) if examined.problem else ways[criterion](most)
        found.append(Score(criterion, round(points, 2), most, reason))
    return found


def check_places(plan: Plan, yard: Yard) -> None:
    """Check that points can be given by accuracy.

    Raises:
        KitError: a criterion counts on no pool, or its ceiling does not lie above its floor there.
    """
    for name, place in plan.points.places():
        pools = plan.on(name, yard.private_task)
        if not pools:
            raise KitError(f"points.{name}: there is no pool for it. Add one, or name its `pools`.")
        if name == "private":
            for pool in pools:
                if yard.private_task not in plan.pools[pool].evaluate:
                    raise KitError(f"points.private: the pool '{pool}' does not evaluate '{yard.private_task}'.")
        low, high = _ends(yard, name, place, pools)
        if low >= high:
            raise KitError(
                f"points.{name}: the ceiling {place.ceiling} keeps {high:.1f} % of the experts' accuracy on "
                f"{', '.join(pools)}, the floor {place.floor} {low:.1f} %. Choose a ceiling that lies above the floor."
            )


def _ends(yard: Yard, name: str, place: Place, pools: Sequence[str]) -> tuple[float, float]:
    low, high = (yard.kept(yard.methods[method], name, pools) for method in (place.floor, place.ceiling))
    return low, high


def _between(
    plan: Plan, yard: Yard, name: str, place: Place, merges: Iterable[Merge]
) -> Callable[[float], tuple[float, str]]:
    def points(most: float) -> tuple[float, str]:
        pools = plan.on(name, yard.private_task)
        counted = [one for one in merges if one.pool in pools]
        problems = [f"{one.pool}: {one.problem}" for one in counted if one.problem]
        if counted and len(problems) == len(counted):
            return 0.0, problems[0]
        low, high = _ends(yard, name, place, pools)
        kept = yard.kept({(one.pool, one.expert_seed): one.accuracy for one in counted}, name, pools)
        share = min(1.0, max(0.0, (kept - low) / (high - low)))
        failed = f" Counted as 0 %: {'; '.join(problems)}" if problems else ""
        words = (
            f"{kept:.1f} % of the experts' accuracy; {yard.titles[place.floor]} keeps {low:.1f} % (no points), "
            f"{yard.titles[place.ceiling]} {high:.1f} % (all)."
        )
        return most * share, words + failed

    return points


def _of_checks(most: float, findings: Sequence[Finding], stopped: str) -> tuple[float, str]:
    failed = [one for one in findings if one.passed is False]
    if failed and findings.index(failed[0]) < FIRST:
        return 0.0, f"{failed[0].name}: {failed[0].reason}"
    return _shared(most, findings, stopped)


def _shared(most: float, findings: Sequence[Finding], stopped: str) -> tuple[float, str]:
    """Return an equal share for each finding that is more than a hint; nothing if they did not come to their end."""
    decided = [one for one in findings if one.passed is not None]
    passed = sum(one.passed is True for one in decided)
    if stopped or not decided:
        return 0.0, stopped or "Nothing was tried."
    failures = [f"{one.name}: {one.reason}".removesuffix(": ").removesuffix(".") for one in decided if not one.passed]
    return most * passed / len(decided), f"{passed} of {len(decided)} passed. {'; '.join(failures)}".strip()


def _for_speed(quick: Quick | None, merges: Sequence[Merge]) -> tuple[float, str]:
    assert quick is not None
    problems = [f"{one.pool}: {one.problem}" for one in merges if one.problem]
    if problems:
        return 0.0, problems[0]
    slowest = max(one.seconds for one in merges)
    share = min(1.0, max(0.0, 2 - slowest / quick.seconds))
    return quick.points * share, f"The slowest merge took {slowest:.1f} s; all points up to {quick.seconds:g} s."
