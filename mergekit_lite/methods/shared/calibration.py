"""Images on which experts are looked at before merging, each expert on those of its own task."""

from collections.abc import Iterable

from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import TaskData
from mergekit_lite.weights import first_three


def calibration_images(data: TaskData, tasks: Iterable[str], *, images: int, seed: int) -> dict[str, Tensor]:
    """Return task -> `images` images (n, 3, H, W) of that task, the first of its epoch.

    Raises:
        KitError: a task has no images or no head.
    """
    tasks = tuple(tasks)
    found = next(iter(data.batches(images_per_task=images, steps=1, seed=seed)), {})
    without = [f"'{task}'" for task in tasks if task not in data.heads or task not in found]
    if without:
        raise KitError(
            f"Each expert needs calibration images of its own task; there are none for {first_three(without)}. "
            "Adapt to all tasks of the pool, or leave those experts out."
        )
    given = {task: found[task] for task in tasks}
    return {task: one if isinstance(one, Tensor) else one[0] for task, one in given.items()}
