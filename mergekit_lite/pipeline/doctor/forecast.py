"""What a profile will take here: the seconds of its promoted records, at the pace of this machine's encoder.

All that no record times is counted in images through the encoder, so that one measurement scales everything.
"""

import statistics
import time
from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mergekit_lite.cache import cache_dir
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged
from mergekit_lite.pipeline import runner
from mergekit_lite.pipeline.profiles import Profile
from mergekit_lite.study import evaluation, keys
from mergekit_lite.study.records import Record, read_record
from mergekit_lite.suites import load_suite, miniature
from mergekit_lite.suites.suite import Split, Suite, Which
from mergekit_lite.workers import cores

# In images through the miniature's encoder, measured on one core.
FINE_TUNING = 3  # of an image that an expert learns from: backward costs two forward passes
DRAWING = 1.6  # of an image
LOADING = 20_000  # of a notebook: its kernel, the library, its figures


@dataclass(frozen=True)
class Work:
    """One kind of work: how many pieces are missing, of how many, and the seconds that they take side by side.

    What is fetched has none: how long a download takes, the network decides.
    """

    what: str
    missing: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What one notebook will take; no work at all if its result is still valid, or if nothing is known of it."""

    notebook: str
    valid: bool = False
    work: tuple[Work, ...] = ()
    memory_mib: float = 0.0
    disk_mib: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole time."""
        return sum(work.seconds for work in self.work)


def predict(profile: Profile, root: Path) -> list[Forecast]:
    """Return what each notebook of `profile` will take, in the order in which they run.

    Only a notebook that was promoted after a run of this very profile can be judged.

    Raises:
        KitError: a notebook's parameters are wrong.
    """
    library = runner.library_hash()
    stale: dict[str, list[Record]] = {}
    for notebook in profile.notebooks:
        parameters = runner.check_parameters(profile, notebook, root)
        stamp = runner.stamp(root / "notebooks" / f"{notebook}.ipynb", parameters, library)
        if runner.run_of(root / "build" / profile.name / f"{notebook}.ipynb").get("stamp") != stamp:
            stale[notebook] = _promoted(profile, notebook, root / "book")
    records = [one for several in stale.values() for one in several]
    estimate = _Estimate(load_suite(profile.suite), records) if records else None
    return [
        Forecast(notebook, valid=notebook not in stale)
        if estimate is None or not stale.get(notebook)
        else estimate.forecast(notebook, stale[notebook])
        for notebook in profile.notebooks
    ]


def _promoted(profile: Profile, notebook: str, book: Path) -> list[Record]:
    """Return the records that the promoted notebook was made from; none if it was made by another profile."""
    run = runner.run_of(book / "executed" / f"{notebook}.ipynb")
    names = run.get("records", []) if run.get("profile") == profile.name else []
    found = [read_record(book / "records" / f"{name}.json", Path(name).name) for name in names]
    return [record for record in found if isinstance(record, Record)]


