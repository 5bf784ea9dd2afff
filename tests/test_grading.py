"""Honest submissions and cheats, graded in one run: each gets what it deserves, and none costs another anything."""

import csv
import re
from pathlib import Path

import pytest
import submissions
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.course import grading, reports
from mergekit_lite.course.grading import Grade, Graded
from mergekit_lite.errors import KitError

PLAN = """
suite: mergekit_lite.course.pico_suite
access: [none, unlabelled test]
pools:
  open: {tasks: [circles, squares, stripes]}
expert_seeds: 5
limits: {seconds: 15, memory: 4}
points:
  checks: 2
  tests: {points: 3, file: teachers.py}
  accuracy: {points: 4, floor: pretrained, ceiling: simple_average}
  time: {points: 1, seconds: 10}
"""
TESTS = """
import torch
from mergekit_lite.course import pico

POOL = pico.make()


def test_of_one_expert(module):
    expert = POOL.experts["circles"]
    merged = module.merge(POOL.base, {"one": expert}).weights
    assert all(torch.equal(merged[name], expert[name]) for name in expert), "one expert alone is the merge"


def test_of_none(module):
    assert module.merge.__doc__
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, with a space in its name, that holds the submissions, the plan and a cache."""
    folder = tmp_path_factory.mktemp("a course")
    submissions.hand_in(folder / "handed in", folder / "cache")
    (folder / "plan.yaml").write_text(PLAN.replace("seeds: 5", "seeds: [5]"), encoding="utf-8")
    (folder / "teachers.py").write_text(TESTS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def graded(course: Path) -> Graded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEKIT_LITE_CACHE", str(course / "cache"))
        graded = grading.grade(course / "handed in", course / "plan.yaml", course / "grades", workers=2)
        reports.write(graded, course / "grades")
    return graded


def of(graded: Graded, student: str) -> Grade:
    return next(one for one in graded.grades if one.measured.student == student)


def points(graded: Graded, student: str) -> dict[str, float]:
    return {one.criterion: one.points for one in of(graded, student).scores}


def reason(graded: Graded, student: str, criterion: str) -> str:
    return next(one.reason for one in of(graded, student).scores if one.criterion == criterion)


@pytest.mark.parametrize("student", ["file", "with helpers", "notebook"])
def test_an_average_earns_everything_however_it_is_handed_in(graded: Graded, student: str) -> None:
    assert points(graded, student) == {"checks": 2, "tests": 3, "accuracy": 4, "time": 1}
    assert not of(graded, student).measured.refused
    (merge,) = of(graded, student).measured.merges
    average = graded.yard.methods["simple_average"]["open", 5]
    assert merge.accuracy == pytest.approx(average, abs=2.1)  # one image of 48: the sums have another order
    assert (merge.images, merge.labels) == (0, 0)


def test_a_method_with_images_is_handed_images_only(graded: Graded) -> None:
    (merge,) = of(graded, "images").measured.merges
    assert (merge.images, merge.labels) == (2 * 3 * 8, 0)
    assert not merge.problem
    assert points(graded, "images")["accuracy"] > 3.5
    assert reason(graded, "images", "tests").startswith("1 of 2 passed. test_of_one_expert: TypeError")


def test_own_weights_of_tasks_are_no_merge(graded: Graded) -> None:
    assert points(graded, "own")["accuracy"] == 0
    assert "(`own`)" in reason(graded, "own", "accuracy")


@pytest.mark.parametrize("student", ["labels", "suite", "patch", "cache"])
def test_a_cheat_that_fails_earns_what_its_merge_is_worth(graded: Graded, student: str) -> None:
    (merge,) = of(graded, student).measured.merges
    assert merge.accuracy == pytest.approx(graded.yard.methods["pretrained"]["open", 5])
    assert points(graded, student)["accuracy"] == 0


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("labels", "calling gc.get_objects"),
        ("suite", "importing mergekit_lite.suites"),
        ("patch", "importing mergekit_lite.study"),
        ("cache", "writing "),
    ],
)
def test_the_teacher_reads_what_was_tried(graded: Graded, course: Path, student: str, words: str) -> None:
    assert any(one.startswith(words) for one in of(graded, student).measured.refused)
    assert words in (course / "grades/students" / f"{student}.html").read_text(encoding="utf-8")


