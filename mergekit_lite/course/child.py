"""The process that runs a submission; `confinement` starts it, as a script, and speaks with it over its two pipes.

It imports what it needs, gives up all else for good, and only then runs what the student wrote.
"""

import os
import queue
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # isolated from its surroundings, Python knows installed packages only
    _HOME = str(Path(__file__).resolve().parents[2])
    sys.path += [] if _HOME in sys.path else [_HOME]

import numpy as np
import torch
from torch import Tensor

from mergekit_lite import weight_files
from mergekit_lite.course import channel, guard, landlock
from mergekit_lite.course.handing import Handed
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Merged, MethodInfo, load_method

Answer = dict[str, Any] | dict[str, Tensor]


class Talk:
    """The process's end of the pipes. What a submission prints goes nowhere, and what it reads is empty."""

    def __init__(self) -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        self._reads, self._writes = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        self._lock = threading.Lock()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def listen(self) -> None:
        """Read what the grader sends, in a thread; when the grader is gone, end."""

        def read() -> None:
            while (message := channel.receive(self._reads, 2**40)) is not None:
                self._answers.put(message)
            os._exit(1)

        threading.Thread(target=read, daemon=True).start()

    def hear(self) -> Answer:
        """Return the next message of the grader."""
        return self._answers.get()

    def say(self, kind: str, **words: Any) -> None:
        """Send words."""
        with self._lock:
            channel.send_words(self._writes, {"kind": kind, **words})

    def give(self, weights: Mapping[str, Tensor]) -> None:
        """Send merged weights."""
        with self._lock:
            channel.send_tensors(self._writes, weights)

    def ask(self, question: dict[str, Any]) -> Answer:
        """Return the grader's answer.

        Raises:
            KitError: with the words of the grader, if it has none.
        """
        self.say(**question)
        answer = self.hear()
        if "error" in answer:
            raise KitError(str(answer["error"]))
        return answer


def main() -> None:
    """Do the one job that the grader sends."""
    talk = Talk()
    talk.listen()
    job: Any = talk.hear()
    torch.set_num_threads(1)
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(job["seed"])
    merging = job["job"] == "merge"
    prepared: Any = _pool(job, talk) if merging else _tests(job, talk)
    confined = _confine(job, talk, rooms=[one for one in guard.ROOMS if merging or one != "course"])
    talk.say("ready", confined=confined)
    try:
        if merging:
            _merge(load_method(job["file"])[-1], talk, *prepared)
        else:
            _examine(_loaded(job, talk), talk, *prepared)
    except BaseException as error:  # a submission may raise anything, SystemExit too
        talk.say("failed", reason=words(error, job["file"]))
    os._exit(0)


def words(error: BaseException, file: str) -> str:
    """Return what went wrong, with the last line of the student's own files that it came through."""
    text = str(error) if isinstance(error, KitError) else f"{type(error).__name__}: {error}"
    folder = os.path.dirname(file)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    where = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
    return (text.replace(folder + os.sep, "")[:1000] + where).encode("utf-8", "replace").decode()


def _pool(job: Mapping[str, Any], talk: Talk) -> tuple[Any, ...]:
    """Return what a method is handed: base, experts, and data and seed for those that take them."""
    models = Path(job["models"])
    base = weight_files.read(models / "base.safetensors")
    experts = {name: weight_files.LazyWeights(models / f"{name}.safetensors") for name in job["experts"]}
    data = Handed(models / "encoder.pt", talk.ask) if job["data"] else None
    return base, experts, {"data": data, "seed": job["seed"], "watch": None}


