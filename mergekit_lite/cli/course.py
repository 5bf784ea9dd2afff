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
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is empty or not there yet.")],
    repository: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="A copy of the kit on GitHub with DIR at its top: for links.")
    ] = "",
) -> None:
    """Make the folder that a student begins with: a worked method, its tests, a notebook, and what to do.

    With a repository, the kit is installed from there, and README and notebook open in Colab.

    Example: `mergekit-lite course new my-method`
    """
    from mergekit_lite.course.starting import start

    start(folder, repository)
    typer.echo(folder)


@app.command()
@worded
def check(
    submission: Annotated[Path, typer.Argument(metavar="METHOD", help="A .py file, its folder, or a notebook.")],
) -> None:
    """Try a method before it is handed in: what must hold of every merge, and the place it takes on the public pool.

    It takes a minute on one core; the first time, pictures are drawn and four experts fine-tuned as well.

    Example: `mergekit-lite course check method.py`
    """
    from mergekit_lite.course.checking import check as checked

    if not checked(submission):
        raise typer.Exit(1)


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


@app.command()
@worded
def grade(
    submissions: Annotated[
        Path, typer.Argument(metavar="SUBMISSIONS", help="A folder with a file, notebook or folder for each student.")
    ],
    plan: Annotated[Path, typer.Option("--plan", metavar="FILE", help="Pools, limits and points: a plan.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="For grades and pages.")],
    workers: Annotated[int, typer.Option(min=0, max=256, help="Submissions at once; 0 is one per core.")] = 0,
) -> None:
    """Grade what students handed in: a table, a page for each student, and a leaderboard.

    Each submission merges in processes that hold no labels, and is measured from outside. The same command resumes;
    a submission is graded again when it, the plan or the kit has changed. Code that attacks the machine itself is for
    a container: the book's page about coursework has the line.

    Example: `mergekit-lite course grade submissions --plan plan.yaml -o grades`
    """
    from mergekit_lite.course import grading, reports

    for path in reports.write(grading.grade(submissions, plan, output, workers or None), output):
        typer.echo(path)