def test_nothing_was_planted_in_the_cache(graded: Graded, course: Path) -> None:
    assert list((course / "cache").rglob("*.json"))
    assert not list((course / "cache").rglob("planted*"))


def test_coefficients_by_name_meet_no_name(graded: Graded) -> None:
    (merge,) = of(graded, "names").measured.merges
    assert merge.accuracy == pytest.approx(graded.yard.methods["pretrained"]["open", 5])
    assert points(graded, "names")["accuracy"] == 0
    assert points(graded, "names")["checks"] < 2
    assert "names" in reason(graded, "names", "checks")


def test_edits_in_place_change_nobody_elses_weights(graded: Graded) -> None:
    (merge,) = of(graded, "place").measured.merges
    assert merge.accuracy == pytest.approx(graded.yard.methods["simple_average"]["open", 5], abs=2.1)
    assert points(graded, "place")["checks"] < 2
    assert "stay as they are" in reason(graded, "place", "checks")


def test_what_never_ends_is_ended(graded: Graded) -> None:
    assert points(graded, "never") == {"checks": 0, "tests": 0, "accuracy": 0, "time": 0}
    assert reason(graded, "never", "accuracy") == "open: It did not end within 15 s."


@pytest.mark.parametrize(
    ("student", "words"), [("exit", "ended abruptly (exit code 0)"), ("forge", "wrote into the grader's pipe")]
)
def test_a_process_that_breaks_costs_its_student_only(graded: Graded, student: str, words: str) -> None:
    assert points(graded, student)["accuracy"] == 0
    assert words in reason(graded, student, "accuracy")


def test_the_table_has_a_line_for_each_student(graded: Graded, course: Path) -> None:
    with (course / "grades/grades.csv").open(encoding="utf-8-sig", newline="") as stream:
        lines = {line["student"]: line for line in csv.DictReader(stream)}
    assert lines.keys() == {one.measured.student for one in graded.grades}
    assert lines["file"]["total"] == "10.0"
    assert lines["file"]["accuracy"] == "4.0"
    assert "Simple average" in lines["file"]["why accuracy"]
    assert float(lines["never"]["seconds"]) > 30
    assert lines["own"]["method"].startswith("'=1+1")  # no formula


def test_pages_show_what_students_wrote_as_text(graded: Graded, course: Path) -> None:
    for page in ("students/own.html", "leaderboard.html"):
        assert "<script>alert" not in (course / "grades" / page).read_text(encoding="utf-8")
    assert "=1+1&lt;script&gt;" in (course / "grades/students/own.html").read_text(encoding="utf-8")
    page = (course / "grades/students/file.html").read_text(encoding="utf-8")
    assert "10 of 10 points" in page
    assert not re.findall(r"(?:src|href)=", page)


def test_the_leaderboard_ranks_what_merged_beside_the_kit(graded: Graded) -> None:
    rows = {one.name: one for one in graded.rows}
    assert {"file", "images", "notebook", "simple_average", "ties_merging"} <= rows.keys()
    assert not {"never", "exit", "own"} & rows.keys()
    assert rows["file"].normalised == pytest.approx(rows["simple_average"].normalised, abs=2.1)
    assert rows["simple_average"].baseline
    assert not rows["file"].baseline
    assert rows["images"].access == "unlabelled test"


def test_the_same_command_resumes(graded: Graded, course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(course / "cache"))
    again = (course / "handed in/file.py").read_text()
    (course / "handed in/file.py").write_text(again.replace(".mean(dim=0)", ".sum(dim=0)"))
    before = {path: path.stat().st_mtime_ns for path in (course / "grades/measured").iterdir()}
    words = ["course", "grade", str(course / "handed in"), "--plan", str(course / "plan.yaml")]
    done = CliRunner().invoke(app, [*words, "-o", str(course / "grades"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "13 of 14 submissions are measured already." in done.output
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["file.json"]


def test_a_plan_whose_ceiling_is_below_its_floor_is_refused_before_any_work(
    graded: Graded, course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(course / "cache"))
    plan = course / "other.yaml"
    plan.write_text(PLAN.replace("seeds: 5", "seeds: [5]").replace("floor: pretrained", "floor: individual"))
    with pytest.raises(KitError, match="Choose a ceiling that lies above the floor"):
        grading.grade(course / "handed in", plan, course / "other", workers=1)
    assert not list((course / "other/measured").iterdir())
