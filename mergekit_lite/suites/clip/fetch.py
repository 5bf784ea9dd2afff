"""Bring a suite's weights and images ahead of time, for machines that will be offline, and say what is there.

What is there is read in full and compared with its hashes; what is missing or damaged is fetched; what was begun
resumes. Afterwards everything runs with HF_HUB_OFFLINE=1.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import open_clip
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table

from mergekit_lite.cache import VARIABLE, cache_dir, check_room, existing
from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.suites.clip import decoded, hub, hub_data, locks, pins, sources
from mergekit_lite.suites.clip.benchmark import MODELS, ClipModel, HubTask, base_file, expert_file, hub_tasks
from mergekit_lite.suites.suite import Which, chosen_tasks

GB = 1e9
State = Literal["missing", "there", "failed"]


@dataclass
class Item:
    """One thing to bring: a file of weights, or a split of a data set.

    Attributes:
        what: for the table, such as "weights of dtd".
        where: repository, and the split if it is a data set.
        commit: of the repository.
        download: bytes to download, 0 if it is there.
        decoded: bytes of decoded images to write, 0 if they are there or if there are none.
        size: bytes it takes in the end, without the data set's own files, which are not needed any more then.
        bring: fetches and verifies it, and returns a hash of its content and its size.
    """

    what: str
    where: str
    commit: str
    download: int
    decoded: int
    size: int
    bring: Callable[[], tuple[str, int]] = field(repr=False)
    state: State = "missing"
    content: str = ""
    problem: str = ""


def fetch_suite(
    suite: str,
    tasks: str | None = None,
    *,
    train: bool = True,
    workers: int = 1,
    dry_run: bool = False,
    lock: Path | None = None,
    console: Console | None = None,
) -> list[Item]:
    """Fetch the base weights of `suite`, and experts and images of `tasks`; print sizes first and a table at the end.

    Args:
        suite: one of the real models.
        tasks: "eight", "fourteen", "twenty", or names with commas between. By default those of the lock file, or else
            twenty.
        train: whether to bring training images too, for calibration and for methods that see labels.
        workers: processes that decode.
        dry_run: only look: nothing but a few kilobytes of facts is downloaded.
        lock: a file that another fetch wrote: exactly its commits are fetched, and taken from then on.
        console: where to print.

    Raises:
        KitError: an unknown name, no room, or something that could not be brought; all else is brought before that.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a log is not read in 80 columns
    model = _model(suite)
    if lock and dry_run:
        raise KitError("A lock file changes which commits are taken, a dry run nothing. Leave out --lock or --dry-run.")
    named = locks.read(lock, suite) if lock else None
    if tasks is None:
        tasks = ",".join(named.tasks) if named else "twenty"
    chosen = list(dict.fromkeys(chosen_tasks(tasks, tuple(hub_tasks()), "The benchmark")))
    if lock and named:
        locks.apply(named, lock, model, chosen)
    items = list(_items(model, chosen, train, workers))
    download, decoded = sum(item.download for item in items), sum(item.decoded for item in items)
    console.print(
        f"{suite}, {len(chosen)} tasks: {download / GB:.2f} GB to download, {decoded / GB:.2f} GB of decoded images "
        f"to write. Weights and data sets go to the hub's cache (HF_HOME), images to {VARIABLE}.",
        soft_wrap=True,
    )
    if dry_run:
        console.print(table(items))
        _complain(items)
        return items
    _check_room(items)
    begun = time.monotonic()
    for number, item in enumerate(items, start=1):
        try:
            if item.state != "failed":
                (item.content, item.size), item.state = item.bring(), "there"
        except KitError as error:  # the others may be brought all the same
            item.state, item.problem = "failed", str(error)
        seconds = time.monotonic() - begun
        console.print(f"[{number}/{len(items)}] {item.what}: {item.state}, {seconds:.0f} s", markup=False)
    console.print(table(items))
    _complain(items)
    console.print("All is there. With HF_HUB_OFFLINE=1 nothing is asked of the hub any more.")
    file = locks.write(locks.fetched(model, chosen))
    console.print(
        f"Commits and hashes are in {file}; with --lock FILE another machine fetches the same.", soft_wrap=True
    )
    return items


