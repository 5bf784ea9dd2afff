"""The work that `kills` ends: a study, a notebook of the same study, and fine-tuning, with few images and few steps.

    python -m benchmarks.killed study|notebook|finetune

The notebook is that of the profile ``short`` in the folder that it is started in; fine-tuning writes there too.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.killing import die_before_a_file
from mergekit_lite import cli, study
from mergekit_lite.study import Cell
from mergekit_lite.suites import miniature
from mergekit_lite.suites.clip.finetune import make_expert
from mergekit_lite.suites.suite import Suite

# Worker processes import this module too, since the suite is made by a function of it.
die_before_a_file()
miniature.SIZES = {"train": 100, "test": 50}
miniature.RECIPE = replace(miniature.RECIPE, steps=20, batch_size=16)

TASKS = ("signs", "numbers")
WORKERS = 2


class Small(miniature.Miniature):
    """The miniature with few images, also in worker processes."""

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return small


def small() -> Suite:
    """Return the suite."""
    return Small(torch.device("cpu"))


def run_study() -> None:
    """Merge in ways that draw nothing, that draw at random, and that learn: 10 records."""
    adapting = {"steps": 10, "images_per_task": 4, "learning_rate": 0.01}
    grid: list[tuple[str, dict[str, Any], int]] = [
        ("task_arithmetic", {"scaling": 0.2 * one}, 0) for one in range(1, 5)
    ]
    grid += [("dare", {"scaling": 0.3}, seed) for seed in range(3)]
    grid += [("layer_wise_adamerging", adapting, seed) for seed in range(3)]
    study.run(
        small(),
        [Cell(method=name, parameters=given, pool=TASKS, evaluate=TASKS, seed=seed) for name, given, seed in grid],
        workers=WORKERS,
    )


def run_notebook() -> None:
    """Run the notebooks of the profile ``short``, as from the command line."""
    cli.app(["run", "short"])


def run_finetuning() -> None:
    """Fine-tune on a task, with a checkpoint every few steps."""
    torch.set_num_threads(1)
    recipe = {"steps": 60, "learning_rate": 1e-4, "batch_size": 16}
    make_expert(small(), "signs", output=Path("tuned"), checkpoint_every=5, **recipe)  # type: ignore[arg-type]


if __name__ == "__main__":
    {"study": run_study, "notebook": run_notebook, "finetune": run_finetuning}[sys.argv[1]]()
