"""The four assignments: their notebooks run, what is handed out holds no solution, and plans and rubrics add up."""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import NotebookNode

from mergekit_lite.cache import VARIABLE
from mergekit_lite.course import grading, otter, pico, private, releasing
from mergekit_lite.course.checks import run_checks
from mergekit_lite.course.plan import read_plan
from mergekit_lite.methods import load_method

COURSEWORK = Path(__file__).parents[1] / "coursework"
FOLDERS = sorted(path.parent for path in COURSEWORK.glob("*/assignment.ipynb"))
TESTED = [folder for folder in FOLDERS if (folder / "tests.py").exists()]
PICO = {"suite": "mergekit_lite.course.pico_suite", "tasks": "circles,squares,stripes"}
SMALL = {
    "1-task-vectors": PICO,
    "2-coefficient-gradient": PICO | {"steps": 4},
    "3-your-method": PICO | {"seeds": "0,1"},
    "4-replicate-or-refute": PICO | {"seeds": "0,1", "scalings": "0.3,0.5", "steps": 3, "curve_every": 1},
}
WRONG = {  # what a student gets wrong, in the solution's words, and how many tests notice
    "1-task-vectors": ("expert[name] - start", "start - expert[name]", 1),
    "2-coefficient-gradient": ("(part * vector[name]).sum()", "(part + vector[name]).sum()", 3),
    "4-replicate-or-refute": ("stats.t.ppf(0.975", "stats.t.ppf(0.95", 2),
}


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def cells(path: Path) -> list[NotebookNode]:
    return list(nbformat.read(path, as_version=4).cells)


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def test_there_are_four() -> None:
    assert [folder.name for folder in FOLDERS] == list(SMALL)
    for one in FOLDERS:
        assert (one / "README.md").is_file()


