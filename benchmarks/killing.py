"""Ending runs in every way that runs are ended, and looking at what is left: for `kills` and for the tests."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mergekit_lite.cache import VARIABLE

ROOT = Path(__file__).parents[1]
BEFORE = "KILLED_BEFORE"
"""Environment variable ``N:FILE``: die before the run's N-th file takes its place; FILE is where they are counted."""

FILE = "any process, before a file takes its place"
WORKER = "a worker, SIGKILL"
WAYS = ("the parent, SIGKILL", "the parent, SIGTERM", "all, SIGINT (Ctrl-C)", WORKER, "all, SIGKILL", FILE)


def die_before_a_file() -> None:
    """Let this process end by SIGKILL as `BEFORE` says, having written a file that is not in its place yet."""
    number, _, counter = os.environ.get(BEFORE, "").partition(":")
    if not number:
        return
    put = os.replace

    def replace(*given: Any, **named: Any) -> None:
        with open(counter, "ab", buffering=0) as count:  # appending is atomic: each file gets a number of its own
            count.write(b".")
            if count.tell() == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
        put(*given, **named)

    os.replace = replace


class Run:
    """A command in a session of its own; its processes are those that inherited its cache folder.

    Sessions do not tell: a notebook's kernel has one of its own.
    """

    def __init__(self, command: Sequence[str], cache: Path, *, folder: Path = ROOT, before: int = 0) -> None:
        """Start ``python *command`` in `folder`; it is told which file to die before (0: none)."""
        cache.mkdir(parents=True, exist_ok=True)
        self.cache, self.log, self.counter = cache, cache.with_suffix(".log"), cache.with_suffix(".count")
        self.counter.write_bytes(b"")
        variables = {VARIABLE: str(cache), BEFORE: f"{before}:{self.counter}"}
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
        self.begun = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env={**os.environ, **variables},
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                # A shell starts what runs in its background with interrupts ignored, and that would be inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self.begun

    def wait_for_files(self, number: int, then: float) -> None:
        """Wait until it has put `number` files into place, or has ended, and `then` seconds more."""
        while self.counter.stat().st_size < number and self.process.poll() is None:
            time.sleep(0.01)
        time.sleep(then)

    def alive(self) -> list[psutil.Process]:
        """Return the processes of the run that have not ended, its parent first if that is among them."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(VARIABLE) == str(self.cache) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it has just ended, or is somebody else's
                continue
        return sorted(found, key=lambda process: process.pid != self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that compute for the parent: worker processes, and a notebook's kernel."""
        return [one for one in self.alive() if one.pid != self.process.pid and not _is_tracker(one)]

    def end(self, way: str, rng: random.Random) -> None:
        """End it in one of the `WAYS`; a worker is waited for if there is none, as long as the run lasts."""
        if way == WORKER:
            while not (workers := self.workers()) and self.process.poll() is None:
                time.sleep(0.01)
            if workers:
                _send(rng.choice(workers), signal.SIGKILL)
        elif way == "all, SIGKILL":
            for process in self.alive():
                _send(process, signal.SIGKILL)
        elif way == "all, SIGINT (Ctrl-C)":
            os.killpg(self.process.pid, signal.SIGINT)  # as a terminal does
        elif way != FILE:
            self.process.send_signal(signal.SIGTERM if "SIGTERM" in way else signal.SIGKILL)

    def gone(self, patience: float = 60) -> float | None:
        """Wait until no process is left; return the seconds that this took, or None if it took more than `patience`."""
        begun = time.monotonic()
        while time.monotonic() < begun + patience:
            if self.process.poll() is not None and not self.alive():
                return time.monotonic() - begun
            time.sleep(0.02)
        return None

    def finished(self, patience: float = 600) -> float:
        """Wait until it has ended well, and return the seconds since its start.

        Raises:
            RuntimeError: it failed; what it printed last is in the message.
        """
        code = self.process.wait(patience)
        if code:
            raise RuntimeError(f"It ended with {code}:\n{self.log.read_text(encoding='utf-8')[-2000:]}")
        return self.seconds


def _is_tracker(process: psutil.Process) -> bool:
    """Say whether Python started `process` to clean up after the others; it computes nothing."""
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return True


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def answers(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the records below `folder` by their names, without what differs between any two runs."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for name in ("seconds", "peak_memory_mib", "digest"):
            record.pop(name, None)
        for name in ("started", "commit"):
            del record["provenance"][name]
        found[path.name] = record
    return found


def half_written(folder: Path) -> list[str]:
    """Return the names of temporary files below `folder`, for which no later run has cleaned up."""
    return sorted(path.name for path in folder.rglob(".*.tmp"))
