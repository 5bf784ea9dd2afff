"""All benchmarks of a GPU, one after another, and the tests that need one: in ten minutes, without a network.

It works in a copy of the source that was never installed, as long as what the library needs can be imported. Each part
runs in a process of its own and has its time; what fails or is cut off stops no other. At the end there is a table, and
the exit status is 1 if anything is missing in it.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks import measuring, models

TESTS = "tests"


class Part(NamedTuple):
    """One run of a script.

    Attributes:
        name: in the table.
        script: of this folder, or `TESTS`.
        options: its own; device, folders and the size of a trial are added.
        seconds: that it may take at most.
        model: whose shapes it measures, if not its script's own.
    """

    name: str
    script: str
    options: str = ""
    seconds: int = 60
    model: str = ""


PARTS = (
    Part("tests on the GPU", TESTS, seconds=120),
    Part("evaluation", "evaluation_throughput", seconds=100),
    Part("AdaMerging, 8 experts", "adamerging_step", "--steps 10 --distinct 4", 100),
    Part(
        "AdaMerging, 20 experts, places of the bank",
        "adamerging_step",
        "--pool 20 --images 32 --distinct 4 --only floor,ours --places pinned,mapped,bfloat16",
        120,
    ),
    Part("AdaMerging, L/14, 8 experts", "adamerging_step", "--distinct 2 --only floor,ours", 90, "ViT-L-14"),
    Part(
        "AdaMerging, L/14, 20 experts",
        "adamerging_step",
        "--pool 20 --images 32 --steps 2 --distinct 2 --only ours",
        90,
        "ViT-L-14",
    ),
    Part("AdaMerging, B/16, 8 experts", "adamerging_step", "--distinct 2 --only ours", 60, "ViT-B-16"),
    Part(
        "AdaMerging, B/16, 20 experts",
        "adamerging_step",
        "--pool 20 --images 32 --distinct 2 --only ours",
        60,
        "ViT-B-16",
    ),
    Part("hard Frank-Wolfe", "frank_wolfe_step", seconds=90),
    Part("RegMean", "regmean_merge", seconds=60),
    Part("merges without data", "merge_throughput", "--spectral-blocks 1 --repeats 2", 120),
    Part("expected times", "expected_times", seconds=30),
)


def command(part: Part, device: str, trial: tuple[int, int] | None, folder: Path, results: Path) -> list[str]:
    """Return what runs a part; `trial` is a number of blocks and a width."""
    if part.script == TESTS:  # without the options of pyproject.toml, which ask for a plug-in
        chosen = ["-o", "addopts=", "-p", "no:cacheprovider", "-q", "-rs", "--durations", "3"]
        return [sys.executable, "-m", "pytest", *chosen, "-k", f"{device} or not cpu", "tests/test_gpu.py"]
    words = [sys.executable, "-m", f"benchmarks.{part.script}", *part.options.split()]
    words += ["--device", device, "--results", str(results)]
    if part.script == "expected_times":
        return words
    words += ["--folder", str(folder)]
    shape = trial or (models.shape_of(part.model) if part.model else None)
    if part.model:
        words += ["--model", part.model]
    if part.script == "evaluation_throughput" and device == "cpu":
        words += ["--images", "100"]
    return [*words, "--blocks", str(shape[0]), "--width", str(shape[1])] if shape else words


def outcome(words: list[str], seconds: float) -> str:
    """Run a command in the root of the source; return what came of it, an empty text if all went well."""
    process = subprocess.Popen(words, cwd=measuring.ROOT, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it started itself
        process.wait()
    return "" if status == 0 else f"failed with exit status {status}"


def main(
    device: models.Device = "cuda",
    seconds: Annotated[int, typer.Option(min=1, help="For all parts together; what is left then is not run.")] = 560,
    only: Annotated[str, typer.Option(help="Parts whose name begins so.")] = "",
    blocks: Annotated[int, typer.Option(min=0, help="A quick trial with so many blocks, and --width 64.")] = 0,
    width: Annotated[int, typer.Option(min=0, help="Of the trial's models, a multiple of 64.")] = 0,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Run all benchmarks and tests of a GPU, and end with a table."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no GPU that torch can use (CUDA). Try the parts with: --device cpu --blocks 1")
    trial = (blocks, width or 64) if blocks else None
    end, rows, failed = time.monotonic() + seconds, [], False
    results = results.resolve()
    with models.model_folder(folder) as written:
        for part in PARTS:
            if not part.name.startswith(only):
                continue
            print(f"\n== {part.name} ==", flush=True)
            begun, left = time.monotonic(), end - time.monotonic()
            if part.script == TESTS and importlib.util.find_spec("pytest") is None:
                rows.append((part.name, 0.0, "not run: pytest is not installed"))
                continue
            if left <= 0:
                said = "not run: no time was left"
            else:
                words = command(part, device, trial, written.resolve(), results)
                said = outcome(words, min(part.seconds, left))
            rows.append((part.name, time.monotonic() - begun, said or "done"))
            failed = failed or bool(said)
    longest = max((len(name) for name, *_ in rows), default=0)
    print(f"\nRecords are in {results}.")
    for name, taken, said in rows:
        print(f"{name:<{longest}}  {taken:5.0f} s  {said}")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    typer.run(main)
