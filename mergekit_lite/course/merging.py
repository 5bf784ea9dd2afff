"""A submission is looked at and merges, each in a process of its own; what comes back is checked here."""

import ast
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor

from mergekit_lite.course import reading, serving
from mergekit_lite.course.checks import Finding
from mergekit_lite.course.confinement import Process
from mergekit_lite.course.plan import Plan, PlannedPool
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged
from mergekit_lite.study import evaluation, task_data
from mergekit_lite.study.keys import asked
from mergekit_lite.study.records import Cell
from mergekit_lite.suites.suite import Suite
from mergekit_lite.weights import Weights, first_three, is_finite, mismatches


class Examined(BaseModel):
    """What a submission is, and what checks and tests found.

    Attributes:
        problem: why it cannot be graded at all; empty if it can.
        name, title, access: of its method.
        data: whether it takes data.
        checks, tests: the findings.
        checks_stopped, tests_stopped: why they did not come to their end; empty if they did.
        refused: what it tried and was refused.
        cut: what was confined, and by what.
        seconds: by the clock.
    """

    problem: str = ""
    name: str = ""
    title: str = ""
    access: str = ""
    data: bool = False
    checks: list[Finding] = []
    tests: list[Finding] = []
    checks_stopped: str = ""
    tests_stopped: str = ""
    refused: list[str] = []
    cut: dict[str, str] = {}
    seconds: float = 0.0


class Merge(BaseModel):
    """One pool merged by a submission, and measured.

    Attributes:
        pool, expert_seed: which.
        accuracy: task -> percent; empty if there is a problem.
        problem: why there is no merge.
        seconds: of merging, by the clock.
        images, labels: that it was handed.
        refused: what it tried and was refused.
    """

    pool: str
    expert_seed: int
    accuracy: dict[str, float] = {}
    problem: str = ""
    seconds: float = 0.0
    images: int = 0
    labels: int = 0
    refused: list[str] = []


@dataclass(frozen=True)
class Desk:
    """What a grading works with.

    Attributes:
        plan: with the names of its pools' tasks resolved.
        denied: files and folders that no submission may read: the cache, the plan, the submissions, the grades.
    """

    plan: Plan
    denied: tuple[Path, ...]


def examine(submission: Path, desk: Desk) -> Examined:
    """Return what `submission` is, and what the checks and the teacher's tests find in it.

    Raises:
        KitError: the teacher's tests cannot be used.
    """
    plan = desk.plan
    with Process(plan.limits) as process:
        try:
            file = reading.read(submission, process.folder / "method", _tested(plan))
        except KitError as error:
            return Examined(problem=str(error))
        tests = process.folder / "teachers_tests.py"
        if plan.points.tests:
            tests.write_bytes(plan.points.tests.file.read_bytes())
        job = {"job": "examine", "file": str(file), "seed": plan.seed, "checks": bool(plan.points.checks)}
        job |= {"method": plan.asks_for_method}
        process.begin({**job, "tests": str(tests) if plan.points.tests else ""}, desk.denied)
        found: dict[str, Any] = {}
        checked = False
        findings: dict[str, list[Finding]] = {"check": [], "test": []}
        while True:
            message: Any = process.receive()
            kind = message.get("kind") if message else None
            if kind == "broken":
                assert plan.points.tests is not None
                raise KitError(f"The tests {plan.points.tests.file} cannot be used: {message['reason']}")
            if kind == "module":
                found = {"name": "", "title": "", "access": "", "data": False}
            elif kind == "method":
                found = {name: str(message.get(name))[:200] for name in ("name", "title", "access")}
                found["data"] = bool(message.get("data"))
            elif kind in ("check", "test"):
                passed = message.get("passed")
                words = {name: str(message.get(name, ""))[:1000] for name in ("name", "reason")}
                findings[kind].append(Finding(**words, passed=passed if isinstance(passed, bool) else None))
            elif kind == "checked":
                checked = True
            else:  # done, failed, or the end
                break
        stopped = "" if kind == "done" else str(message.get("reason")) if kind == "failed" else process.ended()
        problem = stopped
        if found:
            allowed = not plan.asks_for_method or found["access"] in [str(one) for one in plan.access]
            problem = "" if allowed else _not_allowed(found["access"], plan.access)
        return Examined(
            **found,
            problem=problem,
            checks=findings["check"],
            tests=findings["test"],
            checks_stopped="" if checked else stopped,
            tests_stopped=stopped,
            refused=process.refused,
            cut=process.cut,
            seconds=round(process.seconds, 2),
        )


