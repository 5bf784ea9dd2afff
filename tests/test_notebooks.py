"""The notebooks: templates without outputs, parameters that papermill reads, and a smoke run from end to end."""

import re
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
PARAMETER = re.compile(r"^[a-z_]+: (str|int|float|bool) = \S.*  # \S.*$")
GLUED = (
    "zero-shot",
    "simple-average",
    "task-arithmetic",
    "ties",
    "tsv",
    "iso-c",
    "regmean",
    "task-wise",
    "layer-wise",
    "layer-wise-plus",
    "multi-task",
    "individual",
    "table",
    "bars",
)

TWENTY_GLUED = (
    *("table", "bars", "few-table", "few-bars", "zero-shot", "simple-average", "task-arithmetic", "tsv", "regmean"),
    *("layer-wise", "soft", "individual", "few-layer-wise", "few-soft", "few-soft-paper", "few-hard", "few-blind"),
    "few-individual",
)
FW_GLUED = (
    *("promises", "trace", "variants", "hard", "hard-tensor", "simplex", "capped", "free", "task-arithmetic"),
    *("individual", "moved"),
)
SCALING_GLUED = (
    *("irrelevant", "relevant", "broken"),
    *(f"{pool}-{method}" for pool in ("alone", "crowd", "few", "all") for method in ("soft", "layer-wise", "blind")),
)
GENERALISATION_GLUED = (
    *("dots", "gains", "experts"),
    *(
        f"{experiment}-{key}"
        for experiment in ("first", "second")
        for key in ("zero-shot", "task-arithmetic", "ties", "layer-wise", "individual")
    ),
)
ROBUSTNESS_GLUED = (
    *("pictures", "dots", "drop", "tasks", "table", "corrupted-kept"),
    *(
        f"{on}-{key}"
        for on in ("clean", "corrupted")
        for key in ("task-arithmetic", "ties", "layer-wise", "individual")
    ),
)

