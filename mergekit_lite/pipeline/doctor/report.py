"""What this machine has, what is cached, and what a profile will take here in time, memory and disk."""

import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mergekit_lite.cache import VARIABLE, cache_dir, existing
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import profiles
from mergekit_lite.pipeline.doctor.named import named_tasks
from mergekit_lite.pipeline.doctor.own_suite import show_suite
from mergekit_lite.study.engines import installed
from mergekit_lite.suites.clip.looking import only_looking
from mergekit_lite.workers import cores

if TYPE_CHECKING:
    from mergekit_lite.pipeline.doctor.forecast import Forecast
    from mergekit_lite.suites.clip.there import Stock

MIB, GIB = 2**20, 2**30


def show(profile: str | None = None, console: Console | None = None, tasks: str | None = None) -> None:
    """Print what this machine has and what is cached; with a profile, also what it will take.

    With a suite file instead, say what of it is there, of these `tasks` or of all, and what does not fit.

    Raises:
        KitError: an unknown profile, or one that cannot run; a suite file of which something is missing or wrong.
    """
    console = console or Console()
    if profile is not None and profile.endswith((".yaml", ".yml")):
        with only_looking():
            show_suite(profile, console, tasks)
        return
    root = Path() if profile is None else profiles.find_root()
    wanted = None if profile is None else profiles.load(profile, root)  # fails before anything is printed
    table = Table(show_header=False, title="This machine", title_justify="left")
    for row in _machine():
        table.add_row(*row)
    console.print(table)
    table = _table("Cache", "cached", "suite", "files", "size")
    for kind, suite, files, size in list(cached()) or [("nothing", "", 0, 0)]:
        table.add_row(kind, suite, str(files), f"{size / MIB:.1f} MiB")
    console.print(table)
    if wanted is None:
        console.print(f"With a profile's name, doctor also says what it will take: {_example()}", soft_wrap=True)
    else:
        with only_looking():
            _show_forecast(wanted, root, console)


def _example() -> str:
    try:
        profiles.find_root()
    except KitError:  # profiles belong to a project
        return "make a project with `mergekit-lite init`, and there run `mergekit-lite doctor miniature`"
    return "mergekit-lite doctor miniature"


def cached() -> Iterator[tuple[str, str, int, int]]:
    """Yield kind (such as images, experts, records), suite, number of files, and their bytes in the cache."""
    root = cache_dir()
    for kind in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        for suite in sorted(path for path in kind.iterdir() if path.is_dir()):
            # Names that start with a dot are locks, and files that are being written; seals belong to their files.
            files = [path for path in suite.iterdir() if path.is_file() and not path.name.startswith(".")]
            files = [path for path in files if path.suffix != ".sha256"]
            yield kind.name, suite.name, len(files), sum(path.stat().st_size for path in files)


