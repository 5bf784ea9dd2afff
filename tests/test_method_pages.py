"""The method pages agree with the registry, show the code they speak of, and quote numbers that the reference holds."""

import importlib
import re
from pathlib import Path

import fakes
import pandas as pd
import pytest

from mergekit_lite.methods import MethodInfo, all_methods, resolve
from mergekit_lite.pipeline.book import toc_pages
from mergekit_lite.study.records import Cell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "book/methods"
INDEX = FOLDER / "index.md"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md")) if path != INDEX}
FIDELITY = ["What", "Paper", "Authors' code", "FusionBench", "Ours", "Difference"]
TRUST = {"authors' file": "primary", "re-print": "reprint", "third-party note": "note", "figure": "figure"}
SETTINGS = {
    "8 tasks": {"eight"},
    "20 tasks": {"twenty"},
    "4 models, 4 tasks": {"irrelevant-0"},
    "20 models, 4 tasks": {"twenty-pool-four-eval", "irrelevant-16"},
}

every_page = pytest.mark.parametrize("page", PAGES)


def ours() -> list[MethodInfo]:
    """The methods of the package, without those that other tests register."""
    return [info for info in all_methods() if info.function.__module__.startswith("mergekit_lite.")]


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a page: rows of cells, the header first, the line of dashes left out."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        found.append([row for row in rows if not set("".join(row)) <= set(":- ")])
    return found


def documented() -> dict[str, str]:
    """Return function -> page, as the index has it."""
    rows = tables(INDEX.read_text(encoding="utf-8"))[0][1:]
    return {row[1].strip("`"): row[4].partition("](")[2].removesuffix(")") for row in rows}


def literal_includes(text: str) -> list[tuple[str, dict[str, str]]]:
    """Return the path and the options of each piece of code that a page includes."""
    blocks = re.findall(r"```\{literalinclude\} (\S+)\n(.*?)```", text, flags=re.DOTALL)
    return [(path, dict(re.findall(r"^:([\w-]+): (.+)$", options, flags=re.MULTILINE))) for path, options in blocks]


def test_all_pages_are_in_the_book_the_index_first() -> None:
    listed = [Path(page).name for page in toc_pages(ROOT) if page.startswith("book/methods/")]
    assert listed[0] == "index"
    assert sorted(f"{name}.md" for name in listed[1:]) == sorted(PAGES)


def test_index_agrees_with_the_registry() -> None:
    header, *rows = tables(INDEX.read_text(encoding="utf-8"))[0]
    assert header == ["Method", "Function", "Data access", "Coefficients", "Page"]
    shown = [(row[0], row[1].strip("`"), row[2]) for row in rows]
    assert shown == [(info.title, info.name, str(info.access)) for info in ours()]
    assert all(row[3] for row in rows)


def test_what_the_index_says_of_the_objective() -> None:
    for info in ours():
        if "objective" not in info.parameters.model_fields:
            continue
        other = {"unlabelled test": "cross-entropy", "labelled train": "entropy"}[info.access]
        assert info.access_with({"objective": other}) != info.access


def test_every_method_has_its_page_with_its_code_and_data_access() -> None:
    for info in ours():
        text = PAGES[documented()[info.name]]
        file = f"/{info.function.__module__.replace('.', '/')}.py"
        assert (file, info.name) in {(path, options.get("pyobject", "")) for path, options in literal_includes(text)}
        assert [f"`{info.name}`", str(info.access)] in [row[:2] for row in tables(text)[0]]
        assert f"{{py:func}}`~mergekit_lite.methods.{info.name}`" in text, "no link to the library"
        assert not info.cite or re.search(rf"\{{cite(?::\w)?\}}`{info.cite}`", text), (
            f"{info.name} does not cite {info.cite}"
        )


