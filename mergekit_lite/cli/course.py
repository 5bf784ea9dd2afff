"""The commands `mergekit-lite course ...`, for teachers and their students."""

from pathlib import Path
from typing import Annotated

import typer

from mergekit_lite.cli.wording import worded
from mergekit_lite.errors import KitError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Coursework: hand out, check, grade and rank methods; the book's page about coursework has the whole path.",
)


@app.command()
@worded
def release(
    notebook: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help="An assignment with its solutions.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write what students get.")],
) -> None:
    """Take the solutions and the hidden tests out of a notebook, for students.

    Cells tagged `solution` become starters, cells tagged `grading` go, and so do outputs.

    Example: `mergekit-lite course release coursework/1-task-vectors/assignment.ipynb -o handed-out`
    """
    from mergekit_lite.course import releasing

    typer.echo(releasing.release(notebook, output))


@app.command()
@worded
def export(
    notebook: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help="An assignment with its solutions.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the assignment.")],
    otter: Annotated[bool, typer.Option("--otter", help="In the format of otter-grader, for `otter assign`.")] = False,
) -> None:
    """Write a notebook with solutions in the format of another grader.

    Example: `mergekit-lite course export coursework/1-task-vectors/assignment.ipynb --otter -o exported`
    """
    from mergekit_lite.course import otter as otter_grader

    if not otter:
        raise KitError("Say for which grader: add --otter, the one that there is.")
    typer.echo(otter_grader.export(notebook, output))
