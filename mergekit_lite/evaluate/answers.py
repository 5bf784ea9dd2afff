"""What each model says to each test image: computed once, side by side, and kept."""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite.cache import cache_dir, content_hash, ensure, intact, sealed
from mergekit_lite.errors import KitError
from mergekit_lite.evaluate.models import Model
from mergekit_lite.fingerprints import code_of
from mergekit_lite.machine import in_memory
from mergekit_lite.study.keys import what_decides
from mergekit_lite.study.records import Cell
from mergekit_lite.suites.checkpoints.encoders import Encoder
from mergekit_lite.suites.scoring import ahead
from mergekit_lite.suites.suite import Split, Suite
from mergekit_lite.suites.words import spelt
from mergekit_lite.workers import cores, side_by_side

Answers = NDArray[np.int32]
"""The class that a model takes each test image of a task for, (N,), in the order of the images."""


@dataclass(frozen=True)
class Question:
    """What one model says to the test images of one task, and where the answer is kept."""

    model: Model
    task: str
    path: Path


def bring_images(suite: Suite, tasks: Sequence[str]) -> None:
    """Fetch and decode the test images of `tasks` that are not there, and the experts with them: both are needed.

    Raises:
        KitError: something cannot be brought, or a task has no test images.
    """
    lacking = [task for task in tasks if not suite.has_images(task, "test")]
    if lacking:
        suite.prepare(lacking, _workers(suite))
    for task in tasks:
        if not suite.sizes[task][1]:
            raise KitError(f"Task '{task}' of suite '{suite.name}' has no test images. Name the others: --tasks.")


def gathered(suite: Suite, models: Sequence[Model], tasks: Sequence[str]) -> dict[tuple[str, str], Answers]:
    """Return (name of a model, task) -> its answers; what was answered before is read from the cache.

    On a CPU there is a process per core, each with one thread and one model in memory at a time; on a GPU there is
    this process alone.

    Raises:
        KitError: experts or images cannot be made, fetched or kept.
    """
    questions = [Question(model, task, kept_at(suite, model, task)) for model in models for task in tasks]
    missing = [one for one in questions if not intact(one.path, say=False)]
    missing = list({one.path: one for one in missing}.values())
    workers = _workers(suite)
    wanted = [one.task for one in missing if one.model.place == "expert"]
    if wanted:
        suite.prepare(wanted, workers)
    missing.sort(key=lambda one: suite.sizes[one.task][1], reverse=True)  # none that takes long is left for the end
    alone = min(workers, len(missing)) <= 1
    outcomes = side_by_side((lambda: suite) if alone else suite.loader, _answer, missing, workers)
    with _progress(len(missing)) as tell, closing(outcomes):
        for question, outcome in outcomes:
            try:
                outcome()
            except BrokenProcessPool as error:
                raise KitError(
                    f"A worker process ended abruptly while '{spelt(question.model.name)}' was measured on "
                    f"'{question.task}', most often because the memory ran out. What was finished is kept: end what "
                    "else runs here, and run the same again."
                ) from error
            tell(f"{spelt(question.model.name)} on {question.task}")
    return {(one.model.name, one.task): np.load(one.path) for one in questions}


def _workers(suite: Suite) -> int:
    return 1 if suite.device.type == "cuda" else cores()


def are_kept(suite: Suite, model: Model, tasks: Sequence[str]) -> bool:
    """Return whether the answers of `model` to all `tasks` are there already."""
    return all(intact(kept_at(suite, model, task), say=False) for task in tasks)


def kept_at(suite: Suite, model: Model, task: str) -> Path:
    """Return the file for answers: its name changes with all that may change them, and with nothing else."""
    parts = what_decides(suite, Cell(method="pretrained", pool=(), evaluate=(task,)))
    key = content_hash([model.digest(suite, task), parts, _code()])
    return cache_dir("answers", suite.name) / f"{task}-{key}.npy"


@cache
def _code() -> str:
    return code_of(predicted, Encoder)


def _answer(suite: Suite, question: Question) -> None:
    def make() -> None:
        found = predicted(suite, question.model, question.task)
        with sealed(question.path) as temporary, temporary.open("wb") as stream:
            np.save(stream, found)

    ensure(make, question.path)


def predicted(suite: Suite, model: Model, task: str) -> Answers:
    """Return the class that `model` takes each test image of `task` for, (N,), as `suites.scoring.accuracy` does.

    Batches are as large as there, so that rounding is the same; one that does not fit into memory is halved.

    Raises:
        KitError: not even one image fits.
    """
    split, head = suite.split(task, "test"), suite.heads[task].to(suite.device)
    weights = dict(model.weights(suite, task))  # they lie in a file: read once, not once per batch
    most = 125 if suite.device.type == "cpu" else 1000
    spans = [slice(start, start + most) for start in range(0, len(split.labels), most)]
    found: list[Tensor] = []

    def part(size: int) -> Tensor:
        features = suite.encode(weights, images[done : done + size].to(suite.device, non_blocking=True))
        return (features @ head.to(features.dtype).T).argmax(dim=1)

    with torch.inference_mode(), closing(_batches(split, spans, suite.device)) as batches:
        for images in batches:
            done = 0
            while done < len(images):
                said = in_memory(part, most, suite.device, what="the features", key=suite.name)
                found.append(said.cpu())
                done += len(said)
    return torch.cat(found).numpy().astype(np.int32)


def _batches(split: Split, spans: Sequence[slice], device: torch.device) -> Generator[Tensor]:
    """Yield the images of each span, on the CPU: for a GPU read ahead, into memory that it can copy from."""
    gpu = device.type == "cuda"
    load = partial(_loaded, split, gpu)
    yield from ahead(load, spans) if gpu else map(load, spans)


def _loaded(split: Split, pinned: bool, rows: slice) -> Tensor:
    images = torch.empty(split.images[rows].shape, dtype=torch.uint8, pin_memory=pinned)
    np.copyto(images.numpy(), split.images[rows])  # torch must not write to a read-only memory map
    return images


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with a line for each answer: a bar in a terminal, else plain lines, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            number = bar.add_task("", total=total)
            yield lambda line: bar.update(number, advance=1, description=line)
        return
    done = 0

    def say(line: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{total}] {line}", file=sys.stderr, flush=True)

    yield say
