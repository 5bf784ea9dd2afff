"""A grid of cells to records: checked first, computed side by side, kept whole, never computed twice."""

import importlib
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergekit_lite.cache import cache_dir, code_hash, content_hash, locked
from mergekit_lite.errors import KitError
from mergekit_lite.machine import device_name, now, peak_memory_mib, reset_peak_memory, source_commit, versions
from mergekit_lite.methods import registry
from mergekit_lite.study import evaluation, task_data
from mergekit_lite.study.records import Cell, CurvePoint, Provenance, Record, note, read_record, write_record
from mergekit_lite.suites import broken, corruptions
from mergekit_lite.weights import weights_hash
from mergekit_lite.workers import cores, side_by_side

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

__all__ = ["Cell", "CurvePoint", "Record", "cell_key", "run"]


@dataclass(frozen=True)
class _Job:
    """A cell that is ready to be computed: checked, all parameters filled in, and with the name of its record."""

    cell: Cell
    resolved: Cell
    key: str
    folder: Path
    module: str  # where the method is defined: a worker imports it, so that a method of one's own is known there too
    commit: str | None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def cost(self) -> tuple[bool, int, int]:
        """Sorts the cells that take long before the others, so that none of them is left over for the end."""
        adaptive = registry.get(self.cell.method).access is not registry.Access.NONE
        given = self.resolved.parameters
        steps = given.get("steps") or given.get("iterations", 0) * (1 + given.get("inner_steps", 0))
        return adaptive, steps * len(self.resolved.adapt), len(self.cell.evaluate)


def cell_key(suite: "Suite", cell: Cell) -> str:
    """Return the 16 hexadecimal digits that name the record of `cell`.

    They change with anything that may change the answer: the resolved parameters, the tasks, the seed, the weights and
    images of the suite, and the source code of the method and of the evaluation.
    """
    return _key(suite, _resolved(suite, cell))


def run(
    suite: "Suite", cells: Sequence[Cell], *, workers: int | None = None, folder: Path | None = None
) -> list[Record]:
    """Return one record per cell, in the order of `cells`; compute only those that `folder` does not hold yet.

    Args:
        suite: where weights, heads and images come from.
        cells: the grid. All are checked before any work begins.
        workers: processes, each with one thread: by default one per core, and this process alone on a GPU. The same
            number of threads everywhere makes the records independent of the machine's number of cores.
        folder: where records are kept, one JSON file each; by default a folder of the cache named after the suite.

    Raises:
        KitError: a cell names something unknown (nothing was computed), or computing a cell failed (the others were
            computed and recorded; the message names the cell).
    """
    in_cache = folder is None
    folder = folder or cache_dir("records", suite.name)
    folder.mkdir(parents=True, exist_ok=True)
    commit = source_commit()
    jobs = []
    for cell in cells:
        resolved = _resolved(suite, cell)
        module = registry.get(cell.method).function.__module__
        jobs.append(_Job(cell, resolved, _key(suite, resolved), folder, module, commit))

    records: dict[str, Record] = {}
    missing: dict[str, _Job] = {}
    for job in jobs:
        if job.key in records or job.key in missing:
            continue
        found = read_record(job.path, job.key)
        if isinstance(found, Record):
            records[job.key] = found
        else:
            missing[job.key] = job
            if found is not None:
                print(f"The record {job.path.name} of {job.cell.label} is damaged ({found}); it is computed again.")
    if missing:
        records |= _compute_all(suite, list(missing.values()), known=len(records), workers=workers)
    if in_cache:
        note(suite.name, [job.key for job in jobs])
    return [records[job.key] for job in jobs]


def _resolved(suite: "Suite", cell: Cell) -> Cell:
    """Return `cell` with every parameter filled in; raise KitError if it names anything that does not exist."""
    info = registry.get(cell.method)
    for role, tasks in (("pool", cell.pool), ("evaluate", cell.evaluate), ("adapt", cell.adapt)):
        if not tasks and role != "adapt":
            raise KitError(f"{cell.label}: `{role}` names no task. Name one or more of: {', '.join(suite.tasks)}.")
        suite.names(tasks)
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise KitError(f"{cell.label}: `{role}` names {', '.join(twice)} more than once. Name each task once.")
    if cell.curve_every and "watch" not in info.resources:
        raise KitError(f"{cell.label}: curve_every={cell.curve_every}, but this method takes no steps. Leave it out.")
    if cell.adapt and "data" not in info.resources:
        raise KitError(f"{cell.label}: `adapt` names tasks, but this method looks at no data. Leave it out.")
    if cell.corruption:
        corruptions.check(cell.corruption)
    strange = [task for task in cell.broken if task not in cell.pool]
    if strange:
        raise KitError(f"{cell.label}: `broken` names {', '.join(strange)}, which the pool does not. Name its experts.")
    parameters = registry.resolve(cell.method, cell.parameters)
    return cell.model_copy(update={"parameters": parameters, "adapt": adapted_to(cell, parameters)})


