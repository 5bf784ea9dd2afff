"""The notebooks: templates without outputs, parameters that papermill reads, and a smoke run from end to end."""

import math
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from mergekit_lite.pipeline.profiles import Profile, load
from mergekit_lite.pipeline.promotion import promote
from mergekit_lite.pipeline.runner import check_parameters, notebook_parameters, run_of, run_profile

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
BASE = ROOT / "mergekit_lite" / "suites" / "miniature" / "base.safetensors"
TEXT = "application/papermill.record/text/plain"
PARAMETER = re.compile(r"^[a-z_]+: (str|int|float|bool) = \S.*  # \S.*$")
WIDTH = tomllib.loads((ROOT / "notebooks" / "ruff.toml").read_text(encoding="utf-8"))["line-length"]
QUOTED = (
    re.compile(r"executed/(?P<notebook>\w+)\.ipynb::(?P<key>[\w-]+)"),
    re.compile(r"```\{glue\} (?P<key>\S+)\n:doc: executed/(?P<notebook>\w+)\.ipynb"),
)

templates = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def test_there_are_notebooks_and_profiles() -> None:
    assert ROOT / "notebooks" / "eight_tasks.ipynb" in NOTEBOOKS
    assert {"smoke", "miniature"} <= set(PROFILES)


@templates
def test_template_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in cells(path, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}  # no times, no editor's state
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@templates
def test_code_is_shown_on_a_page_without_scrolling(path: Path) -> None:
    wide = [line for cell in cells(path, "code") for line in cell.source.splitlines() if len(line) > WIDTH]
    assert wide == []


@templates
def test_parameters_are_one_cell_of_typed_commented_lines_that_papermill_reads(path: Path) -> None:
    (parameters,) = [cell for cell in cells(path, "code") if "parameters" in tags(cell)]
    lines = parameters.source.splitlines()
    for line in lines:
        assert PARAMETER.match(line), line
    inferred = papermill.inspect_notebook(str(path))
    assert list(inferred) == [line.split(":")[0] for line in lines]
    assert all(one["inferred_type_name"] in {"str", "int", "float", "bool"} for one in inferred.values())
    assert all(one["help"] for one in inferred.values())


@templates
def test_the_merge_is_never_hidden_and_plots_are(path: Path) -> None:
    runs = [cell for cell in cells(path, "code") if "study.run(" in cell.source]
    assert runs
    assert all(set(tags(cell)) <= {"solution"} for cell in runs)
    for cell in cells(path, "code"):
        if "figures.show(" in cell.source:
            assert tags(cell) == ["hide-input"]


@templates
def test_every_figure_is_introduced_and_discussed(path: Path) -> None:
    kinds = [
        "figure" if "figures.show(" in cell.source else cell.cell_type
        for cell in nbformat.read(path, as_version=4).cells
    ]
    for place, kind in enumerate(kinds):
        if kind == "figure":
            assert "markdown" in (kinds[place - 1], kinds[place - 2])
            assert kinds[place + 1] == "markdown"


@templates
def test_prose_holds_no_typed_results(path: Path) -> None:
    for cell in cells(path, "markdown"):
        assert not re.search(r"\d\s?(%|percent|points|seconds)", cell.source), cell.source


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_name_parameters_that_exist_with_their_types(name: str) -> None:
    profile = load(name, ROOT)
    for notebook in profile.notebooks:
        assert check_parameters(profile, notebook, ROOT)["suite"] == profile.suite


def eight_tasks_and_ablations(name: str) -> list[tuple[str, Profile]]:
    """Return the two notebooks with their profiles: what needs several seeds may be a run of its own."""
    seeds = f"{name}-seeds" if f"{name}-seeds" in PROFILES else name
    return [("eight_tasks", load(name, ROOT)), ("ablations_and_cost", load(seeds, ROOT))]


def test_ablations_ask_what_eight_tasks_asked_so_that_records_are_shared() -> None:
    runs = [run_of(ROOT / "book" / "executed" / f"{name}.ipynb") for name in ("eight_tasks", "ablations_and_cost")]
    asked, more = (set(run["records"]) for run in runs)
    assert asked < more


