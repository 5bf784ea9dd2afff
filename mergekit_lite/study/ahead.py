"""Corrupted images are made before the cells run that look at them, or the first of these would be billed for them."""

from collections.abc import Iterable

from mergekit_lite.methods import registry
from mergekit_lite.study.records import Cell
from mergekit_lite.suites.corruptions import corrupt_ahead
from mergekit_lite.suites.suite import Suite


def corrupt_for(suite: Suite, cells: Iterable[Cell], workers: int) -> None:
    """Corrupt, with `workers` processes on a CPU, all test images that (resolved) `cells` of `suite` need corrupted.

    Raises:
        KitError: there is no room for all of them (nothing was written), or a file cannot be written.
    """
    wanted: dict[tuple[int, str], dict[str, None]] = {}  # of other experts, some suites have other images, too
    for cell in cells:
        if cell.corruption:
            wanted.setdefault((cell.expert_seed, cell.corruption), {}).update(dict.fromkeys(_tests(cell)))
    suites = {seed: suite.with_expert_seed(seed) for seed, _ in wanted}
    corrupt_ahead([(suites[seed], name, tasks) for (seed, name), tasks in wanted.items()], workers)


def _tests(cell: Cell) -> tuple[str, ...]:
    """Return the tasks whose test images `cell` looks at; its method may adapt to others than it is measured on."""
    adapts = registry.get(cell.method).access_with(cell.parameters) is registry.Access.UNLABELLED
    return (*(cell.evaluate if cell.split == "test" else ()), *(cell.adapt if adapts else ()))
