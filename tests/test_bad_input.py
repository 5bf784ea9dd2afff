"""Hundreds of bad inputs to the commands: each ends with an error in words, at once, and leaves nothing behind."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fakes
import pytest
from projects import PARAMETERS, write_notebook, write_profile
from typer.testing import CliRunner

from mergekit_lite import suites
from mergekit_lite.cli import app
from mergekit_lite.pipeline import book, runner
from mergekit_lite.suites.clip import fetch
from mergekit_lite.suites.miniature import pretraining


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_notebook(tmp_path_factory.mktemp("template"), "one").read_bytes()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, notebook: bytes) -> Path:
    """A project, in which whatever would begin to work fails the test."""

    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError("this should not have been begun")

    for module, name in [
        *((runner, "execute"), (fetch, "_items"), (pretraining, "see"), (book, "build_book")),
        *((fakes.FakeSuite, "encode"), (fakes.FakeSuite, "split")),
    ]:
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(runner, "library_hash", lambda: "")  # takes a second
    (tmp_path / "file").write_text("no checkpoint")
    (tmp_path / "folder").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "one.ipynb").write_bytes(notebook)
    write_profile(tmp_path, one={"steps": 2})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(root: Path, *arguments: str) -> str:
    """Call the command, check that it fails as it should, and return what it says."""
    before = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    begun = time.monotonic()
    result = CliRunner().invoke(app, list(arguments))
    assert time.monotonic() - begun < 10
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    said = result.stderr
    assert "Traceback" not in said
    assert len(said) > 20
    assert all(one.isprintable() or one == "\n" for one in said)
    assert {path: path.stat().st_size for path in root.rglob("*") if path.is_file()} == before
    return said


def called(values: Sequence[str]) -> Any:
    return pytest.mark.parametrize("value", values, ids=[ascii(value)[:30] for value in values])


NAMES = [
    *("", " ", ".", "..", "/", "~", "~no-such-user/x", "../one", "/etc/passwd", "a/b", "a\\b", "C:\\x", "-", "x" * 300),
    *(
        "x" * 100_000,
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07",
        "\a",
        "a\nb",
        "a\rb",
        "\0",
        "\ud800",
        "é",
        "ü" * 200,
        "🦊",
    ),
    *(
        "{}",
        "{0}",
        "%s",
        "$HOME",
        "`id`",
        "*",
        "?",
        "[bold]",
        "None",
        "nan",
        "1",
        "1e-3",
        "os.system",
        "a.b.c",
        "this.",
    ),
]
PLACES = {
    "run": ("run", "VALUE"),
    "run --only": ("run", "short", "--only", "VALUE"),
    "promote": ("promote", "VALUE"),
    "doctor": ("doctor", "VALUE"),
    "pretrain": ("pretrain", "VALUE"),
    "suite": ("finetune", "VALUE", "digits"),
    "task": ("finetune", "fake", "VALUE"),
    "device": ("finetune", "miniature", "digits", "--device", "VALUE"),
    "fetch": ("fetch", "VALUE"),
    "fetch --tasks": ("fetch", "clip-vit-b-32", "--tasks", "VALUE"),
    "fetch --lock": ("fetch", "clip-vit-b-32", "--lock", "VALUE"),
    "convert --suite": ("convert", "file", "--suite", "VALUE", "--task", "dtd"),
    "convert --task": ("convert", "file", "--suite", "clip-vit-b-32", "--task", "VALUE"),
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``fake`` be a suite; any other name is looked up as always."""
    real = suites.load_suite
    monkeypatch.setattr(
        suites, "load_suite", lambda name, device: fakes.fake_suite() if name == "fake" else real(name, device)
    )


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("place", PLACES)
@called(NAMES)
def test_a_name_that_is_none(root: Path, place: str, value: str) -> None:
    refused(root, *(value if part == "VALUE" else part for part in PLACES[place]))


