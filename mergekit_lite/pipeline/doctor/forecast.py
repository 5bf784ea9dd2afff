"""What a profile will take here: the seconds of its promoted records, at the pace of this machine's encoder.

All that no record times is counted in images through the encoder, so that one measurement scales everything.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mergekit_lite.cache import cache_dir
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Merged
from mergekit_lite.pipeline import runner
from mergekit_lite.pipeline.profiles import Profile
from mergekit_lite.study import evaluation, keys
from mergekit_lite.study.records import Record, read_record
from mergekit_lite.suites import load_suite, miniature
from mergekit_lite.suites.miniature.canvas import SIDE
from mergekit_lite.suites.suite import Suite
from mergekit_lite.workers import cores

# In images through the miniature's encoder, measured on one core.
FINE_TUNING = 3  # of an image that an expert learns from: backward costs two forward passes
DRAWING = 1.6  # of an image
LOADING = 20_000  # of a notebook: its kernel, the library, its figures


@dataclass(frozen=True)
class Work:
    """One kind of work: how many pieces are missing, of how many, and the seconds that they take side by side."""

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
        self.pace = _seconds_per_image(suite)
        # Every record holds the time of its evaluation, and so the pace of the machine that made it.
        there = statistics.median(
            one.seconds["evaluate"] / max(1, len(one.curve)) / sum(self.sizes[task][1] for task in one.accuracy)
            for one in records
        )
        self.slower = self.pace / there
        self.workers = 1 if suite.device.type == "cuda" else cores()
        self.made: set[Path] = set()

    def forecast(self, notebook: str, records: Sequence[Record]) -> Forecast:
        folder = cache_dir("records", self.suite.name)
        missing = [one for one in records if self._lacks(folder / self._name(one))]
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

    def _lacks(self, start: Path) -> bool:
        """Say whether no file's name starts so, nor will by then; from now on one will."""
        known = start in self.made or any(start.parent.glob(f"{start.name}*"))
        self.made.add(start)
        return not known

    def _making(self, missing: Sequence[Record]) -> tuple[list[Work], float]:
        """Return the work of drawing images and fine-tuning experts, and the MiB that both will take on disk."""
        if not missing or not isinstance(self.suite, miniature.Miniature):
            return [], 0.0
        experts, images = (cache_dir(kind, self.suite.name) for kind in ("experts", "images"))
        pool = dict.fromkeys((one.cell.expert_seed, task) for one in missing for task in one.cell.pool)
        trained = {one: self.suite.with_expert_seed(one[0]).expert_hash(one[1]) for one in pool}
        raw = [one for one, named in trained.items() if self._lacks(experts / f"{one[1]}-{named}")]
        wanted = dict.fromkeys((task, "test") for one in missing for task in (*one.cell.pool, *one.cell.evaluate))
        wanted |= dict.fromkeys((task, "train") for _, task in raw)
        counts = [
            self.sizes[task][which == "test"] for task, which in wanted if self._lacks(images / f"{task}-{which}-")
        ]
        recipe = self.suite.recipe
        each = FINE_TUNING * recipe.steps * recipe.batch_size * self.pace
        drawing = DRAWING * sum(counts) * self.pace / self.workers
        work = [
            Work("images", len(counts), len(wanted), drawing),
            Work("experts", len(raw), len(pool), side_by_side_seconds([each] * len(raw), self.workers)),
        ]
        size = len(raw) * sum(tensor.nbytes for tensor in self.suite.base.values()) + sum(counts) * 3 * SIDE**2
        return work, size / 2**20


def _seconds_per_image(suite: Suite) -> float:
    """Time the encoder on one small test split, with one thread as in a worker."""
    task, (_, size) = min(suite.sizes.items(), key=lambda entry: entry[1][1])
    # Of a processor, its own time: whatever else runs now may have ended when the profile is run.
    clock = time.perf_counter if suite.device.type == "cuda" else time.process_time
    threads, images = torch.get_num_threads(), 0
    torch.set_num_threads(1)
    try:
        evaluation.accuracies(suite, Merged(suite.base), (task,))  # what happens once does not count
        begun = clock()
        while clock() - begun < 0.5:
            evaluation.accuracies(suite, Merged(suite.base), (task,))
            images += size
        return (clock() - begun) / images
    finally:
        torch.set_num_threads(threads)


def side_by_side_seconds(seconds: Sequence[float], workers: int) -> float:
    """Return how long jobs take when each worker takes the longest one that is left."""
    busy = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)