ABLATIONS_GLUED = (
    *("spread", "sweep", "variants", "front", "costs"),
    *("seeds", "images", "apart", "largest", "seconds", "blind-seconds"),
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
    assert all(tags(cell) == [] for cell in runs)
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


@pytest.mark.parametrize("name", sorted({name.removesuffix("-seeds") for name in PROFILES}))
def test_ablations_have_the_values_that_eight_tasks_has(name: str) -> None:
    values = []
    for notebook, profile in eight_tasks_and_ablations(name):
        defaults = notebook_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
        values.append({key: one.default for key, one in defaults.items()} | check_parameters(profile, notebook, ROOT))
    shared = set(values[0]) - {"published_model"}
    assert {key: values[1][key] for key in shared} == {key: values[0][key] for key in shared}


class Seen(HTMLParser):
    """Collects the alternative texts and counts the tables of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.alts: list[str | None] = []
        self.tables = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tables += tag == "table"
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))


@pytest.mark.skipif(not BASE.exists(), reason="there are no base weights: run mergekit-lite pretrain miniature")
def test_smoke_profile_runs_from_end_to_end_and_is_fit_for_the_book(tmp_path: Path) -> None:
    for folder in ("notebooks", "profiles"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    executed = {path.stem: path for path in run_profile(load("smoke", tmp_path), tmp_path)}
    names = (
        "eight_tasks",
        "tasks",
        "regime",
        "task_arithmetic",
        "adamerging",
        "twenty_tasks",
        "frank_wolfe",
        "scaling",
        "ablations_and_cost",
        "generalisation",
        "robustness",
    )
    assert set(executed) == set(names)
    (
        eight,
        tasks,
        regime,
        arithmetic,
        adamerging,
        twenty,
        frank_wolfe,
        scaling,
        ablations,
        generalisation,
        robustness,
    ) = (outputs_of(promote(executed[name], ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "book")) for name in names)
    check(eight, tables=2, figures=5)  # the tasks and the results
    glued = by_key(eight)
    assert set(glued) == {f"eight-{key}" for key in GLUED}
    assert "Layer-wise AdaMerging" in glued["eight-table"].data["text/html"]
    assert "AdaMerging Table 1, ViT-B/32 (OC-8)" in glued["eight-table"].data["text/html"]
    assert 50 < number(glued["eight-individual"]) <= 100  # even in a smoke run, experts know their own tasks

    check(tasks, tables=1, figures=3)
    glued = by_key(tasks)
    assert set(glued) == {f"tasks-{key}" for key in ("table", "zero-shot", "experts", "norm", "cosine")}
    assert "CLIP ViT-B/32 (FB)" in glued["tasks-table"].data["text/html"]
    assert number(glued["tasks-zero-shot"]) < number(glued["tasks-experts"]) <= 100
    assert 0 < number(glued["tasks-norm"]) < 100
    assert -1 <= number(glued["tasks-cosine"]) <= 1

    check(regime, tables=2, figures=1)
    glued = by_key(regime)
    assert set(glued) == {f"regime-{key}" for key in ("zero-shot", "experts", "alone", "crowd", "rank")}
    assert number(glued["regime-zero-shot"]) < number(glued["regime-experts"]) <= 100

    check(arithmetic, tables=0, figures=6)
    glued = by_key(arithmetic)
    numbers = ("best", "coefficient", "kept", "forgot", "stayed", "barrier")
    assert set(glued) == {f"arithmetic-{key}" for key in ("scaling", "pairs", "negation", *numbers)}
    assert number(glued["arithmetic-coefficient"]) in {0.0, 0.3, 1.0}
    assert 50 < number(glued["arithmetic-kept"]) < 110
    assert number(glued["arithmetic-forgot"]) < number(glued["arithmetic-stayed"])
    assert number(glued["arithmetic-barrier"]) >= 0

    check(adamerging, tables=2, figures=8)
    glued = by_key(adamerging)
    numbers = ("task-wise", "layer-wise", "labels", "correlation", "least", "seconds")
    drawn = ("paths", "depth", "curves", "entropy", "share")
    assert set(glued) == {f"adamerging-{key}" for key in (*drawn, *numbers)}
    assert 0 < number(glued["adamerging-correlation"]) <= 1
    for key in ("task-wise", "layer-wise", "labels", "least"):
        assert 0 < number(glued[f"adamerging-{key}"]) <= 100
    check(twenty, tables=3, figures=3)  # all tasks, their sources, the few tasks
    glued = by_key(twenty)
    assert set(glued) == {f"twenty-{key}" for key in TWENTY_GLUED}
    assert "FB; read off a figure" in glued["twenty-table"].data["text/html"]
    assert "FB; from a third-party note" in glued["twenty-few-table"].data["text/html"]
    assert number(glued["twenty-zero-shot"]) < number(glued["twenty-individual"]) <= 100

    check(frank_wolfe, tables=0, figures=6)
    glued = by_key(frank_wolfe)
    assert set(glued) == {f"fw-{key}" for key in FW_GLUED}
    assert number(glued["fw-moved"]) == 0.65  # arithmetic on the authors' values
    assert 0 < number(glued["fw-simplex"]) <= number(glued["fw-individual"])

    check(scaling, tables=0, figures=4)
    glued = by_key(scaling)
    assert set(glued) == {f"scaling-{key}" for key in SCALING_GLUED}
    assert "FB; read off a figure" in glued["scaling-irrelevant"].data["text/html"]  # in the alternative text
    assert number(glued["scaling-few-blind"]) < number(glued["scaling-all-blind"]) <= 100  # an expert joined

    check(ablations, tables=3, figures=4)  # pairs, costs, published costs
    glued = by_key(ablations)
    assert set(glued) == {f"ablations-{key}" for key in ABLATIONS_GLUED}
    assert number(glued["ablations-images"]) > 0
    assert number(glued["ablations-apart"]) > 1.9 * 2**0.5 * number(glued["ablations-images"])
    assert "unlabelled test" in glued["ablations-costs"].data["text/html"]

    check(generalisation, tables=2, figures=3)  # a table for each family of published numbers
    glued = by_key(generalisation)
    assert set(glued) == {f"generalisation-{key}" for key in GENERALISATION_GLUED}
    assert "AdaMerging Table 3, ViT-B/32 (OC-8)" in glued["generalisation-dots"].data["text/html"]
    for experiment in ("first", "second"):  # the expert of a task knows more of it than a merge without it
        merged, expert = (glued[f"generalisation-{experiment}-{key}"] for key in ("layer-wise", "individual"))
        assert number(merged) < number(expert)

    check(robustness, tables=1, figures=4)
    glued = by_key(robustness)
    assert set(glued) == {f"robustness-{key}" for key in ROBUSTNESS_GLUED}
    assert "FusionBench robustness, ViT-B/32 (FB)" in glued["robustness-dots"].data["text/html"]
    assert number(glued["robustness-corrupted-individual"]) < number(glued["robustness-clean-individual"])


def outputs_of(path: Path) -> list[Any]:
    done = nbformat.read(path, as_version=4)
    return [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]


def check(outputs: list[Any], *, tables: int, figures: int) -> None:
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    seen = [Seen(output.data["text/html"]) for output in outputs if "text/html" in output.get("data", {})]
    assert sum(one.tables for one in seen) == tables
    assert sum(len(one.alts) for one in seen) == figures
    assert all(alt for one in seen for alt in one.alts)


def by_key(outputs: list[Any]) -> dict[str, Any]:
    return {output.metadata.scrapbook.name: output for output in outputs if "scrapbook" in output.get("metadata", {})}


def number(output: Any) -> float:
    return float(output.data["application/papermill.record/text/plain"].strip("'"))