@pytest.mark.parametrize("name", sorted({name for name in PROFILES if "eight_tasks" in load(name, ROOT).notebooks}))
def test_ablations_have_the_values_that_eight_tasks_has(name: str) -> None:
    values = []
    for notebook, profile in eight_tasks_and_ablations(name):
        defaults = notebook_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
        values.append({key: one.default for key, one in defaults.items()} | check_parameters(profile, notebook, ROOT))
    shared = set(values[0]) - {"published_model"}
    assert {key: values[1][key] for key in shared} == {key: values[0][key] for key in shared}


class Seen(HTMLParser):
    """Collects the alternative texts of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.alts: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))


@pytest.mark.skipif(not BASE.exists(), reason="there are no base weights: run mergekit-lite pretrain miniature")
def test_smoke_profile_runs_from_end_to_end_and_is_fit_for_the_book(tmp_path: Path) -> None:
    for folder in ("notebooks", "profiles"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    profile = load("smoke", tmp_path)
    glued: dict[str, Any] = {}
    for path in run_profile(profile, tmp_path):
        outputs = outputs_of(promote(path, ROOT / "notebooks" / path.name, tmp_path / "book"))
        check(outputs)
        own = by_key(outputs)
        assert quoted(path.stem) <= set(own)  # what pages of the book quote
        assert not set(own) & set(glued)
        glued |= own
    told = glued.pop("scorecard-line").data[TEXT].strip("'")
    assert re.match(r"Of 12 claims, \d+ \w+", told)  # words among numbers
    assert "nothing is compared" in glued.pop("pilot-line").data[TEXT]  # the published model is another
    values = {key: number(output) for key, output in glued.items() if TEXT in output.data}
    assert all(map(math.isfinite, values.values()))
    for key, value in values.items():
        if key.endswith(("zero-shot", "experts", "individual", "task-wise", "layer-wise", "soft", "hard", "least")):
            assert 0 < value <= 100, key
    # Even in a smoke run, experts know their own tasks, and what is merged knows less.
    assert values["eight-individual"] > 50
    for less, more in (
        ("tasks-zero-shot", "tasks-experts"),
        ("regime-zero-shot", "regime-experts"),
        ("twenty-zero-shot", "twenty-individual"),
        ("arithmetic-forgot", "arithmetic-stayed"),
        ("scaling-few-blind", "scaling-all-blind"),  # an expert joined
        ("generalisation-first-layer-wise", "generalisation-first-individual"),
        ("generalisation-second-layer-wise", "generalisation-second-individual"),
        ("robustness-corrupted-individual", "robustness-clean-individual"),
    ):
        assert values[less] < values[more]
    assert values["fw-simplex"] <= values["fw-individual"]
    assert values["fw-moved"] == 0.65  # arithmetic on the authors' values
    assert 0 < values["tasks-norm"] < 100
    assert -1 <= values["tasks-cosine"] <= 1
    assert values["arithmetic-coefficient"] in {0.0, 0.3, 1.0}
    assert 50 < values["arithmetic-kept"] < 110
    assert values["arithmetic-barrier"] >= 0
    assert 0 < values["adamerging-correlation"] <= 1
    assert values["ablations-apart"] > 1.9 * 2**0.5 * values["ablations-images"] > 0


def quoted(notebook: str) -> set[str]:
    """Return the keys that pages of the book quote from `notebook`."""
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "book").rglob("*.md")]
    found = [match for page in pages for pattern in QUOTED for match in pattern.finditer(page)]
    return {match["key"] for match in found if match["notebook"] == notebook}


def outputs_of(path: Path) -> list[Any]:
    done = nbformat.read(path, as_version=4)
    return [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]


def check(outputs: list[Any]) -> None:
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    alts = [
        alt
        for output in outputs
        if "text/html" in output.get("data", {})
        for alt in Seen(output.data["text/html"]).alts
    ]
    assert alts  # every notebook draws
    assert all(alts)


def by_key(outputs: list[Any]) -> dict[str, Any]:
    return {output.metadata.scrapbook.name: output for output in outputs if "scrapbook" in output.get("metadata", {})}


def number(output: Any) -> float:
    return float(output.data[TEXT].strip("'"))
