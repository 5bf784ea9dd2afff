"""Writes an assignment in the format of otter-grader, whose command makes a student's notebook and an autograder of it.

The format (otter-grader 6 and 7, `otter assign`): raw cells whose first line is a comment begin and end a question, its
solution and its tests; they hold YAML. Within a solution's cell the comments of `starters` mark lines to take out, and
a string between ``# BEGIN PROMPT`` and ``# END PROMPT`` holds what students get instead.
"""

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from mergekit_lite.course.releasing import GRADING, TESTS, Cell, read_assignment, write_notebook
from mergekit_lite.course.starters import BEGIN, END, Part
from mergekit_lite.errors import KitError

POINTS = "points-"
"""A tag such as `points-3` on a cell of a solution says what its question is worth; 1 without."""


def export(source: Path, folder: Path) -> Path:
    """Write the assignment notebook of otter-grader made from `source` into `folder`, under its name, and return where.

    A question is a run of cells with solutions and the tests behind them, and the Markdown cell before it is its text.
    One with tests is graded by them, one without by hand.

    Raises:
        KitError: as `releasing.read_assignment`; or tests follow no solution, are no code, or use what other tests
            define; or `folder` is that of `source`. Nothing is written then.
    """
    cells = read_assignment(source)
    _check_alone([cell for cell in cells if _is_test(cell)], source.name)
    settings = {"name": source.parent.resolve().name, "generate": True, "export_cell": {"pdf": False}}
    result = [_raw("# ASSIGNMENT CONFIG", settings)]
    number = 0
    for group in _grouped(cells, source.name):
        if not group[-1].solved and not _is_test(group[-1]):
            result += [cell.with_source(cell.node.source) for cell in group]
            continue
        number += 1
        result += _question(f"q{number}", group, source.name)
    return write_notebook(result, source, folder)


def _check_alone(tests: Sequence[Cell], name: str) -> None:
    """Check that no test needs a name that another one defines: otter-grader runs each alone.

    By convention a name of a test begins with an underscore, so that it is not taken for one of the notebook's.
    """
    for cell in tests:
        try:
            tree = ast.parse(cell.node.source)
        except SyntaxError as error:
            raise KitError(f"{name}, cell {cell.number}: this test is no Python ({error}). Mend it.") from error
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id.startswith("_")]
        made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        needed = sorted({node.id for node in names} - made)
        if needed:
            raise KitError(
                f"{name}, cell {cell.number}: this test uses {needed[0]}, which it does not define, and otter-grader "
                "runs each test alone. Define it in the cell."
            )


def _is_test(cell: Cell) -> bool:
    return cell.has(TESTS) or cell.has(GRADING)


def _grouped(cells: Sequence[Cell], name: str) -> list[list[Cell]]:
    """Return the cells in order: a question's together, each other one alone."""
    groups: list[list[Cell]] = []
    for cell in cells:
        last = groups[-1][-1] if groups else None
        if _is_test(cell):
            if cell.node.cell_type != "code" or last is None or not (last.solved or _is_test(last)):
                raise KitError(
                    f"{name}, cell {cell.number}: tests must be code, and follow the solution that they test. Move it."
                )
            groups[-1].append(cell)
        elif cell.solved and last and not _is_test(last) and _belongs(cell, last):
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return groups


def _belongs(cell: Cell, last: Cell) -> bool:
    """Return whether a solution goes on with the cell before it: its text, or a solution of the same kind."""
    return last.node.cell_type == ("markdown" if not last.solved else cell.node.cell_type)


def _question(name: str, group: Sequence[Cell], notebook: str) -> list[NotebookNode]:
    text = [cell for cell in group if not cell.solved and not _is_test(cell)]
    solutions, tests = [cell for cell in group if cell.solved], [cell for cell in group if _is_test(cell)]
    head = {"name": name, "points": _points(solutions, notebook)}
    if not tests:
        head["manual"] = True
    return [
        _raw("# BEGIN QUESTION", head),
        *(cell.with_source(cell.node.source) for cell in text),
        _raw("# BEGIN SOLUTION"),
        *(cell.with_source(_marked(cell)) for cell in solutions),
        _raw("# END SOLUTION"),
        *([_raw("# BEGIN TESTS"), *map(_test, tests), _raw("# END TESTS")] if tests else []),
        _raw("# END QUESTION"),
    ]


def _points(solutions: Iterable[Cell], notebook: str) -> float:
    """Return what the tags of a question's solutions say that it is worth, together."""
    given = []
    for cell in solutions:
        for tag in cell.node.metadata.get("tags", []):
            if tag.startswith(POINTS):
                try:
                    given.append(float(tag.removeprefix(POINTS)))
                except ValueError as error:
                    raise KitError(f"{notebook}, cell {cell.number}: no points in `{tag}`. Write {POINTS}3.") from error
    total = sum(given) if given else 1.0
    return int(total) if total == int(total) else total


def _test(cell: Cell) -> NotebookNode:
    source = cell.node.source
    return cell.with_source(f"# HIDDEN\n{source}" if cell.has(GRADING) else source)


def _marked(cell: Cell) -> str:
    """Return the source of a solution with the comments that otter-grader knows around what students do not get."""
    if cell.node.cell_type != "code":
        return cell.node.source
    return "\n".join(line for part in cell.parts for line in _marked_part(part))


def _marked_part(part: Part) -> list[str]:
    if part.starter is None:
        return list(part.lines)
    solution = [line for line in part.lines if "# starter:" not in line]
    first = next((line for line in [*solution, *part.starter] if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    lines = []
    if part.starter:
        # For the solution's notebook this is a string that nobody uses; students get the lines in it. It comes first,
        # since the solution may end in a decorator.
        lines += [f'{indent}""" # BEGIN PROMPT', *part.starter, f'{indent}"""; # END PROMPT']
    if solution:
        lines += [f"{indent}{BEGIN} NO PROMPT", *solution, f"{indent}{END}"]
    return lines


def _raw(comment: str, settings: dict[str, object] | None = None) -> NotebookNode:
    said = yaml.safe_dump(settings, sort_keys=False).rstrip() if settings else ""
    return nbformat.v4.new_raw_cell(f"{comment}\n{said}".rstrip())
