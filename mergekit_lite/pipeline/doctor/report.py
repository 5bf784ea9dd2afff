"""What this machine has, what is cached, and what a profile will take here in time, memory and disk."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mergekit_lite.cache import VARIABLE, cache_dir
from mergekit_lite.pipeline import profiles
from mergekit_lite.workers import cores

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Machine:
    """Bytes are bytes here; `gpus` holds (name, bytes of memory)."""

    system: str
    python: str
    torch: str
    mergekit_lite: str
    cores: int
    memory: int
    memory_free: int
    gpus: tuple[tuple[str, int], ...]
    cache: Path
    disk_free: int


@dataclass(frozen=True)
class Cached:
    """One kind of file in the cache, for one suite."""

    kind: str
    suite: str
    files: int
    size: int


def machine() -> Machine:
    """Return what this machine has.

    Raises:
        KitError: the cache folder cannot be written to.
    """
    memory, cache = psutil.virtual_memory(), cache_dir()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        mergekit_lite=version("mergekit-lite"),
        cores=cores(),
        memory=memory.total,
        memory_free=memory.available,
        gpus=tuple((gpu.name, gpu.total_memory) for gpu in gpus),
        cache=cache,
        disk_free=shutil.disk_usage(cache).free,
    )


def cached() -> Iterator[Cached]:
    """Yield what the cache holds: images, experts and records of each suite."""
    for kind in sorted(path for path in cache_dir().iterdir() if path.is_dir()):
        for suite in sorted(path for path in kind.iterdir() if path.is_dir()):
            # Names that start with a dot are locks, and files that are being written.
            files = [path for path in suite.iterdir() if path.is_file() and not path.name.startswith(".")]
            yield Cached(kind.name, suite.name, len(files), sum(path.stat().st_size for path in files))


def show(profile: str | None = None, console: Console | None = None) -> None:
    """Print what this machine has and what is cached; with a profile, also what it will take.

    Raises:
        KitError: an unknown profile, or one that cannot run.
    """
    console = console or Console()
    root = profiles.find_root() if profile else Path()
    wanted = profiles.load(profile, root) if profile else None  # fails before anything is printed
    console.print(_machine_table(machine()))
    console.print(_cache_table(list(cached())))
    if wanted is None:
        console.print("With a profile's name, doctor also says what it will take: mergekit-lite doctor miniature")
        return
    from mergekit_lite.pipeline.doctor.forecast import predict  # loads open_clip, which takes seconds

    with console.status("Timing the encoder ..."):
        forecasts = predict(wanted, root)
    unknown = [one.notebook for one in forecasts if not one.valid and not one.work]
    table = Table("notebook", "work", "to do", "time", title=f"Profile {profile}, predicted", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for one in forecasts:
        if not one.work:
            table.add_row(one.notebook, "still valid: nothing to do" if one.valid else "not known", "", "")
        for work in one.work:
            todo = f"{work.missing} of {work.total}" if work.what != "loading" else ""
            table.add_row(one.notebook, work.what, todo, seconds_text(work.seconds) if work.missing else "")
    console.print(table)
    if unknown:
        console.print(
            f"There are no records of this profile in the book to judge by for: {', '.join(unknown)}."
            + (
                f" What the profile says of itself, when nothing is there yet:\n{wanted.budget}"
                if wanted.budget
                else ""
            )
        )
    if any(one.work for one in forecasts):
        total, memory = sum(one.seconds for one in forecasts), max(one.memory_mib for one in forecasts)
        disk = sum(one.disk_mib for one in forecasts)
        console.print(
            f"In all about {seconds_text(total)}, {memory / 1024:.1f} GiB of memory, {disk:.0f} MiB more on disk. "
            "Within a factor of two if nothing else runs on this machine."
        )


def seconds_text(seconds: float) -> str:
    """Return a time as one says it: 40 s, 5 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _machine_table(has: Machine) -> Table:
    table = Table(show_header=False, title="This machine", title_justify="left")
    table.add_row("system", has.system)
    table.add_row("Python, torch, mergekit-lite", f"{has.python}, {has.torch}, {has.mergekit_lite}")
    table.add_row("cores", str(has.cores))
    table.add_row("memory", f"{has.memory / GIB:.1f} GiB, {has.memory_free / GIB:.1f} GiB free")
    for name, memory in has.gpus:
        table.add_row("GPU", f"{name}, {memory / GIB:.0f} GiB")
    if not has.gpus:
        table.add_row("GPU", "none that torch can use")
    table.add_row("cache", f"{has.cache} (set {VARIABLE} to move it)")
    table.add_row("disk", f"{has.disk_free / GIB:.1f} GiB free at the cache")
    return table


def _cache_table(held: list[Cached]) -> Table:
    table = Table("cached", "suite", "files", "size", title="Cache", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for one in held:
        table.add_row(one.kind, one.suite, str(one.files), f"{one.size / MIB:.1f} MiB")
    if not held:
        table.add_row("nothing", "", "", "")
    return table
