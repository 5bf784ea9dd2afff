"""Several runs share a grid: each cell is computed once, but for what a killed one had under way."""

import os
import random
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
# Each run imports and computes something of its own first, and says so: else the slowest to start finds nothing left.
SCRIPT = """
import sys
import tempfile
from pathlib import Path
import fakes
from mergekit_lite import study
from test_sharing import cells
folder, log, number, seconds = sys.argv[1:]
with tempfile.TemporaryDirectory() as own:
    study.run(fakes.fake_suite(), cells("", 1, 0), workers=1, folder=Path(own))
print("ready", flush=True)
sys.stdin.readline()
study.run(fakes.fake_suite(), cells(log, int(number), float(seconds)), workers=1, folder=Path(folder))
"""


def cells(log: str, number: int = 24, seconds: float = 0.15) -> dict[int, Cell]:
    """Return cells that take about `seconds`, each with its own line in the log."""
    return {
        one: Cell(
            method="slow_average", parameters={"seconds": seconds + one / 10**4, "log": log}, pool=TASKS, evaluate=TASKS
        )
        for one in range(number)
    }


def ready(runs: int, folder: Path, log: Path, locks: str, number: int, seconds: float) -> list[subprocess.Popen[str]]:
    """Start processes that share `folder`, and return them when each waits for a line to begin."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MERGEKIT_LITE_LOCKS": locks}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(log), str(number), str(seconds)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(runs)]
    for one in started:
        assert one.stdout
        while (line := one.stdout.readline()) != "ready\n":
            assert line, "it ended before it was ready"
    return started


def begin(run: subprocess.Popen[str]) -> None:
    assert run.stdin
    run.stdin.write("\n")
    run.stdin.close()


def lines(log: Path) -> list[list[str]]:
    """Return who computed what, in the order in which it was begun."""
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("locks", ["", "lease"])
def test_three_runs_of_which_one_is_killed_compute_each_cell_once_but_for_its_own(tmp_path: Path, locks: str) -> None:
    log, there = tmp_path / "log", tmp_path / "there"
    runs = ready(3, there, log, locks, 24, 0.15)
    names = [str(one.pid) for one in runs]
    for one in runs:
        time.sleep(random.uniform(0, 0.2))
        begin(one)
    deadline = time.monotonic() + 20
    while {who for who, _ in lines(log)} != set(names):
        assert time.monotonic() < deadline, f"not all of {names} computed: {lines(log)}"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    runs[1].kill()
    assert [one.wait(40) for one in runs] == [0, -9, 0]
    computed = lines(log)

    shared = study.run(fakes.fake_suite(), cells(str(log)), workers=1, folder=there)
    assert lines(log) == computed  # all records were there
    plain = study.run(fakes.fake_suite(), cells(str(log)), workers=1, folder=tmp_path / "plain")
    assert {name: (one.key, one.accuracy) for name, one in shared.items()} == {
        name: (one.key, one.accuracy) for name, one in plain.items()
    }
    times = Counter(seconds for _, seconds in computed)
    assert len(times) == 24
    last = [seconds for who, seconds in computed if who == names[1]][-1]
    assert [seconds for seconds, count in times.items() if count > 1] in ([], [last])
    assert times[last] <= 2
    assert not [one.name for one in there.iterdir() if one.suffix not in (".json", ".lock")]
