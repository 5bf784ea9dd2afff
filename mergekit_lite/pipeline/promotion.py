"""The door between an executed notebook and the book: only what a reader can trust and read gets through."""

import json
import re
import shutil
import site
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from mergekit_lite.cache import cache_dir, content_hash, written_whole
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline.runner import read_notebook, run_of

LARGEST = 2 * 2**20  # bytes of one promoted notebook
GLUED = "application/papermill.record/"  # stands before the media type of an output that pages of the book quote
INJECTED = "injected-parameters"  # papermill's tag of the cell with a profile's values
# Entries of a record that may differ although the results are the same.
OF_ONE_RUN = {"seconds", "peak_memory_mib", "started", "commit", "device", "python", "mergekit_lite"}
OF_ONE_RUN |= {"digest"}  # of all these too
OF_ONE_RUN |= {"title", "cite"}  # the library's: `study.run` gives today's to a record that it reads

# Folders that exist on one machine only. Not after a letter or another slash: that is part of a web address.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])/(?:home|Users|root|tmp|var|opt|usr|mnt|srv|private)/[\w.@+-]+[^\s\"'<>)\]]*"
    r"|(?<!\w)[A-Za-z]:\\\\?(?:Users|Windows|Program)[^\s\"'<>)\]]*"
    r"|file:///?[^\s\"'<>)\]]+"
)


