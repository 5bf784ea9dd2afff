"""Whatever somebody writes into a cell, a profile or a notebook: a valid result or an error in words, and soon."""

import copy
import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fakes
import nbformat
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from projects import PARAMETERS, write_notebook
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods import all_methods, registry
from mergekit_lite.pipeline import profiles, runner
from mergekit_lite.study import Cell, cell_key, task_data
from mergekit_lite.study.checks import resolved

METHODS = [info for info in all_methods() if info.function.__module__.startswith("mergekit_lite.")]
TASKS = ("digits", "signs")

settings.register_profile(
    "bounded",
    derandomize=True,
    database=None,
    deadline=10_000,  # milliseconds for one example
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("bounded")

DEEP: list[Any] = []
for _ in range(3000):
    DEEP = [DEEP]
AGAIN: list[Any] = []
AGAIN.append(AGAIN)

HOSTILE: list[Any] = [
    *(math.nan, math.inf, -math.inf, -1.5, 1e308, -1e308, 5e-324, -0.0, 0, -1, 10**9, -(10**9), 10**30, 10**5000),
    *(True, False, None, "", "x", "1e-3", "nan", "\x1b[31m", "\ud800", "\0", "x" * 1000, b"x", 1j),
    *([], {}, [[]], [math.nan], [[math.inf]], [["x"]], [[0.3], 1], [[10**400]], {"a": 1}, {1, 2}, AGAIN, DEEP),
    *(datetime.date(2020, 1, 1), object(), int, torch.tensor(1.0)),
]


def hostile(kinds: type | tuple[type, ...] = object) -> st.SearchStrategy[Any]:
    """Draw a hostile value. By its place, since a failing test prints what it draws from, and some cannot be."""
    places = [place for place, value in enumerate(HOSTILE) if isinstance(value, kinds)]
    return st.sampled_from(places).map(lambda place: HOSTILE[place])


def check_words(error: KitError, most: int = 3000) -> None:
    assert 20 < len(str(error)) < most


class Shown(fakes.FakeSuite):
    """The fake suite with the inputs of its one layer, for RegMean, which is block 0, for RegMean++."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.base, *ends = (
            {name.replace("layer", "layers.0"): one for name, one in weights.items()}
            for weights in (self.base, *self.experts.values())
        )
        self.experts = dict(zip(self.experts, ends, strict=True))

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return super().encode({name.replace("layers.0", "layer"): one for name, one in weights.items()}, images)

    def layer_inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        return {"layers.0.weight": images.float().sub(128).div(128).flatten(1)}


SUITE: Any = Shown()


def valid(schema: Mapping[str, Any], name: str) -> st.SearchStrategy[Any]:
    """Return what a parameter with this JSON schema takes; numbers of steps and images stay small."""
    if "anyOf" in schema:
        return st.one_of([valid(one, name) for one in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema["type"]:
        case "integer":
            return st.integers(schema["minimum"], schema["minimum"] + 2)
        case "number":
            low, high = schema.get("minimum"), schema.get("maximum")
            return st.floats(
                schema.get("exclusiveMinimum", low),
                schema.get("exclusiveMaximum", high),
                exclude_min=low is None,
                exclude_max=high is None,
            )
        case "array":
            return st.lists(valid(schema["items"], name), max_size=3)
        case "string":
            return st.sampled_from(["base", "task_arithmetic", "ties_merging", "regmean", "individual", "nope", ""])
    return st.booleans()


@st.composite
def parameters(draw: st.DrawFn, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Draw parameters; most often one of them is hostile. A count is never left out: some defaults take minutes."""
    drawn = {}
    for name, one in schema.get("properties", {}).items():
        if one.get("type") == "integer" or draw(st.booleans()):
            drawn[name] = draw(valid(one, name))
    known = [*schema.get("properties", {}), "step", "\x1b[31m"]
    for name in draw(st.lists(st.sampled_from(known), max_size=2)):
        drawn[name] = draw(hostile())
    return drawn


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a run that stopped early says so
@pytest.mark.parametrize("info", METHODS, ids=[info.name for info in METHODS])
def test_a_method_answers_with_finite_weights_or_in_words(info: registry.MethodInfo) -> None:
    @settings(max_examples=30)
    @given(parameters(info.parameters.model_json_schema()), st.sampled_from([0, 0, 0, 7, -1, 2**32, 10**5000]))
    def answers(given: dict[str, Any], seed: int) -> None:
        try:
            cell = Cell(method=info.name, parameters=given, pool=TASKS, evaluate=TASKS, seed=seed)
            whole = resolved(SUITE, cell)
            assert len(cell_key(SUITE, cell)) == 16
            data = task_data.shown(SUITE, whole.adapt, info.access_with(whole.parameters))
            offered = {"data": data, "seed": seed, "watch": None}
            handed = {name: offered[name] for name in info.resources if name in offered}
            experts = {task: SUITE.experts[task] for task in TASKS}
            merged = info.function(SUITE.base, experts, **handed, **whole.parameters)
        except KitError as error:
            return check_words(error)
        assert merged.weights.keys() == SUITE.base.keys()
        assert all(bool(tensor.isfinite().all()) for tensor in merged.weights.values())
        json.dumps(merged.trace)
        answered.append(given)

    answered: list[dict[str, Any]] = []
    answers()
    assert len(answered) >= 2


# --- profiles ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_notebook(folder, "one")
    (folder / "profiles").mkdir()
    return folder


def loaded(root: Path, content: bytes) -> None:
    (root / "profiles" / "drawn.yaml").write_bytes(content)
    try:
        profile = profiles.load("drawn", root)
        assert profile.suite is not None
        for notebook in profile.notebooks:
            given = runner.check_parameters(profile, notebook, root)
            runner.stamp(root / "notebooks" / "one.ipynb", given, "")
    except KitError as error:
        check_words(error, 20_000)


SCALARS = [
    *("suite", "notebooks", "one", "name", "drawn", "steps", "rate", "budget", "description", "x", "''", "~", "true"),
    *("2020-01-01", "2020-13-45", "12:30:45:59", "1e-3", ".nan", "-.inf", "0x" + "f" * 5000, "9" * 5000, "0o7", "1_0"),
    *("!!bool maybe", "!!int ''", "!!float x", "!!timestamp x", "!!binary '\xff'", "!!binary aGk=", "!!null x", "<<"),
    *(
        "!!set {a}",
        "!!omap [a: 1]",
        "!!pairs [a]",
        "!!python/name:os.system",
        "!x y",
        "&a x",
        "*a",
        "&b [*b]",
        "=",
        "?",
    ),
    *('"\\ud800"', '"\\x1b[31m"', '"\\0"', "../one", "/etc/passwd", "x" * 300, "ü" * 90, "miniature", "3", "0.5"),
]
NEAR = "suite: miniature\nnotebooks:\n  one:\n    steps: 3\n    rate: 0.5\n    name: b\n    quick: true\n"


@settings(max_examples=250)
@given(
    st.lists(
        st.one_of(st.sampled_from(SCALARS), st.sampled_from([": ", "\n", "\n  ", "- ", "{", "}", "[", "]", ", ", "#"])),
        max_size=14,
    )
)
def test_a_profile_of_any_pieces_is_loaded_or_answered_in_words(root: Path, pieces: list[str]) -> None:
    loaded(root, "".join(pieces).encode(errors="surrogateescape"))


@settings(max_examples=250)
@given(st.sampled_from(NEAR.replace(":", " :").split()), st.sampled_from(SCALARS))
def test_a_profile_with_one_strange_word_is_loaded_or_answered_in_words(root: Path, word: str, instead: str) -> None:
    loaded(root, NEAR.replace(word, instead, 1).encode())


@settings(max_examples=100)
@given(
    st.recursive(
        st.one_of(hostile((int, float, str, bytes, set, type(None))), st.sampled_from([[], AGAIN])),
        lambda inner: st.dictionaries(
            st.sampled_from(["suite", "notebooks", "one", "steps", "budget", "name", 3, 1.5, True, None, "x" * 300]),
            inner,
        ),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_a_profile_of_any_structure_is_loaded_or_answered_in_words(root: Path, content: Any, near: bool) -> None:
    whole = {"suite": "miniature", "notebooks": {"one": content}} if near else content
    try:
        text = yaml.safe_dump(whole)
    except (RecursionError, ValueError):
        return  # not a file that yaml can write
    loaded(root, text.encode(errors="surrogateescape"))


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_a_profile_of_any_bytes_is_loaded_or_answered_in_words(root: Path, content: bytes) -> None:
    loaded(root, content)


# --- notebooks --------------------------------------------------------------------------------------------------------

LINES = [
    *PARAMETERS.splitlines(),
    *("x: int = {[]: 1}", "x: int = " + "-" * 5000 + "1", "x: int = " + "(" * 300, "x: int = 0x" + "f" * 5000),
    *(
        "x: int = " + "9" * 5000,
        "x: float = 1e999",
        "x: float = -1e999",
        "x: str = '\\ud800'",
        "x: str = '\ud800'",
        "\0",
    ),
    *("x: int = " + "1+" * 3000 + "1", "x: int = " + "[" * 90 + "]" * 90, "x: __import__('os').abort() = 1", "%pip x"),
    *("x: int = 1; y: int = 2", "x = y: int", "x: str = f'{1}'", "x: str = b'x'", "x: bool = 1", "x: int = True", "#"),
    *("x: 'int' = 1", "x: int", "  x: int = 1", "\x0cx: int = 1", "x: float = nan", "x.y: int = 1", "é: int = 1"),
    *("del x", "lambda: 0", "x: str = '''", "\\", "x: str = 'a' 'b'", "x: float = 1_0", "x: float = 1" + "0" * 400),
]


def read(root: Path, content: str) -> None:
    path = root / "notebooks" / "drawn.ipynb"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    try:
        found = runner.notebook_parameters(path)
        assert all(one.takes(one.default) for one in found.values())
        assert isinstance(runner.run_of(path), dict)
    except KitError as error:
        check_words(error)


@settings(max_examples=100)
@given(st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=8)), min_size=1, max_size=4))
def test_a_parameters_cell_of_any_lines_is_read_or_answered_in_words(root: Path, lines: list[str]) -> None:
    source = "\n".join(lines)
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": source}
    whole = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [{**cell, "outputs": [], "execution_count": 1}],
    }
    read(root, json.dumps(whole))


