"""What is checked before any work begins: that all a cell names exists and fits together."""

from collections.abc import Mapping
from typing import Any

from mergekit_lite.errors import KitError
from mergekit_lite.methods import registry
from mergekit_lite.methods.frank_wolfe.gradient import checked_start
from mergekit_lite.methods.frank_wolfe.others import checked_first
from mergekit_lite.methods.parameters import check_seed
from mergekit_lite.study.records import Cell
from mergekit_lite.suites import corruptions
from mergekit_lite.suites.suite import Suite


def resolved(suite: Suite, cell: Cell) -> Cell:
    """Return `cell` with every parameter filled in, and with the tasks whose data the method sees.

    Raises:
        KitError: it names anything that does not exist, or that the method has no use for.
    """
    info, parameters = registry.get(cell.method), registry.resolve(cell.method, cell.parameters)
    for seed in (cell.seed, cell.expert_seed):
        check_seed(seed)
    for role, tasks in (("pool", cell.pool), ("evaluate", cell.evaluate), ("adapt", cell.adapt)):
        if not tasks and role != "adapt":
            raise KitError(f"{cell.label}: `{role}` names no task. Name one or more of: {', '.join(suite.tasks)}.")
        suite.names(tasks)
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise KitError(f"{cell.label}: `{role}` names {', '.join(twice)} more than once. Name each task once.")
    if cell.curve_every and "watch" not in info.resources:
        raise KitError(f"{cell.label}: curve_every={cell.curve_every}, but this method takes no steps. Leave it out.")
    if cell.adapt and "data" not in info.resources:
        raise KitError(f"{cell.label}: `adapt` names tasks, but this method looks at no data. Leave it out.")
    if cell.corruption:
        corruptions.check(cell.corruption)
    strange = [task for task in cell.broken if task not in cell.pool]
    if strange:
        raise KitError(f"{cell.label}: `broken` names {', '.join(strange)}, which the pool does not. Name its experts.")
    _check_start(cell, parameters)
    return cell.model_copy(update={"parameters": parameters, "adapt": adapted_to(cell, parameters)})


def _check_start(cell: Cell, parameters: Mapping[str, Any]) -> None:
    """Check that the method which `start` names needs no other data than the objective gives."""
    start, objective = str(parameters.get("start")), str(parameters.get("objective"))
    known = {one for info in registry.all_methods() for one in (info.name, info.function.__name__)}
    if start in known and objective in registry.OBJECTIVES:  # a method of one's own may mean something else by these
        try:
            (checked_first if "inside" in parameters else checked_start)(start, objective)
        except KitError as error:
            raise KitError(f"{cell.label}: {error}") from error


def adapted_to(cell: Cell, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tasks whose data the method sees with these (resolved) parameters, see `Cell`.

    Raises:
        KitError: calibration inputs are asked for of other tasks than the experts' own.
    """
    info = registry.get(cell.method)
    if "data" not in info.resources:
        return ()
    if info.access_with(parameters) is registry.Access.CALIBRATION:
        if cell.adapt:
            raise KitError(f"{cell.label}: each expert is calibrated on its own task. Leave `adapt` out.")
        return cell.pool
    both = tuple(task for task in cell.pool if task in cell.evaluate)
    return cell.adapt or both or cell.pool
