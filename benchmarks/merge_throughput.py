"""Merges without data run at the speed of reading the models; those that decompose matrices, faster than plain SVDs.

Ours reads experts from files that are in the page cache and includes all checks. The others of the spectral merges are
given ready task vectors in memory. They decompose in float32, ours in float64.

On a GPU the experts come from the page cache, too, tensor by tensor; reading is then bringing them there once.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks import measuring, models
from mergekit_lite.methods.averaging import simple_average, task_arithmetic
from mergekit_lite.methods.isotropic import iso_c, iso_cts, subspace_sizes
from mergekit_lite.methods.registry import Merged
from mergekit_lite.methods.ties import ties_merging
from mergekit_lite.methods.tsv import tsv_merging
from mergekit_lite.weights import Weights, task_vector

CHUNK = 2**24
AGREE = 1e-4
COMMON = 0.8

STREAMING: list[tuple[Callable[..., Merged], float]] = [(simple_average, 2), (task_arithmetic, 2), (ties_merging, 6)]
SPECTRAL: list[tuple[Callable[..., Merged], float]] = [(tsv_merging, 10), (iso_c, 5), (iso_cts, 10)]


def read_once(paths: list[Path]) -> None:
    """Read all bytes of the files, piece by piece into one buffer."""
    buffer = bytearray(CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


# The spectral merges as their papers write them down: full singular value decompositions in the vectors' dtype.


def plain_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V^T of a full decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def plain_polar(matrix: Tensor) -> Tensor:
    """Return U V^T of a full decomposition."""
    left, _, right = plain_svd(matrix)
    return left @ right


def plain_tsv(vectors: list[Tensor]) -> Tensor:
    """Leading singular vectors of all tasks side by side, made orthogonal."""
    rank = min(vectors[0].shape) // len(vectors)
    triples = [plain_svd(vector) for vector in vectors]
    left = plain_polar(torch.cat([one[0][:, :rank] for one in triples], dim=1))
    right = plain_polar(torch.cat([one[2][:rank] for one in triples]))
    return left @ torch.diag(torch.cat([one[1][:rank] for one in triples])) @ right


def plain_iso_c(vectors: list[Tensor]) -> Tensor:
    """Return the sum with a flat spectrum."""
    left, values, right = plain_svd(torch.stack(vectors).sum(dim=0))
    return left @ torch.diag(values.mean().expand(len(values))) @ right


def plain_iso_cts(vectors: list[Tensor]) -> Tensor:
    """Return the common directions and each task's own, with a flat spectrum."""
    common, own = subspace_sizes(min(vectors[0].shape), len(vectors), COMMON)
    left, values, right = plain_svd(torch.stack(vectors).sum(dim=0))
    left, values, right = left[:, :common], values[:common], right[:common]
    outside = [plain_svd(vector - left @ (left.T @ vector)) for vector in vectors]
    lefts = torch.cat([left, *(one[0][:, :own] for one in outside)], dim=1)
    rights = torch.cat([right, *(one[2][:own] for one in outside)])
    spectrum = torch.cat([values, *(one[1][:own] for one in outside)])
    return spectrum.mean() * plain_polar(lefts) @ plain_polar(rights)


def by_matrix(combine: Callable[[list[Tensor]], Tensor], vectors: list[Weights]) -> Weights:
    """Combine matrices one way, average everything else."""
    merged: Weights = {}
    for name, first in vectors[0].items():
        parts = [vector[name] for vector in vectors]
        merged[name] = combine(parts) if first.dim() == 2 else torch.stack(parts).mean(dim=0)
    return merged


PLAIN = {"tsv_merging": plain_tsv, "iso_c": plain_iso_c, "iso_cts": plain_iso_cts}


def other_way(method: str, device: str) -> tuple[str, Callable[[list[Weights]], Weights]]:
    """Return FusionBench's function of task vectors where it is installed, else the plain one."""
    tsv = models.peer("method.task_singular_vector.utils.TSVM_utils")
    iso = models.peer("method.isotropic_merging.iso_utils")
    if tsv is None or iso is None:
        return "plain", lambda vectors: by_matrix(PLAIN[method], vectors)
    theirs: dict[str, Callable[[list[Weights]], Weights]] = {
        "tsv_merging": lambda vectors: tsv.compute_and_sum_svd_mem_reduction(vectors, accelerator=device),
        "iso_c": lambda vectors: iso.iso_c(vectors, accelerator=device),
        "iso_cts": lambda vectors: iso.iso_cts(vectors, common_space_fraction=COMMON, accelerator=device),
    }
    return "FusionBench", theirs[method]


