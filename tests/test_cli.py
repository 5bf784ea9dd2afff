"""The command line: help comes at once and shows an example; what a user can mend is said without a traceback."""

import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from projects import write_notebook, write_profile
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import book, promotion, runner

COMMANDS = [one.callback.__name__ for one in app.registered_commands if one.callback]


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_notebook(tmp_path, "one")
    write_profile(tmp_path, one={"steps": 2})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_command_the_commands_are_listed() -> None:
    _, said, _ = call()
    assert all(command in said for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_shows_an_example_of_that_command(command: str) -> None:
    code, said, _ = call(command, "--help")
    assert code == 0
    assert f"Example: mergekit-lite {command}" in " ".join(said.split())


def test_version() -> None:
    assert call("--version")[:2] == (0, f"mergekit-lite {version('mergekit-lite')}\n")


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom mergekit_lite.cli import app\n"
        "try:\n    app(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('loaded:', {'torch', 'papermill', 'open_clip', 'pandas'} & set(sys.modules))"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded: set()" in done.stdout
    assert time.perf_counter() - begun < 3  # 0.3 s where nothing else runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "shor"), "Error: There is no profile 'shor'. Did you mean 'short'? Profiles: short."),
        (("run", "short", "--only", "two"), "Error: Profile 'short' has no notebook 'two'. Notebooks: one."),
        (
            ("promote", "short"),
            "Error: There is no build/short/one.ipynb to promote. Run `mergekit-lite run short` first.",
        ),
        (("pretrain", "big"), "Error: The base weights of 'big' are not made here."),
        (("doctor", "x"), "Error: There is no profile 'x'."),
    ],
)
def test_what_a_user_can_mend_is_said_without_a_traceback(root: Path, arguments: tuple[str, ...], words: str) -> None:
    code, said, complaint = call(*arguments)
    assert (code, said) == (1, "")
    assert words in complaint
    assert "Traceback" not in complaint


def test_a_wrong_parameter_in_a_profile_is_said(root: Path) -> None:
    write_profile(root, one={"step": 2})
    code, _, complaint = call("run", "short")
    assert code == 1
    assert complaint.startswith("Error: profiles/short.yaml, notebook 'one': It has no parameter 'step'.")


def test_outside_a_project_it_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, complaint = call("book")
    assert code == 1
    assert "Change into a clone of the project" in complaint


def test_an_interrupt_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(root: Path, *, with_solutions: bool) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(book, "build_book", interrupted)
    code, _, complaint = call("book")
    assert code == 130
    assert complaint == "Interrupted. What was finished is kept: run the same command again to resume.\n"


def test_commands_hand_over_what_they_were_given(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def run_profile(profile: object, where: Path, only: str | None, force: bool, **more: str | None) -> list[Path]:
        calls.append((getattr(profile, "name", None), where, only, force, more["shard"]))
        return [where / "build" / "short" / "one.ipynb"]

    def promote(executed: Path, template: Path, book: Path) -> Path:
        calls.append((executed, template, book))
        return book / "executed" / "one.ipynb"

    monkeypatch.setattr(runner, "run_profile", run_profile)
    monkeypatch.setattr(promotion, "promote", promote)
    monkeypatch.setattr(promotion, "promote_records", lambda book: [book / "records" / "fake" / "aa.json"])
    assert call("run", "short", "--only", "one", "--force", "--shard", "2/3")[:2] == (0, "build/short/one.ipynb\n")
    assert call("promote", "short")[:2] == (0, "book/executed/one.ipynb\nbook/records: 1 records\n")
    assert calls == [
        ("short", root, "one", True, "2/3"),
        (root / "build/short/one.ipynb", root / "notebooks/one.ipynb", root / "book"),
    ]


def test_other_exceptions_keep_their_traceback() -> None:
    from mergekit_lite.cli.wording import worded

    def broken() -> None:
        raise ZeroDivisionError

    def mended() -> None:
        raise KitError("x")

    with pytest.raises(ZeroDivisionError):
        worded(broken)()
    with pytest.raises(typer.Exit):
        worded(mended)()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KitError("\x1b[31mred\r\u202e\ud800\nä {next}"), "Error: \\x1b[31mred\\r\\u202e\\ud800\nä {next}\n"),
        (
            PermissionError(13, "No", "/a\x1b"),
            "Error: [Errno 13] No: '/a\\x1b'. Check that file or folder, and try again.\n",
        ),
    ],
)
def test_a_terminal_obeys_nothing_that_an_error_quotes(
    error: Exception, words: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: Path, *, with_solutions: bool) -> Path:
        raise error

    monkeypatch.setattr(book, "build_book", broken)
    assert call("book") == (1, "", words)
