"""What this machine has, what is cached, and what a profile will take here in time, memory and disk."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mergekit_lite.cache import VARIABLE, cache_dir, existing
from mergekit_lite.pipeline import profiles
from mergekit_lite.workers import cores

MIB, GIB = 2**20, 2**30


def show(profile: str | None = None, console: Console | None = None) -> None:
    """Print what this machine has and what is cached; with a profile, also what it will take.

    Raises:
        KitError: an unknown profile, or one that cannot run.
    """
    console = console or Console()
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
        console.print("With a profile's name, doctor also says what it will take: mergekit-lite doctor miniature")
    else:
        _show_forecast(wanted, root, console)


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
    yield "cache", f"{cache} (set {VARIABLE} to move it)"
    yield "disk", f"{shutil.disk_usage(existing(cache)).free / GIB:.1f} GiB free at the cache"


def _table(title: str, *columns: str) -> Table:
    """Return an empty table whose columns from the third on hold numbers."""
    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _show_forecast(profile: profiles.Profile, root: Path, console: Console) -> None:
    from mergekit_lite.pipeline.doctor.forecast import predict  # loads open_clip, which takes seconds

    with console.status("Timing the encoder ..."):
        forecasts = predict(profile, root)
    table = _table(f"Profile {profile.name}, predicted", "notebook", "work", "to do", "time")
    for one in forecasts:
        if not one.work:
            table.add_row(one.notebook, "still valid: nothing to do" if one.valid else "not known", "", "")
        for work in one.work:
            todo = f"{work.missing} of {work.total}" if work.what != "loading" else ""
            table.add_row(one.notebook, work.what, todo, seconds_text(work.seconds) if work.missing else "")
    console.print(table)
    if any(not one.valid and not one.work for one in forecasts):
        console.print("Not known: the book holds no records of a run with this profile to judge by.")
        if profile.budget:
            console.print(f"What profile {profile.name} takes when nothing is there yet:\n{profile.budget}")
    if any(one.work for one in forecasts):
        total, memory = sum(one.seconds for one in forecasts), max(one.memory_mib for one in forecasts)
        disk = sum(one.disk_mib for one in forecasts)
        console.print(
            f"In all about {seconds_text(total)}, {memory / 1024:.1f} GiB of memory, {disk:.0f} MiB more on disk. "
            "Within a factor of two if nothing else runs on this machine."
        )
