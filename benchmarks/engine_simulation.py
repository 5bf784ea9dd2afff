"""What the driver of a study costs, and how long a grid takes on up to 512 workers of which some are lost.

    python -m benchmarks.engine_simulation [--cells 20000] [--draw]

Cells are drawn from those of the book's records, each with the seconds that it took, scaled to a mean. Nothing is
merged: **the driver is the real one** (`study.run` with an engine), and its workers are stand-ins whose handles are
done at once, so that what is timed is the driver alone: checking and naming the cells, submitting them, and keeping
what comes back, once where workers write records themselves and once where the driver does. **The workers' time is
simulated**: each takes the next cell that was submitted as soon as it is free, and one that is lost gives its cell back
to the front and is replaced, as Ray does. No cell begins before the driver submitted it.
"""

import heapq
import io
import pickle
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks import measuring, models
from mergekit_lite import study
from mergekit_lite.methods import Access, all_methods
from mergekit_lite.study.engines.elsewhere import Outcome, Parcel
from mergekit_lite.study.records import Cell, Record, read_record, write_record
from mergekit_lite.suites import load_suite

RECORDS = Path(__file__).parents[1] / "book" / "records" / "miniature"
FIGURE = Path(__file__).parents[1] / "book" / "_static" / "engine-simulation.svg"
WORKERS = tuple(2**power for power in range(10))
ORDERS = ("long first", "as given", "shuffled")


class Timed(NamedTuple):
    """What the driver took.

    Attributes:
        build: seconds until the first cell was submitted: checked, named, and found missing.
        submit: seconds a cell.
        keep: seconds a cell that ended.
        parcel: bytes that are sent for a cell.
        order: numbers of the cells in the order in which they were submitted.
    """

    build: float
    submit: float
    keep: float
    parcel: float
    order: tuple[int, ...]


class Worked(NamedTuple):
    """What workers took, by a simulated clock: seconds until the last cell ended, and cells that were begun again."""

    seconds: float
    again: int


class Handle:
    """What a stand-in of a worker returns, at once; making it is not the driver's time, and is taken off."""

    def __init__(self, engine: "StandIn", arguments: tuple[Any, ...]) -> None:
        self.engine, self.arguments = engine, arguments

    def done(self) -> bool:
        """Return that it is."""
        return True

    def add_done_callback(self, function: Callable[[Any], None]) -> None:
        """Call `function` now."""
        function(self)

    def result(self) -> Outcome:
        """Return some record of the book under the name of this cell's."""
        (parcel, *_) = self.arguments
        if not isinstance(parcel, Parcel):
            return Outcome()
        begun = time.perf_counter()
        record = self.engine.record.model_copy(update={"key": parcel.job.key, "cell": parcel.job.resolved})
        if self.engine.shared:
            write_record(record, parcel.job.path)
        self.engine.aside += time.perf_counter() - begun
        return Outcome(record)


class StandIn:
    """An engine that pickles what it is given, as all do that send it somewhere, and computes nothing."""

    def __init__(self, record: Record, *, shared: bool) -> None:
        self.record, self.shared = record, shared
        self.begun, self.ended, self.aside, self.bytes = 0.0, 0.0, 0.0, 0
        self.order: list[int] = []

    def submit(self, function: Any, /, *arguments: Any) -> Handle:
        """Pickle the call, and return a handle that is done."""
        if isinstance(arguments[0], Parcel):
            self.begun = self.begun or time.perf_counter()
            self.bytes += len(pickle.dumps((function, arguments)))
            self.order.append(arguments[0].job.cell.seed)
            self.ended = time.perf_counter()
        return Handle(self, arguments)


def drawn(count: int, mean: float, seed: int = 0) -> tuple[list[Cell], list[float]]:
    """Return `count` different cells of the book and the seconds each takes, scaled to a mean."""
    known = [one for path in sorted(RECORDS.glob("*.json")) if isinstance(one := read_record(path, path.stem), Record)]
    methods = {one.name for one in all_methods()}
    known = [one for one in known if one.cell.method in methods]
    chosen = random.Random(seed).choices(known, k=count)
    took = [sum(one.seconds.values()) for one in chosen]
    scale = mean / statistics.fmean(took)
    cells = []
    for at, one in enumerate(chosen):
        learns = {"adapt": ()} if one.access == Access.CALIBRATION else {}  # of its own tasks: nobody may say which
        # A seed of its own makes each a cell of its own, and says which it is.
        cells.append(one.cell.model_copy(update={"seed": at, **learns}))
    return cells, [scale * one for one in took]


def driven(cells: Sequence[Cell], *, shared: bool) -> Timed:
    """Have the real driver run the cells on stand-ins, and return what it took."""
    suite = load_suite("miniature", "cpu")
    record = next(one for path in RECORDS.glob("*.json") if isinstance(one := read_record(path, path.stem), Record))
    engine = StandIn(record, shared=shared)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        begun = time.perf_counter()
        study.run(suite, cells, folder=Path(folder), engine=engine)
        ended = time.perf_counter()
    count = len(cells)
    keep = ended - engine.ended - engine.aside
    return Timed(
        engine.begun - begun,
        (engine.ended - engine.begun) / count,
        keep / count,
        engine.bytes / count,
        tuple(engine.order),
    )


