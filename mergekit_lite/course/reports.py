"""What comes out of a grading: ``grades.csv``, a page for each student, and the leaderboard."""

import csv
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from mergekit_lite.cache import check_writable, written_whole
from mergekit_lite.course import leaderboard
from mergekit_lite.course.grading import Grade, Graded
from mergekit_lite.course.merging import Merge
from mergekit_lite.course.points import Yard


def write(graded: Graded, output: Path) -> list[Path]:
    """Write ``grades.csv``, ``students/STUDENT.html`` and ``leaderboard.html`` to `output`, and return their paths.

    All are read offline, and show what students wrote as text, never as a command of a page or a spreadsheet.

    Raises:
        KitError: a file cannot be written.
    """
    check_writable(output / "students")
    _write_table(graded, output / "grades.csv")
    pages = [output / "students" / f"{one.measured.student}.html" for one in graded.grades]
    for one, page in zip(graded.grades, pages, strict=True):
        with written_whole(page) as temporary:
            temporary.write_text(student_page(one, graded.yard), encoding="utf-8")
    board = output / "leaderboard.html"
    if graded.rows:
        leaderboard.write_html(graded.rows, board)
    return [output / "grades.csv", *pages, *([board] if graded.rows else [])]


def student_page(grade: Grade, yard: Yard) -> str:
    """Return the page of one student as HTML."""
    template = files("mergekit_lite.course").joinpath("templates/student.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    measured = grade.measured
    return page.render(
        student=measured.student,
        total=_number(grade.total),
        most=_number(sum(one.most for one in grade.scores)),
        examined=measured.examined,
        scores=grade.scores,
        merges=[(one, _accuracies(one, yard)) for one in measured.merges],
        refused=measured.refused,
        number=_number,
    )


def _write_table(graded: Graded, path: Path) -> None:
    """Write a line for each student: points by criterion, total, reasons, seconds, and what was refused."""
    criteria = list(graded.plan.points.worth())
    head = [
        "student",
        "method",
        "access",
        *criteria,
        "total",
        *(f"why {one}" for one in criteria),
        "seconds",
        "refused",
    ]
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(head)
        for one in graded.grades:
            measured, examined = one.measured, one.measured.examined
            seconds = examined.seconds + sum(merge.seconds for merge in measured.merges)
            points = [score.points for score in one.scores]
            reasons = [_plain(score.reason) for score in one.scores]
            about = map(_plain, (measured.student, examined.title, examined.access))
            refused = _plain("; ".join(measured.refused))
            table.writerow([*about, *points, one.total, *reasons, round(seconds, 2), refused])


def _plain(text: str) -> str:
    """Return `text` as one line that no spreadsheet takes for a formula."""
    text = " ".join(text.split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _accuracies(merge: Merge, yard: Yard) -> str:
    own = yard.individual[merge.pool, merge.expert_seed]
    return ", ".join(f"{task} {value:.1f} ({own[task]:.1f})" for task, value in merge.accuracy.items())


def _number(value: float) -> str:
    return f"{value:g}"
