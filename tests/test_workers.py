"""Work side by side gives what it gives alone, also to a plain script."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mergekit_lite.workers import _start, cores

SCRIPT = """
from mergekit_lite.workers import side_by_side

OFFSET = 10


def setup():
    return OFFSET


def work(offset, item):
    return __name__, offset + item


if __name__ == "__main__":
    outcomes = {item: outcome() for item, outcome in side_by_side(setup, work, [1, 2, 3], workers=2)}
    print(sorted({name for name, _ in outcomes.values()}), [outcomes[item][1] for item in (1, 2, 3)])
"""


def test_a_script_may_use_functions_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "my script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "['__mp_main__'] [11, 12, 13]\n"  # as Python calls a script in another process


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_run_that_is_bound_to_one_core_has_one_worker() -> None:
    allowed = os.sched_getaffinity(0)
    assert cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def slow_to_load() -> None:
    time.sleep(60)


class SlowToLoad:
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return slow_to_load, ()


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_worker_whose_parent_is_gone_does_not_even_finish_loading() -> None:
    alive, keep = multiprocessing.Pipe(duplex=False)
    keep.close()
    begun = time.monotonic()
    worker = multiprocessing.get_context("fork").Process(target=_start, args=(pickle.dumps(SlowToLoad()), alive))
    worker.start()
    worker.join()
    assert worker.exitcode == 1
    assert time.monotonic() - begun < 50
