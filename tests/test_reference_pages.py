"""The pages that list what exists elsewhere are complete, their examples run, and no page types a result of ours."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from mergekit_lite import cli, figures, study
from mergekit_lite.course import grading
from mergekit_lite.methods import all_methods
from mergekit_lite.pipeline import solutions, sphinx_pages
from mergekit_lite.pipeline.book import toc_pages
from mergekit_lite.pipeline.profiles import load
from mergekit_lite.pipeline.runner import notebook_parameters
from mergekit_lite.study.records import write_record

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "book").rglob("*.md") if "_build" not in path.parts
)
API = (ROOT / "book/reference/api.md").read_text(encoding="utf-8")
COURSEWORK = (ROOT / "book/coursework.md").read_text(encoding="utf-8")
HANDOUT = ROOT / "mergekit_lite/course/handout"
GLOSSARY = (ROOT / "book/reference/glossary.md").read_text(encoding="utf-8")

PERCENTAGE = re.compile(r"(?<![\w.,-])\d+(?:\.\d+)? ?(?:%|percent\b|percentage points?\b)")
ACCURACY = re.compile(r"(?<![\w.,=-])\d\d\.\d{1,2}(?![\w.])")
PUBLISHED = "published"
ROUNDED = ("55.65", "55.6")  # one published mean, which the page rounds in different ways
TYPED = {  # page -> number as it is typed -> why it may be: no measurement of ours, or one that stands in the reference
    "book/checkpoint-families.md": {
        "98 %": "others' data",
        "79 %": "others' data",
        **dict.fromkeys(ROUNDED, "a rounding"),
    },
    "book/merging-in-ten-minutes.md": {"20 %": "a setting"},
    "book/miniature.md": {
        "65 %": "arithmetic",
        **dict.fromkeys(("22 %", "32 %"), "of a base that was not made, measured once"),
    },
    "book/real-models.md": {
        "66.5": PUBLISHED,
        "68.0": PUBLISHED,
        "82.6": PUBLISHED,
        "98 %": "others' data",
        "11 %": "measured once",
        "2 %": "measured once",
    },
    "book/methods/calibration.md": dict.fromkeys(
        ("6 %", "15 %", "42 %", "50 %", "59 %", "72 %", "82 %"), "a difference of two programs, measured once"
    ),
    "book/methods/frank-wolfe.md": {"0.65 %": "follows from the step sizes"},
    "book/methods/adamerging.md": {"71.1": PUBLISHED},
    "book/methods/multi-task.md": {"90.38": PUBLISHED},
    "book/methods/sparse.md": {
        "20 %": "a setting",
        "100 %": "a setting",
        "1 %": "a setting",
        "72.4": PUBLISHED,
        "72.92": PUBLISHED,
    },
}


def typed_results(text: str) -> set[str]:
    """Return what looks like an accuracy or percentage in a page's prose and tables, unless the line cites a source."""
    text = re.sub(
        r"^(```+|:::+)\{?(?:code|python|sh|bash|text|literalinclude|bibliography).*?^\1", "", text, flags=re.M | re.S
    )
    lines = [line for line in text.splitlines() if "{cite" not in line]
    prose = re.sub(r"`[^`]*`|\$[^$]*\$", " ", "\n".join(lines))
    return set(PERCENTAGE.findall(prose)) | set(ACCURACY.findall(PERCENTAGE.sub(" ", prose)))


@pytest.mark.parametrize("page", PAGES)
def test_results_are_glued_and_not_typed(page: str) -> None:
    found = typed_results((ROOT / page).read_text(encoding="utf-8"))
    assert found == set(TYPED.get(page, {})), "glue the number from a notebook, or cite its source in the line"


def test_a_typed_result_would_be_found() -> None:
    assert typed_results("It reaches 76.4 on average.\n") == {"76.4"}
    assert typed_results("| TIES | 3 % |\nor 5.5 percentage points") == {"3 %", "5.5 percentage points"}
    assert typed_results("{glue:text}`x.ipynb::y:.1f` of `76.4`, Table 1 of {cite}`who` has 76.4 %") == set()
    assert typed_results("```python\nx = 76.4\n```\nversion 0.2.33, ViT-B, Python 3.11\n") == set()