@called(["", "..", "a/b", "/", "../x", "x" * 61, "\x1b[31m", "a\nb", "\0", "\ud800", "é", "🦊", "a b", "a@b", "*"])
def test_a_family_that_is_none(root: Path, value: str) -> None:
    if value != "..":  # a folder's name begins with the suite's, so dots are as good as letters
        refused(root, "convert", "file", "--family", value)
    refused(root, "convert", "file", "--family", value, "--suite", "clip-vit-b-32", "--task", "nothing")
    refused(root, "finetune", f"clip-vit-b-32@{value}/x", "dtd")
    refused(root, "finetune", f"miniature@{value}", "digits")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", ["--steps", "--learning-rate", "--batch-size", "--seed", "--checkpoint-every"])
@called(
    ["-1", "1e30", "nan", "inf", "-inf", "1e400", "9" * 30, "9" * 5000, "", "x", "1,5", "0x10", "1e-400", "\x1b[31m"]
)
def test_a_number_out_of_range(root: Path, name: str, value: str) -> None:
    refused(root, "finetune", "fake", "digits", name, value)


@pytest.mark.usefixtures("fake")
@called(["~no-such-user/x", "/dev/null/x", "file", "file/x", "/proc/x", "a\0b", "x" * 300, "\x1b[31m/\0"])
def test_a_place_where_nothing_can_be_written(root: Path, value: str) -> None:
    refused(root, "finetune", "fake", "digits", "--output", value)


@called(["~no-such-user/x", "/dev/null/x", "file/x", "folder", ".", "/proc/x/y", "a\0b/c"])
def test_a_file_that_cannot_be_written(root: Path, value: str) -> None:
    refused(root, "pretrain", "miniature", "--output", value)


@called(
    [
        "~no-such-user/x.pt",
        "nothing.pt",
        "folder",
        "file",
        "file/x",
        "",
        "a\0b",
        "x" * 300,
        "\x1b[31m",
        "\ud800",
        "/proc/x",
    ]
)
def test_a_checkpoint_that_is_none(root: Path, value: str) -> None:
    refused(root, "convert", value)


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["nothing"],
            ["--nothing"],
            ["\x1b[31m"],
            ["run"],
            ["run", "a", "b"],
            ["run", "--only"],
            ["run", "--force=1"],
        ),
        *(["promote"], ["book", "x"], ["book", "--x"], ["pretrain"], ["finetune"], ["finetune", "x"], ["convert"]),
        *(["fetch"], ["fetch", "x", "--workers", "x"], ["fetch", "x", "--workers", "-1"], ["doctor", "a", "b"]),
        *(["fetch", "x", "--workers", "9" * 5000], ["fetch", "x", "--workers", "1e3"], ["--version=x"], ["-x"]),
        *(["fetch", "x", "--workers", "1000000"], ["fetch", "clip-vit-b-32", "--tasks", "eight,nine"]),
        *(["fetch", "clip-vit-b-32", "--tasks", ",,"], ["fetch", "miniature"], ["fetch", "clip-vit-b-32@OC-8"]),
        *(["convert", "file", "--task", "dtd"], ["convert", "file", "--suite", "clip-vit-b-32"]),
        *(["convert", "file", "--suite", "clip-vit-b-32", "--task", "dtd", "--output", "x"], ["convert", "a", "b"]),
        *(["finetune", "miniature", "digits", "--device", "meta"], ["finetune", "json.decoder", "digits"]),
        *(["finetune", "os.path", "digits"], ["finetune", "torch.serialization", "digits"], ["\x1b[31m", "--help\0"]),
    ],
    ids=lambda arguments: ascii(" ".join(arguments))[:40],
)
def test_a_wrong_command_line(root: Path, arguments: list[str]) -> None:
    refused(root, *arguments)


def under(parameters: str) -> str:
    return f"suite: miniature\nnotebooks: {{one: {{{parameters}}}}}"


