"""Peak memory of `mergekit-lite merge`: twenty experts of 1 GB in safetensors files, by methods that see no data.

The whole command runs in a process of its own, plan, hashes, weights and card. Its models have the tensors of a vision
transformer of width 1024, 4 to 67 MB each, and a table of 205 MB as language models have for their words; float32. Two
distinct experts are written, the others are hard links to them: how much memory a merge takes does not depend on
that. Spectral methods work matrix by matrix, and so are measured on a model with fewer blocks and the same largest
tensors: they would take hours, and not a byte more.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import measuring, models
from mergekit_lite.weight_files import write

METHODS = (
    *("simple_average", "task_arithmetic", "fixed_coefficients", "ties_merging", "dare", "consensus"),
    *("tsv_merging", "iso_c", "iso_cts"),
)
SLOW = {"tsv_merging", "iso_c", "iso_cts"}
GB, MOST = 10**9, 2 * 10**9


def shapes(blocks: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes: a table of words, two wide matrices, and blocks of a transformer."""
    yield "words.weight", (50 * width, width)
    yield "wide.0.weight", (16 * width, width)
    yield "wide.1.weight", (width, 16 * width)
    for block in range(blocks):
        for name, rows, columns in (("qkv", 3, 1), ("proj", 1, 1), ("fc1", 4, 1), ("fc2", 1, 4)):
            yield f"blocks.{block}.{name}.weight", (rows * width, columns * width)
            yield f"blocks.{block}.{name}.bias", (rows * width,)


def write_models(folder: Path, blocks: int, width: int, distinct: int, pool: int) -> Path:
    """Write a base and experts that are not there yet; return their folder."""
    place = folder / f"words-{blocks}x{width}"
    for number in range(-1, distinct):
        path = place / ("base" if number < 0 else f"expert{number:02d}") / "model.safetensors"
        if not path.exists():
            generator = torch.Generator().manual_seed(7)
            change = torch.Generator().manual_seed(number + 8)
            tensors = {}
            for name, shape in shapes(blocks, width):
                tensors[name] = 0.02 * torch.randn(shape, generator=generator)
                if number >= 0:
                    tensors[name].add_(torch.randn(shape, generator=change), alpha=0.001)
            path.parent.mkdir(parents=True)
            write(path, tensors)
    for number in range(distinct, pool):
        path = place / f"expert{number:02d}" / "model.safetensors"
        if not path.exists():
            path.parent.mkdir()
            source = place / f"expert{number % distinct:02d}" / "model.safetensors"
            try:
                os.link(source, path)
            except OSError:  # a file system without hard links
                path.symlink_to(source)
    return place


def merge(method: str, place: str, *, pool: int) -> dict[str, Any]:
    """Run the command; return the seconds, what the plan said, and the anonymous memory before there was a model."""
    from mergekit_lite.merge import asking, plan, running

    experts = {f"e{number:02d}": f"{place}/expert{number:02d}" for number in range(pool)}
    before = measuring.anonymous_memory()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=Path(place).parent) as temporary:
        output = Path(temporary) / "merged"
        planned = plan.planned(asking.job_of(asking.Wish(method, [f"{place}/base"], experts, {})))
        running.merged_folder(planned, output, "")
        written = sum(file.stat().st_size for file in output.iterdir())
    return {
        "seconds": time.perf_counter() - begun,
        "planned": {"seconds": planned.seconds, "memory": planned.memory},
        "before": before,
        "written": written,
    }


def main(
    pool: models.Pool = 20,
    only: Annotated[str, typer.Option(help="Methods, comma-separated; by default all that see no data.")] = "",
    distinct: Annotated[int, typer.Option(min=1, help="Distinct expert files.")] = 2,
    blocks: Annotated[int, typer.Option(min=1, help="Transformer blocks; 14 make 1.04 GB.")] = 14,
    slow_blocks: Annotated[int, typer.Option(min=1, help=f"Blocks for {', '.join(sorted(SLOW))}.")] = 1,
    width: Annotated[int, typer.Option(min=8, help="Width of the model.")] = 1024,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Measure peak memory of merges by the command."""
    options = {"pool": pool, "distinct": distinct, "blocks": blocks, "slow_blocks": slow_blocks, "width": width}
    report = measuring.Report("merge_memory", "Twenty experts of 1 GB merge in 2 GB of memory.", options)
    with models.model_folder(folder) as written:
        for method in only.split(",") if only else METHODS:
            depth = min(slow_blocks, blocks) if method in SLOW else blocks
            place = write_models(written, depth, width, distinct, pool)
            one = measuring.in_own_process(merge, method=method, place=str(place), pool=pool)
            report.details[method] = {**one.result, **one.memory(), "blocks": depth}
            report.line(
                f"{method} ({depth} blocks, {one.result['written'] / GB:.2f} GB)",
                f"anonymous {(one.anonymous or 0) / GB:.2f} GB (planned {one.result['planned']['memory'] / GB:.2f}), "
                f"resident {one.resident / GB:.2f} GB, {one.result['seconds']:.1f} s "
                f"(planned {one.result['planned']['seconds'] or 0:.1f})",
            )
            report.ratio(f"peak memory of {method} / 2 GB", one.peak / MOST, most=1.0)
    report.write(results)


if __name__ == "__main__":
    typer.run(main)
