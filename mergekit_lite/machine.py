"""The machine that computes: its versions, device and memory, and batches as large as the memory allows."""

import gc
import platform
import subprocess
import traceback
from collections.abc import Callable, Hashable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from mergekit_lite.errors import KitError

Result = TypeVar("Result")

_fitting: dict[Hashable, int] = {}


def in_memory(
    attempt: Callable[[int], Result], most: int, device: torch.device, *, what: str, key: Hashable = None
) -> Result:
    """Return ``attempt(size)`` for the first size that fits into memory: `most`, or a half of it, a quarter...

    Args:
        attempt: works on so many images at once.
        most: how many to begin with, at least 1.
        device: whose memory it is.
        what: what a single image does not fit for, in the error.
        key: what was found to fit is remembered under it, together with `what` and `device`. If it is the name of a
            suite, the error says it.

    Raises:
        KitError: not even one image fits.
    """
    place = (what, str(device), key)
    size = min(most, _fitting.get(place, most))
    while True:
        try:
            return attempt(size)
        except torch.OutOfMemoryError:
            pass  # the error holds on to the tensors of what failed until this block is left
        if device.type == "cuda":
            torch.cuda.empty_cache()  # pieces of the larger batch would otherwise crowd the smaller one out
        if size == 1:
            whose = f" of {key}" if isinstance(key, str) else ""
            raise KitError(
                f"There is not enough memory on '{device}' for {what} of a single image{whose}. "
                "End what else runs there, or use the device 'cpu'."
            )
        _fitting[place] = size = size // 2


def let_go(error: BaseException) -> None:
    """Free the memory that `error` holds: its traceback knows the functions it came through, and they their tensors.

    What was wrong, and where, it still says. The same goes for the errors that led to it.
    """
    chain = [error]
    for one in chain:  # grows as it is read
        traceback.clear_frames(one.__traceback__)
        more = (one.__cause__, one.__context__, *getattr(one, "exceptions", ()))
        chain += [other for other in more if other is not None and not any(other is known for known in chain)]
    collect()


def collect() -> None:
    """Give back what nobody holds any more: what refers to itself, and what torch keeps of a GPU's memory for later."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int:
    """Return how many bytes could be taken on `device` now: of a GPU's memory, or of this machine's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *_allowances()])


def _allowances(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return what Linux's control groups leave this process of the memory: less in a container or a cluster's job.

    Its own group may have a limit, and those that it is a part of. What they keep of files counts as free.
    """
    found = []
    with suppress(OSError, ValueError):  # another system
        lines = own.read_text(encoding="ascii").splitlines()
        names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]  # the older groups have others
        for group in [one for name in names for one in (groups / name, *(groups / name).parents)]:
            most = group / "memory.max"
            if most.exists() and (limit := most.read_text(encoding="ascii").strip()) != "max":
                used = int((group / "memory.current").read_text(encoding="ascii"))
                kinds = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
                found.append(int(limit) - used + int(kinds.get("inactive_file", 0)))
    return found


def versions() -> dict[str, str]:
    """Return the versions that `Provenance` keeps."""
    from mergekit_lite import __version__  # asked only now: a part of the package alone can be read, too

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": _installed("open_clip_torch"),
        "mergekit_lite": __version__,
    }


_installed = cache(version)  # it reads a file, and every cell's key asks for it


def source_commit() -> str | None:
    """Return the commit that the library's source is at (``+`` appended if it was changed since); None if unknown."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A virtual environment may lie inside somebody's own repository: only a tracked file makes its commit ours.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "--", ".") else commit


def device_name(device: torch.device) -> str:
    """Return the device as a reader would name it, such as ``cpu`` or ``NVIDIA H100 80GB HBM3``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def now() -> datetime:
    """Return the time now, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak memory anew, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the peak so far


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory in MiB since the reset: the GPU's tensors on a GPU, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        # Not getrusage on Linux: there, a spawned process inherits the peak of the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        on_windows: int | None = getattr(psutil.Process().memory_info(), "peak_wset", None)
        if on_windows is not None:
            return on_windows / 2**20
        import resource  # macOS; Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
