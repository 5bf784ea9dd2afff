"""Doctor tells what is there, and its predictions come true."""

import io
import time
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from projects import write_notebook, write_profile
from rich.console import Console

from mergekit_lite import study
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline.doctor import bench, forecast, report
from mergekit_lite.study import Cell

SETUP = (
    "import fakes\nfrom mergekit_lite import study\nfrom mergekit_lite.study import Cell\nsuite_ = fakes.fake_suite()"
)
RUN = """cells = [
    Cell(method="task_arithmetic", parameters={"scaling": rate}, pool=["digits"], evaluate=["digits", "signs"]),
    Cell(method="slow_average", parameters={"seconds": 0.2 * steps}, pool=["digits"], evaluate=["digits"]),
]
records = study.run(suite_, cells, workers=1)"""


@pytest.fixture
def root(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_notebook(tmp_path, "one", SETUP, RUN, "raise ZeroDivisionError('this is after the study')")
    write_profile(tmp_path, one={"steps": 2})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "import_seconds", lambda: 0.5)  # it takes seconds
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time of a clock that only the test moves on."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def shown(profile: str | None = None) -> str:
    stream = io.StringIO()
    report.show(profile, Console(file=stream, width=200))
    return stream.getvalue()


def test_the_machine_is_told_as_it_is(cache: Path) -> None:
    text = shown()
    assert torch.__version__ in text
    assert str(cache) in text
    assert f"{report.machine().cores} " in text
    assert ("none that torch can use" in text) == (not torch.cuda.is_available())
    assert "nothing" in text


def test_the_cache_is_counted_without_locks(cache: Path) -> None:
    folder = cache / "experts" / "miniature"
    folder.mkdir(parents=True)
    (folder / "digits-0123.safetensors").write_bytes(b"x" * 3 * 2**20)
    (folder / ".digits-0123.safetensors.lock").touch()
    assert list(report.cached()) == [report.Cached("experts", "miniature", 1, 3 * 2**20)]
    assert "3.0 MiB" in shown()


def test_a_forecast_knows_the_cells_of_a_notebook_and_what_is_recorded(root: Path) -> None:
    profile = write_profile(root, one={"steps": 2})
    (first,) = forecast.forecast(profile, root)
    records = {work.what: work for work in first.work}["records"]
    assert (records.missing, records.total) == (2, 2)
    assert 0.2 < records.seconds < 0.8  # one cell sleeps for 0.4 s
    assert first.memory_mib > 50
    assert study.run.__module__ == "mergekit_lite.study"  # the stand-in is gone

    suite = fakes.fake_suite()
    study.run(suite, [Cell(method="slow_average", parameters={"seconds": 0.4}, pool=("digits",), evaluate=("digits",))])
    (second,) = forecast.forecast(profile, root)
    records = {work.what: work for work in second.work}["records"]
    assert (records.missing, records.total) == (1, 2)
    assert records.seconds < 0.2

    text = shown("short")
    assert "Profile short, predicted" in text
    assert "1 of 2" in text
    assert "Within a factor of two" in text


def test_a_notebook_that_fails_before_its_study_is_worded(root: Path) -> None:
    write_notebook(root, "one", "1 / 0", RUN)
    with pytest.raises(KitError, match=r"one.ipynb, cell 2, fails: ZeroDivisionError: division by zero"):
        list(forecast.forecast(write_profile(root, one={}), root))


def test_a_long_adaptation_is_predicted_within_a_factor_of_two(tmp_path: Path, cache: Path) -> None:
    suite = fakes.fake_suite()
    cell = Cell(
        method="layer_wise_adamerging", parameters={"steps": 1500}, pool=("digits", "signs"), evaluate=("digits",)
    )
    begun = time.perf_counter()
    predicted = forecast.predict(suite, [cell], 1, loading=0.0).seconds
    assert time.perf_counter() - begun < 8
    (record,) = study.run(suite, [cell], workers=1, folder=tmp_path / "records")
    assert 0.4 < predicted / sum(record.seconds.values()) < 2.5  # two, and some room for other tests beside this one


def test_of_frank_wolfe_an_iteration_is_timed_not_all_of_them(cache: Path) -> None:
    clock = bench.Bench(fakes.fake_suite())
    names = ("digits", "signs")
    given: dict[str, Any] = {"iterations": 10**7, "samples": 4, "start": "base"}
    cell = Cell(method="hard_frank_wolfe", parameters=given, pool=names, evaluate=names)
    long = clock.cell(cell)
    assert long > 1000  # predicted in moments
    shorter = cell.model_copy(update={"parameters": given | {"scaling": 0.5, "iterations": 10**6}})
    assert clock.cell(shorter) == pytest.approx(long / 10, rel=0.01)  # timed once for both


def test_fisher_merging_is_timed_on_a_few_images_and_its_start_counts_once(cache: Path) -> None:
    clock = bench.Bench(fakes.fake_suite())
    names = ("digits", "signs")
    cell = Cell(method="fisher_merging", parameters={"images": 10**7}, pool=names, evaluate=names)
    assert clock.cell(cell) > 1000  # predicted in moments


def test_soft_frank_wolfe_is_its_iterations_times_its_inner_steps(cache: Path) -> None:
    clock = bench.Bench(fakes.fake_suite())
    names = ("digits", "signs")
    given: dict[str, Any] = {"iterations": 10, "inner_steps": 10**7, "samples": 4}
    long = clock.cell(Cell(method="soft_frank_wolfe", parameters=given, pool=names, evaluate=names))
    assert long > 1000
    shorter = Cell(method="soft_frank_wolfe", parameters=given | {"inner_steps": 10**6}, pool=names, evaluate=names)
    assert clock.cell(shorter) == pytest.approx(long / 10, rel=0.01)
    watched = shorter.model_copy(update={"curve_every": 5})
    assert 0 < clock.cell(watched) - clock.cell(shorter) < 10  # measured 1 + 2 times, not at each inner step


def test_a_start_and_a_step_are_told_apart(clock: list[float]) -> None:
    def work(count: int) -> None:
        clock[0] += 0.1 + 0.02 * count

    assert bench.start_and_step(work) == pytest.approx((0.1, 0.02))


def test_jobs_are_spread_over_workers_longest_first() -> None:
    assert forecast.side_by_side_seconds([1, 1, 2, 4], 2) == 4
    assert forecast.side_by_side_seconds([3, 3, 3], 2) == 6
    assert forecast.side_by_side_seconds([], 3) == 0


def test_one_piece_of_work_is_timed(clock: list[float]) -> None:
    def work(count: int) -> None:
        clock[0] += 0.02 * count

    assert bench.seconds_each(work, 0.1) == pytest.approx(0.02)


def test_neighbours_are_gone_afterwards() -> None:
    import psutil

    before = set(psutil.Process().children())
    with bench.busy_neighbours(1):
        (child,) = set(psutil.Process().children()) - before
        assert child.is_running()
    assert not child.is_running()


@pytest.mark.parametrize(("seconds", "text"), [(41.6, "42 s"), (300, "5 min"), (9000, "2.5 h")])
def test_times_are_readable(seconds: float, text: str) -> None:
    assert report.seconds_text(seconds) == text
