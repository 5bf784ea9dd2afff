"""The simulation of many workers: it drives the true driver, loses no cell, and keeps to what no schedule can beat."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the scripts are no part of the installed package

from benchmarks import engine_simulation  # noqa: E402
from benchmarks.engine_simulation import bound, drawn, driven, worked  # noqa: E402


@pytest.mark.parametrize("shared", [False, True])
def test_the_driver_submits_each_cell_once_the_long_ones_first_and_keeps_all(shared: bool) -> None:
    cells, seconds = drawn(60, 10.0)
    timed = driven(cells, shared=shared)
    assert sorted(timed.order) == list(range(60))
    assert min(timed.build, timed.submit, timed.keep) > 0
    assert timed.parcel < 10_000  # no weights travel
    first, last = timed.order[:20], timed.order[-20:]
    assert sum(seconds[at] for at in first) > sum(seconds[at] for at in last)


def test_cells_are_those_of_the_book_at_the_length_that_was_asked_for() -> None:
    cells, seconds = drawn(500, 60.0)
    assert sum(seconds) / 500 == pytest.approx(60)
    assert len({cell.seed for cell in cells}) == 500
    assert len({cell.method for cell in cells}) > 5
    assert drawn(500, 60.0) == (cells, seconds)


@pytest.mark.parametrize("workers", [1, 3, 16, 512])
def test_no_schedule_beats_the_bound_and_one_worker_meets_it(workers: int) -> None:
    _, seconds = drawn(500, 60.0)
    done = worked(seconds, workers, lost=0.0)
    assert done.again == 0
    assert bound(seconds, workers) <= done.seconds + 1e-6
    assert workers > 1 or done.seconds == pytest.approx(sum(seconds))
    assert worked(seconds, workers, lost=0.1).seconds >= done.seconds


def test_lost_workers_cost_what_they_had_under_way() -> None:
    done = worked([10.0] * 500, 1, lost=0.2)
    assert 80 < done.again < 180  # 125 are expected, with a spread of 12
    assert 10 * 500 < done.seconds < 10 * (500 + done.again)


def test_long_cells_first_end_earlier_than_long_cells_last() -> None:
    seconds = [1.0] * 30 + [15.0]
    assert worked(sorted(seconds, reverse=True), 3, lost=0.0).seconds == bound(seconds, 3) == 15
    assert worked(seconds, 3, lost=0.0).seconds == 25


def test_workers_wait_for_cells_that_were_not_submitted_yet() -> None:
    assert worked([1.0] * 10, 512, lost=0.0, submit=2.0).seconds == pytest.approx(21)


def test_the_script_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine_simulation.main(cells=40, repeats=1, results=tmp_path)
    (path,) = tmp_path.glob("engine_simulation-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [row["workers"] for row in record["details"]["table"]] == [2**power for power in range(10)]
    assert all(row["bound"] <= row["seconds"]["long first"] for row in record["details"]["table"])
    assert "512 workers" in capsys.readouterr().out
