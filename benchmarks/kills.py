"""Runs that end at random moments, in every way that runs are ended: is the next run's result that of a quiet one?

    python -m benchmarks.kills [--rounds 18] [--seed 0]

Three kinds of work are ended (`killed`): a study in two processes, whose images are drawn and experts fine-tuned first;
a notebook of that study, run from the command line; and fine-tuning with checkpoints. Each round begins with an empty
cache. Its run is ended when it has put a random number of its files into place, and a random moment after that; or just
before a random one takes its place. Then no process may be left, and the same command must
end well, with the records (or weights) of the undisturbed run and without half-written files.
"""

import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import nbformat
import torch
import typer

from benchmarks import killing, measuring, models
from benchmarks.killing import FILE, WAYS, WORKER, Run
from mergekit_lite.weight_files import read


def records(place: Path) -> Any:
    """Return what is compared of a study."""
    return killing.answers(place / "cache" / "records")


def notebook(place: Path) -> Any:
    """Return what is compared of a notebook: its records, and the names of all files beside its result."""
    return records(place), sorted(path.name for path in (place / "build" / "short").iterdir())


def weights(place: Path) -> Any:
    """Return what is compared of fine-tuning, and the names of all files beside the result."""
    tuned = read(place / "tuned" / "encoder.safetensors")
    return {name: one.tolist() for name, one in tuned.items()}, sorted(one.name for one in (place / "tuned").iterdir())


RESULTS: Mapping[str, Callable[[Path], Any]] = {"study": records, "notebook": notebook, "finetune": weights}
ROUNDS = [(work, way) for work in RESULTS for way in WAYS if (work, way) != ("finetune", WORKER)]  # it has no workers


@dataclass(frozen=True)
class Quiet:
    """What an undisturbed run took and gave."""

    seconds: float
    files: int
    result: Any


def started(work: str, place: Path, before: int = 0) -> Run:
    """Start one kind of work in the folder `place`, with a cache of its own there."""
    return Run(["-m", "benchmarks.killed", work], place / "cache", folder=place, before=before)


def prepared(place: Path) -> Path:
    """Return the folder `place` with a project of one notebook in it."""
    for name in ("profiles", "notebooks"):
        (place / name).mkdir(parents=True)
    (place / "profiles" / "short.yaml").write_text("suite: miniature\nnotebooks:\n  one: {}\n", encoding="utf-8")
    cell = nbformat.v4.new_code_cell("from benchmarks import killed\n\nkilled.run_study()", id="study")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), place / "notebooks" / "one.ipynb")
    return place


def quiet(work: str, place: Path) -> Quiet:
    """Run one kind of work undisturbed."""
    run = started(work, prepared(place))
    seconds = run.finished()
    return Quiet(seconds, len(run.counter.read_bytes()), RESULTS[work](place))


def disturbed(work: str, way: str, place: Path, undisturbed: Quiet, rng: random.Random) -> dict[str, Any]:
    """End one run, let the next one finish, and return what was found."""
    number, then = rng.randrange(undisturbed.files), rng.uniform(0, undisturbed.seconds / undisturbed.files)
    if way == FILE:
        run = started(work, prepared(place), before=number + 1)
        run.process.wait(600)
    else:
        run = started(work, prepared(place))
        run.wait_for_files(number, then)
        run.end(way, rng)
    when = f"after {number} of {undisturbed.files} files" + ("" if way == FILE else f" and {then:.1f} s")
    gone = run.gone()
    found = {"work": work, "way": way, "when": when, "code": run.process.poll(), "gone after": gone}
    for process in run.alive():  # what is left must not disturb the next run, nor stay behind
        process.kill()
    try:
        started(work, place).finished()
        found["same"] = RESULTS[work](place) == undisturbed.result
        found["failed"] = None
    except RuntimeError as error:
        found |= {"same": False, "failed": str(error).splitlines()[-1]}
    return {**found, "half-written": killing.half_written(place)}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How many; 17 are one of each kind of work in each way.")] = 18,
    seed: Annotated[int, typer.Option(help="Of the moments, and of which worker is ended.")] = 0,
    results: models.Results = models.RESULTS,
) -> None:
    """End runs at random moments and compare what the next ones give."""
    torch.set_num_threads(1)
    claim = "Runs that are ended at random moments: the next run gives the result of an undisturbed one."
    report = measuring.Report("kills", claim, {"rounds": rounds, "seed": seed})
    rng, found = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed: dict[str, Quiet] = {}
        for number in range(rounds):
            work, way = ROUNDS[number % len(ROUNDS)]
            if work not in undisturbed:
                one = undisturbed[work] = quiet(work, Path(folder) / work)
                report.line(f"{work}, undisturbed", f"{one.seconds:.1f} s, {one.files} files")
            found.append(disturbed(work, way, Path(folder) / str(number), undisturbed[work], rng))
            report.line(f"{work}, {way}, {found[-1]['when']}", described(found[-1]))
    report.details["rounds"] = found
    report.ratio("rounds whose next run gave another result", sum(not one["same"] for one in found), most=0)
    report.ratio("rounds with a process left", sum(one["gone after"] is None for one in found), most=0)
    report.ratio("rounds with a half-written file left", sum(bool(one["half-written"]) for one in found), most=0)
    report.write(results)


def described(one: Mapping[str, Any]) -> str:
    """Return what was found in one round, in words."""
    gone = "PROCESSES LEFT" if one["gone after"] is None else f"all gone after {one['gone after']:.1f} s"
    same = "same result" if one["same"] else f"ANOTHER RESULT ({one['failed'] or 'it ended well'})"
    left = f", HALF-WRITTEN: {', '.join(one['half-written'])}" if one["half-written"] else ""
    return f"ended with {one['code']}, {gone}; then {same}{left}"


if __name__ == "__main__":
    typer.run(main)
