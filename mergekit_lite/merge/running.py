"""A merge is done: hashes, weights, what belongs to them and the card, in a folder that comes to be whole."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mergekit_lite.merge import ways
from mergekit_lite.merge.card import model_card
from mergekit_lite.merge.folders import check_free, check_space, new_folder
from mergekit_lite.merge.jobs import Job
from mergekit_lite.merge.plan import Plan
from mergekit_lite.merge.streamed import StreamedFile, bytes_of
from mergekit_lite.suites.words import spelt

LOOKS = {"ties_merging": 3}
"""How often a method that sees pieces of all tensors reads each expert, if not once."""


def merged_folder(plan: Plan, folder: Path, command: str) -> list[str]:
    """Merge into a new folder, and return what the user should know besides.

    Args:
        plan: what is to be done.
        folder: does not exist or is empty; its model is there whole at the end, or not at all.
        command: for the card.

    Raises:
        KitError: the folder cannot be filled, or the models cannot be merged.
    """
    job = plan.job
    check_free(folder, job.files)
    check_space(folder, plan.output)
    with _progress() as progress, new_folder(folder, plan.output) as place:
        digests = _digests(job, progress)
        _write(job, place, progress)
        for file in job.target.beside:
            shutil.copyfile(file, place / file.name)
        (place / "README.md").write_text(model_card(job, digests, command), encoding="utf-8")
    return list(_same(job, digests))


def _digests(job: Job, progress: Progress) -> list[str]:
    bar = progress.add_task("hashing", total=len(job.models))
    found = []
    for model in job.models:
        found.append(model.digest())
        progress.advance(bar)
    return found


def _write(job: Job, place: Path, progress: Progress) -> None:
    """Write the weights, and the index if they are in several files."""
    target, asked = job.target, job.asked
    entries = sum(ways.entries_of(job.base).values())
    at_once = asked.way == "pieces at once"
    total = entries * len(job.experts) * LOOKS.get(asked.name, 1) if at_once else asked.steps or None
    reading = progress.add_task("merging", total=total, visible=asked.way in ("pieces at once", "whole"))
    watched = {"watch": lambda step, weights: progress.update(reading, completed=step)} if asked.steps else {}
    writing = progress.add_task("writing", total=entries)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(StreamedFile(place / name, layouts, {"format": "pt"}))
            for name, layouts in target.files.items()
        }
        where = {name: file for file in files.values() for name in file.layouts}
        for name in target.copied:
            where[name].put(name, target.source[name])
        ways.run(
            partial(asked.merge, **watched),
            asked.way,
            job.base,
            job.experts,
            job.kinds,
            target,
            lambda name, values, at: where[name].put(name, values, at),
            read=lambda count: progress.advance(reading, count),
            wrote=lambda count: progress.advance(writing, count),
        )
    if target.index:
        content = {
            "metadata": {"total_size": sum(bytes_of(layouts) for layouts in target.files.values())},
            "weight_map": {name: file.path.name for name, file in sorted(where.items())},
        }
        (place / target.index).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _same(job: Job, digests: list[str]) -> Iterator[str]:
    """Say which experts are copies of another model: files apart, but equal to the last bit."""
    seen: dict[str, str] = {}
    told = " ".join(job.notes)
    both = list(zip(job.models, digests, strict=True))
    # A linear merge of mergekit's has no base: the first of its models gives the format.
    for model, digest in both[1:] if job.asked.words.get("merge_method") == "linear" else both:
        what = f"expert '{spelt(model.name)}'" if model.name else "the base"
        if digest in seen and f"E{what[1:]} " not in told:
            so = "its task vector is zero" if seen[digest] == "the base" else "its task vector counts twice"
            yield f"E{what[1:]} has the same weights as {seen[digest]}: {so}."
        seen.setdefault(digest, what)


def _progress() -> Progress:
    """Return a progress display on a terminal; elsewhere it shows nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
