"""What holds SLURM jobs: submits them, looks after all of them at once, and cancels what nobody waits for."""

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from mergekit_lite.errors import KitError

ARRAY = 1000
"""Jobs in one array: SLURM's own limit, MaxArraySize, is 1001 unless a cluster sets another. More make more arrays."""

GONE = "GONE"
"""State of a job that `squeue` does not list any more, where no accounting tells more."""

ENDED = frozenset(
    (
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
        *("REVOKED", "PREEMPTED", GONE),
    )
)
"""States of sacct after which nothing more comes; preempted jobs may still be requeued, and are given time for it."""

CHANCE = frozenset(("COMPLETED", "FAILED", "NODE_FAIL", "BOOT_FAIL", GONE))
"""States of a lost job that may be chance, and so are worth another try."""

REQUEUES = 1000
"""Bound of submitit for how often a job starts again after a signal; which of them are worth it `slurm.Again` knows."""


class Resources(NamedTuple):
    """What a cell takes: see `slurm.OPTIONS`; None is the cluster's default."""

    partition: str | None
    account: str | None
    minutes: int
    memory_gb: int | None
    gpus: int
    cpus: int
    at_once: int | None


def warning(minutes: int) -> int:
    """Return how many seconds before its time is up a job is told: 90, and less if it has a few minutes only."""
    return min(90, 15 * minutes)


class Queue:
    """An engine whose jobs lie in one folder; looked at as a whole, as a file system is slow to say where a file is.

    Attributes:
        failed: whether a job was lost, or could not begin: then its files are worth keeping.
    """

    between = 1.0  # seconds between two looks

    def __init__(self, folder: Path, task: Callable[..., Any], again: Any) -> None:
        self.failed = False
        self._folder, self._task, self._again = folder, task, again
        self._open = dict[int, Any]()  # tasks of which somebody waits
        self._dropped = list[Any]()
        self._collected: list[Any] | None = None
        self._seen, self._looked = frozenset[str](), -1.0

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Submit ``function(*arguments)`` as a job, or in a `batch` as a task of its array."""
        task = self._task(self, function, arguments)
        self._open[id(task)] = task
        if self._collected is None:
            self.start([task])
        else:
            self._collected.append(task)
        return task

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make one array of what is submitted inside."""
        collected = self._collected = []
        try:
            yield
        finally:
            self._collected = None
        if collected:
            self.start(collected)

    def start(self, tasks: Sequence[Any]) -> None:
        """Submit tasks, and give each its job."""
        raise NotImplementedError

    def ended(self, task: Any) -> str:
        """Return in which state a task ended; empty while it goes on, or waits."""
        raise NotImplementedError

    def patience(self, state: str) -> float:
        """Return for how many seconds a result may still come after a job ended in `state`."""
        raise NotImplementedError

    def has_answer(self, task: Any) -> bool:
        """Return whether the result of a task lies there."""
        return task.job is not None and task.job.paths.result_pickle.name in self._seen

    def over(self, task: Any, *, failed: bool) -> None:
        """Note that a task has ended."""
        self._open.pop(id(task), None)
        self.failed |= failed

    def drop(self, task: Any) -> None:
        """Note that nobody waits for a task; when nobody waits for any, all of them are cancelled with one command."""
        if self._open.pop(id(task), None):
            self._dropped.append(task)
        if self._dropped and not self._open:
            self._cancel([one.job for one in self._dropped if one.job is not None])
            self._dropped.clear()

    def close(self) -> None:
        """Cancel what is left."""
        for task in list(self._open.values()):
            self.drop(task)

    def _cancel(self, jobs: Sequence[Any]) -> None:
        raise NotImplementedError

    def look(self) -> float:
        """Look which results are there, if the last look is long enough ago, and return when that was."""
        if time.monotonic() - self._looked >= self.between:
            with suppress(OSError):
                self._folder.chmod(0o700)  # so NFS asks its server, and does not answer from what it remembers
            self._seen, self._looked = frozenset(os.listdir(self._folder)), time.monotonic()
        return self._looked


