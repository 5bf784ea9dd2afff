"""The grader's side of `handing`: what a submission's process is handed of a suite, under names that tell nothing."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergekit_lite.errors import KitError, shown
from mergekit_lite.methods.registry import Examples

if TYPE_CHECKING:
    from mergekit_lite.study.task_data import Shown
    from mergekit_lite.suites.suite import Suite

MOST_STREAMS = 100  # calls of `batches` that may be open at once


def neutral(pool: Sequence[str], adapt: Sequence[str], order: Sequence[int]) -> dict[str, str]:
    """Return name -> task for the experts of `pool`, in the order in which a method gets them, then for other tasks.

    Args:
        pool: tasks whose experts are merged.
        adapt: tasks whose images are shown.
        order: a permutation of the pool's places.
    """
    named = {f"expert-{number}": pool[place] for number, place in enumerate(order)}
    others = [task for task in adapt if task not in pool]
    return named | {f"task-{number}": task for number, task in enumerate(others)}


def pack(suite: "Suite", names: Mapping[str, str], path: Path) -> None:
    """Write the encoder and the heads that a method with data is handed; `names` are neutral name -> task.

    Raises:
        KitError: the suite computes features in a way of its own.
    """
    from mergekit_lite.suites.suite import Suite

    if getattr(suite.encode, "__func__", None) is not Suite.encode:
        raise KitError(f"The suite '{suite.name}' has its own `encode`: methods with data cannot be graded on it.")
    heads = {name: suite.heads[task].cpu() for name, task in names.items()}
    torch.save({"model": suite._model.visual, "mean": suite._mean, "std": suite._std, "heads": heads}, path)


class Server:
    """Answers what `Handed` asks. The images and labels that were handed out are counted by `data`."""

    def __init__(self, data: "Shown", names: Mapping[str, str]) -> None:
        """Serve `data` under neutral names: `names` are neutral name -> task."""
        self.data = data
        self._names = {task: name for name, task in names.items()}
        self._open: dict[int, Iterator[Mapping[str, Examples]]] = {}

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any] | dict[str, Tensor]:
        """Return the answer to one message: words, or the tensors of one batch.

        Raises:
            KitError: it asks for what there is not; the words are for the student.
        """
        stream = asked.get("stream")
        if asked["kind"] == "batches":
            if type(stream) is not int or len(self._open) >= MOST_STREAMS:
                raise KitError(f"More than {MOST_STREAMS} calls of `batches` are open at once. Use each to its end.")
            self._open[stream] = iter(self.data.batches(**_checked(asked)))
            return {"kind": "open"}
        batch = next(self._open.get(stream, iter(())), None) if type(stream) is int else None
        if batch is None:
            self._open.pop(stream, None)  # type: ignore[arg-type]
            return {"end": True}
        tensors: dict[str, Tensor] = {}
        for task, examples in batch.items():
            images, labels = examples if isinstance(examples, tuple) else (examples, None)
            tensors[self._names[task]] = images
            if labels is not None:
                tensors[f"{self._names[task]} labels"] = labels
        return tensors


def _checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `batches`; whatever the process wrote, they are numbers in their ranges."""
    given = {name: asked.get(name) for name in ("images_per_task", "steps", "seed", "keep")}
    for name, least in (("images_per_task", 1), ("steps", 0), ("seed", 0)):
        value = given[name]
        if type(value) is not int or not least <= value < 2**32:
            raise KitError(f"batches: `{name}` cannot be {shown(value)}: give a whole number from {least} on.")
    keep = given["keep"]
    whole, share = type(keep) is int and 1 <= keep < 2**32, type(keep) is float and 0 < keep <= 1
    if not (keep is None or whole or share):
        raise KitError(f"batches: `keep` cannot be {shown(keep)}: give a number of images, a share of them, or None.")
    return given
