"""The command `mergekit-lite init`."""

from pathlib import Path
from typing import Annotated

import typer

from mergekit_lite.cli.wording import at_home, worded


@worded
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, or an empty one.")],
) -> None:
    """Lay out notebooks, profiles and an example of a suite file to start from. No clone is needed.

    Example: `mergekit-lite init my-merges`
    """
    from mergekit_lite.pipeline.starting import begin

    for path in begin(at_home(folder) or folder):
        typer.echo(f"{path.name}/" if path.is_dir() else path.name)
    typer.echo(f"Change into {folder} and begin with README.md, or with `mergekit-lite run miniature`.")
