"""Peak memory does not grow with the pool: hard Frank-Wolfe and every data-free merge, experts in safetensors files.

Soft Frank-Wolfe and AdaMerging are measured beside them. They hold the vectors whose coefficients they learn, so that
theirs grows with the pool until all picks are taken (soft Frank-Wolfe), or without end (AdaMerging).

Each merge runs in a process of its own. A few distinct files are written, further experts are hard links to them: how
much anonymous memory a merge takes does not depend on what the files hold. Resident memory is reported beside it, see
`measuring`: it counts mapped pages of the page cache once for every expert that is open, and so grows with the pool.
"""

import importlib
import pkgutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import measuring, models
from mergekit_lite import methods
from mergekit_lite.methods.registry import Access, all_methods, get

REFERENCES = {"pretrained", "individual"}
SLOW = {"tsv_merging", "iso_cts"}
"""They decompose every matrix of every expert: hours for 64 experts on two cores."""
TASKS, IMAGES = 8, 2
"""Of a gradient, whatever the pool."""
SEEING: dict[str, dict[str, Any]] = {
    "hard_frank_wolfe": {"iterations": 2, "samples": IMAGES},
    "soft_frank_wolfe": {"iterations": 2, "inner_steps": 2, "images_per_task": IMAGES, "samples": IMAGES},
    "layer_wise_adamerging": {"steps": 2, "images_per_task": IMAGES, "objective": "cross-entropy"},
}
"""Parameters of the methods that see images; a few steps are enough, since no memory is kept from step to step."""
HOLDING = {"soft_frank_wolfe", "layer_wise_adamerging"}
MOST = 16
"""Experts in the largest pool of those: AdaMerging of 64 would hold 24 GiB."""


def register_all() -> None:
    """Import every method, also those that the package itself does not import."""
    for module in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"{methods.__name__}.{module.name}")


def data_free() -> list[str]:
    """Return the names of the methods that see no data, without the reference rows."""
    register_all()
    return [info.name for info in all_methods() if info.access is Access.NONE and info.name not in REFERENCES]


def merge(method: str, place: str, *, pool: int, blocks: int, width: int) -> dict[str, Any]:
    """Merge with default parameters; return the seconds, and the anonymous memory before there was a model."""
    register_all()
    given = dict(SEEING.get(method, {}))
    if given:
        given["data"] = models.NoiseTasks.of(models.encoder(blocks, width), TASKS, IMAGES, labels=True)
    before = measuring.anonymous_memory()
    base, experts = models.load(Path(place), pool)
    begun = time.perf_counter()
    get(method).function(base, experts, **given)
    return {"seconds": time.perf_counter() - begun, "before": before}


def main(
    pools: Annotated[str, typer.Option(help="Pool sizes, growing.")] = "4,8,16,32,64",
    only: Annotated[str, typer.Option(help="Methods, comma-separated; by default all.")] = "",
    slow_blocks: Annotated[
        int, typer.Option(min=1, help=f"Blocks for {', '.join(sorted(SLOW))}, smallest and largest pool only.")
    ] = 1,
    distinct: Annotated[int, typer.Option(min=1, help="Distinct expert files, 350 MB each at full size.")] = 4,
    blocks: models.Blocks = models.BLOCKS,
    width: models.Width = models.WIDTH,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Measure peak memory of merges for growing pools of experts in files."""
    sizes = [int(size) for size in pools.split(",")]
    wanted = only.split(",") if only else [*SEEING, *data_free()]
    options = {"pools": sizes, "blocks": blocks, "slow_blocks": slow_blocks, "width": width, "distinct": distinct}
    report = measuring.Report("fw_memory", "Peak memory of a merge of experts in files does not grow.", options)
    with models.model_folder(folder) as written:
        for method in wanted:
            slow = method in SLOW
            depth, chosen = (min(slow_blocks, blocks), [sizes[0], sizes[-1]]) if slow else (blocks, sizes)
            if method in HOLDING:
                chosen = [size for size in sizes if size <= MOST] or sizes[:1]
            place = models.write_models(written, distinct, blocks=depth, width=width)
            models.link_models(place, distinct, max(sizes))
            peaks, libraries = {}, None
            for size in chosen:
                one = measuring.in_own_process(
                    merge, method=method, place=str(place), pool=size, blocks=depth, width=width
                )
                peaks[size], libraries = one.peak, one.result["before"]
                report.details[f"{method} {size}"] = {**one.result, **one.memory(), "blocks": depth}
                report.line(
                    f"{method} of {size} ({depth} blocks)",
                    f"anonymous {(one.anonymous or 0) / models.GIB:.3f} GiB, "
                    f"resident {one.resident / models.GIB:.3f} GiB, "
                    f"{one.result['seconds']:.1f} s",
                )
            first, last = peaks[chosen[0]], peaks[chosen[-1]]
            growth = f"{method}, {chosen[-1]} / {chosen[0]} experts"
            report.ratio(f"peak memory, {growth}", last / first, most=None if method in HOLDING else 1.05)
            if libraries:  # what Python and torch take hides growth
                report.ratio(f"peak memory without libraries, {growth}", (last - libraries) / (first - libraries))
            if method == "ties_merging" and 8 in peaks:
                report.ratio("peak memory of TIES of 8 models / 3 GiB", peaks[8] / (3 * models.GIB), most=1.0)
    report.write(results)


if __name__ == "__main__":
    typer.run(main)