class _Estimate:
    """Knows the pace of this machine, and what earlier notebooks of the profile will have made."""

    def __init__(self, suite: Suite, records: Sequence[Record]) -> None:
        self.suite, self.sizes = suite, suite.sizes
        self.pace = seconds_per_image(suite)
        # Every record holds the time of its evaluation, to the millisecond: the pace of the machine that made it.
        there = statistics.median(
            max(one.seconds["evaluate"], 0.001)
            / max(1, len(one.curve))
            / sum(self.sizes[task][1] for task in one.accuracy)
            for one in records
        )
        self.slower = self.pace / there
        self.workers = 1 if suite.device.type == "cuda" else cores()
        self.made: set[Hashable] = set()

    def forecast(self, notebook: str, records: Sequence[Record]) -> Forecast:
        folder = cache_dir("records", self.suite.name)
        names = [self._name(one) for one in records]
        missing = [one for one, name in zip(records, names, strict=True) if self._lacks(name, (folder / name).exists())]
        work, disk = self._making(missing)
        seconds = [self.slower * sum(one.seconds.values()) for one in missing]
        loading = Work("loading", 1, 1, LOADING * self.pace)
        computing = Work("records", len(missing), len(records), side_by_side_seconds(seconds, self.workers))
        memory = max((one.peak_memory_mib for one in missing), default=0.0) * min(self.workers, len(missing))
        return Forecast(notebook, False, (loading, *work, computing), memory, disk)

    def _name(self, record: Record) -> str:
        """Return what the record's file would be called today."""
        try:
            return f"{keys.key_of(self.suite, record.cell)}.json"
        except KitError:  # there is no such method any more; another one will be asked instead
            return f"{record.key}-of-before"

    def _lacks(self, thing: Hashable, there: bool) -> bool:
        """Say whether something is neither there nor will be by then; from now on it will."""
        known = there or thing in self.made
        self.made.add(thing)
        return not known

    def _making(self, missing: Sequence[Record]) -> tuple[list[Work], float]:
        """Return the work of making or fetching images and experts, and the MiB that both will take on disk."""
        suite = self.suite
        pool = dict.fromkeys((one.cell.expert_seed, task) for one in missing for task in one.cell.pool)
        raw = [one for one in pool if self._lacks(one, suite.with_expert_seed(one[0]).has_expert(one[1]))]
        wanted: dict[tuple[str, Which], None] = dict.fromkeys(
            (task, "test") for one in missing for task in (*one.cell.pool, *one.cell.evaluate)
        )
        makes = isinstance(suite, miniature.Miniature)  # what the others fetch, it draws and fine-tunes
        shown = (Access.CALIBRATION, Access.LABELLED)
        learnt = [task for one in missing if one.access in shown for task in one.cell.adapt]
        wanted |= dict.fromkeys((task, "train") for task in ([task for _, task in raw] if makes else learnt))
        lacking = [one for one in wanted if self._lacks(one, suite.has_images(*one))]
        images = sum(self.sizes[task][which == "test"] for task, which in lacking)
        drawing = tuning = 0.0
        if isinstance(suite, miniature.Miniature):
            drawing = DRAWING * images * self.pace / self.workers
            each = FINE_TUNING * suite.recipe.steps * suite.recipe.batch_size * self.pace
            tuning = side_by_side_seconds([each] * len(raw), self.workers)
        work = [Work("images", len(lacking), len(wanted), drawing), Work("experts", len(raw), len(pool), tuning)]
        size = len(raw) * sum(tensor.nbytes for tensor in suite.base.values()) + images * 3 * suite.side**2
        return work, size / 2**20


MOST = 4096
"""Images of noise to time the encoder on: several batches of a GPU, so that bringing them there counts."""


def seconds_per_image(suite: Suite) -> float:
    """Time an evaluation: images come from the host's memory to the device, as in a run, and with one thread.

    The images are noise: an encoder takes as long for it, and nothing has to be fetched. So many are taken that half a
    second is spent, at most `MOST`.
    """
    # Of a processor, its own time: whatever else runs now may have ended when the profile is run.
    clock = time.perf_counter if suite.device.type == "cuda" else time.process_time
    task, rng, threads = next(iter(suite.tasks)), np.random.default_rng(0), torch.get_num_threads()

    def seconds(count: int) -> float:
        noise = Split(rng.integers(256, size=(count, 3, suite.side, suite.side), dtype=np.uint8), np.zeros(count, int))
        noisy = copy(suite)
        noisy.split = lambda task, which: noise  # type: ignore[method-assign]
        begun = clock()
        evaluation.accuracies(noisy, Merged(suite.base), (task,))
        return clock() - begun

    torch.set_num_threads(1)
    try:
        count = 8
        seconds(count)  # what happens once does not count
        while (spent := seconds(count)) < 0.5 and count < MOST:
            count *= 2
        return spent / count
    finally:
        torch.set_num_threads(threads)


def side_by_side_seconds(seconds: Sequence[float], workers: int) -> float:
    """Return how long jobs take when each worker takes the longest one that is left."""
    busy = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)
