"""Runs that are killed leave no process behind, and the next run ends as one that was never disturbed.

`benchmarks/kills.py` is the long form: more rounds, at moments drawn from a whole run, with experts and images to make.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakes
import pytest
import torch
from projects import write_notebook, write_profile

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the scripts are no part of the installed package

from benchmarks.killing import FILE, WAYS, WORKER, Run, answers, half_written  # noqa: E402
from mergekit_lite import study  # noqa: E402
from mergekit_lite.pipeline import execution, runner  # noqa: E402
from mergekit_lite.study import Cell  # noqa: E402
from mergekit_lite.suites.clip.finetune import make_expert  # noqa: E402
from mergekit_lite.weight_files import read  # noqa: E402

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

TASKS = ("digits", "signs")
ADAPTING = {"steps": 5, "images_per_task": 8, "learning_rate": 0.01}
GRID = [
    *(Cell(method="dare", pool=TASKS, evaluate=TASKS, seed=seed) for seed in range(8)),
    *(
        Cell(method="layer_wise_adamerging", parameters=ADAPTING, pool=TASKS, evaluate=TASKS, seed=seed)
        for seed in range(8)
    ),
]
RECIPE: dict[str, Any] = {"steps": 200, "learning_rate": 1e-3, "batch_size": 16, "checkpoint_every": 20}

# What is to be killed takes its time, and not the processor's. Nothing that names a record is changed for it.
SLOWLY = """
import time
import fakes
from mergekit_lite import study
from mergekit_lite.study import Cell, computing

write = computing.write_record
computing.write_record = lambda *given: time.sleep(0.25) or write(*given)
"""

STUDY = f"""
{SLOWLY}
import sys
from benchmarks.killing import die_before_a_file

die_before_a_file()  # and slowly in worker processes too: they read this file

if __name__ == "__main__":
    cells = [Cell.model_validate_json(line) for line in open(sys.argv[1])]
    study.run(fakes.fake_suite(), cells, workers=int(sys.argv[2]))
"""

NOTEBOOK = f"""
{SLOWLY}
study.run(fakes.fake_suite(), [Cell.model_validate_json(line) for line in open("CELLS")], workers=1)
"""

COMMAND = """
from mergekit_lite.cli import app
from mergekit_lite.pipeline import runner

runner._check_suites = print  # spares the import of open_clip, which takes seconds
app()
"""

FINETUNING = """
import json, sys, time
from pathlib import Path
import fakes, torch
from mergekit_lite.suites.clip import finetune

