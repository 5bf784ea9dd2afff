"""A profile is checked as a whole before anything runs; what ran is kept, what is still valid is not run again."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from projects import write_notebook, write_profile

from mergekit_lite import cache
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import profiles, runner

LISTING = (
    "Parameters: steps: int = 3, rate: float = 0.001, name: str = 'a', quick: bool = False, suite: str = 'miniature'."
)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the import of torch and open_clip, which takes seconds."""
    monkeypatch.setattr(runner, "_check_suites", lambda profile, named: None)


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        output.text for cell in cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"steps": 5}, {"rate": 1}, {"rate": 0.5}, {"name": "b"}, {"quick": True}, {"suite": "other"}]
)
def test_parameters_of_the_right_type_pass_and_the_suite_is_added(tmp_path: Path, given: dict[str, Any]) -> None:
    write_notebook(tmp_path, "one")
    checked = runner.check_parameters(write_profile(tmp_path, one=given), "one", tmp_path)
    assert checked == {"suite": "miniature", **given}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step": 5}, "It has no parameter 'step'. Did you mean 'steps'?"),
        ({"steps": 5.5}, "Parameter 'steps' must be int, not 5.5 (float)."),
        ({"steps": "5"}, "Parameter 'steps' must be int, not '5' (str). Numbers stand without quotes"),
        ({"steps": True}, "Parameter 'steps' must be int, not True (bool)."),
        ({"rate": "1e-3"}, "YAML takes 1e-3 for text: write 1.0e-3."),
        ({"rate": True}, "Parameter 'rate' must be float, not True (bool)."),
        ({"name": ["a"]}, "Parameter 'name' must be str, not ['a'] (list)."),
        ({"quick": 1}, "Parameter 'quick' must be bool, not 1 (int)."),
        ({"steps": None}, "Parameter 'steps' must be int, not None (NoneType)."),
    ],
)
def test_a_wrong_parameter_fails_before_anything_runs(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    write_notebook(tmp_path, "good", "open('ran', 'w')")
    write_notebook(tmp_path, "bad")
    profile = write_profile(tmp_path, good={}, bad=given)
    with pytest.raises(KitError) as caught:
        runner.run_profile(profile, tmp_path)
    assert str(caught.value).startswith("profiles/short.yaml, notebook 'bad': ")
    assert words in str(caught.value)
    assert str(caught.value).endswith(LISTING)
    assert not (tmp_path / "build").exists()
    assert not (tmp_path / "notebooks" / "ran").exists()


@pytest.mark.parametrize(
    "line",
    [
        "steps = 3",
        "import os",
        "steps: integer = 3",
        "steps: int",
        "steps: int = 2 + compute()",
        "steps: int = '2'",
        "steps: int | None = None",
        "names: list[str] = ['a']",
        "steps: print('evaluated') = 3",
        "print(3)",
    ],
)
def test_a_line_that_is_no_assignment_with_a_known_type_is_worded_and_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    path = write_notebook(tmp_path, "one", parameters=line)
    with pytest.raises(KitError, match=r"one.ipynb: the cell tagged `parameters` holds .* `name: type = value`"):
        runner.notebook_parameters(path)
    assert capsys.readouterr().out == ""


def test_a_notebook_without_parameters_takes_none(tmp_path: Path) -> None:
    write_notebook(tmp_path, "one", parameters=None)
    assert runner.check_parameters(write_profile(tmp_path, one={}), "one", tmp_path) == {}
    with pytest.raises(KitError, match=r"It has no parameter 'steps'. Parameters: none\."):
        runner.check_parameters(write_profile(tmp_path, one={"steps": 1}), "one", tmp_path)


def test_unknown_notebooks_are_listed(tmp_path: Path) -> None:
    write_notebook(tmp_path, "one")
    profile = write_profile(tmp_path, one={})
    with pytest.raises(KitError, match=r"Profile 'short' has no notebook 'two'. Notebooks: one\."):
        runner.run_profile(profile, tmp_path, only="two")
    with pytest.raises(KitError, match=r"notebook 'two': there is no notebooks/two.ipynb. Notebooks: one\."):
        runner.run_profile(write_profile(tmp_path, two={}), tmp_path)


def test_a_file_that_is_no_notebook_is_worded(tmp_path: Path) -> None:
    write_notebook(tmp_path, "one").write_text("{}")
    with pytest.raises(KitError, match=r"notebooks/one.ipynb is not a notebook"):
        runner.run_profile(write_profile(tmp_path, one={}), tmp_path)


def test_the_library_hash_changes_with_what_notebooks_show_and_not_with_what_drives_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = Path(runner.__file__).parents[1]
    before, code, data = runner.library_hash(), runner._code_hash, cache.file_digest
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    driving = [package / name for name in ("pipeline", "cli", "course")]
    drivers = {path for path in files if any(map(path.is_relative_to, driving))}
    assert drivers
    hashed: list[Path] = []

    def noted(real: Callable[[Path], str]) -> Callable[[Path], str]:
        def of(path: Path) -> str:
            hashed.append(path)
            return real(path)

        return of

    monkeypatch.setattr(runner, "_code_hash", noted(code))
    monkeypatch.setattr(runner, "file_digest", noted(data))
    assert runner.library_hash() == before
    assert set(hashed) == set(files) - drivers
    monkeypatch.setattr(runner, "file_digest", lambda path: "x" if path.name == "reported.csv" else data(path))
    assert runner.library_hash() != before


def test_the_hash_of_a_file_changes_with_its_code_and_not_with_its_words(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text('"""One."""\n\ndef one(x: int) -> int:\n    return x + 1\n')
    before = runner._code_hash(path)
    path.write_text('"""Another."""\n\n\ndef one(x):\n    """Add."""\n    return x + 1  # one more\n')
    assert runner._code_hash(path) == before
    path.write_text("def one(x):\n    return x + 2\n")
    assert runner._code_hash(path) != before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}',
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "metadata": {}}]}',
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": [], "cells": [1]}',
    ],
)
def test_what_is_no_notebook_is_worded(tmp_path: Path, text: str) -> None:
    write_notebook(tmp_path, "one").write_text(text)
    with pytest.raises(KitError, match=r"notebooks/one.ipynb is not a notebook"):
        runner.run_profile(write_profile(tmp_path, one={}), tmp_path)


