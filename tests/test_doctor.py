"""Doctor says what is there, and what a profile will take: what its records took, at the pace of this machine."""

import io
from pathlib import Path
from typing import Any

import fakes
import nbformat
import pytest
import torch
import yaml
from projects import write_notebook, write_profile
from rich.console import Console

from mergekit_lite import study
from mergekit_lite.pipeline import profiles, runner
from mergekit_lite.pipeline.doctor import forecast, report
from mergekit_lite.study import Cell, Record
from mergekit_lite.study.records import read_record, write_record
from mergekit_lite.suites import load_suite
from mergekit_lite.workers import cores

CELLS = [
    Cell(method="task_arithmetic", pool=("digits",), evaluate=("digits", "signs")),
    Cell(method="slow_average", parameters={"seconds": 0.01}, pool=("digits",), evaluate=("digits",)),
]
PACE = 0.001  # seconds of an image on the machine that made the records


@pytest.fixture
def root(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose notebook would fail if one of its cells were run, and was promoted with two records."""
    write_notebook(tmp_path, "one", "1 / 0")
    write_profile(tmp_path, one={"steps": 2})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "load_suite", lambda name: fakes.fake_suite())
    monkeypatch.setattr(forecast, "cores", lambda: 2)
    records = study.run(fakes.fake_suite(), CELLS, workers=1, folder=tmp_path / "recorded")
    for record, merging in zip(records, (3.0, 1.0), strict=True):
        images = 40 * len(record.accuracy)
        write_to_book(tmp_path, record.model_copy(update={"seconds": {"merge": merging, "evaluate": PACE * images}}))
    promote(tmp_path, records)
    return tmp_path


def write_to_book(root: Path, record: Record) -> None:
    write_record(record, root / "book" / "records" / record.suite / f"{record.key}.json")


def promote(root: Path, records: list[Record], profile: str = "short") -> None:
    notebook = nbformat.v4.new_notebook()
    names = [f"{record.suite}/{record.key}" for record in records]
    notebook.metadata["mergekit_lite"] = {"profile": profile, "records": names}
    path = root / "book" / "executed" / "one.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def predicted(
    root: Path, monkeypatch: pytest.MonkeyPatch, pace: float = PACE
) -> tuple[forecast.Forecast, dict[str, Any]]:
    """Return the forecast of the one notebook on a machine of this pace, and its work by kind."""
    monkeypatch.setattr(forecast, "seconds_per_image", lambda suite: pace)
    (one,) = forecast.predict(profiles.load("short", root), root)
    return one, {work.what: work for work in one.work}


def shown(profile: str | None = None) -> str:
    stream = io.StringIO()
    report.show(profile, Console(file=stream, width=200))
    return stream.getvalue()


def test_the_machine_is_told_as_it_is(cache: Path) -> None:
    text = shown()
    assert torch.__version__ in text
    assert str(cache) in text
    assert f"{cores()} " in text
    assert ("none that torch can use" in text) == (not torch.cuda.is_available())
    assert "nothing" in text


def test_the_cache_is_counted_without_locks(cache: Path) -> None:
    folder = cache / "experts" / "miniature"
    folder.mkdir(parents=True)
    (folder / "digits-0123.safetensors").write_bytes(b"x" * 3 * 2**20)
    (folder / ".digits-0123.safetensors.lock").touch()
    assert list(report.cached()) == [("experts", "miniature", 1, 3 * 2**20)]
    assert "3.0 MiB" in shown()


def test_a_forecast_is_what_the_promoted_records_took_side_by_side(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, work = predicted(root, monkeypatch)
    assert (work["records"].missing, work["records"].total) == (2, 2)
    assert work["records"].seconds == pytest.approx(3.0 + 80 * PACE)  # the longer of the two, on two cores
    assert one.memory_mib > 50
    assert one.seconds > work["records"].seconds
    slower, work = predicted(root, monkeypatch, pace=5 * PACE)
    assert work["records"].seconds == pytest.approx(5 * (3.0 + 80 * PACE))
    assert slower.seconds == pytest.approx(5 * one.seconds)


def test_what_is_recorded_costs_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study.run(fakes.fake_suite(), CELLS[:1], workers=1)
    _, work = predicted(root, monkeypatch)
    assert (work["records"].missing, work["records"].total) == (1, 2)
    assert work["records"].seconds == pytest.approx(1.0 + 40 * PACE)


def test_what_an_earlier_notebook_will_have_made_costs_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "book" / "executed" / "two.ipynb").write_bytes((root / "book" / "executed" / "one.ipynb").read_bytes())
    write_notebook(root, "two", "1 / 0")
    write_profile(root, one={}, two={})
    first, second = forecast.predict(profiles.load("short", root), root)
    assert [work.missing for work in first.work if work.what == "records"] == [2]
    assert [work.missing for work in second.work if work.what == "records"] == [0]


def test_a_record_of_a_method_that_is_gone_will_be_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = [one for one in (root / "book/records/fake").iterdir() if '"slow_average"' in one.read_text()]
    record = read_record(path, path.stem)
    assert isinstance(record, Record)
    write_record(record.model_copy(update={"cell": record.cell.model_copy(update={"method": "gone"})}), path)
    study.run(fakes.fake_suite(), CELLS, workers=1)
    _, work = predicted(root, monkeypatch)
    assert (work["records"].missing, work["records"].total) == (1, 2)


def test_a_notebook_that_is_still_valid_has_nothing_to_do(root: Path) -> None:
    profile = profiles.load("short", root)
    parameters = runner.check_parameters(profile, "one", root)
    notebook = nbformat.v4.new_notebook()
    stamp = runner.stamp(root / "notebooks" / "one.ipynb", parameters, runner.library_hash())
    notebook.metadata["mergekit_lite"] = {"stamp": stamp}
    (root / "build" / "short").mkdir(parents=True)
    nbformat.write(notebook, root / "build" / "short" / "one.ipynb")
    assert forecast.predict(profile, root) == [forecast.Forecast("one", valid=True)]
    assert "nothing to do" in shown("short")


def test_the_pace_of_this_machine_is_timed(root: Path) -> None:
    (one,) = forecast.predict(profiles.load("short", root), root)
    assert 0 < one.seconds < 100
    text = shown("short")
    assert "Profile short, predicted" in text
    assert "2 of 2" in text


def test_without_a_promoted_run_of_the_profile_its_budget_is_shown(root: Path) -> None:
    promote(root, [], profile="another")
    path = root / "profiles" / "short.yaml"
    budget = {"download": "nothing", "disk": "1 GB", "memory": "2 GB", "time": "as long as it takes"}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "budget": budget}))
    text = shown("short")
    assert "no records of a run with this profile" in text
    assert "as long as it takes" in text
    assert "In all" not in text


def test_images_and_experts_of_the_miniature_are_counted_and_timed(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load_suite("miniature", "cpu")
    monkeypatch.setattr(forecast, "load_suite", lambda name: suite)
    cells = [
        Cell(method="simple_average", pool=("signs",), evaluate=("signs", "scenes"), expert_seed=seed)
        for seed in (0, 1)
    ]
    records = study.run(fakes.fake_suite(), cells, workers=1, folder=root / "recorded")
    records = [record.model_copy(update={"suite": "miniature"}) for record in records]
    for record in records:
        write_to_book(root, record)
    promote(root, records)
    one, work = predicted(root, monkeypatch)
    assert (work["experts"].missing, work["experts"].total) == (2, 2)
    assert (work["images"].missing, work["images"].total) == (3, 3)  # two test splits, one training split
    assert 5 < one.disk_mib < 60

    suite.split("signs", "test")
    expert = cache / "experts" / "miniature" / f"signs-{suite.expert_hash('signs')}.safetensors"
    expert.parent.mkdir(parents=True)
    expert.touch()
    _, work = predicted(root, monkeypatch)
    assert (work["experts"].missing, work["images"].missing) == (1, 2)


def test_jobs_are_spread_over_workers_longest_first() -> None:
    assert forecast.side_by_side_seconds([1, 1, 2, 4], 2) == 4
    assert forecast.side_by_side_seconds([3, 3, 3], 2) == 6
    assert forecast.side_by_side_seconds([], 3) == 0


@pytest.mark.parametrize(("seconds", "text"), [(41.6, "42 s"), (300, "5 min"), (9000, "2.5 h")])
def test_times_are_readable(seconds: float, text: str) -> None:
    assert report.seconds_text(seconds) == text