class Cluster(Queue):
    """Jobs that `sbatch` takes."""

    def __init__(self, folder: Path, task: Callable[..., Any], again: Any, resources: Resources) -> None:
        super().__init__(folder, task, again)
        self._at_once = resources.at_once
        self._executor = SlurmExecutor(folder, max_num_timeout=REQUEUES)
        self._executor.update_parameters(
            job_name="mergekit-lite",
            partition=resources.partition,
            account=resources.account,
            time=resources.minutes,
            mem=None if resources.memory_gb is None else f"{resources.memory_gb}GB",
            gpus_per_node=resources.gpus or None,
            cpus_per_task=resources.cpus,
            signal_delay_s=warning(resources.minutes),
            wckey=None,  # a label of submitit's own, which clusters that check them refuse
            additional_parameters={"requeue": True},
            srun_args=[f"--cpus-per-task={resources.cpus}"],  # from 22.05 on srun does not take it over
        )
        self._watcher = _Watcher(delay_s=60)
        self._others, SlurmJob.watcher = SlurmJob.watcher, self._watcher

    def start(self, tasks: Sequence[Any]) -> None:
        """Submit tasks as arrays.

        Raises:
            KitError: SLURM refuses them.
        """
        chunks = [tasks[first : first + ARRAY] for first in range(0, len(tasks), ARRAY)]
        inside = "SLURM_JOB_ID" in os.environ  # a job that submits hands on what is true of itself only
        with clean_env() if inside else nullcontext():
            for chunk in chunks:
                share = max(1, self._at_once // len(chunks)) if self._at_once else len(chunk)
                self._executor.update_parameters(array_parallelism=share)
                functions, arguments = zip(*(task.call for task in chunk), strict=True)
                try:
                    jobs = self._executor.map_array(self._again, functions, arguments)
                except (FailedJobError, FailedSubmissionError) as error:
                    raise KitError(
                        f"SLURM refused {len(chunk)} jobs: {str(error).strip() or 'sbatch said nothing'}. Look at the "
                        "options partition=, account=, minutes=, gpus=, memory_gb= and cpus=, and at `sinfo`."
                    ) from error
                for task, job in zip(chunk, jobs, strict=True):
                    task.job = job

    def ended(self, task: Any) -> str:
        """Return in which state a task ended; empty while it goes on, or waits. All are asked for at once, seldom."""
        state = self._watcher.get_state(task.job.job_id).partition(" ")[0]
        return state if state in ENDED else ""

    def patience(self, state: str) -> float:
        """Return for how many seconds a result may still come, or the job be requeued, after it ended in `state`."""
        return 60 if state == "PREEMPTED" else 20

    def close(self) -> None:
        """Cancel what is left."""
        try:
            super().close()
        finally:
            SlurmJob.watcher = self._others

    def _cancel(self, jobs: Sequence[Any]) -> None:
        arrays = dict.fromkeys(job.job_id.partition("_")[0] for job in jobs)
        if arrays:
            # In the background of a shell that ends at once: after Ctrl-C, a notebook's kernel ends all its children.
            detached = ["sh", "-c", '"$@" </dev/null >/dev/null 2>&1 &', "sh", "scancel", *arrays]
            subprocess.run(detached, check=False, start_new_session=True)


class _Watcher(SlurmInfoWatcher):
    """Asks sacct for the states of all jobs in one call; and squeue, where the cluster keeps no accounts."""

    def __init__(self, delay_s: int) -> None:
        super().__init__(delay_s)
        self._accounts = shutil.which("sacct") is not None and not _call_fails("sacct", "--jobs=1", "--noheader")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Return whether a job ended for good; a suspended one did not."""
        state = self.get_state(job_id, mode=mode).partition(" ")[0]
        return state in ENDED and state != "PREEMPTED"

    def _make_command(self) -> list[str] | None:
        command: list[str] | None = super()._make_command()
        if command is None or self._accounts:
            return command
        return ["squeue", f"--user={getpass.getuser()}", "--noheader", "--array", "--format=%i|%T|%N"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Return the state of each job by its id."""
        if self._accounts:
            return dict(super().read_info(string))
        text = string if isinstance(string, str) else string.decode()
        rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
        listed = {one: {"State": state, "NodeList": nodes} for one, state, nodes in rows}
        gone = {one: {"State": GONE} for one in self._registered - self._finished if one not in listed}
        return listed | gone


def _call_fails(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode != 0
    except subprocess.TimeoutExpired:
        return True


class Here(Queue):
    """Jobs as processes of this machine, so many at a time."""

    between = 0.05

    def __init__(
        self, folder: Path, task: Callable[..., Any], again: Any, resources: Resources, processes: int
    ) -> None:
        super().__init__(folder, task, again)
        self._processes, self._waiting, self._running = processes, list[Any](), list[Any]()
        self._executor = LocalExecutor(folder, max_num_timeout=REQUEUES)
        self._executor._throttling = 0.0  # there is no scheduler to be spared
        self._executor.update_parameters(
            timeout_min=resources.minutes, gpus_per_node=resources.gpus, signal_delay_s=warning(resources.minutes)
        )

    def start(self, tasks: Sequence[Any]) -> None:
        """Put tasks into the line, and start what there is room for."""
        for task in tasks:
            task.job = None
        self._waiting += tasks
        self._fill()

    def ended(self, task: Any) -> str:
        """Return how the process of a task ended; empty while it runs, or waits."""
        return "FAILED" if task.job is not None and task.job.done() else ""

    def patience(self, state: str) -> float:
        """Return 0.5 s: files of this machine are seen at once, but `look` looks now and then."""
        return 0.5

    def look(self) -> float:
        """Look which results are there, and start what there is room for."""
        before = self._looked
        if super().look() != before:
            self._fill()
        return self._looked

    def _fill(self) -> None:
        self._running = [job for job in self._running if not job.done()]
        while self._waiting and len(self._running) < self._processes:
            task = self._waiting.pop(0)
            if id(task) in self._open:
                task.job = self._executor.submit(self._again, *task.call)
                self._running.append(task.job)

    def _cancel(self, jobs: Sequence[Any]) -> None:
        self._waiting.clear()
        for job in jobs:
            job.cancel()
        deadline = time.monotonic() + 5
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.05)
