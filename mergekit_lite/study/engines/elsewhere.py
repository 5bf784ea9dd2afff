"""Cells in other processes, maybe on other machines: what is sent there, what is checked, and what comes back.

A worker loads a suite once. Where it sees the driver's folder of records, it locks and writes there as any other run;
else the record travels back, and the driver writes it. It refuses to compute what would not be the driver's answer:
with another version of the kit, of torch or of open_clip, on another class of device, or with other weights or images.
"""

import importlib
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mergekit_lite.cache import VARIABLE, cache_dir
from mergekit_lite.errors import KitError
from mergekit_lite.methods import load_method, registry
from mergekit_lite.study import keys
from mergekit_lite.study.ahead import corrupt_for
from mergekit_lite.study.computing import Job, answered, compute
from mergekit_lite.study.engines import Engine, dispatch
from mergekit_lite.study.engines.here import Outcomes
from mergekit_lite.study.records import Cell, Record, read_record, write_record
from mergekit_lite.suites.suite import Suite


@dataclass(frozen=True)
class Place:
    """Where a worker gets a suite from.

    Attributes:
        loader: the suite's own, pickled.
        cache: the driver's, which a worker that sees it shares; another has its own.
    """

    loader: bytes
    cache: Path


@dataclass(frozen=True)
class Parcel:
    """What is sent to a worker for one cell.

    Attributes:
        place: where it gets the suite from.
        job: what to compute.
        methods: name -> how a worker gets a method that is not the kit's: a file's path and text, or its pickled self.
        marker: a file that exists where the driver's folder of records is seen.
        kit: hash of the kit's code that every cell of the suite runs.
    """

    place: Place
    job: Job
    methods: Mapping[str, tuple[Path, str] | bytes]
    marker: Path
    kit: str


@dataclass(frozen=True)
class Outcome:
    """What comes back.

    Attributes:
        record: the answer, or None.
        error: what went wrong, in words; empty if nothing did. With neither, another run has the cell under way.
        host: the machine that computed.
    """

    record: Record | None = None
    error: str = ""
    host: str = ""


def outcomes(suite: Suite, jobs: Sequence[Job], engine: Engine) -> Outcomes:
    """Have `engine` compute the jobs, and yield them as they end; what another run holds is left to it.

    What goes wrong on a worker is raised as a `KitError` that names its machine.
    """
    place, kit = _place(suite), keys.kit_of(suite)
    with tempfile.NamedTemporaryFile(prefix=".shared-", dir=jobs[0].folder) as marker:
        parcels = [(job, (Parcel(place, job, _methods(job), Path(marker.name), kit),)) for job in jobs]
        for job, result in dispatch.outcomes(engine, compute_there, parcels):
            yield job, lambda job=job, result=result: _kept(job, result())  # type: ignore[misc]


def _kept(job: Job, outcome: Outcome) -> Record | None:
    """Return the record as it reads back; write it unless the worker did."""
    if outcome.error:
        raise KitError(f"{outcome.error} (on {outcome.host})")
    if outcome.record is None:
        return None
    found = read_record(job.path, job.key, job.resolved)
    return found if isinstance(found, Record) else write_record(outcome.record, job.path)


def prepare(suite: Suite, cells: Sequence[Cell], engine: Engine) -> None:
    """Make or fetch what `cells` (resolved) need, task by task; a node with a disk of its own makes it later.

    Raises:
        KitError: it failed.
    """
    needed = dict.fromkeys((cell.expert_seed, task) for cell in cells for task in cell.pool)
    place = _place(suite)
    for (_, task), result in dispatch.outcomes(engine, prepare_there, [(one, (place, *one)) for one in needed]):
        outcome: Outcome = result()
        if outcome.error:
            raise KitError(f"What task '{task}' needs could not be prepared: {outcome.error} (on {outcome.host})")


def prepare_there(place: Place, seed: int, task: str) -> Outcome:
    """Make or fetch the expert and the images of one task, on a worker."""
    return _told(lambda: _suite(place).with_expert_seed(seed).prepare((task,), 1))