def test_a_folder_in_a_notebooks_place_is_worded(tmp_path: Path) -> None:
    path = write_notebook(tmp_path, "one")
    path.unlink()
    path.mkdir()
    with pytest.raises(KitError, match="cannot be read"):
        runner.run_profile(write_profile(tmp_path, one={}), tmp_path)


def test_parameters_that_are_no_python_are_worded(tmp_path: Path) -> None:
    path = write_notebook(tmp_path, "one")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = "steps: int = = 5"
    nbformat.write(notebook, path)
    with pytest.raises(KitError, match="the cell tagged `parameters` is no Python"):
        runner.run_profile(write_profile(tmp_path, one={}), tmp_path)


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_notebook_runs_in_this_python_and_again_only_when_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A user's own kernel of the same name must not take over.
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(json.dumps({"argv": ["/no/such/python"], "display_name": "x"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    root = tmp_path / "a {brace} in the name"
    template = write_notebook(root, "one", "import sys, os\nprint(steps, rate, suite, sys.executable, os.getcwd())")
    profile = write_profile(root, one={"steps": 7})

    (path,) = runner.run_profile(profile, root)
    assert path == root / "build" / "short" / "one.ipynb"
    expected = f"7 0.001 miniature {sys.executable} {root / 'notebooks'}\n"
    assert printed(path) == expected
    assert [one.name for one in path.parent.iterdir()] == ["one.ipynb"]
    said = capsys.readouterr().out
    assert said.startswith("one: running with suite='miniature', steps=7\n")
    assert expected in said  # what a notebook prints is shown while it runs
    done = re.search(r"one: done in (\d+) s\n$", said)
    assert done
    seconds = nbformat.read(path, as_version=4).metadata["mergekit_lite"]["seconds"]
    assert 0 < seconds == pytest.approx(int(done[1]), abs=0.6)

    before = path.read_bytes()
    runner.run_profile(profile, root)
    assert path.read_bytes() == before
    assert capsys.readouterr().out.startswith("one: unchanged since it was run")

    stamps = [runner.run_of(path)["stamp"]]

    def executed(template: Path, target: Path, parameters: dict[str, object], stamped: dict[str, str]) -> float:
        stamps.append(stamped["stamp"])
        return 0.0

    monkeypatch.setattr(runner, "execute", executed)
    runner.run_profile(profile, root, force=True)
    runner.run_profile(write_profile(root, one={"steps": 8}), root)
    monkeypatch.setattr(runner, "library_hash", lambda: "another")
    runner.run_profile(profile, root)
    monkeypatch.undo()
    monkeypatch.setattr(runner, "execute", executed)
    monkeypatch.setattr(runner, "_check_suites", lambda profile, named: None)
    template.write_text(template.read_text().replace("print(steps", "print( steps"))
    runner.run_profile(profile, root)
    assert len(stamps) == 5
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 4


def test_the_budget_is_printed_before_a_run_and_not_when_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook(tmp_path, "one", "steps")
    path = tmp_path / "profiles" / "short.yaml"
    write_profile(tmp_path, one={})
    words = {"download": "nothing", "disk": "1 GB (computed)", "memory": "2 GB (measured)", "time": "not measured yet"}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "budget": words}))
    profile = profiles.load("short", tmp_path)
    runner.run_profile(profile, tmp_path)
    budget, _, rest = capsys.readouterr().out.partition("one: running")
    assert budget.splitlines()[1:] == [f"  {name}: {text}" for name, text in words.items()]
    assert rest
    runner.run_profile(profile, tmp_path)
    assert "nothing" not in capsys.readouterr().out.replace("nothing to do", "")


