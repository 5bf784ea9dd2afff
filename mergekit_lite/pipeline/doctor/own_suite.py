"""What of a suite file is there, task by task, and what does not fit."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mergekit_lite.errors import KitError

GB = 1e9


def show_suite(name: str, console: Console, tasks: str | None = None) -> bool:
    """Print for each task of a suite file its classes, images and expert; no image is decoded, and nothing fetched.

    Args:
        name: of the file.
        console: to print on.
        tasks: names with commas between, or a set; None is all.

    Returns:
        Whether the base weights are there, without which no encoder can be timed.

    Raises:
        KitError: the file is not valid, or something it names does not fit, or is not there and on no hub: all of it
            is listed. What is only not fetched yet is listed too, and no error.
    """
    from mergekit_lite.suites import suite_path
    from mergekit_lite.suites.clip.looking import user_is_offline
    from mergekit_lite.suites.own.reading import read_suite_file
    from mergekit_lite.suites.own.there import NO, looked

    file = read_suite_file(suite_path(name))
    chosen = file.names(tasks) if tasks else tuple(file.tasks)
    found = looked(file, chosen)
    table = Table(title=f"Suite {file.name}, {suite_path(name).name}", title_justify="left")
    for column in ("task", "classes", "training images", "test images", "decoded", "expert"):
        table.add_column(column, justify="left" if column in ("task", "decoded", "expert") else "right")
    for row in found.rows:
        table.add_row(*("[red]no[/red]" if one == NO else escape(one) for one in row))
    console.print(table)
    tensors = "" if found.tensors is None else f"{found.tensors} tensors, "
    console.print(
        f"{Path(file.model).name}, {tensors}images of {found.side} x {found.side} pixels. "
        f"Test images that are not decoded yet will take {found.to_write / GB:.2f} GB.",
        soft_wrap=True,
    )
    if found.unfetched:
        some = f" --tasks {','.join(chosen)}" if len(chosen) < len(file.tasks) else ""
        first = "unset HF_HUB_OFFLINE and run " if user_is_offline() else ""
        console.print(
            f"Not fetched yet:\n{_lines(found.unfetched)}\nTo bring it, {first}`mergekit-lite fetch {name}{some}`.",
            soft_wrap=True,
            markup=False,
        )
    if found.problems:
        raise KitError(f"Suite {file.name} cannot be used as it is:\n{_lines(found.problems)}")
    if not found.unfetched:
        console.print("All is there and fits.")
    return found.tensors is not None


def _lines(several: list[str]) -> str:
    return "\n".join(f"  {one}" for one in several)
