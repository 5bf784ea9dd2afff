"""Notebooks without their solutions, and assignments for otter-grader."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.course import otter, releasing
from mergekit_lite.course.starters import handed_out, parts
from mergekit_lite.errors import KitError

SOLUTION = '''import torch

SECRET = 3


# how it is done
def doubled(x: dict[str, int] = {"a": 1}, *, way=lambda x: x):
    """Return twice `x`."""
    # starter: twice = ...
    twice = way(x["a"]) * 2  # the secret line

    return twice


class Kept:
    """A class."""

    size: int = 3

    def area(self) -> int:
        return self.size * self.size
'''
STARTER = '''import torch


def doubled(x: dict[str, int] = {"a": 1}, *, way=lambda x: x):
    """Return twice `x`."""
    twice = ...
    raise NotImplementedError("Your turn: doubled")


class Kept:
    """A class."""

    size: int = 3

    def area(self) -> int:
        raise NotImplementedError("Your turn: area")'''


def code(source: str, *tags: str, **more: Any) -> Any:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {}, **more)


def text(source: str, *tags: str) -> Any:
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def saved(path: Path, *cells: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """An assignment with a function, an answer, and tests that students get or do not."""
    printed = nbformat.v4.new_output("stream", text="the secret is 42\n")
    cells = [
        text("# Doubling"),
        text("Write it."),
        code(SOLUTION, "solution", "points-2", execution_count=7, outputs=[printed]),
        code('assert doubled({"a": 2}) == 4', "tests"),
        code('assert doubled({"a": 3}) == 6', "grading"),
        text("Why?"),
        text("Since two times two is four.", "solution", "points-3"),
        code("print(doubled())", outputs=[printed], execution_count=8),
    ]
    path = saved(tmp_path / "doubling" / "assignment.ipynb", *cells)
    content = json.loads(path.read_text())
    content["metadata"]["widgets"] = {"state": "the secret state"}
    path.write_text(json.dumps(content))
    return path


def test_functions_keep_signature_and_docstring() -> None:
    assert handed_out(parts(SOLUTION, True)) == STARTER


def test_a_cell_without_functions_keeps_what_is_marked() -> None:
    source = "# starter: # Draw a heat map.\n# starter: cosines = ...\ncosines = [1, 2]\nplot(cosines)"
    assert handed_out(parts(source, True)) == "# Your turn\n# Draw a heat map.\ncosines = ..."


def test_regions_are_taken_out_of_a_cell() -> None:
    source = (
        "scale = 2\n# BEGIN SOLUTION\n# starter: x = ...\nx = 42\n# END SOLUTION\n"
        "def f():\n    y = 1\n    # BEGIN SOLUTION\n    return y + 41\n    # END SOLUTION"
    )
    for tagged in (True, False):
        assert handed_out(parts(source, tagged)) == (
            'scale = 2\nx = ...\n# Your turn\ndef f():\n    y = 1\n    raise NotImplementedError("Your turn")'
        )


@pytest.mark.parametrize(
    ("source", "tagged", "words"),
    [
        ("# BEGIN SOLUTION\nx = 1", False, "needs a line `# END SOLUTION` after it"),
        ("x = 1\n# END SOLUTION", False, "needs a line `# END SOLUTION` after it"),
        ("# BEGIN SOLUTION\n# BEGIN SOLUTION\nx = 1\n# END SOLUTION", True, "before the next"),
        ("x = 1  # SOLUTION", False, r"`x = 1  # SOLUTION` looks like the mark of a solution"),
        ("def f(): return 1", True, r"`def f\(\): return 1`: in a cell tagged `solution`, begin each statement"),
        ("x = 1; import os", True, "begin each statement on a line of its own"),
        ('def f():\n    """Say."""; return 1', True, "begin each statement on a line of its own"),
        ("%matplotlib inline\nx = 1", True, "A cell tagged `solution` is no Python .* a cell of their own"),
        ("# starter: draw this\nx = 1", True, "What students would get of a solution is no Python"),
    ],
)
def test_marks_that_do_not_work_are_refused(source: str, tagged: bool, words: str) -> None:
    with pytest.raises(KitError, match=words):
        handed_out(parts(source, tagged))


def test_release_takes_out_all_that_is_secret(notebook: Path, tmp_path: Path) -> None:
    target = releasing.release(notebook, tmp_path / "out")
    assert target == tmp_path / "out" / "assignment.ipynb"
    content = target.read_text()
    assert "secret" not in content
    assert '\\"a\\": 3' not in content
    handed = nbformat.read(target, as_version=4)
    nbformat.validate(handed)
    assert [cell.source for cell in handed.cells] == [
        "# Doubling",
        "Write it.",
        STARTER,
        'assert doubled({"a": 2}) == 4',
        "Why?",
        "*Your answer.*",
        "print(doubled())",
    ]
    assert all(cell.execution_count is None and not cell.outputs for cell in handed.cells if cell.cell_type == "code")
    assert "solution" not in {tag for cell in handed.cells for tag in cell.metadata.get("tags", [])}


def test_a_notebook_without_solutions_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "plain.ipynb", text("Hello"), code("x = 1"))
    with pytest.raises(KitError, match=r"plain\.ipynb has no solution to take out: no cell is tagged `solution`"):
        releasing.release(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "other",
    [
        code("def helper(x):\n  # the same with another name\n  total = x + 41\n\n  return total * 7"),
        text("```python\ntotal = x + 41\nreturn total*7\n```"),
        code("assert True\ndef again(x):\n    total = x + 41\n    return total * 7", "tests"),
    ],
    ids=["code", "prose", "tests"],
)
def test_a_solution_that_stands_elsewhere_too_is_refused(tmp_path: Path, other: Any) -> None:
    solution = code("def f(x):\n    total = x + 41\n    return total * 7", "solution")
    path = saved(tmp_path / "twice.ipynb", solution, other)
    with pytest.raises(
        KitError, match=r"the solution in cell 1, which begins with `total=x\+41`, stands in cell 2 too"
    ):
        releasing.release(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cell_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.ipynb", text("Hello"), code("# BEGIN SOLUTION\nx = 1"))
    with pytest.raises(KitError, match=r"odd\.ipynb, cell 2: Each line `# BEGIN SOLUTION`"):
        releasing.release(path, tmp_path / "out")


def test_the_source_is_never_written_over(notebook: Path) -> None:
    before = notebook.read_bytes()
    for make in (releasing.release, otter.export):
        with pytest.raises(KitError, match="is the notebook with the solutions"):
            make(notebook, notebook.parent)
    assert notebook.read_bytes() == before


def test_commands(notebook: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    for words in (["release", str(notebook)], ["export", str(notebook), "--otter"]):
        done = run(app, ["course", *words, "-o", str(tmp_path / words[0])])
        assert done.exit_code == 0, done.output
        assert (tmp_path / words[0] / "assignment.ipynb").is_file()
    done = run(app, ["course", "export", str(notebook), "-o", str(tmp_path / "other")])
    assert done.exit_code == 1
    assert "add --otter" in done.output


def test_export_writes_questions(notebook: Path, tmp_path: Path) -> None:
    cells = nbformat.read(otter.export(notebook, tmp_path / "out"), as_version=4).cells
    raw = [cell.source.splitlines()[0] for cell in cells if cell.cell_type == "raw"]
    question = ["# BEGIN QUESTION", "# BEGIN SOLUTION", "# END SOLUTION"]
    tested = ["# BEGIN TESTS", "# END TESTS", "# END QUESTION"]
    assert raw == ["# ASSIGNMENT CONFIG", *question, *tested, *question, "# END QUESTION"]
    heads = [yaml.safe_load(cell.source) for cell in cells if cell.source.startswith(("# BEGIN QUE", "# ASSIGN"))]
    assert heads[0]["name"] == "doubling"
    assert heads[1:] == [{"name": "q1", "points": 2}, {"name": "q2", "points": 3, "manual": True}]
    solution = next(cell.source for cell in cells if "def doubled" in cell.source)
    assert "# BEGIN SOLUTION NO PROMPT\n    twice = way" in solution
    names: dict[str, Any] = {}
    exec(solution.replace("import torch", ""), names)
    assert names["doubled"]({"a": 2}) == 4
    assert names["doubled"].__doc__ == "Return twice `x`."
    hidden = next(cell.source for cell in cells if '"a": 3' in cell.source)
    assert hidden.startswith("# HIDDEN\n")


def test_tests_need_a_solution_before_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.ipynb", code("x = 41 + 1", "solution"), text("So."), code("assert x", "tests"))
    with pytest.raises(KitError, match=r"odd\.ipynb, cell 3: tests must be code, and follow the solution"):
        otter.export(path, tmp_path / "out")


def test_tests_stand_alone(tmp_path: Path) -> None:
    first, second = code("_four = 4\nassert x == _four + 38", "tests"), code("assert x > _four", "grading")
    path = saved(tmp_path / "odd.ipynb", code("x = 41 + 1", "solution"), first, second)
    with pytest.raises(KitError, match=r"odd\.ipynb, cell 3: this test uses _four, which it does not define"):
        otter.export(path, tmp_path / "out")


def test_points_must_be_a_number(tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.ipynb", code("x = 41 + 1", "solution", "points-many"))
    with pytest.raises(KitError, match=r"no points in `points-many`\. Write points-3"):
        otter.export(path, tmp_path / "out")


@pytest.mark.skipif(
    importlib.util.find_spec("otter") is None, reason="otter-grader is not installed: pip install otter-grader"
)
def test_otter_assign_accepts_an_export(notebook: Path, tmp_path: Path) -> None:
    exported = otter.export(notebook, tmp_path / "exported")
    done = subprocess.run(
        [sys.executable, "-m", "otter", "assign", str(exported), str(tmp_path / "dist"), "--no-pdfs"],
        cwd=tmp_path,
        env=os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    student = (tmp_path / "dist" / "student" / exported.name).read_text()
    assert "secret" not in student
    handed = nbformat.reads(student, as_version=4)
    assert STARTER in [cell.source.replace("\n" * 4, "\n" * 3) for cell in handed.cells]
