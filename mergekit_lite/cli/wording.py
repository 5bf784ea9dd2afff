"""What commands tell a user who can mend something: one message, without a traceback or a terminal's commands."""

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import typer

from mergekit_lite.errors import KitError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def escaped(text: str) -> str:
    """Return `text` with all that a terminal would obey, such as its escape character, spelt out; lines stay lines."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape", "backslashreplace").decode()
        for one in text
    )


def at_home(path: Path | None) -> Path | None:
    """Return `path` with the home folder that a ~ stands for, which a shell leaves to us behind ``--output=``.

    Raises:
        KitError: nobody has that home.
    """
    try:
        return path and path.expanduser()
    except RuntimeError as error:
        raise KitError(f"'{path}' cannot be found: {error} Name it by its whole path.") from error


def worded(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Print what the user can mend as one error message, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except KitError as error:
            typer.echo(f"Error: {escaped(str(error))}", err=True)
            raise typer.Exit(1) from None
        except OSError as error:  # of the system's own, such as a folder that was removed while we worked in it
            if error.errno == errno.EPIPE:  # `| head`: typer ends in silence
                raise
            typer.echo(f"Error: {escaped(str(error))}. Check that file or folder, and try again.", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted. What was finished is kept: run the same command again to resume.", err=True)
            raise typer.Exit(130) from None

    return wrapped