def _tests(job: Mapping[str, Any], talk: Talk) -> tuple[Any, dict[str, Callable[[ModuleType], Any]]]:
    """Return the pool of the kit's checks, and the teacher's tests: both come before the submission's own code."""
    from mergekit_lite.course import checks, pico  # noqa: F401

    pool = pico.make() if job["checks"] else None
    if not job["tests"]:
        return pool, {}
    file = Path(job["tests"])
    module = ModuleType("_teachers_tests")
    module.__file__ = str(file)
    try:
        exec(compile(file.read_bytes(), file.name, "exec", dont_inherit=True), vars(module))
        found = {name: one for name, one in vars(module).items() if name.startswith("test_") and callable(one)}
        if not found:
            raise KitError("it defines no function test_...(module)")
        return pool, found
    except Exception as error:
        talk.say("broken", reason=words(error, str(file)))
        os._exit(0)


def _confine(job: Mapping[str, Any], talk: Talk, rooms: list[str]) -> dict[str, str]:
    """Give up what no method needs; return what the system itself sees to, and what only Python does."""
    memory = "by the grader, which looks at it several times a second"
    try:
        import resource

        most = int(job["memory"] * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        cpu = int(job["seconds"] * (os.cpu_count() or 1)) + 60
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        memory = "by the system" if sys.platform.startswith("linux") else memory  # others ignore RLIMIT_DATA
    except (ImportError, ValueError, OSError):
        pass
    reads, writes = guard.readable(), [Path(job["folder"])]
    kernel = landlock.restrict([*reads, *writes], [*writes, Path("/dev/null")])
    denied = [Path(one) for one in job["denied"]]
    sys.path[:] = [one for one in sys.path if any(Path(one).is_relative_to(place) for place in reads)]
    guard.close(reads, writes, denied, lambda text: talk.say("refused", what=text), rooms=rooms, kernel=kernel)
    return {"files": "by the system (Landlock)" if kernel else "by Python alone", "memory": memory}


def _loaded(job: Mapping[str, Any], talk: Talk) -> MethodInfo | ModuleType:
    """Return the submission's method, or its module where no method is asked for; say which."""
    if not job["method"]:
        file = Path(job["file"])
        sys.path.insert(0, str(file.parent))
        module = sys.modules[file.stem] = ModuleType(file.stem)
        module.__file__ = str(file)
        exec(compile(file.read_bytes(), file, "exec", dont_inherit=True), vars(module))
        talk.say("module")
        return module
    info = load_method(job["file"])[-1]
    if info.reference:
        raise KitError(f"'{info.function.__name__}' is registered as a reference, which is no merge.")
    access, name = info.access_with(info.parameters().model_dump()), info.function.__name__
    talk.say("method", name=name, title=info.title[:100], access=str(access), data="data" in info.resources)
    return info


def _examine(
    loaded: MethodInfo | ModuleType, talk: Talk, pool: Any, tests: Mapping[str, Callable[[ModuleType], Any]]
) -> None:
    """Say what each check and test found."""
    if isinstance(loaded, MethodInfo) and pool:
        from mergekit_lite.course import checks

        for finding in checks.run_checks(loaded, pool):
            talk.say("check", name=finding.name, passed=finding.passed, reason=finding.reason)
    talk.say("checked")
    module = sys.modules[loaded.function.__module__] if isinstance(loaded, MethodInfo) else loaded
    for name, passed, reason in _tried(tests, module):
        talk.say("test", name=name, passed=passed, reason=reason)
    talk.say("done")


def _tried(tests: Mapping[str, Callable[[ModuleType], Any]], module: ModuleType) -> Iterator[tuple[str, bool, str]]:
    for name, test in tests.items():
        try:
            test(module)
        except BaseException as error:  # pytest's own failures are no Exception
            yield name, False, words(error, str(module.__file__)).removeprefix("AssertionError: ")
        else:
            yield name, True, ""


def _merge(
    info: MethodInfo,
    talk: Talk,
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    offered: Mapping[str, Any],
) -> None:
    """Merge, and send the weights; the grader looks at them."""
    resources = {name: offered[name] for name in info.resources if name in offered}
    merged = info.function(base, experts, **resources)
    if not isinstance(merged, Merged) or merged.own:
        raise KitError("The method did not return one model for all tasks. Return `Merged(weights)`.")
    talk.give(merged.weights)


if __name__ == "__main__":
    main()
