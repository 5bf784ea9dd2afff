"""A grid of cells to records: checked first, computed side by side, kept whole, never computed twice."""

import os
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar, overload

from mergekit_lite.cache import SHARD, cache_dir, check_writable, content_hash, free
from mergekit_lite.errors import KitError
from mergekit_lite.machine import source_commit
from mergekit_lite.methods import registry
from mergekit_lite.study.ahead import corrupt_for
from mergekit_lite.study.checks import resolved
from mergekit_lite.study.computing import Job
from mergekit_lite.study.engines import Engine, chosen, elsewhere, engine_called, here
from mergekit_lite.study.keys import what_decides
from mergekit_lite.study.records import Cell, Record, note, read_record
from mergekit_lite.study.shards import Elsewhere, share
from mergekit_lite.suites.suite import Suite

WAIT = 0.2
"""Seconds between two looks at cells that other runs have under way, when nothing else is left to do."""

Name = TypeVar("Name", bound=Hashable)


@overload
def run(
    suite: Suite,
    cells: Mapping[Name, Cell],
    *,
    workers: int | None = None,
    folder: Path | None = None,
    engine: str | Engine | None = None,
    wait_for_locked: bool = True,
) -> dict[Name, Record]: ...


@overload
def run(
    suite: Suite,
    cells: Sequence[Cell],
    *,
    workers: int | None = None,
    folder: Path | None = None,
    engine: str | Engine | None = None,
    wait_for_locked: bool = True,
) -> list[Record]: ...


def run(
    suite: Suite,
    cells: Mapping[Name, Cell] | Sequence[Cell],
    *,
    workers: int | None = None,
    folder: Path | None = None,
    engine: str | Engine | None = None,
    wait_for_locked: bool = True,
) -> dict[Name, Record] | list[Record]:
    """Return a record for each cell, in the shape of `cells`; compute only those that `folder` does not hold yet.

    Several runs share a grid: what one has under way the others leave to it, and look at again when all else is done.

    Args:
        suite: where weights, heads and images come from.
        cells: the grid, by names of your choice (texts, tuples, ...) or as a list. All are checked before any work
            begins.
        workers: processes of this machine, each with one thread: by default one per core, or on a GPU one per GPU (this
            process, if there is one). The same number of threads everywhere makes the records independent of the
            machine's number of cores.
        folder: where records are kept, one JSON file each; by default a folder of the cache named after the suite. If
            it holds them all, it is only read.
        engine: what computes: ``"processes"`` of this machine (the default), ``"ray"``, ``"slurm"`` with options behind
            them (``"slurm partition=gpu minutes=240"``), or an object with `submit`, see `engines.Engine`. Where it is
            not given, the variable ``MERGEKIT_LITE_ENGINE`` names it.
        wait_for_locked: wait for cells that other runs have under way; else they are left out of what is returned.

    Returns:
        the records under the names of their cells, or as a list in their order.

    Raises:
        KitError: a cell names something unknown (nothing was computed), or computing a cell failed (the others were
            computed and recorded; the message names the cell), or the folder or the ledger cannot be written to, or
            the engine cannot be had.
        Elsewhere: ``MERGEKIT_LITE_SHARD`` says that this is one of several shards, and others' cells are missing.
    """
    asked = list(cells.values()) if isinstance(cells, Mapping) else list(cells)
    in_cache = folder is None
    folder = (folder or cache_dir("records", suite.name)).absolute()
    engine, commit = chosen(engine), source_commit()
    jobs = []
    for cell in asked:
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
    mine = _share(jobs, missing)
    if mine:
        check_writable(folder)
        with engine_called(engine, suite.device) if engine else nullcontext() as started:
            records |= _compute_all(suite, mine, len(records), workers, started, wait=wait_for_locked)
    if in_cache:
        note(suite.name, [job.key for job in jobs if job.key in records])
    if len(mine) < len(missing):
        raise Elsewhere(len(missing) - len(mine), len(jobs))
    if isinstance(cells, Mapping):
        return {name: records[job.key] for name, job in zip(cells, jobs, strict=True) if job.key in records}
    return [records[job.key] for job in jobs if job.key in records]


def _share(jobs: Sequence[Job], missing: Mapping[str, Job]) -> list[Job]:
    """Return the missing jobs that are this run's to compute: all, unless it is one of several shards."""
    shard = os.environ.get(SHARD)
    if not shard:
        return list(missing.values())
    mine = {job.key for job in share(list({job.key: job for job in jobs}.values()), shard)}
    return [job for key, job in missing.items() if key in mine]


def _compute_all(
    suite: Suite, jobs: list[Job], known: int, workers: int | None, engine: Engine | None, *, wait: bool
) -> dict[str, Record]:
    """Compute the jobs, long ones first, and say so; what fails is told at the end and costs the others nothing."""
    jobs = sorted(jobs, key=lambda job: job.cost, reverse=True)
    workers = workers or here.processes(suite)
    if engine:
        elsewhere.prepare(suite, [job.resolved for job in jobs], engine)
    else:
        for seed in sorted({job.cell.expert_seed for job in jobs}):
            pools = [job.cell.pool for job in jobs if job.cell.expert_seed == seed]
            suite.with_expert_seed(seed).prepare(tuple(dict.fromkeys(name for pool in pools for name in pool)), workers)
        corrupt_for(suite, (job.resolved for job in jobs), workers)
    if known:
        print(f"{known} of {known + len(jobs)} cells are recorded already.", flush=True)

    def outcomes(jobs: Sequence[Job]) -> here.Outcomes:
        return elsewhere.outcomes(suite, jobs, engine) if engine else here.outcomes(suite, jobs, workers)

    records: dict[str, Record] = {}
    failures: list[tuple[Job, BaseException]] = []
    with _progress(len(jobs), known) as tell, closing(_all_outcomes(jobs, outcomes, wait=wait)) as ended:
        for job, outcome in ended:
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


def _all_outcomes(
    jobs: Sequence[Job], outcomes: Callable[[Sequence[Job]], here.Outcomes], *, wait: bool
) -> Generator[tuple[Job, Callable[[], Record]], None, None]:
    """Yield the jobs as they end, those that other runs have under way last, or not at all.

    So two runs on one grid take twice the cells, and neither waits for the other while there is something to do.
    """
    while jobs:
        held = list[Job]()
        with closing(outcomes(jobs)) as ended:
            for job, outcome in ended:
                try:
                    record = outcome()
                except Exception as error:
                    yield job, partial(_raised, error)
                    continue
                if record is None:
                    held.append(job)
                else:
                    yield job, partial(_given, record)
        if not wait:
            return
        jobs = []
        while held and not jobs:
            for job in list(held):
                found = read_record(job.path, job.key, job.resolved)
                if isinstance(found, Record):
                    held.remove(job)
                    yield job, partial(_given, found)
            jobs = [job for job in held if free(job.path)]  # whoever had them under way is gone, or failed
            if held and not jobs:
                time.sleep(WAIT)
        jobs += [job for job in held if job not in jobs]


def _given(record: Record) -> Record:
    return record


def _raised(error: Exception) -> Record:
    raise error


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