torch.set_num_threads(1)
store = finetune._store
finetune._store = lambda *given: store(*given) or time.sleep(0.25)
finetune.make_expert(fakes.fake_suite(), "digits", output=Path(sys.argv[1]), **json.loads(sys.argv[2]))
"""


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    study.run(fakes.fake_suite(), GRID, workers=1, folder=folder)
    return answers(folder)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    path = tmp_path / "cells"
    path.write_text("".join(f"{cell.model_dump_json()}\n" for cell in GRID))
    return path


def wait_for(run: Run, condition: Callable[[], bool]) -> None:
    while not condition():
        assert run.process.poll() is None, run.log.read_text()
        assert run.seconds < 120, "waited too long"
        time.sleep(0.002)


def end_at_random(run: Run, way: str, records: Path, rng: random.Random) -> None:
    """End a run when it has written a random number of records, and a moment later than that."""
    number = rng.randrange(1, len(GRID) // 2)
    wait_for(run, lambda: len(list(records.glob("*.json"))) >= number)
    time.sleep(rng.uniform(0, 0.1))
    run.end(way, rng)


@pytest.mark.parametrize("way", WAYS)
def test_a_study_that_is_killed_ends_as_an_undisturbed_one(
    way: str, suite: "Suite", cells: Path, undisturbed: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    rng, records = random.Random(way), cache / "records" / suite.name
    script = tmp_path / "script.py"
    script.write_text(STUDY)
    alone = way in (FILE, "the parent, SIGTERM", "the parent, SIGKILL")  # each process takes seconds to start
    number = rng.randrange(2, len(GRID)) if way == FILE else 0
    run = Run([str(script), str(cells), "1" if alone else "2"], cache, before=number)
    if way == FILE:
        run.process.wait(120)
    else:
        end_at_random(run, way, records, rng)
    assert run.gone() is not None, run.alive()
    assert run.process.returncode != 0
    kept = {path: path.read_bytes() for path in records.glob("*.json")}
    assert 0 < len(kept) < len(GRID)
    assert ("a worker process ended abruptly" in run.log.read_text()) == (way == WORKER)

    study.run(suite, GRID, workers=1)
    assert answers(records) == undisturbed
    assert len(undisturbed) == len(GRID)
    assert not half_written(cache)
    assert all(path.read_bytes() == content for path, content in kept.items())  # none was computed again


def test_a_notebook_that_is_killed_ends_as_an_undisturbed_one(
    cells: Path, undisturbed: dict[str, Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_check_suites", lambda profile, named: None)
    write_notebook(tmp_path, "one", NOTEBOOK.replace("CELLS", str(cells)))
    profile, records = write_profile(tmp_path, one={}), cache / "records" / "fake"
    run = Run(["-c", COMMAND, "run", "short"], cache, folder=tmp_path)
    end_at_random(run, "the parent, SIGKILL", records, random.Random(0))
    assert run.gone() is not None, run.alive()
    assert not (tmp_path / "build" / "short" / "one.ipynb").exists()
    assert 0 < len(answers(records)) < len(GRID)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    runner.run_profile(profile, tmp_path)
    assert answers(records) == undisturbed
    assert [path.name for path in (tmp_path / "build" / "short").iterdir()] == ["one.ipynb"]


def test_what_a_killed_run_left_of_a_notebook_is_removed_and_not_what_another_run_is_at(tmp_path: Path) -> None:
    run = Run(["-c", ""], tmp_path / "cache")
    run.finished()
    host, dead = execution._host(), run.process.pid
    theirs = [f".one.{host}.{os.getpid()}.ipynb", f".one.{host}.{os.getpid()}.records", f".two.{host}.{dead}.ipynb"]
    theirs += ["one.ipynb", f".one.another-machine.{dead}.ipynb"]
    for name in (*theirs, f".one.{host}.{dead}.ipynb", f".one.{host}.{dead}.records"):
        (tmp_path / name).touch()
    execution._sweep(tmp_path / "one.ipynb")
    assert {path.name for path in tmp_path.iterdir() if path.suffix in (".ipynb", ".records")} == set(theirs)


def test_fine_tuning_that_is_killed_ends_as_an_undisturbed_one(
    suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read(make_expert(suite, "digits", output=tmp_path / "whole", **RECIPE))
    output = tmp_path / "parts"
    run = Run(["-c", FINETUNING, str(output), json.dumps(RECIPE)], tmp_path / "cache")
    wait_for(run, (output / "checkpoint.safetensors").exists)
    time.sleep(random.Random(0).uniform(0, 0.5))
    run.end("the parent, SIGTERM", random.Random(0))
    assert run.gone() is not None, run.alive()
    assert not (output / "encoder.safetensors").exists()

    capsys.readouterr()
    parts = read(make_expert(suite, "digits", output=output, **RECIPE))
    assert "Resuming after step" in capsys.readouterr().out
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert [path.name for path in output.iterdir()] == ["encoder.safetensors"]


def test_the_page_says_what_came_out_of_the_long_form() -> None:
    (path,) = (ROOT / "benchmarks" / "results").glob("kills-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    rounds, page = record["details"]["rounds"], (ROOT / "book" / "reproduce.md").read_text(encoding="utf-8")
    assert all(ratio["value"] == 0 for ratio in record["ratios"])
    assert f"In {len(rounds)} rounds" in page
    assert max(one["gone after"] for one in rounds) < 12
    assert sum(one["code"] == 0 for one in rounds) == 1
