"""An iteration of hard Frank-Wolfe: one batched gradient and a selection from files, against one image at a time.

The peer's way, as in FusionBench 0.2.33 and the authors' code, is a backward pass for each single image, then for each
candidate and tensor a cosine, whose norms are computed anew in every iteration. Its candidates are in memory; ours are
in files that are in the page cache. Where FusionBench is installed, its own selection is measured too.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks import measuring, models
from mergekit_lite.methods.averaging import task_arithmetic
from mergekit_lite.methods.frank_wolfe.gradient import START, mean_gradient, vertex_pool
from mergekit_lite.methods.frank_wolfe.hard import hard_step
from mergekit_lite.methods.frank_wolfe.oracle import norms
from mergekit_lite.methods.shared.stopping import unsound
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import Weights

STEP, SCALING = 0.1, 0.3
ITERATIONS = 10
"""Of a merge in FusionBench's configuration; norms that are computed once a merge are shared among so many."""
AGREE = {"cpu": 1e-3, "cuda": 1e-2}  # a GPU rounds convolutions to TF32, and which way depends on the batch
TARGETS = {8: 2, 20: 4}

DISTINCT = 8
"""Files of experts; a larger pool has further names of the same ones."""

Experts = dict[str, LazyWeights]
Selection = tuple[str, dict[str, float]]
"""The chosen vertex, and the score of each."""


def ours(theta: Weights, experts: Experts, data: models.NoiseTasks, iterations: int) -> dict[str, Any]:
    """The lines of `hard_frank_wolfe`'s loop, with FusionBench's oracle."""
    vertices, device = vertex_pool(experts, theta), data.device
    lengths, once = measuring.timed(lambda: norms(vertices, tuple(theta)), device)
    gradients, selections = [], []
    scores: dict[str, float] = {}
    for _ in range(iterations):
        begun = measuring.clock(device)
        loss, gradient = mean_gradient(data, theta, data.given, "cross-entropy")
        assert not unsound(loss, gradient.values())
        between = measuring.clock(device)
        moved, _, answer = hard_step(
            theta, gradient, vertices, rate=STEP * SCALING, granularity="model", lengths=lengths
        )
        gradients.append(between - begun)
        selections.append(measuring.clock(device) - between)
        scores = scores or answer.totals()
        theta, data.autocast = moved, device == "cuda"
    return {"gradients": gradients, "selections": selections, "once": once, "scores": scores}


def plain_selection(gradients: Weights, checkpoints: dict[str, Weights]) -> Selection:
    """Return the checkpoint of the smallest sum over tensors of cosines with the gradient."""
    scores = {}
    for name, checkpoint in checkpoints.items():
        total = next(iter(checkpoint.values())).new_zeros(())
        for key, tensor in checkpoint.items():
            gradient = gradients[key]
            total = total + gradient.flatten().dot(tensor.flatten()) / (gradient.norm() * tensor.norm())
        scores[name] = total.item()
    return min(scores, key=scores.__getitem__), scores


class _Checkpoint(dict[str, Tensor]):
    """Weights that FusionBench takes for a module."""

    def to(self, device: str) -> "_Checkpoint":
        return self

    def state_dict(self) -> "_Checkpoint":
        return self


def their_selection(gradients: Weights, checkpoints: dict[str, Weights]) -> Selection:
    """Let FusionBench select."""
    algorithm = models.peer("method.fw_merging.fw_hard").FrankWolfeHardAlgorithm
    wrapped = {name: _Checkpoint(weights) for name, weights in checkpoints.items()}
    _, chosen, _, scores = algorithm.frank_wolfe_selection(None, gradients, wrapped)
    return chosen, scores


def one_by_one(
    theta: Weights,
    experts: Experts,
    data: models.NoiseTasks,
    iterations: int,
    select: Callable[[Weights, dict[str, Weights]], Selection],
) -> dict[str, Any]:
    """The peer's loop: a backward pass for each image, then the selection."""
    checkpoints: dict[str, Weights] = {
        task: {k: v.clone() for k, v in expert.items()} for task, expert in experts.items()
    }
    checkpoints[START] = theta
    model = models.module_with(data.module, theta)
    gradients, selections = [], []
    scores: dict[str, float] = {}
    for _ in range(iterations):
        begun = measuring.clock(data.device)
        for task, (images, labels) in data.given.items():
            for image, label in zip(images, labels, strict=True):
                with torch.autocast(data.device, torch.bfloat16, enabled=data.autocast):
                    features = model(image[None])
                logits = normalize(features.float(), dim=1) @ data.heads[task].T
                (cross_entropy(logits, label[None]) / (len(images) * len(experts))).backward()
        gradient = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
        model.zero_grad(set_to_none=True)
        between = measuring.clock(data.device)
        with torch.no_grad():
            chosen, found = select(gradient, checkpoints)
            theta = {
                name: tensor + STEP * SCALING * (checkpoints[chosen][name] - tensor) for name, tensor in theta.items()
            }
            model.load_state_dict(theta)
        gradients.append(between - begun)
        selections.append(measuring.clock(data.device) - between)
        scores, data.autocast = scores or found, data.device == "cuda"
    return {"gradients": gradients, "selections": selections, "once": 0.0, "scores": scores}


