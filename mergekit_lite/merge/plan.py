"""What a merge will do, and what it takes in memory, disk and time: told before anything is written."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.table import Table
from rich.text import Text

from mergekit_lite.merge import forecast
from mergekit_lite.merge.jobs import Job
from mergekit_lite.merge.streamed import bytes_of
from mergekit_lite.merge.ways import entries_of
from mergekit_lite.suites.words import spelt


@dataclass(frozen=True)
class Plan:
    """What a merge will do.

    Attributes:
        job: the merge.
        output: bytes of the merged model's weights.
        memory: bytes that the process will need, about; mapped files are not counted, as the system can drop them.
        at_least: whether the memory may be more, since nobody knows what the method keeps.
        seconds: that it will take, about; None if that cannot be known from a piece.
    """

    job: Job
    output: int
    memory: int
    at_least: bool
    seconds: float | None


def planned(job: Job) -> Plan:
    """Return the plan of a job; a piece of it is merged to see how long that takes.

    Raises:
        KitError: the piece cannot be merged.
    """
    output = sum(bytes_of(layouts) for layouts in job.target.files.values())
    memory, at_least = forecast.memory(job)
    return Plan(job, output, memory, at_least, forecast.seconds(job))


def rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield what a plan says: what is meant, and the words for it."""
    job = plan.job
    parameters = ", ".join(f"{name} = {value}" for name, value in job.asked.parameters.items())
    yield "method", f"{job.asked.title} ({job.asked.name})" + (f": {parameters}" if parameters else "")
    yield from job.asked.words.items()
    for model in job.models:
        layout = f": {model.layout}" if model.layout else ""
        yield f"expert {model.name}" if model.name else "base", f"{model.place}{layout}"
    entries = entries_of(job.base)
    yield "merged", f"{len(entries)} tensors, {sum(entries.values()):,} numbers"
    yield "names", names_words(job)
    yield "dtypes", ", ".join(f"{count} {kind}" for kind, count in dtypes(job).items())
    for why, names in copied(job).items():
        yield "copied from the base", f"{_some(names)}: {why}"
    size = f"{size_words(plan.output)} in {len(job.target.files)} file{'s' * (len(job.target.files) > 1)}"
    yield "written", f"{size}, {', '.join(list(job.target.files)[:2])}{', ...' * (len(job.target.files) > 2)}"
    yield "memory", f"{'at least' if plan.at_least else 'about'} {size_words(plan.memory)}"
    yield "time", time_words(plan)


def table(plan: Plan) -> Table:
    """Return a plan as a table."""
    grid = Table(show_header=False, title="What will be merged", title_justify="left")
    for what, words in rows(plan):
        grid.add_row(Text(spelt(what)), Text(spelt(words)))
    for note in notes(plan.job):
        grid.add_row(Text("note"), Text(spelt(note)))
    return grid


def short(plan: Plan) -> str:
    """Return a plan in a few lines."""
    job = plan.job
    entries = entries_of(job.base)
    left = sum(map(len, copied(job).values()))
    alone = f"; {left} more {'is' if left == 1 else 'are'} copied from the base" if left else ""
    lines = [
        f"{job.asked.title} of {len(job.experts)} experts: {len(entries)} tensors, {sum(entries.values()):,} numbers"
        f"{alone}.",
        f"Names: {names_words(job)}.",
        f"It takes {'at least' if plan.at_least else 'about'} {size_words(plan.memory)} of memory and "
        f"{size_words(plan.output)} of disk; time: {time_words(plan)}.",
    ]
    return "\n".join(map(spelt, [*lines, *notes(job)]))


def names_words(job: Job) -> str:
    """Say how queries, keys and values are seen, and when that matters."""
    how = "one matrix" if job.names == "fused" else "three matrices"
    return (
        f"{job.names} (queries, keys and values as {how}; this changes the outcome of spectral methods only: TSV-M, "
        "Iso-C, Iso-CTS)"
    )


def size_words(size: int) -> str:
    """Say how many bytes there are: 26 kB, 4 MB, 1.05 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}" if unit == "GB" else f"{size / factor:.0f} {unit}"
    return f"{size / 1000:.0f} kB"


def time_words(plan: Plan) -> str:
    """Say how long a merge takes."""
    if plan.seconds is None:
        return "not known before"
    seconds = plan.seconds
    if seconds < 1:
        return "less than a second"
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min, by a piece that was merged"


def dtypes(job: Job) -> dict[str, int]:
    """Return dtype -> how many merged tensors are stored in it; it says if they are merged in another."""
    found: Counter[str] = Counter()
    for name, parts in job.target.parts.items():
        stored = job.target.layout(parts[0].stored)[1]
        seen = job.kinds[name]
        found[_plain(stored) + (f" (merged in {_plain(seen)})" if seen != stored else "")] += 1
    return dict(found)


def copied(job: Job) -> dict[str, list[str]]:
    """Return why -> the stored tensors that are copied from the base."""
    found: dict[str, list[str]] = {}
    for name, why in job.target.copied.items():
        found.setdefault(why, []).append(name)
    return found


def notes(job: Job) -> tuple[str, ...]:
    """Return what the user should know."""
    return (*job.notes, *([job.target.said] if job.target.said else []))


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
