"""Starting the process of a submission, and ending it: what it may take of time, memory and network.

What the system offers is used: on Linux a network of its own without any connection (`unshare`), Landlock for files
and limits of memory (both in the process itself, see `child`); everywhere a clock and a look at the memory.
`Process.cut` says what was done, since a report must not claim more.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from torch import Tensor

from mergekit_lite.course import channel, guard
from mergekit_lite.course.plan import Limits

CHILD = Path(__file__).with_name("child.py")
STARTUP = 300.0  # seconds in which the process must be ready: importing PyTorch takes a while on a cold disk
LOOK = 0.2  # seconds between two looks at clock and memory


class Process:
    """The process of a submission, as a context: at its end the process, and all that it started, is gone.

    Attributes:
        folder: its own, removed at the end; what it needs is put there before `begin`.
        cut: what of it was confined, and by what: ``network``, ``files``, ``memory``, ``time``.
        refused: what it tried and was refused.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cut: dict[str, str] = {"time": "by the grader's clock"}
        self.refused: list[str] = []  # at most `guard.TOLD`
        self._ended_for = ""
        self._begun = self._stopped = 0.0

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="submission-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name).resolve()
        for name in ("cache", "home", "tmp"):
            (self.folder / name).mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_process"):
            self._kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # what was not sent has no reader
                    assert pipe is not None
                    pipe.close()
            self._process.wait()
            self._watcher.join()
        self._temporary.cleanup()

    def begin(self, job: Mapping[str, Any], denied: Iterable[Path]) -> None:
        """Start the process and hand it its job; it reads nothing below `denied`."""
        network = _network()
        self.cut["network"] = "by the system (a network namespace)" if network else "by Python alone"
        command = [*network, sys.executable, "-I", "-B", "-X", "utf8", str(CHILD)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=self._environment(),
            start_new_session=True,
        )
        self._deadline = time.monotonic() + STARTUP
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        limits = {"seconds": self.limits.seconds, "memory": self.limits.memory}
        self.send({**job, **limits, "folder": str(self.folder), "denied": [str(path) for path in denied]})

    def send(self, message: Mapping[str, Any]) -> None:
        """Send words or tensors; if the process is gone, `receive` will tell."""
        assert self._process.stdin is not None
        tensors = any(isinstance(one, Tensor) for one in message.values())
        with contextlib.suppress(OSError):
            (channel.send_tensors if tensors else channel.send_words)(self._process.stdin, message)

    def receive(self, most: int = 0) -> dict[str, Any] | dict[str, Tensor] | None:
        """Return the next message, None when the process has ended; refusals are noted and not returned.

        Args:
            most: bytes of tensors that are taken.
        """
        assert self._process.stdout is not None
        while True:
            try:
                message = channel.receive(self._process.stdout, most)
            except channel.Garbled as error:
                self._ended_for = f"It wrote into the grader's pipe ({error})."
                message = None
            self._stopped = time.monotonic()
            if message is None:
                return None
            kind = message.get("kind")
            if isinstance(kind, str) and kind == "ready" and not self._begun:
                self._begun = time.monotonic()
                self._deadline = self._begun + self.limits.seconds
                confined: Any = message["confined"]
                self.cut |= confined
            elif isinstance(kind, str) and kind == "refused":
                if len(self.refused) < guard.TOLD:
                    self.refused.append(str(message.get("what"))[:300])
            else:
                return message

    @property
    def seconds(self) -> float:
        """From when the submission's code began to run to the last message, by the clock."""
        return max(0.0, self._stopped - self._begun) if self._begun else 0.0

    def ended(self) -> str:
        """Return in words why the process ended before it had answered."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._ended_for:
            return self._ended_for
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"Its process ended abruptly ({how}) before it had answered."

    def _environment(self) -> dict[str, str]:
        """Return the whole environment of the process: nothing of the grader's gets there."""
        folders = {"HOME": "home", "USERPROFILE": "home", "MERGEKIT_LITE_CACHE": "cache"}
        folders |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "tmp")
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        kept = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH", "PATH") if name in os.environ}
        own = {name: str(self.folder / folder) for name, folder in folders.items()}
        return {**kept, **own, **threads, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "LANG": "C.UTF-8"}

    def _watch(self) -> None:
        """End the process when its time is over or its memory too much."""
        most = self.limits.memory * 2**30
        while self._process.poll() is None:
            if time.monotonic() > self._deadline:
                limit = self.limits.seconds if self._begun else STARTUP
                self._ended_for = f"It did not end within {limit:g} s."
            elif _memory(self._process.pid) > most:
                self._ended_for = f"It took more than {self.limits.memory:g} GiB of memory."
            if self._ended_for:
                self._kill()
                return
            time.sleep(LOOK)

    def _kill(self) -> None:
        """End the process and all that it started."""
        if self._process.poll() is not None:
            return
        family = _family(self._process.pid)
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.kill()


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _memory(pid: int) -> int:
    """Return the bytes of memory that a process and all that it started hold."""
    total = 0
    for one in _family(pid):
        with contextlib.suppress(psutil.Error):
            total += one.memory_info().rss
    return total


@functools.cache
def _network() -> tuple[str, ...]:
    """Return the command that runs another without a network, and ends what this starts with it; () if none does."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--")
    try:
        done = subprocess.run([*command, sys.executable, "-I", "-c", ""], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if done.returncode == 0 else ()