@every_page
def test_page_has_all_its_parts(page: str) -> None:
    text = PAGES[page]
    assert re.search(r"^\$\$\n.+?\n\$\$$", text, flags=re.MULTILINE | re.DOTALL)
    assert re.search(r"```\{prf:algorithm\} .+\n:label: alg-[\w-]+\n", text)
    assert literal_includes(text)
    assert FIDELITY in [table[0] for table in tables(text)]
    for heading in ("The equations", "The code", "Parameters that matter", "Fidelity", "What to watch out for"):
        assert f"\n## {heading}\n" in text
    assert re.search(r"\n## Exercises?\n(?:.|\n)*\{dropdown\} A hint", text)
    assert "(../executed/eight_tasks.ipynb)" in text
    assert re.search(r"^To practise: \[the (exercises?) of this page\]\(#\1\)\.$", text, flags=re.MULTILINE)


@every_page
def test_tables_are_whole(page: str) -> None:
    for table in tables(PAGES[page]):
        assert {len(row) for row in table} == {len(table[0])}, table
        assert all(cell for row in table for cell in row), table


@every_page
def test_included_code_exists(page: str) -> None:
    for path, options in literal_includes(PAGES[page]):
        source = (ROOT / path.lstrip("/")).read_text(encoding="utf-8")
        name = options.get("pyobject", "").rpartition(".")[2]
        assert not name or re.search(rf"^\s*(?:def|class) {name}\b", source, flags=re.MULTILINE), (path, name)
        assert options.get("start-at", "").strip('"') in source


def test_every_label_of_an_algorithm_is_its_own() -> None:
    labels = [label for text in PAGES.values() for label in re.findall(r"^:label: (\S+)$", text, flags=re.MULTILINE)]
    assert len(labels) == len(set(labels))


def test_every_citation_is_in_the_bibliography() -> None:
    library = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([\w-]+),", library, flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    for path in FOLDER.glob("*.md"):
        cited = re.findall(r"\{cite(?::\w)?\}`([^`]+)`", path.read_text(encoding="utf-8"))
        assert {key.strip() for group in cited for key in group.split(",")} <= set(keys), path.name


@every_page
def test_published_numbers_are_those_of_the_reference(page: str) -> None:
    reported = pd.read_csv(ROOT / "mergekit_lite/reference/reported.csv", dtype=str)
    reported = reported[reported["task"] == "average"]
    shown = [table[1:] for table in tables(PAGES[page]) if table[0][0] == "Method"]
    assert len(shown) == 1
    for method, model, setting, accuracy, family, source, trust in shown[0]:
        fitting = reported[
            (reported["method"] == method)
            & (reported["model"] == model.replace("/", "-"))
            & reported["setting"].isin(SETTINGS[setting])
            & (reported["accuracy"] == accuracy)
            & (reported["family"] == family)
            & (reported["trust"] == TRUST[trust])
        ]
        assert len(fitting) > 0, (method, accuracy, family, trust)
        assert "{cite:t}`" in source


@every_page
def test_defaults_named_in_the_text_are_those_of_the_code(page: str) -> None:
    """Each `name` (default VALUE) before a description holds for some method of the page."""
    methods = [info.parameters.model_fields for info in ours() if documented()[info.name] == page]
    terms = re.findall(r"^`(\w+)` \(.*?default `?\"?([\w.-]+?)\"?`?\)$", PAGES[page], flags=re.MULTILINE)
    for name, value in terms:
        defaults = {str(fields[name].default) for fields in methods if name in fields}
        wanted = {"on": "True", "off": "False"}.get(value, value)
        assert wanted in defaults or float(wanted) in {float(one) for one in defaults}, (name, value, defaults)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("adamerging", "layer_wise_adamerging"),
        ("hard_frank_wolfe", "hard_frank_wolfe"),
        ("soft_frank_wolfe", "soft_frank_wolfe"),
    ],
)
def test_recipes_that_the_pages_show_can_be_run(module: str, name: str) -> None:
    recipes = importlib.import_module(f"mergekit_lite.methods.{module}").RECIPES
    assert {"paper", "fusionbench"} <= recipes.keys()
    for parameters in recipes.values():
        resolve(name, parameters)


def test_examples_of_the_index_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr("mergekit_lite.suites.load_suite", lambda name: fakes.fake_suite())
    examples = re.findall(r"```python\n(.*?)```", INDEX.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(examples) == 2
    namespace: dict[str, object] = {}
    for example in examples:
        exec(example, namespace)
    assert isinstance(namespace["cell"], Cell)
    assert namespace["merged"]
