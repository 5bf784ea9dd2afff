"""Cells as jobs of a SLURM cluster, all that are missing in one array; with ``local=yes`` as processes of this machine.

A job that is preempted, or whose node is lost, starts again: by SLURM where that requeues, else once more from here. It
reads the record if there is one by then, and so does a run that follows one which was killed.
"""

import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from submitit.core.utils import DelayedSubmission, pickle_load
from submitit.helpers import Checkpointable

from mergekit_lite.cache import cache_dir, check_writable
from mergekit_lite.errors import KitError, shown
from mergekit_lite.study.engines import slurm_queues
from mergekit_lite.workers import cores

OPTIONS = ("partition", "minutes", "gpus", "account", "memory_gb", "cpus", "at_once", "local")
"""``partition`` and ``account`` (by default the cluster's), ``minutes`` that one cell may take (60), ``gpus`` for each
(1, or 0 for a suite on the CPU), ``memory_gb`` of the machine (the cluster's default), ``cpus`` (1), ``at_once``: how
many may run at a time (no limit but the cluster's), and ``local=yes`` for processes of this machine instead
(``at_once`` of them: one per core, or with GPUs one)."""


class Again(Checkpointable):
    """Calls a function in a job, and lets a job that is preempted start again from the beginning."""

    def __init__(self, minutes: int) -> None:
        self._minutes = minutes
        self._begun = math.inf

    def __call__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Return ``function(*arguments)``."""
        self._begun = time.monotonic()
        return function(*arguments)

    def checkpoint(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> DelayedSubmission:
        """Return what to start again; SLURM sends the same signal to what it preempts and to what runs out of time.

        Raises:
            KitError: the time is up. A cell has no half-way point to go on from, so a second try would end there too.
        """
        seconds = 60 * self._minutes
        # The signal comes that much before the end, and up to a minute earlier; loading Python took some time before.
        late = max(seconds / 2, seconds - slurm_queues.warning(self._minutes) - 120)
        if time.monotonic() - self._begun >= late:
            raise KitError(
                f"This cell takes longer than the {self._minutes} minutes that a job has. "
                f"Write more, such as minutes={2 * self._minutes}; what is recorded stays."
            )
        return DelayedSubmission(self, function, arguments)


class Task:
    """A job, or one task of an array, as a handle. Where it is lost, another takes its place, see `slurm_queues`."""

    def __init__(self, queue: slurm_queues.Queue, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.call = function, arguments
        self.job: Any = None  # until it is submitted
        self._queue = queue
        self._ended: float | None = None  # when the scheduler said so first, without a result to be seen
        self._lost, self._retried = "", False
        self._answer: tuple[str, Any] | None = None
        self._looked = -1.0  # the look of the queue that this task knows already

    def done(self) -> bool:
        """Return whether it has ended, or is given up."""
        if self._answer or self._lost:
            return True
        looked = self._queue.look()
        if looked == self._looked:
            return False
        self._looked = looked
        if self._queue.has_answer(self):
            self._answer = pickle_load(self.job.paths.result_pickle)
            self.job.paths.result_pickle.unlink(missing_ok=True)
            self._queue.over(self, failed=self._answer[0] != "success")
            return True
        state = self._queue.ended(self)
        if not state:
            self._ended = None
            return False
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended < self._queue.patience(state):
            return False
        # Preemption is nobody's fault, and there can be many; all else that may be chance is tried once more, and not
        # twice: what kills a cell again would do so for ever.
        if state == "PREEMPTED" or (state in slurm_queues.CHANCE and not self._retried):
            self._retried |= state != "PREEMPTED"
            print(f"Job {self.job.job_id} was lost ({state}): its cell is submitted once more.", flush=True)
            self._ended = None
            with suppress(KitError):  # it is not taken any more: then it stays lost
                self._queue.start([self])
                return False
        self._lost = state
        self._queue.over(self, failed=True)
        return True

    def result(self) -> Any:
        """Return what the function returned.

        Raises:
            KitError: the job was lost, or could not begin.
        """
        while not self.done():
            time.sleep(0.1)
        log = self.job.paths.stderr
        if self._answer is None:
            raise KitError(_lost(self._lost, self.job.job_id, log, retried=self._retried))
        how, answer = self._answer
        if how != "success":
            last = str(answer).strip().rpartition("\n")[2]
            raise KitError(
                f"Job {self.job.job_id} could not begin ({last}). The nodes must see this Python and what it imports, "
                f"{sys.executable}. Its log: {log}."
            )
        return answer

    def cancel(self) -> None:
        """Have it cancelled, together with all others of which nobody waits for any."""
        self._queue.drop(self)


def _lost(state: str, job: str, log: Path, *, retried: bool) -> str:
    """Return what became of a job that was lost, and what to do."""
    how = f"Its job was lost twice, the second time as {job}" if retried else f"Its job {job} was lost"
    more_time = "It needs more time: write minutes=, or twice as many as now."
    known = {
        "OUT_OF_MEMORY": "Give it more memory: write memory_gb=, or twice as much as now.",
        "TIMEOUT": more_time,
        "DEADLINE": more_time,
        "CANCELLED": "Somebody cancelled it. Run this again when it may run.",
    }
    if log.exists():
        last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        said = f"Its log, {log}, ends with: {last or 'nothing'}."
        unknown = "Most often the memory ran out: write memory_gb=. Else look into its log."
    else:
        said = "It left no log."
        unknown = (
            f"Do the nodes see {log.parent}? If not, put the cache on a disk that they share: MERGEKIT_LITE_CACHE."
        )
    return f"{how} ({state}). {known.get(state, unknown)} {said} What is recorded stays."


@contextmanager
def engine(device: torch.device, **options: str) -> Iterator[slurm_queues.Queue]:
    """Yield a queue of SLURM jobs for cells on `device`, with the `OPTIONS` given; what is left in it is cancelled.

    The jobs' files lie in the cache, which the nodes must see. They are removed unless a job was lost.

    Raises:
        KitError: an option cannot be, or there is no SLURM here.
    """
    local = _whether(options, "local")
    gpus = _count(options, "gpus", 1 if device.type == "cuda" else 0, least=0)
    if gpus and device.type != "cuda":
        raise KitError(
            "The engine 'slurm' was asked for GPUs, but this process, which names the cells, has none: a record of a "
            "GPU has another key than one of a CPU. Start it where there is a GPU: srun --gpus=1 mergekit-lite run ..."
        )
    if not gpus and device.type == "cuda":
        raise KitError("The engine 'slurm' was asked for gpus=0, but the suite is on a GPU. Load it with device='cpu'.")
    resources = slurm_queues.Resources(
        partition=_word(options, "partition"),
        account=_word(options, "account"),
        minutes=_count(options, "minutes", 60),
        memory_gb=_count(options, "memory_gb", 0) or None,
        gpus=gpus,
        cpus=_count(options, "cpus", 1),
        at_once=_count(options, "at_once", 0) or None,
    )
    if not local:
        lacking = [name for name in ("sbatch", "srun", "scancel") if shutil.which(name) is None]
        if lacking:
            raise KitError(
                f"There is no SLURM here: the command {lacking[0]} is not found. Start this on a login node of the "
                "cluster; or write local=yes to try the same with processes of this machine."
            )
    check_writable(cache_dir("jobs"))
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-%H%M%S-"), dir=cache_dir("jobs")))
    again, kept = Again(resources.minutes), False
    try:
        if local:
            processes = resources.at_once or (1 if gpus else cores())
            queue: slurm_queues.Queue = slurm_queues.Here(folder, Task, again, resources, processes)
        else:
            queue = slurm_queues.Cluster(folder, Task, again, resources)
        try:
            yield queue
        finally:
            queue.close()
            kept = queue.failed
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _count(options: dict[str, str], name: str, default: int, least: int = 1) -> int:
    text = options.get(name)
    if text is None:
        return default
    if not (re.fullmatch(r"[0-9]{1,6}", text) and int(text) >= least):
        raise KitError(
            f"The engine's option {name}={shown(text)} is no whole number from {least} on. Write {name}=1, for example."
        )
    return int(text)


def _word(options: dict[str, str], name: str) -> str | None:
    text = options.get(name)
    if text is not None and not re.fullmatch(r"[\w.,@:+-]+", text):
        raise KitError(f"The engine's option {name}={shown(text)} is no name that SLURM takes. Look at `sinfo`.")
    return text


def _whether(options: dict[str, str], name: str) -> bool:
    text = options.get(name, "no")
    if text not in ("yes", "no"):
        raise KitError(f"The engine's option {name}={shown(text)} is neither yes nor no. Write {name}=yes.")
    return text == "yes"