PROFILES = [
    *(
        "",
        "~",
        "3",
        "[]",
        "{}",
        "x",
        "- suite",
        "suite",
        "suite: [",
        "\t",
        "\0",
        "%YAML 9",
        "--- a\n--- b",
        "!!x y",
        "*a",
    ),
    *("suite: miniature", "notebooks: {one: {}}", "suite: ''\nnotebooks: {one: {}}", "suite: 3\nnotebooks: {one: {}}"),
    *("suite: 2020-01-01\nnotebooks: {one: {}}", "suite: 2020-13-45", "suite: !!timestamp x", "suite: !!bool maybe"),
    *("suite: !!int ''", "suite: !!binary é", "!!set {suite, notebooks}", "!!binary aGVsbG8=", "!!omap [suite: a]"),
    *("suite: &a [*a]\nnotebooks: {one: {}}", "suite: x\nnotebooks: &again [*again]", "&a {suite: x, notebooks: *a}"),
    *("suite: miniature\nnotebooks: " + text for text in ("{}", "[]", "~", "one", "{one: 3}", "{one: [a]}", "{3: {}}")),
    *("suite: miniature\nnotebooks: {? [a] : {}}", "suite: miniature\nnotebooks: {? {a: b} : {}}", "{a: " * 3000),
    *(
        f"suite: miniature\nnotebooks: {{{name}: {{}}}}"
        for name in ("/etc/passwd", "../one", "a/b", "x" * 300, "'a b'")
    ),
    *(
        f"suite: miniature\nnotebooks: {{{name}: {{}}}}"
        for name in ('"\\e[31m"', '"\\0"', '"\\ud800"', "two", "''", "~")
    ),
    *(f"suite: {name}\nnotebooks: {{one: {{}}}}" for name in ("minature", "a.b", "x" * 300, '"\\e[31m"', "clip@x/y")),
    *(
        f"suite: {name}\nnotebooks: {{one: {{}}}}"
        for name in ("miniature@x", '"a\\nb"', '"\\0"', "../x", "a." * 2000 + "a")
    ),
    *(
        under(f"steps: {value}")
        for value in ("a", "'3'", "3.5", "true", "~", "[]", "{}", "2020-01-01", "9" * 5000, "-.inf")
    ),
    *(under(f"rate: {value}") for value in ("1e-3", ".nan", ".inf", "'x'", "true", "~", "0x" + "f" * 5000)),
    *(under(f"name: {value}") for value in ("3", "~", "2020-01-01", '"\\ud800"', "[a]", "!!binary aGk=", "&a [*a]")),
    *(under(f"quick: {value}") for value in ("1", "0", "'yes'", "~")),
    *(
        under(text)
        for text in ("step: 3", "'': 3", "3: 3", "~: 3", '"\\e[31m": 3', "? [a] : 3", "true: 1", "suite: nope")
    ),
    "suite: miniature\nnotebooks: {one: {}}\nworkers: 3",
    "suite: miniature\nnotebooks: {one: {}}\nbudget: 3",
    "suite: miniature\nnotebooks: {one: {}}\nbudget: {time: 3}",
    "suite: miniature\nnotebooks: {one: {}}\nname: other",
    "suite: miniature\nnotebooks: {one: {}}\nname: 0x" + "f" * 5000,
    "suite: miniature\nnotebooks: {one: {}}\nname: &a [*a]",
    "suite: miniature\nnotebooks: {one: {}}\ndescription: 3",
    "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30)),
    "suite: miniature\nnotebooks: {one: {steps: " + "[" * 90 + "]" * 90 + "}}",
    "suite: miniature\na: &a [x, x]\n" + "".join(f"a{n}: &a{n} [*a, *a]\n" for n in range(9)) + "notebooks: {one: {}}",
]


@called(PROFILES)
def test_a_profile_that_is_none(root: Path, value: str) -> None:
    (root / "profiles" / "odd.yaml").write_text(value, encoding="utf-8")
    refused(root, "run", "odd")


@pytest.mark.parametrize("kind", ["folder", "loop", "broken link", "device", "no text"])
@pytest.mark.parametrize("place", ["profiles/odd.yaml", "notebooks/one.ipynb"])
def test_something_else_in_a_files_place(root: Path, kind: str, place: str) -> None:
    write_profile(root, "odd", one={})
    path = root / place
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "broken link":
            path.symlink_to(root / "nothing")
        case "device":
            path.symlink_to("/dev/zero")
        case "no text":
            path.write_bytes(b"\xff\xfe\x00\x80")
    refused(root, "run", "odd")


