"""A grid of cells to records: checked first, computed side by side, kept whole, never computed twice."""

import sys
import textwrap
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar, overload

from mergekit_lite.cache import cache_dir, check_writable, content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.machine import source_commit
from mergekit_lite.methods import registry
from mergekit_lite.study.ahead import corrupt_for
from mergekit_lite.study.checks import resolved
from mergekit_lite.study.computing import Job, compute
from mergekit_lite.study.keys import what_decides
from mergekit_lite.study.records import Cell, Record, note, read_record
from mergekit_lite.suites.suite import Suite
from mergekit_lite.workers import cores, side_by_side

Name = TypeVar("Name", bound=Hashable)


@overload
def run(
    suite: Suite, cells: Mapping[Name, Cell], *, workers: int | None = None, folder: Path | None = None
) -> dict[Name, Record]: ...


@overload
def run(
    suite: Suite, cells: Sequence[Cell], *, workers: int | None = None, folder: Path | None = None
) -> list[Record]: ...


def run(
    suite: Suite,
    cells: Mapping[Name, Cell] | Sequence[Cell],
    *,
    workers: int | None = None,
    folder: Path | None = None,
) -> dict[Name, Record] | list[Record]:
    """Return a record for each cell, in the shape of `cells`; compute only those that `folder` does not hold yet.

    Args:
        suite: where weights, heads and images come from.
        cells: the grid, by names of your choice (texts, tuples, ...) or as a list. All are checked before any work
            begins.
        workers: processes, each with one thread: by default one per core, and this process alone on a GPU. The same
            number of threads everywhere makes the records independent of the machine's number of cores.
        folder: where records are kept, one JSON file each; by default a folder of the cache named after the suite. If
            it holds them all, it is only read.

    Returns:
        the records under the names of their cells, or as a list in their order.

    Raises:
        KitError: a cell names something unknown (nothing was computed), or computing a cell failed (the others were
            computed and recorded; the message names the cell), or the folder or the ledger cannot be written to.
    """
    if isinstance(cells, Mapping):
        return dict(zip(cells, run(suite, list(cells.values()), workers=workers, folder=folder), strict=True))
    in_cache = folder is None
    folder = folder or cache_dir("records", suite.name)
    commit = source_commit()
    jobs = []
    for cell in cells:
        info, whole = registry.get(cell.method), resolved(suite, cell)
        parts, source = what_decides(suite, whole), info.source or info.function.__module__
        jobs.append(Job(cell, whole, content_hash(parts), parts, folder, source, commit))

    records: dict[str, Record] = {}
    missing: dict[str, Job] = {}
    for job in jobs:
        if job.key in records or job.key in missing:
            continue
        found = read_record(job.path, job.key, job.resolved)
        if isinstance(found, Record):
            info = registry.get(job.cell.method)  # a new title makes no new record, nor does a file that was moved
            shown = {"title": info.title, "cite": info.cite, "cell": job.resolved}
            records[job.key] = found.model_copy(update=shown)
        else:
            missing[job.key] = job
            if found is not None:
                print(f"The record {job.path.name} of {job.cell.label} is damaged ({found}); it is computed again.")
    if missing:
        check_writable(folder)
        records |= _compute_all(suite, list(missing.values()), known=len(records), workers=workers)
    if in_cache:
        note(suite.name, [job.key for job in jobs])
    return [records[job.key] for job in jobs]


def _compute_all(suite: Suite, jobs: list[Job], *, known: int, workers: int | None) -> dict[str, Record]:
    """Compute the jobs, long ones first, and say so; what fails is told at the end and costs the others nothing."""
    jobs = sorted(jobs, key=lambda job: job.cost, reverse=True)
    if workers is None:
        workers = 1 if suite.device.type == "cuda" else cores()
    for seed in sorted({job.cell.expert_seed for job in jobs}):
        pools = [job.cell.pool for job in jobs if job.cell.expert_seed == seed]
        suite.with_expert_seed(seed).prepare(tuple(dict.fromkeys(name for pool in pools for name in pool)), workers)
    corrupt_for(suite, (job.resolved for job in jobs), workers)
    if known:
        print(f"{known} of {known + len(jobs)} cells are recorded already.", flush=True)

    records: dict[str, Record] = {}
    failures: list[tuple[Job, BaseException]] = []
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


def _failed(failures: list[tuple[Job, BaseException]], recorded: int) -> str:
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


def _outcomes(suite: Suite, jobs: list[Job], workers: int) -> Generator[tuple[Job, Callable[[], Record]], None, None]:
    # A method of a notebook exists in this process only; that of a script comes with the script's file.
    notebook = not hasattr(sys.modules["__main__"], "__file__")
    here = [job for job in jobs if job.source == "__main__" and notebook]
    there = [job for job in jobs if job not in here]
    alone = workers == 1 or len(there) <= 1
    yield from side_by_side((lambda: suite) if alone else suite.loader, compute, there, workers)
    yield from side_by_side(lambda: suite, compute, here, 1)


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
