"""The command `evaluate`: how accurate models are on the tasks of a suite."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mergekit_lite.cli.wording import at_home, worded
from mergekit_lite.errors import KitError


@worded
def evaluate(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="PLACE",
            help="A file, a folder or hf:ORG/REPO; `base`, or `expert`: each on its own task. NAME=PLACE names a row.",
        ),
    ],
    suite: Annotated[
        str, typer.Option(metavar="SUITE", help="miniature, clip-vit-b-32, or a file that describes your own.")
    ],
    tasks: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="A set such as eight, or names with commas between; by default all."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the result to FILE.json or FILE.csv as well."),
    ] = None,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Show which classes the first model confuses on its worst task.")
    ] = False,
) -> None:
    """Measure the accuracy of models on the tasks of a suite, with 95 % intervals over the test images.

    Normalised accuracy is that of a model in percent of what the task's own expert reaches. Of several models each is
    compared with the first, on the same images. What was measured before is not measured again.

    Example: `mergekit-lite evaluate merged/ base expert --suite birds.yaml -o result.json`
    """
    output = at_home(output)
    from rich.console import Console

    from mergekit_lite.evaluate import models, printed, written

    named = models.named(places)
    if output is not None:
        written.check_output(output)
    from mergekit_lite.evaluate import confusing, measuring
    from mergekit_lite.suites import load_suite

    loaded = load_suite(suite)
    chosen = tuple(loaded.tasks) if tasks is None else loaded.names(tasks)
    twice = sorted({task for task in chosen if chosen.count(task) > 1})
    if twice:
        raise KitError(f"--tasks names {', '.join(twice)} more than once. Name each task once.")
    found = measuring.evaluated(loaded, models.opened_models(named, loaded), chosen)
    confused = confusing.confusion(found, found.first, confusing.worst_task(found)) if confusion else None
    if output is not None:
        written.write_result(found, output, confused)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = printed.WIDTH
    printed.show(found, console)
    if confused is not None:
        printed.show_confusion(confused, found, console)
        if output is None or output.suffix != ".json":
            console.print("\nThe whole matrix: -o FILE.json.", markup=False, highlight=False)
    if output is not None:
        console.print(f"\nWritten: {output}", markup=False, highlight=False)
