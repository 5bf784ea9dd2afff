"""What FW-Merging does with other methods: it starts from their merge, or lets them merge what it has chosen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.gradient import checked_start
from mergekit_lite.methods.registry import OBJECTIVES, Access, MethodInfo, Objective, TaskData, get
from mergekit_lite.weights import Pool, Weights, widest


def merges_alone(name: str) -> str:
    """Return the name of a method that merges models into one and sees no data; the check of `Inside`.

    Raises:
        ValueError: there is no such method, or it sees data, or is a row to compare with.
    """
    info = get(name)
    if info.reference or "data" in info.resources:
        raise ValueError(
            f"'{name}' {'is no merge' if info.reference else 'looks at data'}. Inside an iteration only models are "
            "merged: choose a method that needs no data, such as 'ties_merging'."
        )
    return name


Inside = Annotated[str, AfterValidator(merges_alone)]
"""Type of a parameter `inside`: the name of a registered method that merges models without looking at data."""


def checked_first(start: str, objective: str) -> tuple[MethodInfo, dict[str, Any]]:
    """Return the method called `start`, and the parameters it is run with where `objective` is minimised.

    Labelled training images hold what a method sees that looks at calibration inputs: the same images, without labels.

    Raises:
        KitError: there is no such method, or it needs other data than the objective gives.
    """
    info = get(start)
    if info.access is Access.CALIBRATION and OBJECTIVES[objective] is Access.LABELLED:
        return info, {}
    return checked_start(start, objective)


def started(
    start: str, base: Mapping[str, Tensor], experts: Pool, data: TaskData, *, objective: Objective, seed: int
) -> tuple[Weights, dict[str, Any]]:
    """Return the weights that a method leads to, in the working dtype, and what to note about them in the trace.

    As `starting_point`, but for methods that look at calibration inputs too.

    Raises:
        KitError: there is no such method, it needs other data than there is, or it gives no single model.
    """
    note: dict[str, Any] = {"method": start}
    weights = base
    if start != "base":
        info, parameters = checked_first(start, objective)
        given = {"data": data, "seed": seed}
        merged = info.function(
            base, experts, **{name: one for name, one in given.items() if name in info.resources}, **parameters
        )
        if merged.own:
            raise KitError(f"The start '{start}' gives one model per task. Choose a method that gives one for all.")
        weights, note = merged.weights, note | ({"trace": merged.trace} if merged.trace else {})
    return {name: weights[name].detach().to(widest(base)) for name in base}, note


@dataclass(frozen=True, eq=False)
class Widened(Mapping[str, Tensor]):
    """A model in another dtype and in memory of its own, tensor by tensor as it is asked for."""

    model: Mapping[str, Tensor]
    dtype: torch.dtype

    def __getitem__(self, name: str) -> Tensor:
        return self.model[name].to(self.dtype, copy=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self.model)

    def __len__(self) -> int:
        return len(self.model)


def merged_by(inside: str, theta: Mapping[str, Tensor], vertices: Pool, seed: int) -> Weights:
    r"""Return what the method `inside` makes of the vertices, with :math:`\theta` as its base and its own defaults."""
    info = get(inside)
    own = {"seed": seed} if "seed" in info.resources else {}
    models = {name: Widened(vertex, widest(theta)) for name, vertex in vertices.items()}
    return info.function(theta, models, **own).weights
