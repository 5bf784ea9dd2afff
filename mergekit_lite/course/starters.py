"""What students get in place of a solution: one cell of code, taken apart into what they see and what they do not.

A solution is marked in one of two ways. A cell tagged `solution` is one as a whole: of its functions and methods the
signature and the docstring are handed out, and its imports. Or lines between ``# BEGIN SOLUTION`` and
``# END SOLUTION``, the comments that otter-grader knows, are one, and the rest of the cell is handed out. In either,
``# starter: x = 1`` hands out the line ``x = 1``.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from mergekit_lite.errors import KitError

BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
TURN = "# Your turn"
_STARTER = re.compile(r"(\s*)# starter: ?(.*)")
_OTHER_MARKS = re.compile(r"#\s*(SOLUTION|(BEGIN|END) (SOLUTION|PROMPT))\b")  # otter-grader has more than our two


class Part(NamedTuple):
    """Some lines of a cell that stand together.

    Attributes:
        lines: as the teacher wrote them.
        starter: what students get instead; None for lines that they get as they are.
    """

    lines: tuple[str, ...]
    starter: tuple[str, ...] | None = None


def parts(source: str, whole: bool) -> list[Part]:
    """Return the parts of a code cell, in order; a cell without a solution is one part.

    Args:
        source: of the cell.
        whole: the cell is tagged `solution`. If it holds regions, these alone are the solution.

    Raises:
        KitError: a region is not closed; or the cell is tagged and no Python, or has two statements on one line.
    """
    lines = source.splitlines()
    regions = any(line.strip() == BEGIN for line in lines)
    found = _whole(source, lines) if whole and not regions else _regions(lines)
    for line in (line for part in found if part.starter is None for line in part.lines):
        if _OTHER_MARKS.search(line):
            raise KitError(
                f"`{line.strip()}` looks like the mark of a solution, and its line would be handed out. "
                f"Put lines `{BEGIN}` and `{END}` around a solution, or tag its cell `solution`."
            )
    return found


def handed_out(cell: Sequence[Part]) -> str:
    """Return the source that students get.

    Raises:
        KitError: something was replaced, and the result is no Python; most often for what follows `# starter:`.
    """
    lines = [line for part in cell for line in (part.lines if part.starter is None else part.starter)]
    source = re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines).strip("\n"))
    if any(part.starter is not None for part in cell):
        _parsed(source, "What students would get of a solution")
    return source


def _regions(lines: Sequence[str]) -> list[Part]:
    """Return the parts of a cell whose solutions, if any, stand between comments."""
    found, current, inside = [], list[str](), False
    for line in [*lines, None]:
        mark = line and line.strip()
        if mark == (BEGIN if inside else END) or (line is None and inside):
            raise KitError(f"Each line `{BEGIN}` needs a line `{END}` after it, and before the next. Mend that cell.")
        if line is not None and mark not in (BEGIN, END):
            current.append(line)
            continue
        if inside and line is not None:
            indent = line[: len(line) - len(line.lstrip())]
            found.append(_solution(current, f'{indent}raise NotImplementedError("Your turn")' if indent else TURN))
        elif current:
            found.append(Part(tuple(current)))
        current, inside = [], mark == BEGIN
    return found


def _solution(lines: Iterable[str], turn: str | None = None) -> Part:
    """Return a part with the lines that its comments hand out, and behind them what says whose turn it is."""
    lines = tuple(lines)
    asked = [match[1] + match[2] for match in map(_STARTER.fullmatch, lines) if match]
    return Part(lines, (*asked, turn) if turn else tuple(asked))


class _Body(NamedTuple):
    """The lines of a function after signature and docstring, numbered from 1."""

    first: int
    last: int
    turn: str


def _whole(source: str, lines: Sequence[str]) -> list[Part]:
    """Return the parts of a cell that is a solution as a whole."""
    kept: set[int] = set()
    bodies: list[_Body] = []
    _read(_parsed(source, "A cell tagged `solution`").body, lines, kept, bodies)
    owners: list[_Body | bool] = []  # of each line: the function, or whether students get it
    for number, line in enumerate(lines, 1):
        body = next((one for one in bodies if one.first <= number <= one.last), None)
        owners.append(body or number in kept or not line.strip())
    found = [] if bodies else [Part((), (TURN,))]
    for owner, group in groupby(zip(owners, lines, strict=True), key=lambda pair: pair[0]):
        stand = tuple(line for _, line in group)
        if isinstance(owner, _Body):
            found.append(_solution(stand, owner.turn))
        else:
            found.append(Part(stand) if owner else _solution(stand))
    return found


def _read(statements: Sequence[ast.stmt], lines: Sequence[str], kept: set[int], bodies: list[_Body]) -> None:
    """Note which lines of a module or class students get, and where the bodies of its functions are."""
    for one, following in zip(statements, [*statements[1:], None], strict=True):
        if following and following.lineno <= (one.end_lineno or 0):
            raise _crowded(lines[following.lineno - 1])
        match one:
            case ast.Import() | ast.ImportFrom():
                kept.update(_lines(one))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                start = min([one.lineno, *(each.lineno for each in one.decorator_list)])
                head = _end_of_signature(one, lines)
                inside = list(one.body)
                if inside[0].lineno <= head:
                    raise _crowded(lines[one.lineno - 1])
                if ast.get_docstring(one) is not None:
                    head = inside.pop(0).end_lineno or head
                kept.update(range(start, head + 1))
                if inside and inside[0].lineno <= head:
                    raise _crowded(lines[head - 1])
                if inside and isinstance(one, ast.ClassDef):
                    kept.update(line for each in inside for line in _lines(each))
                    _read(inside, lines, kept, bodies)
                elif inside:
                    indent = " " * inside[0].col_offset
                    turn = f'{indent}raise NotImplementedError("Your turn: {one.name}")'
                    bodies.append(_Body(head + 1, one.end_lineno or head + 1, turn))


def _lines(one: ast.stmt) -> range:
    return range(one.lineno, (one.end_lineno or one.lineno) + 1)


def _end_of_signature(one: ast.stmt, lines: Sequence[str]) -> int:
    """Return the number of the line with the colon that ends the head of a function or class."""
    depth, text = 0, "\n".join(lines[one.lineno - 1 :]) + "\n"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        depth += (token.string in "([{") - (token.string in ")]}") if token.type == tokenize.OP else 0
        if depth == 0 and token.type == tokenize.OP and token.string == ":":
            return one.lineno + token.start[0] - 1
    raise AssertionError("a head without its colon is no Python")


def _crowded(line: str) -> KitError:
    return KitError(f"`{line.strip()}`: in a cell tagged `solution`, begin each statement on a line of its own.")


def _parsed(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise KitError(
            f"{what} is no Python ({error}). Give lines with % or ! a cell of their own, "
            "and let only code or a comment follow `# starter:`."
        ) from error
