"""`mergekit-lite course check`: a method is tried on the pico pool, then on the public one, and placed."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mergekit_lite.course import pico
from mergekit_lite.course.checks import Finding, run_checks
from mergekit_lite.course.leaderboard import Row, place, ranked
from mergekit_lite.course.reading import read
from mergekit_lite.course.trials import worded
from mergekit_lite.errors import KitError
from mergekit_lite.methods import MethodInfo, load_method


def check(submission: Path) -> bool:
    """Print what the checks find of each method in `submission`, and its place on the public pool.

    A method that does not run gets no further than the first check.

    Args:
        submission: a .py file, a folder or a notebook, see `reading.read`.

    Returns:
        whether no check failed.

    Raises:
        KitError: it cannot be read or loaded, or a method failed on the public pool.
    """
    console, good = _console(), True
    with TemporaryDirectory(prefix="mergekit-lite-") as folder:
        # What is tried is what a grader reads: no file beside it but the modules that it imports.
        for info in _loaded(read(submission, Path(folder) / submission.resolve().stem), submission):
            console.print(f"{info.title} ({info.function.__name__}), data access: {info.access}", highlight=False)
            findings = run_checks(info, pico.make())
            console.print(_findings_table(findings, console))
            good &= not any(one.passed is False for one in findings)
            if findings[-1].passed is not False:
                _show_place(info, console)
    return good


def _loaded(file: Path, submission: Path) -> Sequence[MethodInfo]:
    try:
        return load_method(file)
    except KitError:
        raise
    except Exception as error:
        raise KitError(f"{submission} cannot be loaded: {worded(error, file)} Correct that, and try again.") from error


def _show_place(info: MethodInfo, console: Console) -> None:
    """Measure the method on the public pool and print the leaderboard of its data access."""
    from mergekit_lite.course import public  # which takes a second to import
    from mergekit_lite.suites import load_suite

    console.print(f"The public pool: {', '.join(public.POOL)}.", highlight=False)
    suite = load_suite("miniature", "cpu")
    own = public.tried(suite, info, "yours")
    rows = public.baselines(suite)
    console.print(_place_table(own, [*rows, own]))
    where, of = place(own, rows)
    low, high = own.interval or (own.average, own.average)
    console.print(
        f"Place {where} of {of} among the methods with data access '{own.access}': {own.average:.1f} % "
        f"({low:.1f} to {high:.1f}), which is {own.normalised:.1f} % of what the experts reach on their own tasks.",
        highlight=False,
    )


def _console() -> Console:
    """Return a console that prints whatever a name holds, also where the terminal knows few letters."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stream that somebody put in its place
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Console()


def _findings_table(findings: Sequence[Finding], console: Console) -> Table:
    marks = {True: "✓", False: "✗", None: "–"}
    try:
        "".join(marks.values()).encode(console.encoding)
    except UnicodeEncodeError:
        marks = {True: "yes", False: "NO", None: "-"}
    styles = {True: "green", False: "bold red", None: "yellow"}
    table = Table(box=None, pad_edge=False)
    for head in ("", "what must hold", "why, and what to do"):
        table.add_column(head)
    for one in findings:
        table.add_row(Text(marks[one.passed], styles[one.passed]), Text(one.name), Text(one.reason))
    return table


def _place_table(own: Row, rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("", "method"):
        table.add_column(head)
    for head in ("average, %", "interval", "of the experts, %"):  # no seconds: the kit's are another machine's
        table.add_column(head, justify="right")
    group = ranked(rows)[own.access]
    for one in group:
        span = f"{one.interval[0]:.1f} to {one.interval[1]:.1f}" if one.interval else ""
        numbers = [f"{one.average:.1f}", span, f"{one.normalised:.1f}"]
        title = f"{one.title} (yours)" if one is own else one.title
        table.add_row(str(place(one, group)[0]), Text(title), *numbers, style="bold" if one is own else None)
    return table
