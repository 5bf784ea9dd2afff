"""Takes the solutions out of a notebook, which is the only source of an assignment: what is left is handed out.

Cells are told apart by their tags: `solution` (see `starters`; Markdown is one as a whole), `grading` (tests that
students do not get) and `tests` (those that they do). All other cells are handed out as they are.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from mergekit_lite.cache import written_whole
from mergekit_lite.course.starters import BEGIN, END, Part, handed_out, parts
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline.runner import read_notebook

SOLUTION, GRADING, TESTS = "solution", "grading", "tests"
ANSWER = "*Your answer.*"
TELLING = 20  # characters of code; fewer than these, such as `return total`, stand elsewhere by chance


class Cell(NamedTuple):
    """A cell of an assignment, with what it means.

    Attributes:
        number: counted from 1, for errors.
        node: the cell as the notebook has it.
        parts: of its code, see `starters.parts`; none if it is no code.
    """

    number: int
    node: NotebookNode
    parts: list[Part]

    def has(self, tag: str) -> bool:
        """Return whether the cell is tagged so."""
        return tag in self.node.metadata.get("tags", [])

    @property
    def solved(self) -> bool:
        """Whether it holds a solution."""
        return self.has(SOLUTION) or any(part.starter is not None for part in self.parts)

    def with_source(self, source: str) -> NotebookNode:
        """Return a new cell of this kind, without outputs, metadata (but tags) and, if `source` is new, attachments."""
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
        new = make.get(self.node.cell_type, nbformat.v4.new_raw_cell)(source)
        new.id = self.node.get("id", new.id)
        kept = [tag for tag in self.node.metadata.get("tags", []) if tag != SOLUTION]
        if kept:
            new.metadata["tags"] = kept
        if source == self.node.source and "attachments" in self.node:
            new["attachments"] = self.node.attachments
        return new


def read_assignment(path: Path) -> list[Cell]:
    """Return the cells of a notebook with solutions.

    Raises:
        KitError: it is no notebook, has no solution, or a solution is marked in a way that does not work.
    """
    cells = []
    for number, node in enumerate(read_notebook(path).cells, 1):
        try:
            tagged = SOLUTION in node.metadata.get("tags", [])
            cells.append(Cell(number, node, parts(node.source, tagged) if node.cell_type == "code" else []))
        except KitError as error:
            raise KitError(f"{path.name}, cell {number}: {error}") from error
    if not any(cell.solved for cell in cells):
        raise KitError(
            f"{path.name} has no solution to take out: no cell is tagged `{SOLUTION}`, and none has lines `{BEGIN}` "
            f"and `{END}`. Mark the solutions first."
        )
    return cells


def release(source: Path, folder: Path) -> Path:
    """Write what students get of the notebook `source` into `folder`, under its name, and return where.

    Out go solutions, hidden tests, outputs, and metadata, which may hold any of them.

    Raises:
        KitError: as `read_assignment`; or a solution stands in what would be handed out too; or `folder` is that of
            `source`. Nothing is written then.
    """
    cells = read_assignment(source)
    left = {}
    for cell in cells:
        if not cell.has(GRADING):
            try:
                left[cell.number] = cell.with_source(_for_students(cell))
            except KitError as error:
                raise KitError(f"{source.name}, cell {cell.number}: {error}") from error
    for cell in cells:
        for lines in _solutions(cell):
            for number, other in left.items():
                if _stands_in(lines, other.source):
                    raise KitError(
                        f"{source.name}: the solution in cell {cell.number}, which begins with `{lines[0]}`, stands in "
                        f"cell {number} too, and would be handed out. Tag that cell `{SOLUTION}` or `{GRADING}`, "
                        "or word it differently."
                    )
    return write_notebook(list(left.values()), source, folder)


def write_notebook(cells: list[NotebookNode], source: Path, folder: Path) -> Path:
    """Write a Python notebook of `cells` into `folder`, under the name of `source`, and return where.

    Raises:
        KitError: that is the file of `source`, or the folder cannot be written to.
    """
    target = folder / source.name
    if target.resolve() == source.resolve():
        raise KitError(f"{target} is the notebook with the solutions. Choose another folder with -o.")
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    with written_whole(target) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return target


def _for_students(cell: Cell) -> str:
    if cell.node.cell_type == "code":
        return handed_out(cell.parts)
    return ANSWER if cell.solved else cell.node.source


def _solutions(cell: Cell) -> Iterable[list[str]]:
    """Yield the lines of each solution in a cell that are long enough together to be known again."""
    texts = ["\n".join(part.lines) for part in cell.parts if part.starter is not None]
    if cell.solved and cell.node.cell_type != "code":
        texts.append(cell.node.source)
    for text in texts:
        lines = _plain(text)
        if len("".join(lines)) >= TELLING:
            yield lines


def _plain(text: str) -> list[str]:
    """Return the lines of `text` without comments of their own, blank lines and spaces."""
    lines = ("".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _stands_in(lines: list[str], text: str) -> bool:
    """Return whether `lines` stand in a row in `text`, whatever the indentation."""
    others = _plain(text)
    return any(others[start : start + len(lines)] == lines for start in range(len(others) - len(lines) + 1))