def adapted_to(cell: Cell, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tasks whose data the method sees with these (resolved) parameters, see `Cell`."""
    info = registry.get(cell.method)
    if "data" not in info.resources:
        return ()
    if info.access_with(parameters) is registry.Access.CALIBRATION:
        if cell.adapt:
            raise KitError(f"{cell.label}: each expert is calibrated on its own task. Leave `adapt` out.")
        return cell.pool
    both = tuple(task for task in cell.pool if task in cell.evaluate)
    return cell.adapt or both or cell.pool


def _key(suite: "Suite", resolved: Cell) -> str:
    # What is not used is left out, so that records from before it was there keep their names.
    unused = {name for name in ("corruption", "broken") if not getattr(resolved, name)}
    question = resolved.model_dump(exclude=unused)
    return content_hash(
        {"cell": question, "suite": _fingerprint(_suite_of(suite, resolved), resolved), "code": _code(resolved)}
    )


def _fingerprint(suite: "Suite", resolved: Cell) -> dict[str, Any]:
    """Return hashes of the weights and images of `suite`, the cell's own, that the cell looks at."""
    looked_at = tuple(dict.fromkeys((*resolved.evaluate, *resolved.adapt)))
    access = registry.get(resolved.method).access_with(resolved.parameters)
    learnt = resolved.adapt if access in (registry.Access.CALIBRATION, registry.Access.LABELLED) else ()
    return suite.fingerprint(resolved.pool, looked_at, learnt)


def _suite_of(suite: "Suite", cell: Cell) -> "Suite":
    """Return the suite that `cell` is about: with experts of its seed, and with its corruption of the test images."""
    return corruptions.corrupted(suite.with_expert_seed(cell.expert_seed), cell.corruption)


def _code(resolved: Cell) -> str:
    """Return a hash of the code that computes a cell: of its method, of one it starts from, and of the evaluation."""
    start = resolved.parameters.get("start")  # by its name only: imports do not lead there
    names = [resolved.method] + [info.name for info in registry.all_methods() if info.name == start]
    files = [evaluation.__file__] + ([task_data.__file__] if "data" in registry.get(resolved.method).resources else [])
    files += [broken.__file__] if resolved.broken else []
    return content_hash([*map(registry.code_fingerprint, names), *(code_hash(Path(file)) for file in files)])


def _compute_all(suite: "Suite", jobs: list[_Job], *, known: int, workers: int | None) -> dict[str, Record]:
    """Compute the jobs, long ones first, and say so; what fails is told at the end and costs the others nothing."""
    jobs = sorted(jobs, key=lambda job: job.cost, reverse=True)
    if workers is None:
        workers = 1 if suite.device.type == "cuda" else cores()
    for seed in sorted({job.cell.expert_seed for job in jobs}):
        pools = [job.cell.pool for job in jobs if job.cell.expert_seed == seed]
        suite.with_expert_seed(seed).prepare(tuple(dict.fromkeys(name for pool in pools for name in pool)), workers)
    if known:
        print(f"{known} of {known + len(jobs)} cells are recorded already.", flush=True)

    records: dict[str, Record] = {}
    failures: list[tuple[_Job, BaseException]] = []
    outcomes = _outcomes(suite, jobs, workers)
    with _progress(len(jobs), known) as tell, closing(outcomes):
        for job, outcome in outcomes:
            try:
                record = records[job.key] = outcome()
                name = textwrap.shorten(job.cell.label, 60, placeholder=" …)")  # a line of a notebook
                tell(f"{name}: {record.average:.1f} % in {sum(record.seconds.values()):.0f} s")
            except Exception as error:
                failures.append((job, error))
                tell(f"{job.cell.label}: failed")
    if failures:
        raise KitError(_failed(failures, known + len(records))) from failures[0][1]
    return records


def _failed(failures: list[tuple[_Job, BaseException]], recorded: int) -> str:
    lines = [
        f"{len(failures)} of {len(failures) + recorded} cells failed; "
        f"the other {recorded} are recorded and will not be computed again."
    ]
    for job, error in failures:
        if not isinstance(error, BrokenProcessPool):
            words = str(error) if isinstance(error, KitError) else f"{type(error).__name__}: {error}"
            lines.append(f"{job.cell.label}, merging {', '.join(job.cell.pool)}: {words}")
    broken = [job.cell.label for job, error in failures if isinstance(error, BrokenProcessPool)]
    if broken:
        lines.append(
            f"{', '.join(broken)}: a worker process ended abruptly. Most often the memory ran out: pass workers=1. "
            'A script of your own must start the study under `if __name__ == "__main__":`.'
        )
    return "\n".join(lines)


def _outcomes(
    suite: "Suite", jobs: list[_Job], workers: int
) -> Generator[tuple[_Job, Callable[[], Record]], None, None]:
    # A method defined in a notebook or a script exists in this process only.
    here = [job for job in jobs if job.module == "__main__"]
    there = [job for job in jobs if job.module != "__main__"]
    alone = workers == 1 or len(there) <= 1
    yield from side_by_side((lambda: suite) if alone else suite.loader, compute, there, workers)
    yield from side_by_side(lambda: suite, compute, here, 1)


def compute(suite: "Suite", job: _Job) -> Record:
    """Compute one cell and record it, unless another run did so while this one waited for the record's lock."""
    importlib.import_module(job.module)  # registers the method in a worker process
    with locked(job.path):
        found = read_record(job.path, job.key)
        if isinstance(found, Record):
            return found
        return write_record(_answer(_suite_of(suite, job.cell), job), job.path)


def _answer(suite: "Suite", job: _Job) -> Record:
    cell, info, started = job.resolved, registry.get(job.cell.method), now()
    reset_peak_memory(suite.device)
    measured: dict[str, dict[str, float]] = {}
    curve: list[CurvePoint] = []
    evaluating = 0.0

    def measure(merged: registry.Merged) -> dict[str, float]:
        nonlocal evaluating
        _wait_for(suite.device)
        begun = time.perf_counter()
        # The last point of a curve is most often the final answer too; there is no need to measure it twice.
        name = weights_hash(merged.weights) if cell.curve_every and not merged.own else ""
        answer = measured.get(name) or evaluation.accuracies(suite, merged, cell.evaluate)
        if name:
            measured[name] = answer
        evaluating += time.perf_counter() - begun
        return answer

    def watch(step: int, weights: Mapping[str, Tensor]) -> None:
        if step % cell.curve_every == 0:
            curve.append(CurvePoint(step=step, accuracy=measure(registry.Merged(weights=dict(weights)))))

    offered: dict[str, Any] = {
        "data": lambda: task_data.seen(suite, cell.adapt, info.access_with(cell.parameters)),
        "seed": lambda: cell.seed,
        "watch": lambda: watch if cell.curve_every else None,
    }
    resources = {name: offered[name]() for name in info.resources if name in offered}
    experts = {task: suite.experts[task] for task in cell.pool}
    for task, how in cell.broken.items():
        experts[task] = broken.Broken(suite.base, experts[task], how, task, cell.seed)

    begun = time.perf_counter()
    merged = info.function(suite.base, experts, **resources, **cell.parameters)
    _wait_for(suite.device)
    merging = time.perf_counter() - begun - evaluating
    accuracy = measure(merged)

    return Record(
        key=job.key,
        suite=suite.name,
        cell=cell,
        title=info.title,
        access=str(info.access_with(cell.parameters)),
        cite=info.cite,
        accuracy=accuracy,
        seconds={"merge": round(merging, 3), "evaluate": round(evaluating, 3)},
        peak_memory_mib=round(peak_memory_mib(suite.device), 1),
        trace=dict(merged.trace),
        curve=curve,
        provenance=Provenance(
            **versions(),
            device=device_name(suite.device),
            dtype=str(next(iter(suite.base.values())).dtype).removeprefix("torch."),
            commit=job.commit,
            suite=_fingerprint(suite, cell),
            sources=suite.sources(cell.pool),
            code=_code(cell),
            started=started,
        ),
    )


def _wait_for(device: torch.device) -> None:
    """Work on a GPU is queued: without waiting for it, merging would be billed to the evaluation."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _progress(total: int, known: int) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with a line per finished cell: a bar in a terminal, else one plain line each."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns) as bar:
            number = bar.add_task("", total=total)

            def tell(line: str) -> None:
                bar.console.print(line, markup=False, highlight=False)
                bar.advance(number)

            yield tell
        return

    done = known

    def say(line: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{known + total}] {line}", flush=True)

    yield say