def measure(
    implementation: str,
    place: str,
    *,
    pool: int,
    tasks: int,
    images: int,
    iterations: int,
    device: str,
    blocks: int,
    width: int,
) -> dict[str, Any]:
    """Go `iterations` steps, one more to warm up, from the task-arithmetic merge.

    On a GPU the timed steps are in bfloat16 autocast. The first is in float32 everywhere, for the scores to compare.

    Returns:
        Seconds of "gradient", "selection" (with the step) and "once" a merge; "seconds", of an iteration in all; the
        "scores" of the first iteration by vertex; and on a GPU "gpu", torch's peak.
    """
    base, experts = models.load(Path(place), pool, device)
    data = models.NoiseTasks.of(models.encoder(blocks, width), tasks, images // tasks, device, labels=True)
    theta = task_arithmetic(base, experts, scaling=SCALING / pool).weights
    if implementation == "ours":
        found = ours(theta, experts, data, 1 + iterations)
    else:
        select = plain_selection if implementation == "plain" else their_selection
        found = one_by_one(theta, experts, data, 1 + iterations, select)
    gradient, selection = median(found["gradients"][1:]), median(found["selections"][1:])
    return {
        "gradient": gradient,
        "selection": selection,
        "once": found["once"],
        "seconds": gradient + selection + found["once"] / ITERATIONS,
        "scores": found["scores"],
        "gpu": measuring.gpu_peak(device),
    }


def difference(one: dict[str, float], other: dict[str, float], most: float = AGREE["cpu"]) -> float:
    """Return how far scores of the same vertices are apart, compared with the largest.

    Raises:
        RuntimeError: too far for the two to be the same computation.
    """
    gap = max(abs(one[name] - other[name]) for name in one) / max(map(abs, one.values()))
    if not gap <= most:
        raise RuntimeError(f"The scores are {gap:.1e} apart: nothing to compare.")
    return gap


def main(
    pools: Annotated[str, typer.Option(help="Pool sizes.")] = "8,20",
    tasks: Annotated[int, typer.Option(min=1, help="Tasks that the images are of.")] = 8,
    images: Annotated[int, typer.Option(min=1, help="Images in all, a multiple of the tasks.")] = 32,
    iterations: Annotated[int, typer.Option(min=1, help="Timed iterations; the median.")] = 2,
    device: models.Device = "cpu",
    blocks: models.Blocks = models.BLOCKS,
    width: models.Width = models.WIDTH,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Time an iteration of hard Frank-Wolfe against the peer's way."""
    sizes = [int(size) for size in pools.split(",")]
    shape = {"tasks": tasks, "images": images, "iterations": iterations, "device": device}
    shape |= {"blocks": blocks, "width": width}
    options = {"pools": sizes, **shape}
    report = measuring.Report("frank_wolfe_step", "An iteration of hard Frank-Wolfe.", options, device)
    names = ["ours", "plain"]
    if models.peer("method.fw_merging.fw_hard"):
        names.append("FusionBench")
    else:
        print("  FusionBench is not installed: not compared")
    with models.model_folder(folder) as written:
        distinct = min(max(sizes), DISTINCT)
        place = models.write_models(written, distinct, blocks=blocks, width=width)
        models.link_models(place, distinct, max(sizes))
        for size in sizes:
            found: dict[str, dict[str, Any]] = {}
            for name in names:
                one = measuring.in_own_process(measure, implementation=name, place=str(place), pool=size, **shape)
                found[name] = report.details[f"{name} {size}"] = {**one.result, **one.memory()}
                parts = ", ".join(f"{part} {one.result[part]:.2f}" for part in ("gradient", "selection", "once"))
                report.line(f"{name}, pool of {size}", f"{one.result['seconds']:.2f} s an iteration ({parts})")
            for name in names[1:]:
                gap = difference(found["ours"]["scores"], found[name]["scores"], AGREE[device])
                report.line(f"scores of {name} against ours", f"{gap:.1e}")
                taken = found[name]["seconds"] / found["ours"]["seconds"]
                report.ratio(f"time, {name} / ours, pool of {size}", taken, least=TARGETS.get(size))
    report.write(results)


if __name__ == "__main__":
    typer.run(main)