def test_a_failing_cell_is_named_and_the_last_good_result_stays(tmp_path: Path) -> None:
    write_notebook(tmp_path, "one", "if steps == 9:\n    raise RuntimeError('too many')", "print('end')")
    (good,) = runner.run_profile(write_profile(tmp_path, one={"steps": 1}), tmp_path)
    before = good.read_bytes()
    with pytest.raises(KitError) as caught:
        runner.run_profile(write_profile(tmp_path, one={"steps": 9}), tmp_path)
    assert str(caught.value).splitlines() == [
        "1 of 1 notebooks failed.",
        "one (cell [3]): RuntimeError: too many",
        "How far they came: build/short/NOTEBOOK.failed.ipynb.",
        "Finished records are kept: run the same command again to resume from there.",
    ]
    assert sorted(path.name for path in good.parent.iterdir()) == ["one.failed.ipynb", "one.ipynb"]
    assert "too many" in (good.parent / "one.failed.ipynb").read_text()
    assert good.read_bytes() == before


def test_a_kernel_that_dies_is_worded(tmp_path: Path) -> None:
    write_notebook(tmp_path, "one", "import os\nos._exit(1)")
    with pytest.raises(KitError, match=r"\none: its kernel died, most often because the memory ran out"):
        runner.run_profile(write_profile(tmp_path, one={}), tmp_path)


def test_a_notebook_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = "from mergekit_lite.errors import KitError\nraise KitError('The hub does not answer.')"
    for name, *cells in (
        ("divides", "1 / 0"), ("asks", missing), ("good", "print('done')"), ("asks_later", "1", missing)
    ):  # fmt: skip
        write_notebook(tmp_path, name, *cells)
    profile = write_profile(tmp_path, divides={}, asks={}, good={}, asks_later={})
    with pytest.raises(KitError) as caught:
        runner.run_profile(profile, tmp_path)
    assert str(caught.value).splitlines()[:3] == [
        "3 of 4 notebooks failed; the other 1 are done.",
        "divides (cell [3]): ZeroDivisionError: division by zero",
        "asks (cell [3]), asks_later (cell [4]): The hub does not answer.",
    ]
    assert printed(tmp_path / "build" / "short" / "good.ipynb") == "done\n"
    said = capsys.readouterr().out
    assert "divides: failed (ZeroDivisionError: division by zero)\nasks: running" in said
    write_notebook(tmp_path, "divides", "1 / 1")
    with pytest.raises(KitError, match=r"^2 of 4 notebooks failed; the other 2 are done\."):
        runner.run_profile(profile, tmp_path)
    assert "good: unchanged since it was run" in capsys.readouterr().out


def test_a_full_disk_is_told_once_for_all_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("one", "two"):
        write_notebook(tmp_path, name)
    monkeypatch.setattr("papermill.execute_notebook", full)
    with pytest.raises(KitError) as caught:
        runner.run_profile(write_profile(tmp_path, one={}, two={}), tmp_path)
    assert str(caught.value).splitlines() == [
        "2 of 2 notebooks failed.",
        "one, two: it cannot be written (No space left on device).",
        "Finished records are kept: run the same command again to resume from there.",
    ]
    assert list((tmp_path / "build" / "short").iterdir()) == []
    (tmp_path / "build" / "short").rmdir()
    (tmp_path / "build" / "short").touch()  # a file where the folder belongs
    with pytest.raises(KitError, match=r"\none, two: .*short cannot be written"):
        runner.run_profile(write_profile(tmp_path, one={}, two={}), tmp_path)


def test_a_failing_notebook_fails_the_command(tmp_path: Path) -> None:
    """So that `make book` stops there."""
    write_notebook(tmp_path, "one", "1 / 0")
    write_profile(tmp_path, one={})
    code = (
        "from mergekit_lite.cli import app\nfrom mergekit_lite.pipeline import runner\n"
        "runner._check_suites = print\napp()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "short"], cwd=tmp_path, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Error: 1 of 1 notebooks failed.\n")


@pytest.mark.parametrize("group", [False, True], ids=["the process", "the terminal"])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for left-over processes in /proc")
def test_an_interrupt_stops_all_and_leaves_nothing_half_done(tmp_path: Path, group: bool) -> None:
    note = tmp_path / "note"
    write_notebook(
        tmp_path, "one", f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    write_notebook(tmp_path, "two")
    write_profile(tmp_path, one={}, two={})
    code = (
        "from mergekit_lite.cli import app\nfrom mergekit_lite.pipeline import runner\n"
        "runner._check_suites = print\napp()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, "run", "short"], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        # A shell starts what runs in its background with interrupts ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120  # a busy machine takes long to start a kernel, and to end one
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT) if group else run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "Interrupted. What was finished is kept" in said
    assert "Traceback" not in said
    assert not Path(f"/proc/{note.read_text()}").exists()
    assert not list((tmp_path / "build" / "short").iterdir())
