"""The method pages agree with the registry, show the code they speak of, and quote numbers that the reference holds."""

import ast
import functools
import importlib
import inspect
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fakes
import pandas as pd
import pytest
import yaml

from mergekit_lite.methods import MethodInfo, all_methods, resolve
from mergekit_lite.pipeline.book import toc_pages
from mergekit_lite.study import Record

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
def test_page_says_where_we_differ(page: str) -> None:
    assert FIDELITY in [table[0] for table in tables(PAGES[page])]


@every_page
def test_tables_are_whole(page: str) -> None:
    for table in tables(PAGES[page]):
        assert {len(row) for row in table} == {len(table[0])}, table
        assert all(cell for row in table for cell in row), table


@every_page
def test_included_code_exists(page: str) -> None:
    for path, options in literal_includes(PAGES[page]):
        source = (ROOT / path.lstrip("/")).read_text(encoding="utf-8")
        assert not options.get("pyobject") or defined(source, options["pyobject"]), (path, options)
        for mark in ("start-at", "end-at", "end-before"):
            assert yaml.safe_load(options.get(mark, '""')) in source, (path, options)


def defined(source: str, name: str) -> bool:
    """Return whether a file defines the function or class, the parts of a dotted `name` within one another."""
    body: Sequence[ast.AST] = ast.parse(source).body
    for part in name.split("."):
        found = [one for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == part]
        if not found:
            return False
        body = found[0].body
    return True


@every_page
def test_printed_code_is_the_code_that_runs(page: str) -> None:
    """Each function that a page prints is called by a method of that page, directly or not."""
    reached: set[object] = set()
    for info in ours():
        if documented()[info.name] == page:
            reach(info.function, reached)
    for path, options in literal_includes(PAGES[page]):
        if name := options.get("pyobject"):
            module: Any = importlib.import_module(path.strip("/").removesuffix(".py").replace("/", "."))
            shown = inspect.unwrap(functools.reduce(getattr, name.split("."), module))
            assert shown in reached, f"{page} prints {name}, which no method of the page calls"


def reach(thing: object, reached: set[object]) -> None:
    """Add to `reached` the functions of the package that `thing` uses: those it names, and the methods of classes."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if not str(getattr(thing, "__module__", "")).startswith("mergekit_lite.") or thing in reached:
        return
    if isinstance(thing, type):
        reached.add(thing)
        for one in vars(thing).values():
            reach(getattr(one, "__func__", one), reached)
    elif isinstance(thing, types.FunctionType):
        reached.add(thing)
        for name in named(thing.__code__):
            reach(thing.__globals__.get(name), reached)
            for module in [one for one in thing.__globals__.values() if isinstance(one, types.ModuleType)]:
                reach(vars(module).get(name), reached)  # module.name


def named(code: types.CodeType) -> set[str]:
    """Return the global names and attributes in a function's code, those of functions inside it too."""
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*map(named, inner))


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
        ("frank_wolfe.hard", "hard_frank_wolfe"),
        ("frank_wolfe.soft", "soft_frank_wolfe"),
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
    monkeypatch.setattr("mergekit_lite.study.engines.here.cores", lambda: 1)
    examples = re.findall(r"```python\n(.*?)```", INDEX.read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    for example in examples:
        exec(example, namespace)
    assert isinstance(namespace["record"], Record)
    assert namespace["merged"]
