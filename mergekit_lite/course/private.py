"""A suite with one task more, which no student has: drawn by a file as the book's `examples/flags.py`."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.errors import KitError
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.suite import Suite

if TYPE_CHECKING:
    from mergekit_lite.suites.miniature.drawing import DrawnTask


def suite_with(name: str, private: Path | None) -> Suite:
    """Return the suite called `name` on the CPU, with the task of the file `private` as its last.

    In this process, the miniature has that task from now on; in others, such as those of submissions, it does not.

    Raises:
        KitError: there is no such suite, it is not the miniature, or the file does not hold a task with a new name.
    """
    if private is None:
        return load_suite(name, "cpu")
    if name != "miniature":
        raise KitError(f"A private task is drawn, and the suite '{name}' is not. Leave `private` out.")
    import torch

    from mergekit_lite.suites.miniature import Miniature
    from mergekit_lite.suites.miniature.tasks import TASKS

    task = task_in(private)
    there = TASKS.get(task.name)
    if there is not None and there.classes != task.classes and not _same_file(there, private):
        raise KitError(f"The miniature has a task '{task.name}' already. Give the one in {private} another name.")
    TASKS.setdefault(task.name, task)

    class WithPrivate(Miniature):
        @property
        def loader(self) -> Callable[[], Suite]:
            return partial(suite_with, name, private)

    return WithPrivate(torch.device("cpu"))


def task_in(path: Path) -> "DrawnTask":
    """Return the `TASK` of the Python file `path`, which is run.

    Raises:
        KitError: it cannot be run, or defines no drawn task of that name.
    """
    from mergekit_lite.suites.miniature.drawing import DrawnTask

    spec = importlib.util.spec_from_file_location(f"private_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise KitError(f"The private task {path} is no Python file. Name one such as flags.py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise KitError(f"The private task {path} cannot be used: {type(error).__name__}: {error}") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, DrawnTask):
        raise KitError(f"{path} defines no `TASK = DrawnTask(...)`. The book's page on the miniature shows one.")
    return task


def _same_file(task: "DrawnTask", path: Path) -> bool:
    draw = task.classes[0].draw
    code = getattr(getattr(draw, "func", draw), "__code__", None)
    return code is not None and Path(code.co_filename) == path
