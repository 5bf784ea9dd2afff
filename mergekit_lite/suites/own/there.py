"""What of a suite file lies on this machine, and what does not fit: nothing is fetched, and no image decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.opening import HUB, opened
from mergekit_lite.suites.own import models, places, splits
from mergekit_lite.suites.own.own_suite import OwnSuite
from mergekit_lite.suites.own.schema import SuiteFile
from mergekit_lite.suites.suite import Task, Which
from mergekit_lite.weight_files import LazyWeights

NO, UNFETCHED = "no", "not fetched"
WHICH: tuple[Which, ...] = ("train", "test")


class Row(NamedTuple):
    """What there is of one task, in words: a number, a yes, `NO` or `UNFETCHED`."""

    task: str
    classes: str
    train: str
    test: str
    decoded: str
    expert: str


@dataclass
class Looked:
    """What was found of a suite file.

    Attributes:
        side: of the images in pixels.
        rows: one for each task.
        tensors: of the base weights; None if they are not there.
        unfetched: what is on the hub and not here, in words.
        problems: what is not there and cannot be fetched, and what does not fit.
        to_write: bytes of the test images that are not decoded yet.
    """

    side: int
    rows: list[Row] = field(default_factory=list)
    tensors: int | None = None
    unfetched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    to_write: int = 0

    def told(self, look: Callable[[], str]) -> str:
        """Return what `look` returns, or `NO` and keep why."""
        try:
            return look()
        except KitError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return NO

    def lacks(self, what: str) -> str:
        """Keep that `what` is not fetched, and say so."""
        self.unfetched.append(what)
        return UNFETCHED


def looked(file: SuiteFile, tasks: Sequence[str]) -> Looked:
    """Return what there is of some tasks of a suite file, and of its base.

    Without the base, experts and heads are opened and not compared with it.

    Raises:
        KitError: there is no such model, or it has no such base.
    """
    base = models.announced(file)
    found, suites = Looked(base.side), list[OwnSuite]()

    def load() -> str:
        suites.append(OwnSuite(file, torch.device("cpu")))
        return "yes"

    if base.on_hub and not base.here:
        found.lacks(f"the base, {base.base}")
    else:
        found.told(load)
    suite = suites[0] if suites else None
    found.tensors = len(suite.base) if suite else None
    shown = {one.name: one for one in file.suite_tasks()}
    for task in tasks:
        train, test, decoded = _images(found, file, shown[task])
        row = Row(task, str(len(shown[task].classnames)), train, test, decoded, _expert(found, file, task, suite))
        found.rows.append(row)
    return found


def _images(found: Looked, file: SuiteFile, task: Task) -> tuple[str, str, str]:
    """Return what is shown of training images, of test images, and of whether the latter are decoded."""
    source = splits.Source(task, file.tasks[task.name], found.side, file.crop)
    if source.own.images.kind == "dataset":
        train, test = (_of_data_set(found, source, which) for which in WHICH)
        return train, test, "not yet" if test == UNFETCHED else "yes"
    train, test = (found.told(lambda one=which: str(splits.counted(source, one))) for which in WHICH)  # type: ignore[misc]

    def decoded() -> str:
        return "yes" if splits.is_decoded(source, "test", splits.fingerprint(source, "test")) else "not yet"

    is_decoded = found.told(decoded)
    if is_decoded == "not yet" and test.isdecimal():
        found.to_write += int(test) * 3 * found.side**2
    return "none" if train == "0" else train, test, is_decoded


def _of_data_set(found: Looked, source: splits.Source, which: Which) -> str:
    if splits.is_decoded(source, which, ""):
        return str(splits.counted(source, which))
    what = "test images" if which == "test" else "training images"
    return found.lacks(f"{source.task.name}: {what}, {source.own.images.dataset}")


def _expert(found: Looked, file: SuiteFile, task: str, suite: OwnSuite | None) -> str:
    """Return what is shown of the expert of a task, by whose names it is stored; and look at the task's head."""
    place, head = file.tasks[task].expert, file.tasks[task].head

    def fits() -> str:
        if suite:
            return suite.describe_expert(task)
        opened(place)
        return "there"

    if head is not None:
        path = Path(head)
        found.told(lambda: str(suite.heads[task].shape if suite else len(LazyWeights(path))))
    if place.startswith(HUB) and not places.is_here(place):
        return found.lacks(f"{task}: the expert, {place}")
    return found.told(fits)