def test_the_notebook_runs_with_its_solutions(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    papermill.execute_notebook(
        folder / "assignment.ipynb",
        tmp_path / "done.ipynb",
        SMALL[folder.name],
        cwd=str(tmp_path),
        progress_bar=False,
    )
    printed = json.dumps([cell.get("outputs", []) for cell in cells(tmp_path / "done.ipynb")])
    assert "FAILED" not in printed  # a check of the kit says so


def test_the_notebook_is_stored_without_outputs(folder: Path) -> None:
    for cell in cells(folder / "assignment.ipynb"):
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def secrets(cell: NotebookNode) -> Iterator[str]:
    """Yield the lines that must not be handed out: bodies of functions, the rest of the code, and answers."""
    inside = "solution" in tags(cell) and "# BEGIN SOLUTION" not in cell.source
    code = cell.cell_type == "code"
    shown: set[int] = set()
    for node in ast.walk(ast.parse(cell.source)) if code else ():
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            # in the kit's own notebooks a signature is followed by a docstring
            shown |= set(range(node.lineno, (node.body[0].end_lineno or 0) + 1))
        if isinstance(node, ast.FunctionDef):
            shown |= {one.lineno for one in node.decorator_list}
    for number, line in enumerate(cell.source.splitlines(), 1):
        inside = inside or line.strip() == "# BEGIN SOLUTION"
        inside = inside and line.strip() != "# END SOLUTION"
        if inside and number not in shown and len(line.strip()) >= 20 and not line.strip().startswith("#"):
            yield line.strip()


def test_what_is_handed_out_holds_no_solution(folder: Path, tmp_path: Path) -> None:
    source = folder / "assignment.ipynb"
    given = cells(releasing.release(source, tmp_path))
    text = "\n".join(cell.source for cell in given)
    hidden = [
        line for cell in cells(source) if "solution" in tags(cell) or "# BEGIN SOLUTION" in cell.source
        for line in secrets(cell)
    ]  # fmt: skip
    hidden += [line for cell in cells(source) if "grading" in tags(cell) for line in cell.source.splitlines()]
    assert len(hidden) > 20
    shown = [cell for cell in cells(source) if not {"solution", "grading"} & set(tags(cell))]
    visible = {line.strip() for cell in shown for line in cell.source.splitlines()}
    assert ({line.strip() for line in hidden} - visible) & {line.strip() for line in text.splitlines()} == set()
    assert "Your turn" in text
    assert "*Your answer.*" in text


def test_starters_define_what_the_solutions_define(folder: Path, tmp_path: Path) -> None:
    def signatures(path: Path) -> list[str]:
        code = [ast.parse(cell.source) for cell in cells(path) if cell.cell_type == "code"]
        functions = [one for tree in code for one in tree.body if isinstance(one, ast.FunctionDef)]
        return [f"{one.name}({ast.unparse(one.args)}): {ast.get_docstring(one)}" for one in functions]

    given = signatures(releasing.release(folder / "assignment.ipynb", tmp_path))
    helpers = {"asked"}  # the student's own
    wanted = [one for one in signatures(folder / "assignment.ipynb") if one.partition("(")[0] not in helpers]
    assert [one for one in given if one.partition("(")[0] not in helpers] == wanted


def rubric(folder: Path) -> list[tuple[str, float, str]]:
    """Return part, points and who grades it, of each row of the rubric; the last row is the sum."""
    table = (folder / "README.md").read_text(encoding="utf-8").partition("## Rubric")[2].partition("\n## ")[0]
    rows = [[one.strip() for one in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    return [(row[0], float(row[1].strip("*")), row[2]) for row in rows[2:]]


def test_the_rubric_adds_up_and_is_the_plans(folder: Path) -> None:
    *parts, (name, total, _) = rubric(folder)
    assert name == "**Sum**"
    assert sum(points for _, points, _ in parts) == total == 20
    worth = read_plan(folder / "plan.yaml").points.worth()
    assert sum(points for _, points, by in parts if by == "plan") == sum(worth.values())
    assert {by for _, _, by in parts} == {"plan", "hand"}


def test_points_in_the_notebook_are_those_of_the_rubric(folder: Path) -> None:
    given = [tag for cell in cells(folder / "assignment.ipynb") for tag in tags(cell) if tag.startswith("points-")]
    assert sum(float(tag.removeprefix("points-")) for tag in given) == 20


@pytest.mark.parametrize("folder", TESTED, ids=lambda folder: folder.name)
def test_the_plan_gives_full_marks_to_the_solution_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    handed = tmp_path / "submissions"
    handed.mkdir()
    source = folder / "assignment.ipynb"
    shutil.copy(source, handed / "right.ipynb")
    right, wrong, noticed = WRONG[folder.name]
    text = source.read_text(encoding="utf-8")
    assert right in text
    (handed / "wrong.ipynb").write_text(text.replace(right, wrong), encoding="utf-8")
    shutil.move(releasing.release(source, tmp_path / "given"), handed / "empty.ipynb")
    graded = grading.grade(handed, folder / "plan.yaml", tmp_path / "grades", workers=1)
    most = read_plan(folder / "plan.yaml").points.worth()["tests"]
    points = {one.measured.student: one.total for one in graded.grades}
    assert points["right"] == most
    assert points["wrong"] == most - noticed
    assert points["empty"] == 0


def test_the_worked_method_passes_the_checks_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    notebook = COURSEWORK / "3-your-method" / "assignment.ipynb"
    source = next(cell.source for cell in cells(notebook) if "def your_method" in cell.source)
    imports = "import torch\nfrom mergekit_lite.methods import Access, Merged, method\n"
    for name, body in {"right": source, "wrong": source.replace("changes.sum(dim=0)", "changes[0]")}.items():
        file = tmp_path / f"{name}_method.py"
        file.write_text(imports + body.replace("def your_method", f"def {name}_method"))
        findings = run_checks(load_method(file)[0], pico.make())
        failed = [one.name for one in findings if one.passed is False]
        assert bool(failed) == (name == "wrong"), failed


def test_the_private_task_is_one_that_the_plan_measures() -> None:
    plan = read_plan(COURSEWORK / "3-your-method" / "plan.yaml")
    assert plan.private is not None
    task = private.task_in(plan.private)
    assert task.name not in (COURSEWORK.parent / "book" / "examples" / "flags.py").read_text()
    assert plan.on("private", task.name) == ("private",)
    assert len(plan.expert_seeds) == 2
    assert [pool.corruption for pool in plan.pools.values()].count("contrast") == 1
    readme = (COURSEWORK / "3-your-method" / "README.md").read_text()
    assert re.search(r"public.*draw another", readme, re.DOTALL)


def test_each_exports_to_otter(folder: Path, tmp_path: Path) -> None:
    exported = cells(otter.export(folder / "assignment.ipynb", tmp_path))
    marks = [cell.source.splitlines()[0] for cell in exported if cell.cell_type == "raw"]
    assert marks.count("# BEGIN QUESTION") == marks.count("# END QUESTION") >= 5
    for cell in exported:
        if cell.cell_type == "code":
            compile(cell.source, "exported", "exec")
