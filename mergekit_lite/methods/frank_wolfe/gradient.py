"""What hard and soft FW-Merging share: the pool, the starting point and the gradient (Chen et al. 2025).

The task losses are minimised over the convex hull of the experts. Each iteration asks the linear minimisation oracle
(`oracle.py`) which vertices the gradient favours; `hard_frank_wolfe.py` steps towards one of them,
`soft_frank_wolfe.py` learns how to mix several.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.oracle import Granularity, Models, Oracle, Pick, Selection, select
from mergekit_lite.methods.registry import OBJECTIVES, Access, Objective, TaskData, get
from mergekit_lite.methods.shared.objectives import loss_and_gradient
from mergekit_lite.weights import Weights, is_finite, widest

START = "start"
"""Name of the starting point among the vertices."""

Sampling = Literal["fixed", "fresh"]
"""Whether all iterations see the same images, or each draws others."""

_APART = 1_000_003  # so far apart are the seeds of two iterations, so that runs with seeds 0, 1, 2 share no draw


def vertex_pool(
    experts: Mapping[str, Mapping[str, Tensor]], start: Mapping[str, Tensor] | None = None
) -> dict[str, Mapping[str, Tensor]]:
    """Return the vertices by name: the experts, each opened once, and the starting point if it is given.

    They are in the order of their names: where scores are equal the first one is chosen, whatever the pool's order.

    Raises:
        KitError: the starting point is given and an expert has its name.
    """
    vertices = dict(experts.items())  # a suite opens a file anew each time it is asked
    if start is not None:
        if START in vertices:
            raise KitError(f"An expert is called '{START}', as the starting point is. Rename the expert.")
        vertices[START] = start
    return dict(sorted(vertices.items()))


def starting_point(
    start: str,
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    data: TaskData,
    *,
    objective: Objective,
    seed: int,
) -> tuple[Weights, dict[str, Any]]:
    """Return the weights to start from, in the working dtype, and what to note about them in the trace.

    Args:
        start: "base", or the name of a registered method, run with its default parameters. One that sees data sees this
            `data`, and takes this `objective` if it has a choice.
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name.
        data: heads, encoder and images.
        objective: what is minimised, which decides what `data` holds.
        seed: handed on to the method.

    Raises:
        KitError: there is no such method, it needs other data than there is, or it gives no single model.
    """
    weights = base
    note: dict[str, Any] = {"method": start}
    if start != "base":
        info = get(start)
        chosen = {"objective": objective} if "objective" in info.parameters.model_fields else {}
        needs, there = info.access_with(chosen), OBJECTIVES[objective]
        if needs not in {Access.NONE, there}:
            raise KitError(
                f"The start '{start}' needs data of the kind '{needs}', but with the objective '{objective}' there is "
                f"'{there}'. Choose a start that sees no data, or AdaMerging, which takes either."
            )
        given = {"data": data, "seed": seed}
        handed = {name: value for name, value in given.items() if name in info.resources}
        merged = info.function(base, experts, **handed, **chosen)
        if merged.own:
            raise KitError(f"The start '{start}' gives one model a task. Choose a method that gives one for all.")
        weights = merged.weights
        if merged.trace:
            note["trace"] = merged.trace
    dtype = widest(base)
    return {name: weights[name].detach().to(dtype) for name in base}, note


def mean_gradient(
    data: TaskData,
    theta: Mapping[str, Tensor],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    tasks: Iterable[str] | None = None,
) -> tuple[float, Weights]:
    """Return the sum over tasks of the mean loss on `samples` images each, and its gradient for every tensor.

    The mean over all images is the mean over batches of equal size, so that `batch_size` only decides how many images
    of a task go through the encoder at once.

    Args:
        data: heads, encoder and images.
        theta: weights; tensors that the loss does not depend on get a zero that takes up no memory.
        samples: images of each task.
        batch_size: images of each task in one forward; a divisor of `samples`, or more than that for one forward.
        seed: which images are drawn.
        tasks: those to sum over; by default all that have a head.

    Raises:
        KitError: `batch_size` does not divide `samples`, images that do not match the heads, or too few batches.
    """
    size = min(batch_size, samples)
    if samples % size:
        raise KitError(
            f"{samples} samples cannot be split into batches of {size}: the last one would weigh more than the others. "
            "Choose a batch_size that divides samples."
        )
    count = samples // size
    total = 0.0
    gradient = {name: tensor.new_zeros(()).expand_as(tensor) for name, tensor in theta.items()}
    seen = 0
    for batch in data.batches(images_per_task=size, steps=count, seed=seed, samples=samples):
        loss, part = loss_and_gradient(data, theta, batch, tasks)
        total += loss / count
        for name, direction in part.items():
            gradient[name] = gradient[name] + direction / count
        seen += 1
    if seen != count:
        raise KitError(f"The data gave {seen} batches for {count} of {size} images a task. Give more images.")
    return total, gradient


def is_sound(loss: float, gradient: Mapping[str, Tensor]) -> bool:
    """Return whether loss and gradient are free of NaN and infinities."""
    return math.isfinite(loss) and all(is_finite(direction) for direction in gradient.values())


def iteration_seed(seed: int, iteration: int, sampling: Sampling) -> int:
    """Return the seed that the images of an iteration are drawn with: always the same, or another each time."""
    return seed if sampling == "fixed" else seed + _APART * iteration


def stop_message(iteration: int, losses: list[float]) -> str:
    """Say where Frank-Wolfe was stopped, and that the weights of the lowest loss are kept."""
    message = f"Frank-Wolfe stopped in iteration {iteration + 1}: the loss or its gradient became NaN or infinite. "
    if not losses:
        return message + "The starting point is kept."
    least = min(range(len(losses)), key=losses.__getitem__)
    return (
        f"{message}Kept are the weights before iteration {least + 1}, those of the lowest loss ({losses[least]:.4g})."
    )


def choose(
    theta: Mapping[str, Tensor],
    data: TaskData,
    vertices: Models,
    groups: Sequence[Sequence[str]],
    *,
    each: int,
    samples: int,
    batch_size: int,
    seed: int,
    oracle: Oracle,
    granularity: Granularity,
    lengths: Tensor | None = None,
) -> tuple[float, Selection]:
    """Return the loss at theta and the vertices picked for it, `each` for the gradient of every group of tasks.

    Gradients are measured one after another, none once the pool is used up. The loss is NaN if one was unsound.
    """
    losses: list[float] = []

    def gradients() -> Iterator[Weights]:
        for tasks in groups:
            loss, gradient = mean_gradient(data, theta, samples=samples, batch_size=batch_size, seed=seed, tasks=tasks)
            losses.append(loss if is_sound(loss, gradient) else math.nan)
            if math.isnan(losses[-1]):
                return
            yield gradient

    answer = select(theta, gradients(), vertices, each=each, oracle=oracle, granularity=granularity, lengths=lengths)
    return sum(losses), answer


def chosen(pick: Pick, granularity: Granularity) -> str | list[str | None] | None:
    """Return a pick as it stands in the trace: one vertex, or one for each tensor."""
    return next(iter(pick.values())) if granularity == "model" else list(pick.values())
