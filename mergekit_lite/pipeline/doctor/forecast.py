"""What a profile will take on this machine: its own work, timed for half a second each on noise, times known counts."""

import contextlib
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergekit_lite import study
from mergekit_lite.cache import cache_dir
from mergekit_lite.errors import KitError
from mergekit_lite.machine import peak_memory_mib, reset_peak_memory
from mergekit_lite.pipeline import runner
from mergekit_lite.pipeline.doctor.bench import (
    Bench,
    busy_neighbours,
    image_shape,
    import_seconds,
    noise_images,
    seconds_each,
)
from mergekit_lite.pipeline.profiles import Profile
from mergekit_lite.study import Cell
from mergekit_lite.study.records import Record, read_record
from mergekit_lite.suites import miniature
from mergekit_lite.suites.miniature.drawing import DrawnTask, draw
from mergekit_lite.suites.miniature.experts import fine_tune
from mergekit_lite.suites.miniature.tasks import TASKS
from mergekit_lite.suites.suite import Split, Suite
from mergekit_lite.workers import cores


@dataclass(frozen=True)
class Work:
    """One kind of work: how many pieces are missing, of how many, and the seconds that they take side by side."""

    what: str
    missing: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What one notebook will take; no work at all if its result is still valid."""

    notebook: str
    valid: bool = False
    work: tuple[Work, ...] = ()
    memory_mib: float = 0.0
    disk_mib: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole time."""
        return sum(work.seconds for work in self.work)


class Planned(BaseException):
    """Thrown by the stand-in for `study.run`; not an Exception, so that no cell of a notebook swallows it."""

    def __init__(self, suite: Suite, cells: Sequence[Cell], workers: int | None) -> None:
        super().__init__()
        self.suite, self.cells, self.workers = suite, cells, workers


def forecast(profile: Profile, root: Path) -> Iterator[Forecast]:
    """Yield what each notebook of `profile` will take, in the order in which they run.

    Raises:
        KitError: a notebook's parameters are wrong, or it fails before its study starts.
    """
    library = runner.library_hash()
    made: set[str] = set()  # what earlier notebooks will have made
    for notebook in profile.notebooks:
        parameters = runner.check_parameters(profile, notebook, root)
        template = root / "notebooks" / f"{notebook}.ipynb"
        executed = root / "build" / profile.name / f"{notebook}.ipynb"
        if runner.stamp_of(executed) == runner.stamp(template, parameters, library):
            yield Forecast(notebook, valid=True)
            continue
        begun = time.perf_counter()
        plan = planned(template, parameters)
        loading = time.perf_counter() - begun + import_seconds()
        if plan is None:
            yield Forecast(notebook, work=(Work("notebook without a study", 1, 1, loading),))
        else:
            yield replace(predict(plan.suite, plan.cells, plan.workers, loading, made), notebook=notebook)


def planned(template: Path, parameters: Mapping[str, Any]) -> Planned | None:
    """Return what a notebook would hand to its first `study.run`, or None if it has no study.

    Its code up to there is run, except for cells tagged ``hide-input``, which only show things.
    """

    def stop(suite: Suite, cells: Sequence[Cell], *, workers: int | None = None, folder: Path | None = None) -> None:
        raise Planned(suite, cells, workers)

    namespace: dict[str, Any] = {"__name__": "__main__"}
    real, number = study.run, 0
    study.run = stop  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for number, cell in enumerate(runner.read_notebook(template).cells, 1):  # noqa: B007
                tags = cell.metadata.get("tags", [])
                if cell.cell_type == "code" and "hide-input" not in tags:
                    exec(compile(cell.source, template.name, "exec"), namespace)
                    if "parameters" in tags:
                        namespace.update(parameters)
    except Planned as plan:
        return plan
    except KitError:
        raise
    except Exception as error:
        raise KitError(f"{template.name}, cell {number}, fails: {type(error).__name__}: {error}") from error
    finally:
        study.run = real
    return None


