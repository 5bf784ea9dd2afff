"""Solutions: in the book for whoever wants them, nowhere in a book for students; and those that are notebooks run."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_markdown_cell, new_notebook

from mergekit_lite.pipeline import solutions
from mergekit_lite.pipeline.book import build_book, toc_pages
from mergekit_lite.pipeline.profiles import load
from mergekit_lite.pipeline.promotion import promote
from mergekit_lite.pipeline.runner import run_profile

ROOT = Path(__file__).parents[1]
SECRET = "The answer is forty-two."
EXERCISE = f"""# A page

## Exercises

**1. What is it?** Say.

*Easy, 5 minutes.*

:::{{dropdown}} A hint
Multiply.
:::

::::{{dropdown}} A solution
{SECRET}

:::{{note}}
{SECRET}
:::
::::

Go on.
"""
QUIZ = f"# A quiz\n\nWhy?\n\n:::{{dropdown}} Answer\n{SECRET}\n:::\n"


def test_answers_are_cut_out_and_hints_stay() -> None:
    cut = solutions.without_answers(EXERCISE)
    assert SECRET not in cut
    assert "Multiply." in cut
    assert cut.endswith(":::\n\nGo on.\n")
    assert solutions.without_answers(QUIZ) == "# A quiz\n\nWhy?\n\n"


def test_notebooks_of_solutions_leave_the_contents_and_so_do_empty_parts() -> None:
    pages = [{"file": "book/executed/one"}, {"file": "book/executed/one_solutions"}]
    parts = [{"caption": "All", "chapters": pages}, {"caption": "Solutions", "chapters": pages[1:]}]
    left = yaml.safe_load(solutions.toc_without_solutions(yaml.safe_dump({"root": "book/welcome", "parts": parts})))
    assert left == {"root": "book/welcome", "parts": [{"caption": "All", "chapters": pages[:1]}]}


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    pytest.importorskip("jupyter_book", reason="the book extra is not installed")
    (tmp_path / "_config.yml").write_text(
        "title: Small\nonly_build_toc_files: true\nexecute: {execute_notebooks: 'off'}\nlatex: {}\n"
        "parse: {myst_enable_extensions: [colon_fence]}\n"
        "sphinx: {extra_extensions: [mergekit_lite.pipeline.solutions], config: {nb_ipywidgets_js: {}}}\n",
        encoding="utf-8",
    )
    pages = ["page", "quiz", "executed/one", "executed/one_solutions"]
    chapters = [{"file": f"book/{page}"} for page in pages]
    (tmp_path / "_toc.yml").write_text(
        yaml.safe_dump({"format": "jb-book", "root": "book/welcome", "chapters": chapters}), encoding="utf-8"
    )
    (tmp_path / "book/executed").mkdir(parents=True)
    (tmp_path / "book/welcome.md").write_text("# Welcome\n", encoding="utf-8")
    (tmp_path / "book/page.md").write_text(EXERCISE, encoding="utf-8")
    (tmp_path / "book/quiz.md").write_text(QUIZ, encoding="utf-8")
    for name, text in {"one": EXERCISE, "one_solutions": f"# Solved\n\n{SECRET}"}.items():
        nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), tmp_path / f"book/executed/{name}.ipynb")
    return tmp_path


def holders(built: Path) -> set[str]:
    """Return the names of the files of a built book that hold the secret: pages, sources, the index for its search."""
    files = [path for path in built.rglob("*") if path.suffix in {".html", ".js", ".md", ".ipynb", ".txt"}]
    return {path.name for path in files if SECRET in path.read_text(encoding="utf-8", errors="replace")}


def test_a_book_without_solutions_holds_them_nowhere_and_lies_beside_the_other(small_book: Path) -> None:
    whole = build_book(small_book).parent
    assert {"page.html", "quiz.html", "one.html", "one_solutions.html", "page.md", "one.ipynb"} <= holders(whole)
    without = build_book(small_book, with_solutions=False).parent
    assert without == small_book / "build/book-without-solutions/_build/html"
    assert holders(without) == set()
    assert "Multiply." in (without / "book/page.html").read_text(encoding="utf-8")
    assert not list(without.rglob("one_solutions*"))
    assert "page.html" in holders(whole)


def test_every_notebook_of_solutions_belongs_to_a_chapter_and_is_in_both_profiles_and_in_the_contents() -> None:
    solved = {path.stem for path in (ROOT / "notebooks").glob(f"*{solutions.SUFFIX}.ipynb")}
    assert solved
    for name in solved:
        assert (ROOT / "notebooks" / f"{name.removesuffix(solutions.SUFFIX)}.ipynb").is_file()
    assert set(load("solutions", ROOT).notebooks) == set(load("smoke-solutions", ROOT).notebooks) == solved
    assert {Path(page).name for page in toc_pages(ROOT) if page.endswith(solutions.SUFFIX)} == solved


def test_nothing_but_a_solution_leads_to_a_notebook_of_solutions() -> None:
    """A link that stays when the solutions go would break the build without them."""
    for path in [*(ROOT / "book").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        if "_build" in path.parts or path.stem.endswith(solutions.SUFFIX):
            continue
        text = path.read_text(encoding="utf-8")
        left = solutions.without_answers(text) if path.suffix == ".md" else solutions.notebook_without_answers(text)
        assert f"{solutions.SUFFIX}.ipynb" not in left, path.name


def test_solutions_run_from_end_to_end_and_are_fit_for_the_book(tmp_path: Path) -> None:
    for folder in ("notebooks", "profiles"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for path in run_profile(load("smoke-solutions", tmp_path), tmp_path):
        done = nbformat.read(promote(path, ROOT / "notebooks" / path.name, tmp_path / "book"), as_version=4)
        outputs: list[Any] = [output for cell in done.cells for output in cell.get("outputs", [])]
        assert [output.text for output in outputs if output.get("name") == "stderr"] == []
