"""The solutions on the method pages and the answers of the quizzes: their code runs, and what they say is so.

Each solution's blocks run in one namespace. Whatever they ask of `study.run` is answered from records of the real
miniature, found by their cells: those of the book, and those in `tests/records`, which were computed for solutions
alone; ``python tests/test_page_solutions.py`` makes these again, in some twenty minutes. So the assertions in the
blocks are about real results, on every machine and in milliseconds. Weights and images that a block looks at itself are
those of a miniature with few pictures and hardly trained experts.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from mergekit_lite import study
from mergekit_lite.cache import content_hash, intact
from mergekit_lite.machine import versions
from mergekit_lite.methods import all_methods
from mergekit_lite.pipeline.book import toc_pages
from mergekit_lite.pipeline.solutions import SUFFIX
from mergekit_lite.pipeline.sphinx_pages import exercises
from mergekit_lite.study import Cell, Record
from mergekit_lite.study.checks import resolved
from mergekit_lite.study.keys import key_of
from mergekit_lite.study.records import read_record, write_record
from mergekit_lite.suites import load_suite, miniature
from mergekit_lite.suites.miniature.experts import Recipe
from mergekit_lite.suites.suite import Suite

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "book/methods").glob("*.md"))}
QUIZZES = (ROOT / "book/quizzes.md").read_text(encoding="utf-8")
BOOK, OWN = ROOT / "book/records/miniature", ROOT / "tests/records/miniature"
EFFORT = re.compile(r"^\*(Easy|Medium|Hard), (\d+) minutes\.\*$", flags=re.MULTILINE)
WITHOUT_QUIZ = {"welcome", "real-models", "your-own-models", "reproduce", "environment", "coursework", "quizzes"}
WITHOUT_QUIZ |= {"cluster", "references"}
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
    assert sum(len(exercises(text)) for text in PAGES.values()) == len(EXERCISES) == 17


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
def recorded(*folders: Path) -> dict[str, Record]:
    """Return the records in these folders by their questions; one with a curve also answers the question without."""
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    found = [one for path in paths if isinstance(one := read_record(path, path.stem), Record)]
    return {asks(one.cell, curve=curve): one for curve in (False, True) for one in found}


def looked_up(suite: Suite, cells: Mapping[Any, Cell], **_: Any) -> dict[Any, Record]:
    """Answer as `study.run` does, from records alone."""
    questions = {name: asks(resolved(suite, cell)) for name, cell in cells.items()}
    known = recorded(BOOK, OWN)
    missing = [cells[name].label for name, question in questions.items() if question not in known]
    assert not missing, f"run python tests/test_page_solutions.py, which computes {', '.join(missing)}"
    return {name: known[question] for name, question in questions.items()}


def test_the_records_for_solutions_are_of_todays_code() -> None:
    suite, here = load_suite("miniature"), versions()
    kits = {info.name for info in all_methods() if info.function.__module__.startswith("mergekit_lite.")}
    found = [one for path in OWN.glob("*.json") if isinstance(one := read_record(path, path.stem), Record)]
    made_with = [(one, (one.provenance.torch, one.provenance.open_clip)) for one in found if one.cell.method in kits]
    assert made_with
    same = [one for one, tools in made_with if tools == (here["torch"], here["open_clip"])]
    stale = [one.cell.label for one in same if key_of(suite, one.cell) != one.key]
    assert not stale, "make them again: python tests/test_page_solutions.py"


@pytest.fixture(scope="module")
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of the small miniature, which all tests here share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small_miniature(few_pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the miniature be one of few pictures, whose experts are hardly trained."""
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(few_pictures))
    monkeypatch.setattr(miniature, "RECIPE", Recipe(steps=8, learning_rate=1e-3, batch_size=16))
    monkeypatch.setattr(miniature, "SIZES", miniature.SIZES | {"train": 80, "held-out": 60, "test": 60})
    monkeypatch.setattr(study, "run", looked_up)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))


@every_exercise
@pytest.mark.usefixtures("small_miniature")
def test_the_code_of_a_solution_runs_and_what_it_asserts_holds(name: str) -> None:
    run(name)


def run(name: str) -> dict[str, Any]:
    """Run the code of a solution; return its namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code(name), name, "exec"), namespace)
    return namespace


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Need the miniature's own experts; what studies ask still comes from records."""
    suite = load_suite("miniature")
    assert isinstance(suite, miniature.Miniature)
    if not all(intact(suite.expert_file(task), say=False) for task in suite.names("eight")):
        pytest.skip("the miniature's experts are not in the cache; `mergekit-lite run miniature` trains them")
    monkeypatch.setattr(study, "run", looked_up)