def predict(
    suite: Suite, cells: Sequence[Cell], workers: int | None, loading: float, made: set[str] | None = None
) -> Forecast:
    """Return what it takes to compute the `cells` that are not recorded yet, and the experts and images they need.

    Args:
        suite: whose encoder is timed.
        cells: the grid.
        workers: processes side by side, as for `study.run`.
        loading: seconds that a process takes to load the library and the suite.
        made: names of records, experts and images that will be there by then; what these cells make is added.
    """
    made = set() if made is None else made
    workers = workers or (1 if suite.device.type == "cuda" else cores())
    threads = torch.get_num_threads()
    reset_peak_memory(suite.device)
    before = peak_memory_mib(suite.device)
    records = cache_dir("records", suite.name)
    keys = {study.cell_key(suite, cell): cell for cell in cells}
    missing = {
        key: one
        for key, one in keys.items()
        if key not in made and not isinstance(read_record(records / f"{key}.json", key), Record)
    }
    made |= set(missing)
    work: list[Work] = []
    seconds: list[float] = []
    disk = 0.0
    if missing:
        with busy_neighbours(min(workers, len(missing)) - 1):
            try:
                torch.set_num_threads(1)  # as in a worker
                work, disk = _making(suite, list(missing.values()), workers, made)
                bench = Bench(suite)
                seconds = [bench.cell(cell) for cell in missing.values()]
            finally:
                torch.set_num_threads(threads)
    work.append(Work("records", len(missing), len(keys), side_by_side_seconds(seconds, workers)))
    # The notebook's own process loads the library, and so does each round of workers.
    rounds = 1 + sum(min(workers, one.missing) > 1 for one in work)
    work.insert(0, Work("loading", rounds, rounds, rounds * loading))
    peak, processes = peak_memory_mib(suite.device), min(workers, len(missing))
    return Forecast("", False, tuple(work), before + processes * peak if processes > 1 else peak, disk)


def side_by_side_seconds(seconds: Sequence[float], workers: int) -> float:
    """Return how long jobs take when each worker takes the longest one that is left."""
    busy = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)


def _making(suite: Suite, cells: Sequence[Cell], workers: int, made: set[str]) -> tuple[list[Work], float]:
    """Return the work of making images and experts that are not cached, and the MiB that they will take on disk."""
    pool = dict.fromkeys((cell.expert_seed, task) for cell in cells for task in cell.pool)
    shown = dict.fromkeys(task for cell in cells for task in (*cell.pool, *cell.evaluate))
    seeds = {seed for seed, _ in pool}
    experts_of = {seed: suite.with_expert_seed(seed).fingerprint(tuple(shown), ())["experts"] for seed in seeds}
    tests = suite.fingerprint((), tuple(shown))["data"]
    experts, images = (
        [path.name for path in cache_dir(kind, suite.name).iterdir() if not path.name.startswith(".")]
        for kind in ("experts", "images")
    )
    experts, images = [*experts, *made], [*images, *made]
    raw = [(seed, task) for seed, task in pool if not any(experts_of[seed][task] in name for name in experts)]
    learnt = dict.fromkeys(task for _, task in raw)
    splits = [(task, "test") for task in shown if not any(tests[task] in name for name in images)]
    splits += [(task, "train") for task in learnt if not any(name.startswith(f"{task}-train-") for name in images)]
    made |= {experts_of[seed][task] for seed, task in raw} | {tests[task] for task in shown}
    made |= {f"{task}-train-" for task in learnt}
    counts = {(task, which): suite.sizes[task][which == "test"] for task, which in splits}

    drawing = training = 0.0
    if isinstance(suite, miniature.Miniature):
        rates = {task: _drawing(TASKS[task]) for task, _ in counts}
        drawing = sum(count * rates[task] for (task, _), count in counts.items())
        recipe = miniature.RECIPE
        per_step = _fine_tuning_step(suite) if raw else 0.0
        steps = [recipe.steps for _ in raw]
        training = side_by_side_seconds([count * per_step for count in steps], workers)
    size = sum(tensor.nbytes for tensor in suite.base.values()) * len(raw)
    size += sum(counts.values()) * math.prod(image_shape(suite))
    work = [
        Work("images", len(splits), len(shown) + len(learnt), drawing / min(workers, max(1, len(shown)))),
        Work("experts", len(raw), len(pool), training),
    ]
    return work, size / 2**20


def _drawing(task: DrawnTask) -> float:
    """Return the seconds that drawing one picture of `task` takes."""
    return seconds_each(lambda count: draw(task, "test", 100 * count), 0.1) / 100


def _fine_tuning_step(suite: Suite) -> float:
    recipe, head = miniature.RECIPE, next(iter(suite.heads.values()))

    def steps(count: int) -> None:
        images = noise_images(suite, count * recipe.batch_size).numpy()
        split = Split(images, np.zeros(len(images), dtype=np.int64))
        fine_tune(suite.encode, suite.base, head, split, replace(recipe, steps=count))

    return seconds_each(steps)
