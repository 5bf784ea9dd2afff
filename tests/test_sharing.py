"""Several runs share a grid: each cell is computed once, but for what a killed one had under way."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fakes
import pytest

from mergekit_lite import study
from mergekit_lite.study import Cell

TASKS = ("digits", "signs")
SCRIPT = """
import sys
from pathlib import Path
import fakes
from mergekit_lite import study
from test_sharing import cells
study.run(fakes.fake_suite(), cells(sys.argv[2]), workers=1, folder=Path(sys.argv[1]))
"""


def cells(log: str) -> dict[int, Cell]:
    """Return 18 cells of 0.2 s, each with its own line in the log."""
    return {
        number: Cell(
            method="slow_average", parameters={"seconds": 0.2 + number / 10**4, "log": log}, pool=TASKS, evaluate=TASKS
        )
        for number in range(18)
    }


@pytest.mark.parametrize("locks", ["", "lease"])
def test_three_runs_of_which_one_is_killed_compute_each_cell_once_but_for_its_own(tmp_path: Path, locks: str) -> None:
    log, there = tmp_path / "log", tmp_path / "there"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MERGEKIT_LITE_LOCKS": locks}
    runs = []
    for pause in (0.0, 0.17, 0.4):
        time.sleep(pause)
        runs.append(subprocess.Popen([sys.executable, "-c", SCRIPT, there, log], env=environment))
    victim = str(runs[1].pid)
    deadline = time.monotonic() + 60
    while not [line for line in lines(log) if line[0] == victim] and time.monotonic() < deadline:
        time.sleep(0.01)
    runs[1].kill()
    assert [one.wait(60) for one in runs] == [0, -9, 0]

    plain = study.run(fakes.fake_suite(), cells(str(log)), workers=1, folder=tmp_path / "plain")
    shared = study.run(fakes.fake_suite(), cells(str(log)), workers=1, folder=there)
    assert {name: (one.key, one.accuracy) for name, one in shared.items()} == {
        name: (one.key, one.accuracy) for name, one in plain.items()
    }
    times = Counter(seconds for _, seconds in lines(log)[: -len(plain)])  # the last lines are of the plain run
    assert len(times) == 18
    again = sum(times.values()) - 18
    assert again <= 1
    assert {who for who, _ in lines(log)} == {*(str(one.pid) for one in runs), str(os.getpid())}
    assert not [one.name for one in there.iterdir() if one.suffix not in (".json", ".lock")]


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []
