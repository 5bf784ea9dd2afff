"""A step of layer-wise AdaMerging costs hardly more than one forward and backward pass of its images.

Ours sends the images of all tasks through one merged encoder and takes the coefficients' gradient from inner products
with the task vectors. The plain way, written here as anyone would, lets autograd go through the sum of task vectors,
with one forward pass a task. FusionBench's is its `LayerWiseMergedModel`, in the loop of its algorithm. Where the task
vectors do not fit beside the rest they lie elsewhere, or are rounded: `--places` measures what a step costs then.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import measuring, models
from mergekit_lite.methods.shared import places as bank_places
from mergekit_lite.methods.shared.adapting import adam, adapt
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.objectives import mean_entropy
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import Weights, task_vector

INITIAL, RATE = 0.3, 1e-3
AGREE = {"cpu": 1e-3, "cuda": 1e-2, "bfloat16": 1e-2}
"""Largest relative difference between two coefficient gradients in float32: by device, and of rounded task vectors."""

Tick = Callable[[int, Tensor | None], None]
"""Called before the first step with 0, and after each with its number and the gradient of the coefficients."""

Experts = dict[str, LazyWeights]


def images_of(data: models.NoiseTasks) -> dict[str, Tensor]:
    """Return the images by task."""
    return {task: images for task, images in data.given.items() if isinstance(images, Tensor)}


def floor(base: Weights, experts: Experts, data: models.NoiseTasks, steps: int, tick: Tick) -> dict[str, Any]:
    """Only forward and backward of all images through one encoder: no merge, no coefficients."""
    model = models.module_with(data.module, base)
    tick(0, None)
    for step in range(1, steps + 1):
        images = images_of(data)
        with torch.autocast(next(iter(images.values())).device.type, torch.bfloat16, enabled=data.autocast):
            features = model(torch.cat(list(images.values())))
        parts = normalize(features.float(), dim=1).split([len(part) for part in images.values()])
        losses = [mean_entropy(part, data.heads[task]) for task, part in zip(images, parts, strict=True)]
        torch.stack(losses).sum().backward()
        model.zero_grad(set_to_none=True)
        tick(step, None)
    return {}


def ours(base: Weights, experts: Experts, data: models.NoiseTasks, steps: int, tick: Tick) -> dict[str, Any]:
    """The library's own loop, as `layer_wise_adamerging` calls it; then a merge and its gradient alone, timed."""
    device = next(iter(base.values())).device.type
    with torch.no_grad():
        bank = Bank.of(base, experts)
        raw = bank.base.new_full((len(experts), len(base)), INITIAL)
        batches = data.batches(images_per_task=0, steps=steps, seed=0)

        def watch(step: int, weights: Weights) -> None:
            tick(step, raw.grad)

        update = adam(raw, RATE)
        adapt(bank, raw, data, batches, update, objective="entropy", steps=steps, clamp=True, watch=watch)
        return {
            "place": bank.place or "the device",
            "bank bytes": bank.vectors.nbytes,
            "merging": measuring.seconds(lambda: bank.merged(raw), 3, device),
            "gradient": measuring.seconds(lambda: bank.gradient(base), 3, device),
        }


def plain(base: Weights, experts: Experts, data: models.NoiseTasks, steps: int, tick: Tick) -> dict[str, Any]:
    """Autograd through the sum: the coefficients are a leaf, and each task has a forward pass of its own."""
    vectors = [task_vector(expert, base) for expert in experts.values()]
    raw = torch.full((len(vectors), len(base)), INITIAL, device=next(iter(base.values())).device, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=RATE)
    tick(0, None)
    for step in range(1, steps + 1):
        used = raw.clamp(0, 1)
        merged: Weights = {}
        for layer, (name, start) in enumerate(base.items()):
            total = start
            for row, vector in enumerate(vectors):
                total = total + used[row, layer] * vector[name]
            merged[name] = total
        images = images_of(data)
        loss = torch.stack([mean_entropy(data.encode(merged, part), data.heads[task]) for task, part in images.items()])
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        tick(step, raw.grad)
    return {}


def fusion_bench(base: Weights, experts: Experts, data: models.NoiseTasks, steps: int, tick: Tick) -> dict[str, Any]:
    """FusionBench's class in its algorithm's loop: a backward pass a task, through the sum each time.

    The loss is ours, which differs from theirs by 1e-8 inside a logarithm.
    """
    wrapper = models.peer("models.wrappers.layer_wise_fusion")
    tuned = [models.module_with(data.module, expert) for expert in experts.values()]
    initial = wrapper.get_layer_wise_weights(len(tuned), len(base), INITIAL)
    initial = initial.to(next(iter(base.values())).device)
    module = wrapper.LayerWiseMergedModel(initial, models.module_with(data.module, base), tuned, clamp_weights=True)
    optimiser = torch.optim.Adam([module.merge_weight], lr=RATE)
    module.merge_weights()
    tick(0, None)
    for step in range(1, steps + 1):
        for task, images in images_of(data).items():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=data.autocast):
                features = module(images)
            mean_entropy(normalize(features.float(), dim=1), data.heads[task]).backward(retain_graph=True)
        gradient = module.merge_weight.grad.clone()
        optimiser.step()
        optimiser.zero_grad()
        module.merge_weights()
        tick(step, gradient)
    return {}


IMPLEMENTATIONS = {"floor": floor, "ours": ours, "plain": plain, "FusionBench": fusion_bench}


def measure(
    implementation: str,
    place: str,
    *,
    pool: int,
    images: int,
    steps: int,
    device: str,
    autocast: bool,
    model: str,
    blocks: int,
    width: int,
    bank: str = "",
) -> dict[str, Any]:
    """Take one step to compare and warm up, then time `steps` steps.

    The gradient of the first step is compared with that of "ours", which has to be measured before the others. It is
    always taken in float32, so with autocast there is a second step to warm up. `bank` is where the task vectors of
    ours are to lie, see `places.VARIABLE`.

    Returns:
        What the implementation says of itself; "seconds" a step (the median), "difference" from the gradient of ours,
        "memory" in bytes that is held before and after the timed steps, and on a GPU "gpu", torch's peak after the
        first step.
    """
    base, experts = models.load(Path(place), pool, device)
    data = models.NoiseTasks.of(models.encoder(blocks, width, model), pool, images, device)
    base = {name: base[name] for name, _ in data.module.named_parameters()}  # the order that FusionBench goes by
    reference = Path(place) / f"gradient-{device}-{pool}-{images}.pt"
    warm = 2 if autocast else 1
    times: list[float] = []
    memory: list[int] = []
    difference: list[float] = []

    def tick(step: int, gradient: Tensor | None) -> None:
        measuring.wait_for(device)
        if step == 1:
            if implementation == "ours" and not bank:
                assert gradient is not None
                torch.save(gradient, reference)
            elif gradient is not None:
                difference.append(
                    _compare(implementation, gradient, torch.load(reference), AGREE.get(bank, AGREE[device]))
                )
            data.autocast = autocast
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
        if step in {warm, warm + steps}:
            memory.append(torch.cuda.memory_allocated() if device == "cuda" else measuring.settled_memory() or 0)
        if step >= warm:
            times.append(time.perf_counter())

    with _environment(bank):
        said = IMPLEMENTATIONS[implementation](base, experts, data, warm + steps, tick)
    return {
        **said,
        "seconds": median(end - start for start, end in pairwise(times)),
        "difference": difference[0] if difference else None,
        "memory": memory,
        "gpu": measuring.gpu_peak(device),
    }


@contextmanager
def _environment(bank: str) -> Iterator[None]:
    """Ask for a place of the bank, or for none."""
    before = os.environ.pop(bank_places.VARIABLE, None)
    if bank:
        os.environ[bank_places.VARIABLE] = bank
    try:
        yield
    finally:
        os.environ.pop(bank_places.VARIABLE, None)
        if before is not None:
            os.environ[bank_places.VARIABLE] = before


def _compare(implementation: str, gradient: Tensor, expected: Tensor, most: float) -> float:
    difference = float((gradient.cpu() - expected.cpu()).norm() / expected.norm())
    if not difference <= most:
        raise RuntimeError(
            f"The gradient of '{implementation}' is {difference:.1e} away from ours: nothing to compare."
        )
    return difference