def test_published_numbers_in_prose_are_in_the_reference() -> None:
    known = set(pd.read_csv(ROOT / "mergekit_lite/reference/reported.csv", dtype=str)["accuracy"])
    published = {number for page in TYPED.values() for number, reason in page.items() if reason == PUBLISHED}
    assert published
    assert published <= known


def test_the_command_line_page_has_every_command_and_option() -> None:
    sections = dict(
        re.findall(r"^###? `mergekit-lite ([\w ]+)`\n(.*?)(?=^###? |\Z)", sphinx_pages.commands(), flags=re.M | re.S)
    )
    groups = [(group.name, group.typer_instance) for group in cli.app.registered_groups if group.typer_instance]
    ours = [one.callback.__name__ for one in cli.app.registered_commands if one.callback]
    for name, group in groups:
        of_group = [one.callback.__name__ for one in group.registered_commands if one.callback]
        ours += [str(name), *(f"{name} {command}" for command in of_group)]
    assert list(sections) == ours
    for command, section in sections.items():
        shown = (
            CliRunner().invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
        )
        options = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
        assert set(options.findall(section)) == set(options.findall(shown)), command


def test_the_library_page_has_every_method_and_figure() -> None:
    ours = [info.name for info in all_methods() if info.function.__module__.startswith("mergekit_lite.")]
    assert re.findall(r"autofunction:: mergekit_lite\.methods\.(\w+)", API) == ours
    assert re.search(r"automodule:: mergekit_lite\.figures\n   :members:\n   :imported-members:", API)
    assert figures.__all__


def test_glossary_is_in_order_and_each_term_is_there_once() -> None:
    terms = re.findall(r"^([A-Za-z].*)\n  \S", GLOSSARY.partition("```{glossary}")[2], flags=re.MULTILINE)
    assert len(terms) > 20
    assert terms == sorted(set(terms), key=str.lower)


def test_exercises_are_listed_with_a_link_to_their_page(tmp_path: Path) -> None:
    one, two, three = (tmp_path / "methods" / f"{name}.md" for name in ("one", "two", "three"))
    one.parent.mkdir()
    one.write_text(
        "# One\n\n**Not.**\n\n## Exercises\n\n**1. Is it so?** Try.\n\n*Easy, 20 minutes.*\n\n"
        ":::{dropdown} A solution\n**No.**\n:::\n\n**2. Why.** Say.\n\n## After\n\n**Nor.**\n"
    )
    two.write_text("# Two\n\n## Exercise\n\n**Alone.** Do it.\n")
    three.write_text("# Three\n")
    assert sphinx_pages.exercise_list([one, two, three], tmp_path) == (
        "[One](methods/one.md#exercises)\n: * Is it so? (easy, 20 minutes)\n  * Why\n\n"
        "[Two](methods/two.md#exercise)\n: * Alone\n"
    )


def test_schedules_are_computed_from_the_profiles(tmp_path: Path) -> None:
    lines = ["suite: str = 'x'", "steps: int = 500", "learning_rate: float = 1e-3", "images_per_task: int = 32"]
    lines += ["iterations: int = 5", "inner_steps: int = 10", "inner_learning_rate: float = 0.1", "samples: int = 7"]
    cell = new_code_cell("\n".join(lines), metadata={"tags": ["parameters"]})
    for folder in ("notebooks", "profiles"):
        (tmp_path / folder).mkdir()
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "notebooks" / "one.ipynb")
    (tmp_path / "profiles" / "miniature.yaml").write_text("suite: x\nnotebooks:\n  one:\n    steps: 200\n")
    (tmp_path / "profiles" / "other.yaml").write_text("suite: x\nnotebooks:\n  one:\n    steps: 3\n")
    ada, soft = sphinx_pages.schedules(tmp_path)
    assert (ada.steps, ada.seen) == (200, 200 * 32)
    assert (soft.iterations, soft.seen) == (5, 5 * (10 * 32 + 7))
    assert (ada.travel, soft.travel) == pytest.approx((0.2, 5.0))
    assert sphinx_pages.schedule_table([ada, soft]).splitlines()[2:] == [
        "| [](/book/executed/one.ipynb) | AdaMerging, layer-wise | – | 200 | 0.001 | 0.2 | 32 | – | 6,400 |",
        "| [](/book/executed/one.ipynb) | Soft FW-Merging | 5 | 10 | 0.1 | 5 | 32 | 7 | 1,635 |",
    ]
    assert sphinx_pages.schedule_table([]) == "There are none.\n"


