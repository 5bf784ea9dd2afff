"""RegMean's merge step, from ready Gram matrices: one Cholesky factor a layer, against the plain inverse.

The plain way, as in FusionBench 0.2.33, scales each Gram matrix by a full matrix of factors and inverts the sum in
float32. Ours goes expert by expert and solves in float64. Reducing what is off the diagonal is part of both times.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks import measuring, models
from mergekit_lite.methods.regmean_merging import gram, merge_with_grams
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import Weights

OFF_DIAGONAL = 0.9
AGREE = 1e-3
LINEAR = ("in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")


def noise_grams(base: Mapping[str, Tensor], pool: int, rows: int, device: str) -> list[Weights]:
    """Return for each expert the Gram matrices of noise that goes into each linear layer, nothing reduced yet."""
    grams = []
    for number in range(pool):
        generator = torch.Generator().manual_seed(number)
        sides = {name: tensor.shape[1] for name, tensor in base.items() if name.endswith(LINEAR)}
        inputs = {name: torch.randn(rows, side, generator=generator).to(device) for name, side in sides.items()}
        grams.append({name: gram(its, 1.0) for name, its in inputs.items()})
    return grams


def reduced(product: Tensor) -> Tensor:
    """Return a Gram matrix with what is off its diagonal made smaller, in new memory."""
    result = product * OFF_DIAGONAL
    result.diagonal().copy_(product.diagonal())
    return result


def ours(base: Weights, experts: dict[str, LazyWeights], grams: list[Weights]) -> Weights:
    """The library's merge step."""
    return merge_with_grams(base, experts, ({name: reduced(one) for name, one in its.items()} for its in grams))


def plain(base: Weights, experts: dict[str, LazyWeights], grams: list[Weights]) -> Weights:
    """Sums of products times the inverse of the sum, as the equation is written."""
    merged: Weights = {}
    for name, start in base.items():
        tensors = [expert[name] for expert in experts.values()]
        if name not in grams[0]:
            merged[name] = torch.stack(tensors).mean(dim=0)
            continue
        side = start.shape[1]
        factors = start.new_full((side, side), OFF_DIAGONAL) + torch.diag(start.new_full((side,), 1 - OFF_DIAGONAL))
        weights = [its[name] * factors for its in grams]
        products = [weight @ tensor.T for weight, tensor in zip(weights, tensors, strict=True)]
        total = torch.stack(products).sum(dim=0)
        merged[name] = (torch.linalg.inv(torch.stack(weights).sum(dim=0)) @ total).T
    return merged


def fusion_bench(base: Weights, experts: dict[str, LazyWeights], grams: list[Weights]) -> Weights:
    """FusionBench's function; it knows a layer by a name that ends in ".weight"."""
    given = {f"{name}.weight": [expert[name] for expert in experts.values()] for name in base}
    merged = models.peer("method.regmean.regmean").merging_with_regmean_weights(given, grams, OFF_DIAGONAL)
    return {name: merged[f"{name}.weight"] for name in base}


IMPLEMENTATIONS = {"ours": ours, "plain": plain, "FusionBench": fusion_bench}


def measure(implementation: str, place: str, *, pool: int, rows: int, repeats: int, device: str) -> dict[str, Any]:
    """Time the merge step, and compare with ours, which has to be measured first.

    Returns:
        "seconds" (the median), "difference" of what is added to the base, relative to its length, and on a GPU "gpu",
        torch's peak.
    """
    base, experts = models.load(Path(place), pool, device)
    grams = noise_grams(base, pool, rows, device)
    work = partial(IMPLEMENTATIONS[implementation], base, experts, grams)
    merged, taken = measuring.timed(work, device)
    reference = Path(place) / f"regmean-{device}-{pool}-{rows}.pt"
    away = 0.0
    if implementation == "ours":
        torch.save(merged, reference)
    else:
        expected = torch.load(reference)
        gap = sum(float((merged[name] - expected[name]).square().sum()) for name in base)
        away = (gap / sum(float((expected[name] - base[name]).square().sum()) for name in base)) ** 0.5
        if not away <= AGREE:
            raise RuntimeError(f"The merge of '{implementation}' is {away:.1e} away from ours: nothing to compare.")
    del merged  # not two at once
    if repeats > 1:
        taken = measuring.seconds(work, repeats - 1, device)
    return {"seconds": taken, "difference": away, "gpu": measuring.gpu_peak(device)}


def main(
    pool: models.Pool = 8,
    rows: Annotated[int, typer.Option(min=1, help="Inputs that each Gram matrix is of.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Times it is done; the median, without the first.")] = 3,
    device: models.Device = "cpu",
    blocks: models.Blocks = models.BLOCKS,
    width: models.Width = models.WIDTH,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Time RegMean's merge step against the plain way."""
    given = {"pool": pool, "rows": rows, "repeats": repeats, "device": device}
    options = {**given, "blocks": blocks, "width": width}
    report = measuring.Report("regmean_merge", "RegMean's merge step from ready Gram matrices.", options, device)
    names = ["ours", "plain"]
    if models.peer("method.regmean.regmean"):
        names.append("FusionBench")
    else:
        print("  FusionBench is not installed: not compared")
    took = {}
    with models.model_folder(folder) as written:
        place = models.write_models(written, pool, blocks=blocks, width=width)
        for name in names:
            one = measuring.in_own_process(measure, implementation=name, place=str(place), **given)
            took[name] = one.result["seconds"]
            report.details[name] = {**one.result, **one.memory()}
            away = "" if name == "ours" else f", {one.result['difference']:.1e} away from ours"
            report.line(name, f"{took[name]:.2f} s, peak with its inputs {one.peak / models.GIB:.2f} GiB{away}")
    for name in names[1:]:
        report.ratio(f"time, {name} / ours", took[name] / took["ours"], least=3)
    report.write(results)


if __name__ == "__main__":
    typer.run(main)