def main(
    pool: models.Pool = 8,
    images: Annotated[int, typer.Option(min=1, help="Images of each task in a step.")] = 16,
    steps: Annotated[int, typer.Option(min=2, help="Timed steps.")] = 3,
    only: Annotated[str, typer.Option(help=f"Which of {', '.join(IMPLEMENTATIONS)}, comma-separated; all.")] = "",
    distinct: Annotated[int, typer.Option(min=1, help="Files of experts; a larger pool has more names of them.")] = 8,
    places: Annotated[
        str, typer.Option(help="Measure ours also with its task vectors in these places: pinned,mapped,bfloat16.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, or cuda: bfloat16 autocast, task vectors on the GPU.")] = "cpu",
    model: models.Model = models.MODEL,
    blocks: models.Blocks = models.BLOCKS,
    width: models.Width = models.WIDTH,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Time a step of layer-wise AdaMerging, and its peak memory, against the plain way, FusionBench and the floor."""
    options = {"pool": pool, "images": images, "steps": steps, "device": device, "model": model}
    options |= {"blocks": blocks, "width": width}
    precision = "bfloat16 autocast on a GPU" if device == "cuda" else "float32 on a CPU"
    variant = "" if (model, pool, only, places) == (models.MODEL, 8, "", "") else f"{model} pool {pool}"
    report = measuring.Report(
        "adamerging_step", f"A step of layer-wise AdaMerging, {precision}.", options, device, variant
    )
    names = list(filter(None, only.split(","))) or ["floor", "ours", "plain"]
    if not only and not models.peer("models.wrappers.layer_wise_fusion"):
        print("  FusionBench is not installed: not compared")
    elif not only:
        # As shipped FusionBench computes in float32; on a GPU it is measured with autocast too.
        names += ["FusionBench, autocast", "FusionBench"] if device == "cuda" else ["FusionBench"]
    names += [f"ours, {place}" for place in filter(None, places.split(",")) if (place, device) != ("pinned", "cpu")]
    found: dict[str, measuring.Measured] = {}
    failed = []
    with models.model_folder(folder) as written:
        distinct = min(pool, distinct)
        place = models.write_models(written, distinct, blocks=blocks, width=width, model=model)
        models.link_models(place, distinct, pool)
        for name in names:
            implementation, _, detail = name.partition(", ")
            how: dict[str, Any] = {"autocast": device == "cuda" and name != "FusionBench"}
            if implementation == "ours":
                how["bank"] = detail
            try:
                one = found[name] = measuring.in_own_process(
                    measure, implementation=implementation, place=str(place), **how, **options
                )
            except RuntimeError as error:
                if implementation != "ours" or not detail:
                    raise
                failed.append(name)  # this machine has no such place: the others are measured all the same
                report.line(name, str(error))
                continue
            held = one.result["memory"]
            one.result["growth"] = held[-1] / held[0] if held[0] else None
            report.line(
                name, f"{one.result['seconds']:.3f} s a step, peak {one.peak / models.GIB:.2f} GiB {one.memory()}"
            )
            report.details[name] = {**one.result, **one.memory()}
    for name, one in found.items():
        if one.result["difference"] is not None:
            report.line(f"coefficient gradient of {name} against ours", f"{one.result['difference']:.1e}")
    if "ours" in found:
        _ratios(report, found, device)
    report.write(results)
    if failed:
        raise SystemExit(f"Not measured: {'; '.join(failed)}.")


def _ratios(report: measuring.Report, found: dict[str, measuring.Measured], device: str) -> None:
    took = {name: one.result["seconds"] for name, one in found.items()}
    if "floor" in found:
        report.ratio("time, ours / floor", took["ours"] / took["floor"], most=1.3 if device == "cuda" else 1.15)
    others = [name for name in found if name not in ("floor", "ours")]
    for name in others:
        least = 20 if device == "cuda" and name == "FusionBench" else None
        report.ratio(f"time, {name} / ours", took[name] / took["ours"], least=least)
    for name in others:
        most = 1 / 3 if name == "plain" else None
        report.ratio(f"peak memory, ours / {name}", found["ours"].peak / found[name].peak, most=most)
    if found["ours"].result["growth"]:
        report.ratio("memory held by ours, after / before the timed steps", found["ours"].result["growth"], most=1.01)


if __name__ == "__main__":
    typer.run(main)