def worked(seconds: Sequence[float], workers: int, lost: float, submit: float = 0.0, seed: int = 0) -> Worked:
    """Simulate workers that take cells in this order.

    Args:
        seconds: of each cell, in the order in which they are submitted.
        workers: how many there are; a lost one is replaced.
        lost: probability that a worker is lost while it computes a cell, at a random moment.
        submit: seconds between two cells that are submitted.
        seed: of the losses.
    """
    draw = random.Random(seed)
    free = [0.0] * workers
    again, end = 0, 0.0
    for number, length in enumerate(seconds):
        now = max(heapq.heappop(free), submit * (number + 1))
        while draw.random() < lost:
            now += draw.random() * length  # the cell goes to the front: the worker's successor begins with it
            again += 1
        end = max(end, now + length)
        heapq.heappush(free, now + length)
    return Worked(end, again)


def bound(seconds: Sequence[float], workers: int) -> float:
    """Return the seconds below which no schedule can be: all work divided, or the longest cell."""
    return max(sum(seconds) / workers, max(seconds))


def main(
    cells: Annotated[int, typer.Option(min=2, help="How many cells.")] = 20_000,
    mean: Annotated[float, typer.Option(min=0, help="Seconds of a cell on average.")] = 60.0,
    lost: Annotated[float, typer.Option(min=0, max=0.5, help="Probability to lose a worker, per cell.")] = 0.01,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of the driver with a tenth of the cells.")] = 5,
    draw: Annotated[bool, typer.Option(help="Draw the book's figure.")] = False,
    results: models.Results = models.RESULTS,
) -> None:
    """Measure the driver, simulate the workers, and compare."""
    report = measuring.Report(
        "engine_simulation",
        "The driver keeps 512 workers busy with cells of seconds, and a grid takes little longer than its lower bound.",
        {"cells": cells, "mean": mean, "lost": lost, "repeats": repeats},
    )
    asked, seconds = drawn(cells, mean)
    driven(asked[: cells // 10], shared=True)  # reads the code of every method, once per process
    runs = {shared: [driven(asked[: cells // 10], shared=shared) for _ in range(repeats)] for shared in (True, False)}
    whole = driven(asked, shared=False)
    few = [one.build / (cells // 10) for one in runs[True]]
    report.line("driver, naming a cell", f"{1e6 * whole.build / cells:.0f} us ({_spread(few)} with a tenth of them)")
    report.line("driver, submitting a cell", f"{1e6 * whole.submit:.0f} us, {whole.parcel:.0f} bytes")
    for shared, what in ((True, "written by workers"), (False, "written by the driver")):
        report.line(f"driver, a record {what}", _spread([one.keep for one in runs[shared]]))
    pace = statistics.median(one.keep for one in runs[False])
    report.line("driver, cells a second", f"{1 / (whole.submit + pace):.0f} where it writes the records")
    report.ratio("naming a cell of all against one of a tenth of them", whole.build / cells / statistics.median(few))

    given = {
        "long first": [seconds[at] for at in whole.order],
        "as given": seconds,
        "shuffled": random.Random(1).sample(seconds, len(seconds)),
    }
    table = []
    for workers in WORKERS:
        least = bound(seconds, workers)
        took = {order: worked(given[order], workers, lost, whole.submit) for order in ORDERS}
        none = worked(given["long first"], workers, 0.0, whole.submit)
        # What comes back waits for the driver if it comes faster than that keeps it.
        kept = {order: max(one.seconds, whole.submit * cells + pace * cells) for order, one in took.items()}
        table.append(
            {
                "workers": workers,
                "bound": least,
                "seconds": kept,
                "without losses": none.seconds,
                "again": took["long first"].again,
            }
        )
        shown = ", ".join(f"{order} {least / kept[order]:.3f}" for order in ORDERS)
        report.line(f"{workers} workers, bound {least / 3600:.2f} h: share of it", f"{shown}")
    starved = 512 * (whole.submit + pace)
    report.line(
        "the driver, not 512 workers, decides how long it takes where a cell takes less than", f"{starved:.2f} s"
    )
    most = table[-1]
    report.ratio("512 workers, long first, to the lower bound", most["seconds"]["long first"] / most["bound"], most=1.1)
    report.details = {
        "driver": {
            "microseconds to name a cell": 1e6 * whole.build / cells,
            "microseconds to submit a cell": 1e6 * whole.submit,
            "microseconds to keep a record that a worker wrote": [1e6 * one.keep for one in runs[True]],
            "microseconds to write a record": [1e6 * one.keep for one in runs[False]],
            "bytes of a parcel": whole.parcel,
            "seconds of a cell below which the driver decides, of 512 workers": starved,
        },
        "table": table,
    }
    report.write(results)
    if draw:
        _draw(table, FIGURE)


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (1e6 * one for one in (min(values), statistics.median(values), max(values)))
    return f"{middle:.0f} us, median of {len(values)} from {low:.0f} to {high:.0f}"


def _draw(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw how near to the lower bound each order comes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from mergekit_lite.figures.style import STYLE, WIDTH

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH, 2.8))
        axes = figure.subplots()
        looks = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#767676", "^", ":"))
        for order, (colour, marker, dash) in zip(ORDERS, looks, strict=True):
            shares = [100 * one["bound"] / one["seconds"][order] for one in table]
            axes.plot([one["workers"] for one in table], shares, dash, color=colour, marker=marker, label=order)
        axes.set_xscale("log", base=2)
        axes.set_xticks([one["workers"] for one in table], [str(one["workers"]) for one in table])
        axes.set_xlabel("workers")
        axes.set_ylabel("least possible time,\npercent of the time taken")
        axes.set_ylim(0, 102)
        axes.legend(title="cells are submitted", alignment="left", loc="lower left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    typer.run(main)