def compute_there(parcel: Parcel) -> Outcome:
    """Compute one cell on a worker, and record it where the driver's folder is seen."""
    return _told(lambda: _computed(parcel))


def _told(work: Callable[[], Record | None]) -> Outcome:
    # Whatever went wrong comes back in words: an exception may not pickle, and each engine wraps it in its own way.
    host = socket.gethostname()
    try:
        return Outcome(work(), host=host)
    except Exception as error:
        return Outcome(
            error=str(error) if isinstance(error, KitError) else f"{type(error).__name__}: {error}", host=host
        )


def _computed(parcel: Parcel) -> Record | None:
    suite, job = _suite(parcel.place), parcel.job
    for name, sent in parcel.methods.items():
        _bring(name, sent)
    if job.cell.method in parcel.methods:
        job = replace(job, source="__main__")  # there is nothing left to import
    _check_same(suite, parcel)
    # Nothing to do where the disk is shared: it was prepared.
    suite.with_expert_seed(job.cell.expert_seed).prepare(job.cell.pool, 1)
    corrupt_for(suite, [job.resolved], 1)
    if parcel.marker.exists():
        return compute(suite, job)
    return answered(keys.asked(suite, job.cell), job)


@lru_cache(maxsize=2)
def _suite(place: Place) -> Suite:
    if VARIABLE not in os.environ and place.cache.is_dir():
        os.environ[VARIABLE] = str(place.cache)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # as everywhere: one process per core with one thread
    loaded: Suite = pickle.loads(place.loader)()
    return loaded


def _check_same(suite: Suite, parcel: Parcel) -> None:
    """Check that an answer from here is the one that the driver's key stands for.

    Raises:
        KitError: it is not.
    """
    wanted, here = parcel.job.parts, keys.what_decides(suite, parcel.job.resolved)
    by_value = any(isinstance(sent, bytes) for sent in parcel.methods.values())  # no source to read comes with them
    other = [name for name in wanted if wanted[name] != here[name] and not (name == "code" and by_value)]
    if "environment" in other:
        differ = [
            f"{name} {here['environment'][name]}, not {value}"
            for name, value in wanted["environment"].items()
            if here["environment"].get(name) != value
        ]
        raise KitError(f"This worker has {', '.join(differ)}: its answers are others. Install the same there.")
    if "code" in other or parcel.kit != keys.kit_of(suite):
        raise KitError("This worker has another version of mergekit_lite, or of the method. Install the same there.")
    if other:
        raise KitError(f"This worker has another {other[0]} of '{suite.name}'. Give it the same weights and images.")


def _methods(job: Job) -> dict[str, tuple[Path, str] | bytes]:
    """Return how a worker gets the methods of a job that are neither the kit's nor an installed module's."""
    sent: dict[str, tuple[Path, str] | bytes] = {}
    named = (job.resolved.parameters.get(one) for one in ("start", "inside"))
    for name in (job.cell.method, *map(str, named)):
        with suppress(KitError):
            info = registry.get(name)
            if info.source:
                sent[name] = info.source, info.source.read_text(encoding="utf-8")
            elif info.function.__module__ == "__main__":
                sent[name] = _pickled(info)
    return sent


def _bring(name: str, sent: tuple[Path, str] | bytes) -> None:
    if isinstance(sent, bytes):
        info: registry.MethodInfo = pickle.loads(sent)
        registry.keep(info)
        return
    path, text = sent
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        path = _written(path.parent.name, path.name, text)
    load_method(path)


@lru_cache
def _written(folder: str, name: str, text: str) -> Path:
    """Write a method's file that this machine does not have, under its own name and that of its folder."""
    path = Path(tempfile.mkdtemp(prefix="mergekit-lite-"), folder, name)
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    return path


def _place(suite: Suite) -> Place:
    return Place(_pickled(suite.loader), cache_dir())


def _pickled(thing: Any) -> bytes:
    """Return `thing` pickled, and with it what a notebook or a script defines; both engines bring cloudpickle."""
    for package in ("cloudpickle", "ray.cloudpickle"):
        with suppress(ImportError):
            return bytes(importlib.import_module(package).dumps(thing))
    return pickle.dumps(thing)
