"""The solutions on the method pages and the answers of the quizzes: their code runs, and what they say is so.

Each solution's blocks run in one namespace. Whatever they ask of `study.run` is answered from records of the real
miniature, found by their cells: those of the book, and those in `tests/records`, which were computed for solutions
alone. So the assertions in the blocks are about real results, on every machine and in milliseconds. Weights and images
that a block looks at itself are those of a miniature with few pictures and hardly trained experts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from mergekit_lite import study
from mergekit_lite.cache import content_hash
from mergekit_lite.pipeline.sphinx_pages import exercises
from mergekit_lite.study import Cell, Record
from mergekit_lite.study.checks import resolved
from mergekit_lite.study.records import read_record
from mergekit_lite.suites import miniature
from mergekit_lite.suites.miniature.experts import Recipe
from mergekit_lite.suites.suite import Suite

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "book/methods").glob("*.md"))}
RECORDS = [ROOT / "book/records/miniature", ROOT / "tests/records/miniature"]
EFFORT = re.compile(r"^\*(Easy|Medium|Hard), (\d+) minutes\.\*$", flags=re.MULTILINE)
NO_CURVE = {"curve_every": 0, "curve_images": 0}


def parts(text: str) -> dict[str, str]:
    """Return title -> Markdown of each exercise of a page."""
    section = re.search(r"^## Exercises?$(.*?)(?=^## |^In the experiments|^The rows it|\Z)", text, flags=re.M | re.S)
    begun = re.split(r"^\*\*(?:\d+\. )?(.+?)\.?\*\*", section[1], flags=re.MULTILINE)[1:] if section else []
    return dict(zip(begun[::2], begun[1::2], strict=True))


def solution(exercise: str) -> str:
    """Return the text of the one drop-down titled "A solution"."""
    (found,) = re.findall(r"^:::\{dropdown\} A solution$(.*?)^:::$", exercise, flags=re.MULTILINE | re.DOTALL)
    return str(found)


EXERCISES = {f"{page}: {title}": text for page, whole in PAGES.items() for title, text in parts(whole).items()}
every_exercise = pytest.mark.parametrize("name", EXERCISES)


def code(name: str) -> str:
    """Return the Python of a solution, all blocks one after another."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", solution(EXERCISES[name]), flags=re.MULTILINE | re.DOTALL))


def test_every_exercise_of_the_pages_is_here() -> None:
    assert sum(len(exercises(text)) for text in PAGES.values()) == len(EXERCISES) == 14


@every_exercise
def test_an_exercise_says_how_hard_it_is_then_hints_then_solves(name: str) -> None:
    text = EXERCISES[name]
    effort = EFFORT.search(text)
    assert effort, "a line such as *Easy, 20 minutes.*"
    places = [effort.start(), text.index(":::{dropdown} A hint"), text.index(":::{dropdown} A solution")]
    assert places == sorted(places)
    assert 5 <= int(effort[2]) <= 240


def asks(cell: Cell, *, curve: bool = True) -> str:
    """Return a hash of the question of a resolved cell, with its curve or without."""
    return content_hash(cell.question() if curve else cell.model_copy(update=NO_CURVE).question())


@cache
def recorded() -> dict[str, Record]:
    """Return the records that there are, by their questions; one with a curve also answers the question without."""
    paths = [path for folder in RECORDS for path in sorted(folder.glob("*.json"))]
    found = [one for path in paths if isinstance(one := read_record(path, path.stem), Record)]
    return {asks(one.cell, curve=curve): one for curve in (False, True) for one in found}


def looked_up(suite: Suite, cells: Mapping[Any, Cell] | Sequence[Cell], **_: Any) -> Any:
    """Answer as `study.run` does, from records alone."""
    if not isinstance(cells, Mapping):
        return list(looked_up(suite, dict(enumerate(cells))).values())
    questions = {name: asks(resolved(suite, cell)) for name, cell in cells.items()}
    missing = [cells[name].label for name, question in questions.items() if question not in recorded()]
    assert not missing, f"run these on the miniature, and copy their records to tests/records/miniature: {missing}"
    return {name: recorded()[question] for name, question in questions.items()}


@pytest.fixture(scope="module")
def small_miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the miniature be one of few pictures, whose experts are hardly trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEKIT_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(miniature, "RECIPE", Recipe(steps=8, learning_rate=1e-3, batch_size=16))
        for split, size in {"train": 80, "held-out": 60, "test": 60}.items():
            patch.setitem(miniature.SIZES, split, size)
        patch.setattr(study, "run", looked_up)
        patch.setattr(plt, "show", lambda: plt.close("all"))
        yield


@every_exercise
@pytest.mark.usefixtures("small_miniature")
def test_the_code_of_a_solution_runs_and_what_it_asserts_holds(name: str) -> None:
    exec(compile(code(name), name, "exec"), {"__name__": "__main__"})