def seconds_text(seconds: float) -> str:
    """Return a time as one says it: 40 s, 5 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _machine() -> Iterator[tuple[str, str]]:
    memory, cache = psutil.virtual_memory(), cache_dir()
    yield "system", f"{platform.system()} {platform.machine()}"
    versions = f"{platform.python_version()}, {torch.__version__}, {version('mergekit-lite')}"
    yield "Python, torch, mergekit-lite", versions
    yield "cores", str(cores())
    yield "memory", f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB free"
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield "GPU", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB"
    if not torch.cuda.device_count():
        yield "GPU", "none that torch can use"
    yield "engines", "; ".join(f"{name}: {state}" for name, state in installed().items())
    yield "cache", f"{cache} (set {VARIABLE} to move it)"
    yield "disk", f"{shutil.disk_usage(existing(cache)).free / GIB:.1f} GiB free at the cache"


def _table(title: str, *columns: str) -> Table:
    """Return an empty table whose columns from the third on hold numbers."""
    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _show_forecast(profile: profiles.Profile, root: Path, console: Console) -> None:
    from mergekit_lite.pipeline.doctor.forecast import predict, seconds_per_image  # loads open_clip: seconds
    from mergekit_lite.suites import SUFFIXES, load_suite, stock

    tasks, rows = named_tasks(profile, root), []
    if profile.suite.endswith(SUFFIXES):
        unfetched = not show_suite(profile.suite, console, ",".join(tasks))
    else:
        rows = stock(profile.suite, tasks)
        if rows:
            _show_stock(profile.suite, tasks, rows, console)
        unfetched = bool(rows and rows[0].missing)
    if unfetched:
        console.print("Without the base weights no encoder can be timed.")
        forecasts = []
    else:
        with console.status("Timing the encoder ..."):
            forecasts = predict(profile, root)
        _show_work(profile.name, forecasts, console)
    if unfetched or any(not one.valid and not one.work for one in forecasts):
        console.print("Not known: the book holds no records of a run with this profile to judge by.")
        if profile.budget:
            console.print(f"What profile {profile.name} takes when nothing is there yet:\n{profile.budget}")
            if profile.budget.images and not unfetched:
                suite = load_suite(profile.suite)
                workers = 1 if suite.device.type == "cuda" else cores()
                seconds = seconds_per_image(suite) / workers
                console.print(
                    f"Of the time, measuring accuracies takes about {seconds_text(seconds * profile.budget.images)} "
                    f"here: {profile.budget.images / 1e6:.1f} million images (computed), {1 / seconds:,.0f} a second "
                    "from the host's memory to the answer (measured just now, on noise)."
                )
    if any(one.work for one in forecasts):
        total, memory = sum(one.seconds for one in forecasts), max(one.memory_mib for one in forecasts)
        disk = sum(one.disk_mib for one in forecasts)
        console.print(
            f"In all about {seconds_text(total)}, {memory / 1024:.1f} GiB of memory, {disk:.0f} MiB more on disk. "
            "Within a factor of two if nothing else runs on this machine."
            + (" What is to be fetched comes on top." if rows else "")
        )


def _show_work(profile: str, forecasts: "Sequence[Forecast]", console: Console) -> None:
    table = _table(f"Profile {profile}, predicted", "notebook", "work", "to do", "time")
    for one in forecasts:
        if not one.work:
            table.add_row(one.notebook, "still valid: nothing to do" if one.valid else "not known", "", "")
        for work in one.work:
            todo = f"{work.missing} of {work.total}" if work.what != "loading" else ""
            lasts = seconds_text(work.seconds) if work.seconds else "to be fetched"
            table.add_row(one.notebook, work.what, todo, lasts if work.missing else "")
    console.print(table)


def _show_stock(suite: str, tasks: Sequence[str], rows: "Sequence[Stock]", console: Console) -> None:
    from mergekit_lite.suites.suite import PREFIXES

    table = Table("what", "there", "missing", title=f"Suite {suite}", title_justify="left")
    for row in rows:
        count = f"{len(row.there)} of {len(row.there) + len(row.missing)}"
        table.add_row(row.what, count, ", ".join(row.missing) if row.there else "all")
    console.print(table)
    if any(row.missing for row in rows):
        command = f"mergekit-lite fetch {suite.partition('@')[0]}"
        if len(tasks) < PREFIXES["twenty"]:  # all of them need not be named
            command += f" --tasks {','.join(tasks)}"
        *_, test, train = (f"{row.to_write / 1e9:.1f} GB" for row in rows)
        console.print(
            f"`{command}` brings what is missing, and with --dry-run says how large the downloads are. Decoded, test "
            f"images take {test} more on disk (computed), and training images, which only some methods are shown, "
            f"{train}; --no-train leaves those out."
            + (" A family's experts are converted, by hand or when they are first asked for." if "@" in suite else ""),
            soft_wrap=True,
        )
    else:
        console.print("All is there: nothing is to be fetched.")