CELLS = [
    *("steps = 3", "import os", "steps: int", "steps: integer = 3", "steps: int = '2'", "steps: int = 2.0", "print(3)"),
    *(
        "steps: int = f()",
        "steps: int | None = None",
        "names: list[str] = ['a']",
        "steps: print('x') = 3",
        "%pip",
        "!ls",
    ),
    *("steps: int = {[]: 1}", "steps: int = 0x" + "f" * 5000, "steps: int = " + "9" * 5000, "rate: float = 1e999"),
    *(
        "steps: int = " + "-" * 9000 + "1",
        "steps: int = " + "(" * 500,
        "steps: int = 1" + "+1" * 9000,
        "x" + ".y" * 9000,
    ),
    *(
        "name: str = '\\ud800'",
        "name: str = '\ud800'",
        "\0",
        "(",
        "'''",
        "steps: int = (yield)",
        "steps: int = lambda: 0",
    ),
    *("steps: int = 1j", "quick: bool = 1", "name: str = b'x'", "steps: int = [" * 90 + "]" * 90, "  steps: int = 1"),
    *("steps: int = 1\n steps: int = 2", "def f(): ...", "steps.x: int = 1", "(steps): int = 1; '\x1b[31m'"),
]


@called(CELLS)
def test_a_cell_of_parameters_that_is_none(root: Path, value: str) -> None:
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": value, "outputs": []}
    written(root, {"cells": [{**cell, "execution_count": None}]})
    refused(root, "run", "short")


def written(root: Path, change: dict[str, Any]) -> None:
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [], **change}
    (root / "notebooks" / "one.ipynb").write_text(json.dumps({key: one for key, one in whole.items() if one != "gone"}))


CELL: dict[str, Any] = {
    "cell_type": "code",
    "id": "a",
    "metadata": {},
    "source": "",
    "outputs": [],
    "execution_count": 1,
}
SOURCES: list[Any] = [None, 3, {}, [1]]
TAGS: list[Any] = [3, "parameters", [[]], {"a": 1}]


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"nbformat": 99},
            {"nbformat": -1},
            {"nbformat": "4"},
            {"nbformat": None},
            {"nbformat": "gone"},
            {"nbformat": 3},
        ),
        *({"nbformat_minor": None}, {"nbformat_minor": "x"}, {"nbformat": 10**30}, {"cells": "gone"}, {"cells": None}),
        *({"cells": {}}, {"cells": [1]}, {"cells": [[]]}, {"cells": [{}]}, {"metadata": None}, {"metadata": []}),
        *(
            {"cells": [{key: one for key, one in CELL.items() if key != gone}]}
            for gone in ("source", "cell_type", "metadata")
        ),
        *({"cells": [{**CELL, "source": source}]} for source in SOURCES),
        *({"cells": [{**CELL, "metadata": {"tags": tags}}]} for tags in TAGS),
        *({"cells": [{**CELL, "cell_type": kind}]} for kind in ("", 3, None)),
    ],
    ids=lambda change: ascii(change)[:40],
)
def test_a_notebook_that_is_none(root: Path, change: dict[str, Any]) -> None:
    written(root, change)
    refused(root, "run", "short")


@called(
    [
        "",
        "x",
        "[]",
        "3",
        "null",
        "NaN",
        '{"nbformat": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "\ufeff{}",
        '{"a": "\\ud800"}',
    ]
)
def test_a_notebook_of_any_text(root: Path, value: str) -> None:
    (root / "notebooks" / "one.ipynb").write_text(value, encoding="utf-8")
    refused(root, "run", "short")


def test_the_notebook_itself_is_fine(root: Path) -> None:
    assert runner.notebook_parameters(root / "notebooks" / "one.ipynb").keys() == {
        line.partition(":")[0] for line in PARAMETERS.splitlines()
    }


def test_a_cache_at_the_home_of_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", "~no-such-user/x")
    said = refused(root, "convert", "file", "--suite", "clip-vit-b-32", "--task", "dtd")
    assert "MERGEKIT_LITE_CACHE is '~no-such-user/x'" in said