def relative(merged: Mapping[str, Tensor], base: Weights, theirs: Weights) -> float:
    """Return the distance of what was added to the base from their task vector, over all tensors."""
    gap = sum(float((merged[name] - start - theirs[name]).double().square().sum()) for name, start in base.items())
    size = sum(float(tensor.double().square().sum()) for tensor in theirs.values())
    return float((gap / size) ** 0.5)


def bring(experts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Read every tensor once, and forget it."""
    for expert in experts.values():
        for name in expert:
            expert[name]


def streaming(report: measuring.Report, place: Path, pool: int, repeats: int) -> None:
    """Time the merges that only read and add, against reading."""
    base, experts = models.load(place, pool, report.device)
    paths = [place / "base.safetensors", *(expert.path for expert in experts.values())]
    read_once(paths)  # now they are in the page cache
    if report.device == "cpu":
        reading = measuring.seconds(lambda: read_once(paths), repeats)
    else:
        reading = measuring.seconds(lambda: bring(experts), repeats, report.device)
    size = sum(path.stat().st_size for path in paths)
    report.line(f"reading {size / models.GIB:.2f} GiB once", f"{reading:.3f} s")
    report.details["reading"] = {"seconds": reading, "bytes": size}
    for merge, most in STREAMING:
        taken = measuring.seconds(partial(merge, base, experts), repeats, report.device)
        report.details[merge.__name__] = {"seconds": taken}
        report.line(merge.__name__, f"{taken:.3f} s")
        report.ratio(f"time, {merge.__name__} / reading", taken / reading, most=most)


def spectral(report: measuring.Report, place: Path, pool: int) -> None:
    """Time the merges that decompose matrices, against other implementations."""
    base, files = models.load(place, pool, report.device)
    experts = {name: dict(file) for name, file in files.items()}
    torch.linalg.eigh(torch.eye(2, dtype=torch.float64, device=report.device))  # a library is loaded at its first use
    torch.linalg.svd(torch.eye(2, device=report.device))
    vectors = [task_vector(expert, base) for expert in experts.values()]
    for merge, least in SPECTRAL:
        name = merge.__name__
        whose, other = other_way(name, report.device)
        merged, mine = measuring.timed(partial(merge, base, experts, scaling=1.0), report.device)
        with contextlib.redirect_stdout(io.StringIO()):  # FusionBench prints a line a tensor
            vector, theirs = measuring.timed(partial(other, vectors), report.device)
        difference = relative(merged.weights, base, vector)
        report.details[name] = {"ours": mine, whose: theirs, "difference": difference}
        report.line(name, f"ours {mine:.2f} s, {whose} {theirs:.2f} s")
        report.ratio(f"time, {name}, {whose} / ours", theirs / mine, least=least)
        report.ratio(f"relative difference, {name}, {whose} against ours", difference, most=AGREE)


def main(
    pool: models.Pool = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Times that reading and adding are timed; the median.")] = 3,
    spectral_blocks: Annotated[
        int, typer.Option(min=1, help="Blocks for the spectral merges, whose ratio does not depend on the depth.")
    ] = 2,
    device: models.Device = "cpu",
    blocks: models.Blocks = models.BLOCKS,
    width: models.Width = models.WIDTH,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Time merges without data against reading the files, and against full singular value decompositions."""
    few = min(spectral_blocks, blocks)
    options = {"pool": pool, "device": device, "blocks": blocks, "spectral_blocks": few, "width": width}
    claim = "Time of merges without data, models in the page cache."
    report = measuring.Report("merge_throughput", claim, options, device)
    with models.model_folder(folder) as written:
        streaming(report, models.write_models(written, pool, blocks=blocks, width=width), pool, repeats)
        spectral(report, models.write_models(written, pool, blocks=few, width=width), pool)
    report.write(results)


if __name__ == "__main__":
    typer.run(main)
