"""Builds the book from its pages and the promoted notebooks: strictly, offline, and only what changed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import solutions

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

EXECUTED = "book/executed/"
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def build_book(root: Path, *, with_solutions: bool = True) -> Path:
    """Build the book of the checkout at `root` and return the path of its first page.

    Every warning is an error, and all are collected before the build fails. Pages that did not change are not built
    again.

    Args:
        root: the project's folder.
        with_solutions: show how the exercises are solved and quizzes are answered. The book without that lies in a
            folder of its own, ``build/book-without-solutions/``, and holds them nowhere, not in its sources either.

    Raises:
        KitError: there is no book at `root`, an executed notebook is missing, Jupyter Book is not installed, or the
            build found mistakes (they are listed).
    """
    _check_sources(root)
    place = root / "book" if with_solutions else root / "build" / "book-without-solutions"
    output = place / "_build"
    log = output / "build.log"
    output.mkdir(parents=True, exist_ok=True)
    options = [".", "--path-output", str(place.relative_to(root)), "-n", "-W", "--keep-going"]
    if not with_solutions:
        toc = place / "_toc.yml"
        contents = solutions.toc_without_solutions((root / "_toc.yml").read_text(encoding="utf-8"))
        toc.write_text(contents, encoding="utf-8")
        options += ["--toc", str(toc)]
    done = subprocess.run(
        [sys.executable, "-c", _JUPYTER_BOOK, "build", *options],
        cwd=root,
        env={**os.environ, "NO_COLOR": "1", "PYTHONUTF8": "1", solutions.SWITCH: str(int(with_solutions))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    text = _ANSI.sub("", done.stdout)
    log.write_text(text, encoding="utf-8")
    index = output / "html" / "index.html"
    if done.returncode != 0 or not index.is_file():
        # Pages already read would be silent next time: with them gone, every mistake is found again until it is mended.
        shutil.rmtree(output / ".doctrees", ignore_errors=True)
        raise KitError(_explain(text, log, root))
    if not with_solutions:
        solutions.strip_sources(index.parent / "_sources")
    return index


def toc_pages(root: Path) -> tuple[str, ...]:
    """Return the pages that `_toc.yml` names, in reading order, without suffix."""
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend(node[key] for key in ("root", "file") if key in node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    return tuple(found)


def notebook_times(root: Path) -> list[tuple[str, str | None, int | None]]:
    """Return page, profile and seconds of each promoted notebook of the book at `root`, in reading order.

    Profile and seconds are None where the notebook does not say: it was not made by `mergekit-lite run`.
    """
    rows = []
    for page in toc_pages(root):
        path = root / f"{page}.ipynb"
        if page.startswith(EXECUTED) and path.is_file():
            stamp = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("mergekit_lite", {})
            rows.append((page, stamp.get("profile"), stamp.get("seconds")))
    return rows


def times_table(rows: Sequence[tuple[str, str | None, int | None]]) -> list[str]:
    """Return the lines of a MyST table of `notebook_times`, with their sum if all are known."""
    lines = ["| Notebook | Profile | Seconds |", "| :--- | :--- | ---: |"]
    for page, profile, seconds in rows:
        lines.append(f"| [](/{page}.ipynb) | {profile or '–'} | {'–' if seconds is None else f'{seconds:,}'} |")
    known = [seconds for *_, seconds in rows if seconds is not None]
    return [*lines, f"| All | | {sum(known):,} |"] if known and len(known) == len(rows) else lines


def _check_sources(root: Path) -> None:
    missing = [name for name in ("_config.yml", "_toc.yml") if not (root / name).is_file()]
    if missing:
        raise KitError(
            f"There is no book in {root}: {' and '.join(missing)} not found. "
            "Run the command in a clone of mergekit-lite."
        )
    absent = [
        f"{page}.ipynb"
        for page in toc_pages(root)
        if page.startswith(EXECUTED) and not (root / f"{page}.ipynb").is_file()
    ]
    if absent:
        raise KitError(
            f"The book shows executed notebooks, and these are not there: {', '.join(absent)}. "
            "Run `mergekit-lite run miniature` and `mergekit-lite promote miniature` first, "
            "or `make book` for all of it."
        )


def _explain(text: str, log: Path, root: Path) -> str:
    """Return the message for a failed build: each mistake once, with paths as seen from `root`."""
    if "No module named 'jupyter_book'" in text:
        return (
            "Jupyter Book is not installed beside this Python. "
            'Install it with `pip install -e ".[book]"` in the checkout, or use `make book`.'
        )
    marks = ("WARNING:", "ERROR:", "CRITICAL:", "Error:", "Exception:")
    lines = [line.strip().replace(f"{root.resolve()}{os.sep}", "") for line in text.splitlines()]
    mistakes = list(dict.fromkeys(line for line in lines if any(mark in line for mark in marks)))
    listed = "\n".join(f"  {line}" for line in mistakes[:20]) or "  (no warning was printed)"
    more = f"\n  ... and {len(mistakes) - 20} more" if len(mistakes) > 20 else ""
    return f"The book was not built. Mend these and build again; everything the build said is in {log}:\n{listed}{more}"


def setup(app: "Sphinx") -> dict[str, bool]:
    """Make this module a Sphinx extension; `_config.yml` lists it."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class NotebookTimes(SphinxDirective):
        """The directive `notebook-times`: a table of how long the promoted notebooks took."""

        def run(self) -> list[nodes.Node]:
            """Return the table."""
            there = [row for row in notebook_times(Path(self.env.srcdir)) if row[0] in self.env.found_docs]
            lines, into = times_table(there), nodes.container()
            self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, into)
            return into.children

    app.add_directive("notebook-times", NotebookTimes)
    app.connect("env-get-outdated", _outdated_quotations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _outdated_quotations(
    app: "Sphinx", env: "BuildEnvironment", added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Return the pages that may quote an executed notebook which changed.

    MyST-NB notes no dependency of a page on the notebook that its glue comes from; such a page would keep old numbers.
    """
    if not any(name.startswith(EXECUTED) for name in added | changed):
        return []
    pages = (name for name in env.found_docs - removed if not name.startswith(EXECUTED))
    return sorted(name for name in pages if "executed" in Path(env.doc2path(name)).read_text(encoding="utf-8"))