def test_no_schedule_of_the_book_is_left_out() -> None:
    """A notebook that names its steps in a new way must be taught to the table."""
    assert sphinx_pages.SCHEDULES in (ROOT / "book/reproduce.md").read_text(encoding="utf-8")
    listed = sphinx_pages.schedules(ROOT)
    for path in (ROOT / "profiles").glob("miniature*.yaml"):
        for notebook in load(path.stem, ROOT).notebooks:
            known = notebook_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
            # what was published, and a factor of a rate, are no schedules
            rates = [name for name in known if name.endswith("learning_rate")]
            assert len([one for one in listed if one.notebook == notebook and one.rate]) == len(rates), notebook


def test_coursework_lists_the_exercises_of_every_notebook() -> None:
    assert sphinx_pages.EXERCISES.format(folder="the notebooks") in COURSEWORK
    assert sphinx_pages.EXERCISES.format(folder="the methods") in COURSEWORK
    for page in toc_pages(ROOT):
        template = ROOT / "notebooks" / f"{Path(page).name}.ipynb"
        if page.startswith("book/executed/") and template.exists() and not page.endswith(solutions.SUFFIX):
            assert sphinx_pages.exercises(sphinx_pages._text(template)), f"{template.name} has no exercises"


def test_examples_of_the_coursework_page_run(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("mergekit_lite.suites.load_suite", lambda name: fakes.fake_suite())
    use, grade = re.findall(r"```python\n(.*?)```", COURSEWORK, flags=re.DOTALL)
    shutil.copy(HANDOUT / "method.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mergekit_lite.study.engines.here.cores", lambda: 1)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(f"{use}\n{grade}", namespace)
    suite, cell, confirmed = namespace["suite"], namespace["cells"]["median"], namespace["confirmed"]
    assert not confirmed(tmp_path, suite, cell)  # nothing was handed in
    (true,) = study.run(suite, [cell])
    write_record(true, tmp_path / f"{true.key}.json")
    assert confirmed(tmp_path, suite, cell)
    edited = true.model_copy(update={"accuracy": dict.fromkeys(true.accuracy, 100.0)})
    write_record(edited, tmp_path / f"{true.key}.json")
    assert not confirmed(tmp_path, suite, cell)


def test_the_example_of_the_coursework_page_is_a_script_for_several_cores(cache: Path, tmp_path: Path) -> None:
    use, _ = re.findall(r"```python\n(.*?)```", COURSEWORK, flags=re.DOTALL)
    shutil.copy(HANDOUT / "method.py", tmp_path)
    use = use.replace("from mergekit_lite.suites import load_suite", "from fakes import fake_suite")
    use = use.replace('load_suite("miniature")', "fake_suite()").replace("(suite, cells)", "(suite, cells, workers=2)")
    (tmp_path / "script.py").write_text(use, encoding="utf-8")
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "MERGEKIT_LITE_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^median \(none\): \d+\.\d %$", done.stdout, flags=re.MULTILINE)


def test_the_coursework_page_has_the_line_of_the_container() -> None:
    (block,) = [one for one in re.findall(r"```bash\n(.*?)```", COURSEWORK, flags=re.DOTALL) if "docker" in one]
    assert " ".join(block.replace("\\\n", " ").split()) == grading.CONTAINER


def test_the_memory_table_holds_what_was_measured_and_a_dash_where_nothing_was() -> None:
    measured = {
        "options": {"pools": [4, 64]},
        "machine": {"processor": "a processor", "threads": 1, "torch": "2.0", "date": "2026-01-01"},
        "details": {
            "hard_frank_wolfe 4": {"anonymous": 2 * 2**30},
            "hard_frank_wolfe 64": {"anonymous": 3 * 2**30},
            "tsv_merging 4": {"anonymous": 2**29},
        },
    }
    table = sphinx_pages.memory_table(measured)
    assert "| `hard_frank_wolfe` | 2.00 | 3.00 | 1.50 |" in table
    assert "| `tsv_merging` | 0.50 | – | 1.00 |" in table
    assert "a processor, 1 thread, torch 2.0, 2026-01-01" in table