@pytest.mark.usefixtures("trained")
def test_what_the_solutions_say_of_lengths_on_the_miniature() -> None:
    found = run("averaging.md: A coefficient against the length of the merge")
    vectors, orthogonal = found["vectors"], 8**-0.5
    assert orthogonal < found["average"] < 1.1 * orthogonal
    assert 0.3 * 8 * orthogonal < found["added"] < 1.1 * 0.3 * 8 * orthogonal
    assert vectors.norms[0] < vectors.norms.mean()
    apart = vectors.cosines[~torch.eye(8, dtype=torch.bool)]
    assert (apart > 0).float().mean() > 0.5


@pytest.mark.usefixtures("trained")
def test_what_the_solutions_say_of_trimming_on_the_miniature() -> None:
    found = run("sparse.md: What does trimming keep?")
    assert 0.29 < found["longer"] < 0.32
    assert 0.62 < found["share"] < 0.7
    summed, ties = (fmean(column) for column in zip(*found["held"].values(), strict=True))
    assert 0.38 < 0.3 * summed / ties < 0.42


@pytest.mark.usefixtures("trained")
def test_what_the_solutions_say_of_entropy_and_loss_on_the_miniature() -> None:
    found = run("adamerging.md: How much are labels worth?")
    assert set(found["misled"]) == {"landcover", "textures"}
    assert (found["changed"]["entropy"] < 0).all()


def test_every_chapter_that_teaches_has_a_quiz_with_an_answer_to_each_question() -> None:
    chapters = re.split(r"^### .+\n", QUIZZES, flags=re.MULTILINE)[1:]
    about = {link[1] for one in chapters if (link := re.match(r"\nAbout \[\]\((.+?)(?:\.md|\.ipynb)\)\.\n", one))}
    assert len(about) == len(chapters)
    taught = {page.removeprefix("book/") for page in toc_pages(ROOT)} - WITHOUT_QUIZ
    assert about == {page for page in taught if not page.startswith("reference/") and not page.endswith(SUFFIX)}
    for chapter in chapters:
        questions = re.split(r"^\*\*\d\.\*\* ", chapter, flags=re.MULTILINE)[1:]
        assert 3 <= len(questions) <= 5
        for question in questions:
            (answer,) = re.findall(r"^:::\{dropdown\} Answer$\n(.+?)^:::$", question, flags=re.MULTILINE | re.DOTALL)
            choices = re.findall(r"^\* \((\w)\)", question.partition(":::")[0], flags=re.MULTILINE)
            assert choices == list("abcd"[: len(choices)])
            chosen = re.match(r"\((\w)\)", answer)
            assert bool(chosen) is bool(choices)
            assert not chosen or chosen[1] in choices


def test_the_plan_of_the_course_has_every_chapter_that_a_quiz_is_about() -> None:
    plan = (ROOT / "book/coursework.md").read_text(encoding="utf-8").partition("## A plan for four weeks")[2]
    linked = re.findall(r"\[\]\((.+?)\)", plan.partition("\n## ")[0])
    assert sorted(linked) == sorted(re.findall(r"^About \[\]\((.+?)\)\.$", QUIZZES, flags=re.MULTILINE))


def make_again() -> None:
    """Run the solutions on the miniature; compute, and keep in `OWN`, those of their records that the book has not."""
    computed: dict[str, Record] = {}

    def answered(suite: Suite, cells: Mapping[Any, Cell]) -> dict[Any, Record]:
        questions = {name: asks(resolved(suite, cell)) for name, cell in cells.items()}
        missing = {name: cells[name] for name, question in questions.items() if question not in recorded(BOOK)}
        found = run_study(suite, missing, workers=1)  # in this process, which knows the methods of the blocks
        computed.update({record.key: record for record in found.values()})
        return {name: found[name] if name in found else recorded(BOOK)[questions[name]] for name in cells}

    run_study, study.run = study.run, answered  # type: ignore[assignment]
    plt.switch_backend("agg")
    for name in EXERCISES:
        run(name)
    for path in OWN.glob("*.json"):
        path.unlink()
    for key, record in computed.items():
        write_record(record, OWN / f"{key}.json")


if __name__ == "__main__":
    make_again()
