"""Work in a process of its own, its peak memory, and the ratios that a script prints and keeps.

Two peaks are reported. "resident" is what the system counts (VmHWM). It includes the pages of mapped files: safetensors
are read by mapping them, and a page of the page cache stays in that count until its file is closed, although it can be
given up at any time. "anonymous" is the memory that can not: RssAnon, looked at every few milliseconds. Claims about
memory are about the latter.
"""

import contextlib
import ctypes
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from benchmarks.models import machine

ROOT = Path(__file__).parents[1]
Outcome = TypeVar("Outcome")

EVERY = 0.003  # seconds between two looks; a tensor of a megabyte or more lives longer than that


@dataclass(frozen=True)
class Measured:
    """What work in a process of its own returned, and its peak memory in bytes (None where the system does not tell).

    On a GPU the work itself returns "gpu", the peak of torch's allocator.
    """

    result: dict[str, Any]
    resident: int
    anonymous: int | None

    @property
    def peak(self) -> int:
        """The memory that a claim is about: on the GPU if there is one, otherwise anonymous, otherwise resident."""
        return int(self.result.get("gpu") or self.anonymous or self.resident)

    def memory(self) -> dict[str, Any]:
        """Return all peaks for the record, in bytes."""
        gpu = {"gpu": self.result["gpu"]} if self.result.get("gpu") else {}
        return {"anonymous": self.anonymous, "resident": self.resident, **gpu}


def in_own_process(work: Callable[..., dict[str, Any]], **options: Any) -> Measured:
    """Call ``work(**options)`` in a fresh process; options and result are what JSON knows.

    Raises:
        RuntimeError: the work failed; its traceback is on stderr.
    """
    module = work.__module__
    if module == "__main__":
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    command = [sys.executable, "-m", "benchmarks.measuring", module, work.__name__, json.dumps(options)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output)
        anonymous = 0
        while process.poll() is None:
            anonymous = max(anonymous, anonymous_memory(process.pid) or 0)
            time.sleep(EVERY)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{module}.{work.__name__} failed with exit code {process.returncode}.")
    found = json.loads(lines[-1])
    return Measured(found["result"], found["resident"], anonymous or None)


def anonymous_memory(process: int | str = "self") -> int | None:
    """Return the bytes of anonymous memory of a process, or None where the system does not tell."""
    return _status(process, "RssAnon")


def settled_memory() -> int | None:
    """Return `anonymous_memory` after what is free was given back: otherwise the allocator keeps a varying share."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has this
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return anonymous_memory()


def peak_resident() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    # ru_maxrss may begin at what the parent had when it started this process; VmHWM is this program's alone.
    known = _status("self", "VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return known or (most if sys.platform == "darwin" else 1024 * most)


def _status(process: int | str, key: str) -> int | None:
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:  # another system, or the process has just ended
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def seconds(work: Callable[[], object], repeats: int = 1, device: str = "cpu") -> float:
    """Return how long one piece of work takes, the median of `repeats` times."""
    return median(timed(work, device)[1] for _ in range(repeats))


def timed(work: Callable[[], Outcome], device: str = "cpu") -> tuple[Outcome, float]:
    """Return what one piece of work gives, and the seconds until `device` has done it."""
    begun = clock(device)
    outcome = work()
    return outcome, clock(device) - begun


def clock(device: str) -> float:
    """Return the time in seconds at which `device` has done what it was asked for."""
    wait_for(device)
    return time.perf_counter()


def gpu_peak(device: str) -> int | None:
    """Return the peak of torch's memory on the GPU so far, in bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def wait_for(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass
class Report:
    """What a script prints and keeps.

    Attributes:
        script: its name.
        claim: what is measured, in one sentence.
        options: what it was asked for.
        device: "cpu" or "cuda".
        variant: what tells the record from that of another run of the script; empty for the run of the table.
    """

    script: str
    claim: str
    options: dict[str, Any]
    device: str = "cpu"
    variant: str = ""
    ratios: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine = machine(self.device)
        print(self.claim)
        print("; ".join(f"{key} {value}" for key, value in self.machine.items() if value is not None))
        print("; ".join(f"{key} {value}" for key, value in self.options.items()), flush=True)

    def line(self, what: str, value: str) -> None:
        """Print one measurement."""
        print(f"  {what}: {value}", flush=True)

    def ratio(self, what: str, value: float, *, most: float | None = None, least: float | None = None) -> None:
        """Print and keep a ratio with its target."""
        met = (most is None or value <= most) and (least is None or value >= least)
        target = f"at most {most:g}" if most is not None else f"at least {least:g}" if least is not None else None
        verdict = f" (target {target}: {'met' if met else 'MISSED'})" if target else ""
        print(f"ratio {what}: {value:.3g}{verdict}", flush=True)
        self.ratios.append({"what": what, "value": value, "target": target, "met": met if target else None})

    def write(self, folder: Path) -> Path:
        """Write the record, named after script, variant and hardware."""
        path = folder / f"{self.script}-{named(self.variant, hardware(self.machine))}.json"
        record = {
            "script": self.script,
            "claim": self.claim,
            "machine": self.machine,
            "options": self.options,
            "ratios": self.ratios,
            "details": self.details,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"Written to {os.path.relpath(path)}.")
        return path


def hardware(machine: dict[str, Any]) -> str:
    """Return the GPU of a record, or its processor and number of threads."""
    return machine["gpu"] or f"{machine['processor']} {machine['threads']} threads"


def named(*parts: str) -> str:
    """Return the parts as they stand in the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _main() -> None:
    """Do the work that `in_own_process` asked for, and print its result as the last line."""
    module, function, options = sys.argv[1:]
    result = getattr(importlib.import_module(module), function)(**json.loads(options))
    print("\n" + json.dumps({"result": result, "resident": peak_resident()}))


if __name__ == "__main__":
    _main()