def promote(executed: Path, template: Path, book: Path) -> Path:
    """Check an executed notebook and copy it, without what belongs to this machine, into the book.

    A notebook that was made in the same way (template, parameters, library) from the same results stays as it was
    promoted: other seconds, and what is drawn from them, are no change.

    Args:
        executed: what `run_profile` wrote.
        template: the notebook that it was made from, as it is today.
        book: the folder whose `executed/` gets it, under the template's name, and whose `records/` were promoted
            before.

    Raises:
        KitError: it is not fit for the book; all reasons are listed. Or a record behind it is gone.
    """
    if not executed.exists():
        raise KitError(
            f"There is no build/{executed.parent.name}/{executed.name} to promote. "
            f"Run `mergekit-lite run {executed.parent.name}` first."
        )
    notebook = read_notebook(executed)
    problems = [*_incomplete(notebook), *_outdated(notebook, read_notebook(template)), *_paths(notebook)]
    problems += [f"cell {cell}: a figure has no alternative text" for cell in figures_without_alt(notebook)]
    copy, run = without_machine(notebook), dict(run_of(executed))
    if run:
        results = [_results(_record_file(name, book)) for name in run["records"]]
        run |= {"stamp": content_hash([run["stamp"], results]), "seconds": round(run["seconds"])}
        copy.metadata["mergekit_lite"] = run
    else:
        problems.append("it was not made by `mergekit-lite run`")
    text = nbformat.writes(copy) + "\n"
    size = len(text.encode())
    if size > LARGEST:
        problems.append(f"it is {size / 2**20:.1f} MiB large; {LARGEST / 2**20:.0f} MiB are allowed")
    if problems:
        raise KitError(
            f"build/{executed.parent.name}/{executed.name} cannot go into the book:\n  "
            + "\n  ".join(problems)
            + f"\nMend notebooks/{template.name} and run it again."
        )
    target = book / "executed" / template.name
    if run["stamp"] != run_of(target).get("stamp"):
        with written_whole(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return target


def promote_records(book: Path) -> list[Path]:
    """Copy the records that the promoted notebooks were made from out of the cache, and remove those of none of them.

    A record whose results are the promoted one's stays as it is.

    Args:
        book: the folder with the notebooks in `executed/`; the records go to ``records/suite/key.json`` in it.

    Returns:
        all records that are there now.

    Raises:
        KitError: a record is neither in the cache nor there already, or is damaged in both places.
    """
    runs = [run_of(path) for path in (book / "executed").glob("*.ipynb")]
    names = sorted({name for run in runs for name in run.get("records", [])})
    wanted = {name: _promoted_file(name, book) for name in names}
    for name, target in wanted.items():
        source = _record_file(name, book)
        if not target.exists() or _results(source) != _results(target):
            with written_whole(target) as temporary:
                shutil.copyfile(source, temporary)
    for path in (book / "records").glob("*/*.json"):
        if path not in wanted.values():
            path.unlink()
    return list(wanted.values())


def _promoted_file(name: str, book: Path) -> Path:
    return book / "records" / f"{name}.json"


def _record_file(name: str, book: Path) -> Path:
    """Return where the record ``suite/key`` lies whole: in the cache, else where it was promoted to."""
    from mergekit_lite.study.records import Record, read_record  # brings torch

    suite, key = name.split("/")
    for path in (cache_dir("records", suite) / f"{key}.json", _promoted_file(name, book)):
        if isinstance(read_record(path, key), Record):
            return path
    raise KitError(f"The record {name} of a notebook is not whole in the cache. Run its profile again with --force.")


def _results(record: Path) -> str:
    """Return what a record says, without what differs from run to run; nothing if the file is damaged."""
    try:
        said = json.loads(
            record.read_text(encoding="utf-8"),
            object_hook=lambda entries: {name: one for name, one in entries.items() if name not in OF_ONE_RUN},
        )
    except ValueError:
        return ""
    return json.dumps(said, sort_keys=True)


def _code(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """Yield number and content of each code cell that is not empty; the number counts all cells from 1."""
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code" and cell.source.strip():
            yield number, cell


def _incomplete(notebook: NotebookNode) -> list[str]:
    problems = []
    for number, cell in _code(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"cell {number} raised {output.ename}: {output.evalue}")
    counts = [cell.execution_count for _, cell in _code(notebook)]
    if None in counts:
        problems.append("it was not run to its end: some cells have no execution count")
    elif counts != list(range(1, len(counts) + 1)):
        problems.append(f"its cells were not run once each from top to bottom: the counts are {counts}")
    return problems


def _outdated(notebook: NotebookNode, template: NotebookNode) -> list[str]:
    def sources(one: NotebookNode) -> list[tuple[str, str]]:
        return [(cell.cell_type, cell.source) for cell in one.cells if INJECTED not in cell.metadata.get("tags", [])]

    today, then = sources(template), sources(notebook)
    if today == then:
        return []
    differs = next((place for place, (a, b) in enumerate(zip(today, then, strict=False)) if a != b), None)
    first = min(len(today), len(then)) if differs is None else differs
    return [f"it was made from another version of its template: they differ from the template's cell {first + 1} on"]


def _paths(notebook: NotebookNode) -> Iterator[str]:
    # The prefixes of this very machine catch what the general pattern does not know, such as /work or /scratch.
    ours = {str(Path.home()), str(Path.cwd()), sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(cache_dir())}
    ours |= {*site.getsitepackages(), str(Path(__file__).parents[2])}
    known = "|".join(re.escape(path) for path in sorted(ours, key=len, reverse=True) if len(path) > 2)
    here = re.compile(rf"(?<![\w.:/-])(?:{known})(?![\w-])[^\s\"'<>)\]]*")
    for number, cell in enumerate(notebook.cells, 1):
        texts = [cell.source, *(text for output in cell.get("outputs", []) for text in _texts(output))]
        for text in texts:
            found = MACHINE_PATH.search(text) or here.search(text)
            if found:
                yield f"cell {number} holds the path {found[0][:100]}, which exists on this machine only"
                break


def _texts(output: NotebookNode) -> Iterator[str]:
    """Yield all that an output says in letters; pictures in base64 are none."""
    yield from (str(output.get(key, "")) for key in ("text", "evalue"))
    yield from output.get("traceback", [])
    for kind, content in output.get("data", {}).items():
        if not kind.removeprefix(GLUED).startswith("image/") or "svg" in kind:
            # In HTML, pictures stand as base64 as well, in which a slash and letters mean nothing.
            yield re.sub(r"base64,[A-Za-z0-9+/=\s]+", "base64,", content if isinstance(content, str) else str(content))


def figures_without_alt(notebook: NotebookNode) -> list[int]:
    """Return the numbers (from 1) of the cells that show a picture without saying in words what it shows.

    The words stand in the ``alt`` of an HTML image (as `mergekit_lite.figures.show` writes it), in the output's
    metadata as ``alt``, or in the cell's metadata as MyST-NB reads them: ``mystnb.image.alt``.
    """
    return [
        number
        for number, cell in _code(notebook)
        if not all(_has_words(output, cell.metadata) for output in cell.outputs)
    ]


def _has_words(output: NotebookNode, cell: dict[str, Any]) -> bool:
    data: dict[str, Any] = output.get("data", {})
    of_cell = cell.get("mystnb", {}).get("image", {}).get("alt")
    for kind, content in data.items():
        kind = kind.removeprefix(GLUED)
        if kind == "text/html":
            pictures = _Pictures()
            pictures.feed(content)
            if pictures.wordless:
                return False
        elif kind.startswith("image/"):
            metadata = output.get("metadata", {})
            words = metadata.get("alt") or metadata.get(kind, {}).get("alt") or of_cell
            if not str(words or "").strip():
                return False
    return True


class _Pictures(HTMLParser):
    """Counts the pictures in HTML that have no words."""

    def __init__(self) -> None:
        super().__init__()
        self.wordless = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        words = dict(attrs).get("alt" if tag == "img" else "aria-label") or ""
        if tag in ("img", "svg") and not words.strip():
            self.wordless += 1


def without_machine(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without paths, dates and versions of the machine."""
    copy = nbformat.from_dict(notebook)
    copy.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in copy.cells:
        cell.metadata = nbformat.from_dict(
            {key: value for key, value in cell.metadata.items() if key not in ("papermill", "execution")}
        )
        if INJECTED in cell.metadata.get("tags", []):
            cell["id"] = INJECTED  # papermill draws a new one for each run
        for output in cell.get("outputs", []):
            # An object's address in memory tells the reader nothing and changes with each run.
            plain = output.get("data", {}).get("text/plain")
            if isinstance(plain, str):
                output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]{6,}", "", plain)
    return copy
