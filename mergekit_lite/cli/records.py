"""The commands `mergekit-lite records ...`, for those who computed on several machines."""

from pathlib import Path
from typing import Annotated

import typer

from mergekit_lite.cli.wording import at_home, worded

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Records, the answers to the cells of studies: bring those of several machines together.",
)


@app.command()
@worded
def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Caches of other machines, or their folders `records`.")
    ],
    into: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to bring them; by default `records` of the cache.")
    ] = None,
) -> None:
    """Bring the records of several folders together, suite by suite.

    Records of one cell that say the same are one record, whatever seconds, memory and machine they took: the one that
    was computed first is kept. Records that contradict each other are refused, both files are named, and none is
    brought; so are damaged files. The same command again changes nothing.

    Example: `mergekit-lite records merge from-node-1/records from-node-2/records`
    """
    from mergekit_lite.cache import cache_dir
    from mergekit_lite.pipeline import gathering

    target = at_home(into) or cache_dir("records")
    gathered = gathering.gather([at_home(folder) or folder for folder in folders], target)
    typer.echo(f"{target}: {gathered}")
    if not gathered.whole:
        raise typer.Exit(1)