def _complain(items: Sequence[Item]) -> None:
    failed = [item for item in items if item.state == "failed"]
    if failed:
        lines = "\n".join(f"  {item.what}: {item.problem}" for item in failed)
        raise KitError(
            f"{len(failed)} of {len(items)} could not be fetched from the hub; what was fetched is kept.\n{lines}"
        )


def table(items: Sequence[Item]) -> Table:
    """Return what is there and what is not, one row per item, sizes in gigabytes."""
    shown = Table("what", "from", "commit", "download", "size", "state", "hash")
    shown.columns[1].overflow = "fold"
    for column in (shown.columns[3], shown.columns[4]):
        column.justify = "right"
    for item in items:
        sizes = (f"{size / GB:.2f}" if size else "" for size in (item.download, item.size))
        shown.add_row(item.what, item.where, item.commit[:7], *sizes, item.state, item.content[:8])
    return shown


def _model(suite: str) -> ClipModel:
    if suite not in MODELS:
        why = "The miniature needs nothing from the hub." if suite == "miniature" else f"There is no suite '{suite}'."
        raise KitError(f"{why}{suggestion(suite, MODELS)} Suites that are fetched: {', '.join(MODELS)}.")
    return MODELS[suite]


def _items(model: ClipModel, tasks: Sequence[str], train: bool, workers: int) -> Iterator[Item]:
    side = int((open_clip.get_model_config(model.architecture) or {})["vision_cfg"]["image_size"])
    files = {"base": base_file(model), **{task: expert_file(model, hub_tasks()[task]) for task in tasks}}
    for what, (repository, filename) in files.items():
        yield _looked_up(f"weights: {what}", repository, partial(_weights, f"weights: {what}", repository, filename))
    splits: tuple[Which, ...] = ("test", "train") if train else ("test",)
    for task in tasks:
        for which in splits:
            entry = hub_tasks()[task]
            what = f"{which} images: {task}"
            yield _looked_up(what, entry.dataset, partial(_images, what, entry, which, side, workers))


def _looked_up(what: str, where: str, look: Callable[[], Item]) -> Item:
    try:
        return look()
    except KitError as error:  # told at the end: the others can be brought all the same
        return Item(what, where, "", 0, 0, 0, lambda: ("", 0), state="failed", problem=str(error))


def _weights(what: str, repository: str, filename: str) -> Item:
    found = hub.cached(repository, filename)
    source = hub.source(repository, filename)
    download = 0 if found else hub.announced(repository, filename, pins.pinned(repository))[1]

    def bring() -> tuple[str, int]:
        size = hub.downloaded(repository, filename).stat().st_size
        return hub.source(repository, filename).sha256, size

    state: State = "there" if found else "missing"
    content, size = (source.sha256, found.stat().st_size) if found else ("", download)
    return Item(what, repository, source.commit, download, 0, size, bring, state, content)


def _images(what: str, task: HubTask, which: Which, side: int, workers: int) -> Item:
    source = sources.located(task, which)
    known = decoded.known(task, which, side)
    size = known.rows * (3 * side * side + 8) if known else decoded.predicted_bytes(task, which, side)
    download = sum(file.bytes for file in source.files if not hub_data.is_downloaded(source, file))

    def bring() -> tuple[str, int]:
        split = decoded.decoded_split(task, which, side, workers=workers)
        now = decoded.known(task, which, side)
        return now.content if now else "", split.images.nbytes + split.labels.nbytes

    return Item(
        what=what,
        where=f"{task.dataset} ({source.split})",
        commit=source.commit,
        download=0 if known else download,
        decoded=0 if known else size,
        size=size,
        bring=bring,
        state="there" if known else "missing",
        content=known.content if known else "",
    )


def _check_room(items: Sequence[Item]) -> None:
    downloads, images = Path(constants.HF_HUB_CACHE), cache_dir("images", "clip")
    # While a split is decoded the library's copy of its files is there too, one split at a time.
    copy = max((item.download for item in items if item.decoded), default=0)
    wanted = {downloads: sum(item.download for item in items), images: sum(item.decoded for item in items) + copy}
    if existing(downloads).stat().st_dev == existing(images).stat().st_dev:
        wanted = {images: sum(wanted.values())}
    for folder, size in wanted.items():
        check_room(folder, size, "what is to be fetched")
