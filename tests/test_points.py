"""Plans with their words, and points out of measurements that are written down here."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mergekit_lite.course.checks import Finding
from mergekit_lite.course.merging import Examined, Merge
from mergekit_lite.course.plan import Plan, read_plan
from mergekit_lite.course.points import Accuracies, Yard, check_places, scores
from mergekit_lite.course.submissions import submissions_in
from mergekit_lite.errors import KitError

CONTENT: dict[str, Any] = {
    "pools": {
        "open": {"tasks": ["a", "b"], "evaluate": ["a", "b"]},
        "hidden": {"tasks": ["b", "c"], "evaluate": ["b", "c"]},
        "private": {"tasks": ["a", "flags"], "evaluate": ["a", "flags"]},
    },
    "private": "flags.py",
    "points": {
        "checks": 2,
        "tests": {"points": 3, "file": "tests.py"},
        "accuracy": {"points": 4, "floor": "simple_average", "ceiling": "ties_merging"},
        "hidden": {"points": 4, "floor": "simple_average", "ceiling": "ties_merging", "pools": "hidden"},
        "private": {"points": 4, "floor": "simple_average", "ceiling": "ties_merging"},
        "time": {"points": 1, "seconds": 10},
    },
}
PLAN = Plan.model_validate(CONTENT)


def flat(value: float, **others: float) -> Accuracies:
    pools = {name: pool.evaluate for name, pool in PLAN.pools.items()}
    return {(name, 0): {task: others.get(task, value) for task in tasks} for name, tasks in pools.items()}


YARD = Yard(
    individual=flat(80.0),
    methods={"simple_average": flat(40.0), "ties_merging": flat(60.0)},
    titles={"simple_average": "Simple average", "ties_merging": "TIES-Merging"},
    private_task="flags",
)
GOOD = Examined(
    name="merge",
    access="none",
    checks=[Finding(name=str(number), passed=True) for number in range(4)],
    tests=[Finding(name="test_one", passed=True), Finding(name="test_two", passed=False, reason="1 is not 2")],
)


def merges(accuracies: Accuracies, seconds: float = 5.0) -> list[Merge]:
    return [
        Merge(pool=pool, expert_seed=seed, accuracy=dict(accuracy), seconds=seconds)
        for (pool, seed), accuracy in accuracies.items()
    ]


def points(examined: Examined, merged: list[Merge]) -> dict[str, float]:
    return {one.criterion: one.points for one in scores(PLAN, YARD, examined, merged)}


def test_points_lie_on_the_line_between_floor_and_ceiling() -> None:
    check_places(PLAN, YARD)
    half = points(GOOD, merges(flat(50.0, flags=55.0)))
    assert half == {"checks": 2, "tests": 1.5, "accuracy": 2, "hidden": 2, "private": 3, "time": 1}
    assert points(GOOD, merges(flat(30.0)))["accuracy"] == 0
    assert points(GOOD, merges(flat(79.0)))["hidden"] == 4


def test_reasons_say_what_was_compared() -> None:
    found = {one.criterion: one.reason for one in scores(PLAN, YARD, GOOD, merges(flat(50.0)))}
    assert found["accuracy"] == (
        "62.5 % of the experts' accuracy; Simple average keeps 50.0 % (no points), TIES-Merging 75.0 % (all)."
    )
    assert found["tests"] == "1 of 2 passed. test_two: 1 is not 2"
    assert found["time"] == "The slowest merge took 5.0 s; all points up to 10 s."


def test_a_pool_that_failed_counts_as_nothing_kept() -> None:
    merged = [one for one in merges(flat(80.0)) if one.pool != "open"]
    merged.append(Merge(pool="open", expert_seed=0, problem="It did not end within 60 s."))
    found = points(GOOD, merged)
    assert (found["accuracy"], found["hidden"], found["time"]) == (0, 4, 0)


def test_speed_earns_all_up_to_the_limit_and_nothing_from_twice_that_on() -> None:
    assert points(GOOD, merges(flat(50.0), seconds=15.0))["time"] == 0.5
    assert points(GOOD, merges(flat(50.0), seconds=20.0))["time"] == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_method_that_does_not_run_gets_nothing_for_checks(place: int) -> None:
    findings = [*GOOD.checks[:place], Finding(name="it runs", passed=False, reason="TypeError")]
    assert points(GOOD.model_copy(update={"checks": findings}), merges(flat(50.0)))["checks"] == 0


def test_hints_are_no_checks_and_stopped_checks_earn_nothing() -> None:
    hint = GOOD.model_copy(update={"checks": [*GOOD.checks, Finding(name="hint", passed=None, reason="look")]})
    assert points(hint, merges(flat(50.0)))["checks"] == 2
    stopped = GOOD.model_copy(update={"checks_stopped": "It did not end within 60 s."})
    assert points(stopped, merges(flat(50.0)))["checks"] == 0


def test_what_cannot_be_graded_earns_nothing_and_says_why() -> None:
    found = scores(PLAN, YARD, Examined(problem="It is not Python."), [])
    assert {(one.points, one.reason) for one in found} == {(0.0, "It is not Python.")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": {}}, "nothing earns any"),
        ({"pools": {}}, "there is no pool to merge"),
        ({"points": {"accuracy": {"points": 1, "floor": "simple_avrage", "ceiling": "dare"}}}, "'simple_average'?"),
        ({"points": {"accuracy": {"points": 1, "floor": "dare"}}}, "points.accuracy.ceiling: Field required"),
        ({"points": {"checks": -1}}, "points.checks: Input should be greater than or equal to 0"),
        ({"points": {"chekcs": 1}}, "points.chekcs: Extra inputs are not permitted"),
        ({"points": {"hidden": {"points": 1, "floor": "dare", "ceiling": "dare"}}}, "say which pools are hidden"),
        (
            {"points": {"accuracy": {"points": 1, "floor": "dare", "ceiling": "dare", "pools": "opn"}}},
            "no pool 'opn'. Pools: open, hidden, private",
        ),
        ({"private": None}, "needs a private task"),
        ({"private": "elsewhere.py"}, "there is no file"),
        ({"access": "all"}, "access.0: Input should be 'none'"),
        ({"limits": {"memory": 0.1}}, "limits.memory"),
        ({"expert_seeds": []}, "expert_seeds"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    for name in ("flags.py", "tests.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(CONTENT | change, sort_keys=False))
    with pytest.raises(KitError) as error:
        read_plan(tmp_path / "plan.yaml")
    assert words in str(error.value)


@pytest.mark.parametrize(("text", "words"), [("- 1", "it holds list"), ("a: [", "not valid YAML")])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(KitError, match=words):
        read_plan(tmp_path / "plan.yaml")


def test_the_plan_in_the_documentation_is_one(tmp_path: Path) -> None:
    for name in ("flags.py", "test_gradient.py"):
        (tmp_path / name).write_text("")
    assert Plan.__doc__
    (tmp_path / "plan.yaml").write_text(Plan.__doc__.split("::")[1].split("Attributes")[0])
    plan = read_plan(tmp_path / "plan.yaml")
    assert plan.private == tmp_path / "flags.py"
    assert plan.on("accuracy", "flags") == ("open",)
    assert plan.on("private", "flags") == ("private",)


def test_other_points_ask_no_other_question() -> None:
    other = Plan.model_validate(CONTENT | {"points": {"checks": 9}})
    assert other.question() == PLAN.question()
    assert Plan.model_validate(CONTENT | {"seed": 1}).question() != PLAN.question()


def test_submissions_are_named_after_their_files(tmp_path: Path) -> None:
    for name in ("anna.py", "bo.ipynb", "notes.txt", ".hidden.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "Chi_123").mkdir()
    (tmp_path / "Chi_123/method.py").write_text("1")
    found = {one.student: one for one in submissions_in(tmp_path)}
    assert list(found) == ["Chi_123", "anna", "bo"]
    (tmp_path / "Chi_123/helper.py").write_text("2")
    assert next(one for one in submissions_in(tmp_path) if one.student == "Chi_123").digest != found["Chi_123"].digest
    (tmp_path / "Anna.ipynb").write_text("")
    with pytest.raises(KitError, match="two submissions of"):
        submissions_in(tmp_path)
