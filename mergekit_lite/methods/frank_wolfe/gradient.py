"""What hard and soft FW-Merging share: the pool, the starting point and the gradient (Chen et al. 2025).

The task losses are minimised over the convex hull of the experts; the start may lie outside. Each iteration asks the
linear minimisation oracle (`oracle.py`) which vertices the gradient favours; `hard.py` steps towards one of them,
`soft.py` learns how to mix several.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.oracle import Granularity, Pick
from mergekit_lite.methods.registry import OBJECTIVES, Access, Examples, MethodInfo, Objective, TaskData, get
from mergekit_lite.methods.shared.objectives import loss_and_gradient
from mergekit_lite.weights import Pool, Weights, widest

START = "start"
"""Name of the starting point among the vertices."""
Sampling = Literal["fixed", "fresh"]
"""Whether all iterations see the same images, or each draws others."""


def _known(start: str) -> str:
    if start != "base":
        get(start)
    return start


Start = Annotated[str, AfterValidator(_known)]
"""Type of a parameter `start`: "base", or the name of a registered method whose merge it is."""

TOGETHER = 25
"""Images of each task in one pass through the encoder: more would save no time, and rounding depends on it."""

_APART = 1_000_003  # so far apart are the seeds of two iterations, so that runs with seeds 0, 1, 2 share no draw


def vertex_pool(experts: Pool, start: Mapping[str, Tensor] | None = None) -> dict[str, Mapping[str, Tensor]]:
    """Return the vertices by name: the experts, and the starting point if it is given.

    They are in the order of their names: where scores are equal the first one is chosen, whatever the pool's order.

    Raises:
        KitError: the starting point is given and an expert has its name.
    """
    if start is None:
        return dict(sorted(experts.items()))
    if START in experts:
        raise KitError(f"An expert is called '{START}', as the starting point is. Rename the expert.")
    return dict(sorted({**experts, START: start}.items()))


def starting_point(
    start: str, base: Mapping[str, Tensor], experts: Pool, data: TaskData, *, objective: Objective, seed: int
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
        info, chosen = checked_start(start, objective)
        given = {"data": data, "seed": seed}
        handed = {name: value for name, value in given.items() if name in info.resources}
        merged = info.function(base, experts, **handed, **chosen)
        if merged.own:
            raise KitError(f"The start '{start}' gives one model per task. Choose a method that gives one for all.")
        weights = merged.weights
        if merged.trace:
            note["trace"] = merged.trace
    dtype = widest(base)
    return {name: weights[name].detach().to(dtype) for name in base}, note


def checked_start(start: str, objective: str) -> tuple[MethodInfo, dict[str, Any]]:
    """Return the method called `start`, and the parameters it is run with where `objective` is minimised.

    Raises:
        KitError: there is no such method, or it needs other data than the objective gives.
    """
    info = get(start)
    chosen = {"objective": objective} if "objective" in info.parameters.model_fields else {}
    needs, there = info.access_with(chosen), OBJECTIVES[objective]
    if needs not in {Access.NONE, there}:
        raise KitError(
            f"The start '{start}' needs data of the kind '{needs}', but with the objective '{objective}' there is "
            f"'{there}'. Choose a start that sees no data, or AdaMerging, which takes either."
        )
    return info, chosen


def iteration_seed(seed: int, iteration: int, sampling: Sampling) -> int:
    """Return the seed that the images of an iteration are drawn with: always the same, or another each time."""
    return seed if sampling == "fixed" else seed + _APART * iteration


def drawn(data: TaskData, samples: int, seed: int) -> Mapping[str, Examples]:
    """Return the images of each task, `samples` or all there are, that a gradient is measured on."""
    return next(iter(data.batches(images_per_task=samples, steps=1, seed=seed, keep=samples)), {})


def mean_gradient(
    data: TaskData,
    theta: Mapping[str, Tensor],
    batch: Mapping[str, Examples],
    objective: Objective,
    tasks: Iterable[str] | None = None,
) -> tuple[float, Weights]:
    """Return the sum over tasks of the mean loss on the batch, and its gradient for every tensor.

    Args:
        data: heads and encoder.
        theta: weights; tensors that the loss does not depend on get a zero that takes up no memory.
        batch: images of each task, from `drawn`.
        objective: which loss.
        tasks: those to sum over; by default all that have a head.

    Raises:
        KitError: images that do not match the heads or the objective.
    """
    loss, found = loss_and_gradient(data, theta, batch, objective, tasks=tasks, together=TOGETHER)
    zeros = {name: tensor.new_zeros(()).expand_as(tensor) for name, tensor in theta.items()}
    return loss, {**zeros, **found}


def chosen(pick: Pick, granularity: Granularity) -> str | list[str | None] | None:
    """Return a pick as it stands in the trace: one vertex, or one per tensor."""
    return next(iter(pick.values())) if granularity == "model" else list(pick.values())
