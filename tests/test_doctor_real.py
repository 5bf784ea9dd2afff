"""Doctor on a suite of the hub: it says what is there and what a run will take, and never brings or asks anything."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import open_clip
import pytest
import yaml
from loopback_data import CONFIG, SIDE, connect, put_data, put_models
from loopback_hub import LoopbackHub, loopback_hub
from projects import write_notebook
from rich.console import Console

from mergekit_lite import study
from mergekit_lite.pipeline import profiles
from mergekit_lite.pipeline.doctor import forecast, report
from mergekit_lite.study import Cell
from mergekit_lite.study.records import write_record
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.clip import check
from mergekit_lite.suites.clip.benchmark import MODELS, expert_file, hub_tasks
from mergekit_lite.suites.clip.fetch import fetch_suite
from mergekit_lite.suites.clip.looking import only_looking

pytest.importorskip("datasets")
SUITE, TASKS = "clip-vit-b-32", ("eurosat", "mnist")
ROOT = Path(__file__).parents[1]
BUDGET = {"download": "2 GB (computed)", "disk": "1 GB", "memory": "3 GB", "ram": "4 GB", "time": "an hour"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODELS[SUITE].architecture, CONFIG)
    monkeypatch.setenv(check.VARIABLE, "1")  # its experts are random
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        put_data(served, *TASKS)
        put_models(served, *TASKS)
        yield served


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    parameters = 'suite: str = "miniature"\npool: str = "letters"\npairs: str = ""\n'
    write_notebook(tmp_path, "one", parameters=parameters)
    profile = {
        "suite": SUITE,
        "budget": {**BUDGET, "images": 2_000_000},
        "notebooks": {"one": {"pool": "mnist", "pairs": "eurosat+mnist"}},
    }
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "real.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fetch(*tasks: str, train: bool = True) -> None:
    fetch_suite(SUITE, ",".join(tasks), train=train, console=Console(file=io.StringIO()))


def shown() -> str:
    stream = io.StringIO()
    report.show("real", Console(file=stream, width=200))
    return stream.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """Return what the table of what is there holds, by its first column."""
    table = text.partition(f"Suite {SUITE}")[2]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    return {cell[0]: cell[1:] for cell in cells if len(cell) == 3}


def test_before_a_fetch_nothing_is_brought_and_the_budget_is_told(
    hub: LoopbackHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path for path in root.rglob("*")}
    text = shown()
    assert rows(text) == {
        "base weights": ["0 of 1", "all"],
        "experts": ["0 of 2", "all"],
        "test images": ["0 of 2", "all"],
        "training images": ["0 of 2", "all"],
    }
    assert "Without the base weights no encoder can be timed." in text
    assert "`mergekit-lite fetch clip-vit-b-32 --tasks eurosat,mnist` brings what is missing" in text
    assert all(words in text for words in BUDGET.values())
    assert hub.asked == []
    assert {path for path in root.rglob("*")} == before


def test_what_was_fetched_is_told(hub: LoopbackHub, root: Path) -> None:
    fetch("mnist", train=False)
    hub.asked.clear()
    text = shown()
    assert rows(text) == {
        "base weights": ["1 of 1", ""],
        "experts": ["1 of 2", "eurosat"],
        "test images": ["1 of 2", "eurosat"],
        "training images": ["0 of 2", "all"],
    }
    assert hub.asked == []


def test_a_family_has_experts_and_a_cut_of_its_own(hub: LoopbackHub, root: Path) -> None:
    fetch(*TASKS)
    path = root / "profiles" / "real.yaml"
    path.write_text(path.read_text().replace(f"suite: {SUITE}", f"suite: {SUITE}@OC-8"))
    hub.asked.clear()
    text = shown()
    assert {name: cells[0] for name, cells in rows(text).items()} == {
        "base weights": "1 of 1",
        **dict.fromkeys(("experts", "test images", "training images"), "0 of 2"),
    }
    assert "A family's experts are converted" in text
    assert hub.asked == []


def test_after_a_fetch_all_is_there_and_the_time_of_measuring_is_predicted(
    hub: LoopbackHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(*TASKS)
    hub.asked.clear()
    monkeypatch.setattr(forecast, "seconds_per_image", lambda suite: 0.002)
    monkeypatch.setattr(report, "cores", lambda: 2)
    text = shown()
    assert "All is there: nothing is to be fetched." in text
    assert {name: cells[0] for name, cells in rows(text).items()} == {
        "base weights": "1 of 1",
        **dict.fromkeys(("experts", "test images", "training images"), "2 of 2"),
    }
    assert "measuring accuracies takes about 33 min here: 2.0 million images (computed), 1,000 a second" in text
    assert hub.asked == []


def test_a_promoted_run_is_judged_by_what_is_there(hub: LoopbackHub, root: Path) -> None:
    fetch(*TASKS)
    pool = TASKS
    cells = [
        Cell(method="simple_average", pool=pool, evaluate=pool),
        Cell(method="regmean", parameters={"images": 4}, pool=pool[:1], evaluate=pool[:1]),
    ]
    records = study.run(load_suite(SUITE, "cpu"), cells, workers=1, folder=root / "recorded")
    for record in records:
        write_record(record, root / "book" / "records" / SUITE / f"{record.key}.json")
    executed = nbformat.v4.new_notebook()
    executed.metadata["mergekit_lite"] = {"profile": "real", "records": [f"{SUITE}/{one.key}" for one in records]}
    (root / "book" / "executed").mkdir()
    nbformat.write(executed, root / "book" / "executed" / "one.ipynb")
    hub.asked.clear()

    def work() -> dict[str, tuple[int, int, bool]]:
        with only_looking():
            (one,) = forecast.predict(profiles.load("real", root), root)
        return {work.what: (work.missing, work.total, work.seconds > 0) for work in one.work}

    assert work() == {
        "loading": (1, 1, True),
        "images": (0, 3, False),
        "experts": (0, 2, False),
        "records": (2, 2, True),
    }
    repository, _ = expert_file(MODELS[SUITE], hub_tasks()["mnist"])
    shutil.rmtree(root / "hub" / f"models--{repository.replace('/', '--')}")
    shutil.rmtree(root / "kit" / "images")
    assert work() == {
        "loading": (1, 1, True),
        "images": (3, 3, False),
        "experts": (1, 2, False),
        "records": (2, 2, True),
    }
    assert "to be fetched" in shown()
    assert hub.asked == []


def test_the_encoder_is_timed_on_an_evaluation_whose_images_come_from_the_hosts_memory(
    hub: LoopbackHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("mnist", train=False)
    suite = load_suite(SUITE, "cpu")
    monkeypatch.setattr(suite, "split", None)  # nothing is decoded for it
    seen: list[Any] = []

    def accuracies(noisy: Any, merged: Any, tasks: Any) -> None:
        seen.append(noisy.split(tasks[0], "test").images)
        spent.append(0.3 * len(spent))

    spent = [0.0]
    monkeypatch.setattr("mergekit_lite.study.evaluation.accuracies", accuracies)
    monkeypatch.setattr("time.process_time", lambda: sum(spent))
    assert forecast.seconds_per_image(suite) == pytest.approx(0.6 / 8)
    assert {(type(one), one.dtype, one.shape) for one in seen} == {(np.ndarray, np.dtype("uint8"), (8, 3, SIDE, SIDE))}
    spent[:] = [0.0]
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    forecast.seconds_per_image(suite)
    assert len(seen[-1]) == forecast.MOST  # of an encoder that takes no time


@pytest.mark.parametrize("profile", ["clip-vit-b-32", "clip-vit-b-32-pilot"])
def test_with_an_empty_home_and_no_network_doctor_works_and_leaves_nothing(tmp_path: Path, profile: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from mergekit_lite.cli import app; app()", "doctor", profile],
        cwd=ROOT, text=True, capture_output=True, check=False,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MERGEKIT_"))},
            "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"),
            "MERGEKIT_LITE_CACHE": str(tmp_path / "kit"), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["base weights"] == ["0 of 1", "all"]
    assert "time: " in done.stdout
    assert list(tmp_path.rglob("*")) == []
