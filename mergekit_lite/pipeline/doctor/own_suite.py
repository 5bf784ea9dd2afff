"""What of a suite file is there, task by task, and what does not fit."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mergekit_lite.errors import KitError

GB = 1e9


def show_suite(name: str, console: Console) -> None:
    """Print for each task of a suite file its classes, images and expert; no image is decoded.

    Args:
        name: of the file.
        console: to print on.

    Raises:
        KitError: the file is not valid, or something it names is missing or does not fit: all of it is listed.
    """
    from mergekit_lite.suites import load_suite, suite_path
    from mergekit_lite.suites.own.own_suite import OwnSuite

    suite = load_suite(name, "cpu")
    assert isinstance(suite, OwnSuite)
    problems: list[str] = []

    def told(look: Callable[[], str]) -> str:
        try:
            return look()
        except KitError as error:
            problems.append(str(error))
            return "[red]no[/red]"

    table = Table(title=f"Suite {suite.name}, {suite_path(name).name}", title_justify="left")
    for column in ("task", "classes", "training images", "test images", "decoded", "expert"):
        table.add_column(column, justify="left" if column in ("task", "decoded", "expert") else "right")
    to_write = 0
    for task, entry in suite.tasks.items():
        counts = {which: told(lambda t=task, w=which: str(suite.count(t, w))) for which in ("train", "test")}  # type: ignore[misc]
        decoded = told(lambda t=task: "yes" if suite.has_images(t, "test") else "not yet")  # type: ignore[misc]
        if decoded == "not yet" and counts["test"].isdecimal():
            to_write += int(counts["test"]) * 3 * suite.side**2
        expert = told(lambda t=task: suite.describe_expert(t))  # type: ignore[misc]
        shown = {which: count if count != "0" else "none" for which, count in counts.items()}
        table.add_row(task, str(len(entry.classnames)), shown["train"], shown["test"], decoded, expert)
        told(lambda t=task: str(suite.heads[t].shape) if suite.file.tasks[t].head else "")  # type: ignore[misc]
    console.print(table)
    console.print(
        f"{Path(suite.file.model).name}, {len(suite.base)} tensors, images of {suite.side} x {suite.side} pixels. "
        f"Test images that are not decoded yet will take {to_write / GB:.2f} GB.",
        soft_wrap=True,
    )
    if problems:
        lines = "\n".join(f"  {one}" for one in dict.fromkeys(problems))
        raise KitError(f"Suite {suite.name} cannot be used as it is:\n{lines}")
    console.print("All is there and fits.")