def merge(suite: Suite, submission: Path, examined: Examined, name: str, expert_seed: int, desk: Desk) -> Merge:
    """Let `submission` merge the pool called `name`, and measure the merge; whatever it does, something is returned."""
    pool = desk.plan.pools[name]
    about = Cell(
        method="", pool=pool.tasks, evaluate=pool.evaluate, expert_seed=expert_seed, corruption=pool.corruption
    )
    suite = asked(suite, about)
    access = Access(examined.access)
    adapt = _adapt(pool, access)
    # The order of the experts, and so their names, follow from what no student knows; and are the same each time.
    place = repr((desk.plan.model_dump_json(), submission.name, name, expert_seed))
    order = random.Random(zlib.crc32(place.encode())).sample(range(len(pool.tasks)), len(pool.tasks))
    names = serving.neutral(pool.tasks, adapt, order)
    experts = [one for one, task in names.items() if task in pool.tasks]
    with Process(desk.plan.limits) as process:
        file = reading.read(submission, process.folder / "method", _tested(desk.plan))
        models = process.folder / "models"
        models.mkdir()
        save_file(suite.base, models / "base.safetensors")
        for one in experts:
            save_file(dict(suite.experts[names[one]]), models / f"{one}.safetensors")
        data = task_data.shown(suite, adapt, access)
        server = serving.Server(data, names)
        if examined.data:
            serving.pack(suite, {one: task for one, task in names.items() if task in adapt}, models / "encoder.pt")
        job = {"job": "merge", "file": str(file), "seed": desk.plan.seed, "models": str(models), "experts": experts}
        process.begin({**job, "data": examined.data}, desk.denied)
        merged = _conversation(process, server, suite.base)
    accuracy = {}
    if not isinstance(merged, str):
        accuracy = evaluation.accuracies(suite, Merged(weights=merged), pool.evaluate)
    return Merge(
        pool=name,
        expert_seed=expert_seed,
        accuracy=accuracy,
        problem=merged if isinstance(merged, str) else "",
        seconds=round(process.seconds, 2),
        images=data.images,
        labels=data.labels,
        refused=process.refused,
    )


def _conversation(process: Process, server: serving.Server, base: Mapping[str, Tensor]) -> Weights | str:
    """Answer what the process asks until it sends weights, and return these; or words on why there are none."""
    most = sum(tensor.nbytes for tensor in base.values()) + 2**20
    while (message := process.receive(most)) is not None:
        kind = message.get("kind")
        if kind is None or isinstance(kind, Tensor):
            return _whole(message, base)
        if kind == "failed":
            return str(message.get("reason"))
        if kind in ("batches", "next"):
            try:
                process.send(server.answer(message))
            except KitError as error:
                process.send({"error": str(error)})
    return process.ended()


def _whole(merged: Mapping[str, Any], base: Mapping[str, Tensor]) -> Weights | str:
    """Return `merged` if it is one whole model without NaN, else words."""
    if not all(isinstance(tensor, Tensor) for tensor in merged.values()):
        return "It wrote into the grader's pipe."
    if problems := mismatches(base, merged):
        return f"The merged weights do not fit the base: {first_three(problems)}."
    if broken := [f"'{key}'" for key, tensor in merged.items() if not is_finite(tensor)]:
        return f"The merged weights hold NaN or infinite values: {first_three(broken)}."
    return dict(merged)


def _adapt(pool: PlannedPool, access: Access) -> tuple[str, ...]:
    """Return the tasks whose images are handed out, as `study` does it."""
    if access is Access.CALIBRATION:
        return pool.tasks
    both = tuple(task for task in pool.tasks if task in pool.evaluate)
    return pool.adapt or both or pool.tasks


def _tested(plan: Plan) -> list[str]:
    """Return the names of a submission that the teacher's tests read: those behind ``module.``."""
    if plan.points.tests is None:
        return []
    try:
        tree = ast.parse(plan.points.tests.file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise KitError(f"The tests {plan.points.tests.file} are not Python: {error}") from error
    tests = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")]
    called = {one.args.args[0].arg for one in tests if one.args.args}
    reads = (one for one in ast.walk(tree) if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name))
    return sorted({one.attr for one in reads if isinstance(one.value, ast.Name) and one.value.id in called})


def _not_allowed(access: str, allowed: Iterable[Access]) -> str:
    return f"Its data access is '{access}'; the plan allows: {', '.join(map(str, allowed))}."


def pools_of(plan: Plan, suite: Suite) -> Plan:
    """Return `plan` with the names of tasks resolved.

    Raises:
        KitError: a pool names a task that the suite does not have, or one twice.
    """

    def named(which: Sequence[str]) -> tuple[str, ...]:
        return tuple(suite.names(which[0]) if len(which) == 1 else suite.names(list(which)))

    pools = {}
    for name, pool in plan.pools.items():
        tasks = named(pool.tasks)
        evaluate = named(pool.evaluate) if pool.evaluate else tasks
        pools[name] = PlannedPool(
            tasks=tasks, evaluate=evaluate, adapt=named(pool.adapt) if pool.adapt else (), corruption=pool.corruption
        )
    return plan.model_copy(update={"pools": pools})