JSON: list[Any] = [
    None,
    True,
    -1,
    99,
    1e308,
    "",
    "x",
    "parameters",
    [],
    {},
    [[]],
    {"a": 1},
    "\x1b[31m",
    "x" * 300,
    ["parameters"],
]


@settings(max_examples=150)
@given(st.data())
def test_a_notebook_with_anything_strange_in_it_is_read_or_answered_in_words(root: Path, data: st.DataObject) -> None:
    notebook: Any = copy.deepcopy(json.loads(nbformat.writes(nbformat.read(root / "notebooks" / "one.ipynb", 4))))
    notebook["metadata"]["mergekit_lite"] = {"stamp": ""}
    place = notebook
    for _ in range(data.draw(st.integers(0, 4))):
        inner = place[data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))]
        if not isinstance(inner, dict | list) or not inner:
            break
        place = inner
    where = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if data.draw(st.booleans()):
        del place[where]
    else:
        place[where] = data.draw(st.sampled_from(JSON))
    read(root, json.dumps(notebook))


@settings(max_examples=60)
@given(
    st.one_of(
        st.text(max_size=40), st.sampled_from(["[" * 100_000, '{"nbformat": ' + "9" * 5000 + "}", "NaN", "\ufeff{}"])
    )
)
def test_a_notebook_of_any_text_is_read_or_answered_in_words(root: Path, content: str) -> None:
    read(root, content)
