"""The commands `mergekit-lite course ...`, for teachers and their students."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Coursework: hand out, check, grade and rank methods; the book's page about coursework has the whole path.",
)
