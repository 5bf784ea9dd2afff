"""Does another fine-tuning recipe make the miniature's experts more like CLIP's own, and what would merging them give?

Each recipe's experts are fine-tuned and kept in the cache, in the first seed. What is reported are properties that need
no merge (length, cosines and concentration of the task vectors), and accuracies of the experts and of merges on the
*held-out* images, so that a recipe can be chosen without a look at the test images.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import measuring, models
from mergekit_lite import study
from mergekit_lite.analysis import geometry
from mergekit_lite.pipeline import profiles
from mergekit_lite.suites import miniature
from mergekit_lite.suites.miniature.experts import Recipe
from mergekit_lite.weights import difference

COEFFICIENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
BOOK = profiles.load("miniature", measuring.ROOT).notebooks["eight_tasks"]
ADAPTIVE = {name: BOOK[name] for name in ("steps", "learning_rate", "images_per_task")}
"""The book's schedule of AdaMerging."""


def concentration(suite: miniature.Miniature, tasks: Sequence[str]) -> float:
    """Return the share of a task vector's squared length in the largest fifth of its entries, a mean over experts."""
    shares = []
    for task in tasks:
        expert = suite.experts[task]
        vector = torch.cat([difference(expert[name], start).flatten() for name, start in suite.base.items()])
        squares = vector.square().sort(descending=True).values
        shares.append(float(squares[: len(squares) // 5].sum() / squares.sum()))
    return statistics.fmean(shares)


def cells(tasks: tuple[str, ...]) -> dict[str, study.Cell]:
    """Return what is merged: references, the swept constants, and the methods whose order is under discussion."""

    def cell(method: str, **parameters: Any) -> study.Cell:
        return study.Cell(method=method, parameters=parameters, pool=tasks, evaluate=tasks, split="held-out")

    plain = ("pretrained", "individual", "simple_average", "regmean", "fisher_merging", "tsv_merging", "iso_c")
    swept = {
        f"{method} at {value}": cell(method, scaling=value)
        for method in ("task_arithmetic", "ties_merging")
        for value in COEFFICIENTS
    }
    adaptive = ("layer_wise_adamerging", "layer_wise_adamerging_plus")
    return {name: cell(name) for name in plain} | swept | {name: cell(name, **ADAPTIVE) for name in adaptive}


def measure(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the properties of one recipe's experts, and what merges of eight and of twenty give on held-out images."""
    miniature.RECIPE = recipe
    suite = miniature.load("miniature", torch.device("cpu"))
    suite.prepare(tuple(suite.tasks), workers=1)
    found: dict[str, Any] = {"recipe": asdict(recipe)}
    for tasks in (suite.names("eight"), suite.names("twenty")):
        shape = geometry.lengths_and_angles(suite.base, {task: suite.experts[task] for task in tasks})
        cosines = [float(shape.cosines[i][j]) for i in range(len(tasks)) for j in range(i)]
        records = study.run(suite, cells(tasks), workers=1, folder=folder)
        found[f"{len(tasks)} tasks"] = {
            "mean cosine": statistics.fmean(cosines),
            "largest cosine": max(cosines),
            "length in percent of the base": 100 * float(shape.norms.mean()),
            "share of the largest fifth": concentration(suite, tasks),
            "held-out": {name: record.average for name, record in records.items()},
        }
    return found


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of fine-tuning.")] = 140,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.")] = 1e-3,
    results: models.Results = models.RESULTS,
) -> None:
    """Fine-tune the twenty experts by one recipe, with one process and one thread, and report on them."""
    torch.set_num_threads(1)
    recipe = Recipe(steps=steps, learning_rate=learning_rate, batch_size=64)
    with tempfile.TemporaryDirectory() as records:
        report = {"machine": models.machine(), **measure(recipe, Path(records))}
    print(json.dumps(report, indent=1))
    results.mkdir(parents=True, exist_ok=True)
    (results / f"expert_recipes-{steps}-{learning_rate:g}.json").write_text(
        json.dumps(report, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    typer.run(main)
