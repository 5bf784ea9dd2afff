"""Accuracy of a merge on many tasks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.methods.registry import Merged
from mergekit_lite.suites.scoring import accuracy

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite, Which

__all__ = ["accuracies", "accuracy"]


def accuracies(
    suite: "Suite", merged: Merged, tasks: Sequence[str], *, which: "Which" = "test", images: int = 0
) -> dict[str, float]:
    """Return the accuracy of a merge on each of `tasks`, in percent, in their order; see `suites.scoring.accuracy`."""
    return {task: accuracy(suite, merged.for_task(task), task, which=which, images=images) for task in tasks}
