"""Syntax trees of source code, without what cannot change the computation, and the names that they use."""

import ast
import functools
import linecache
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def plain(tree: ast.AST) -> ast.AST:
    """Return a copy of `tree` without all that cannot change what is computed.

    Out go docstrings, annotations, the words of errors and warnings, the titles of registered methods, the modules that
    names are imported from, and what only type checkers read.
    """
    return _Plain().visit(tree)


@functools.lru_cache(maxsize=4096)
def read(node: ast.AST) -> tuple[Any, list[str], list[ast.Import | ast.ImportFrom]]:
    """Return a plain tree as JSON, the names it uses and does not bind itself, and the imports inside a function."""
    tree = plain(node)
    inside = [] if isinstance(node, ast.Module) else ast.walk(node)
    return dumped(tree), free_names(tree), [one for one in inside if isinstance(one, ast.ImportFrom | ast.Import)]


class _Plain(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> Any:
        return super().visit(type(node)(**dict(ast.iter_fields(node))))

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, content in ast.iter_fields(node):
            if isinstance(content, list):
                setattr(node, name, list(content))  # the super class writes into the list, which is the original's
        return super().generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> Any:
        said = isinstance(node.value, ast.Constant)  # a docstring, of a constant too
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("warnings.warn", "warn"):
            said = True
        return None if said else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> Any:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        node.cause = None
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> Any:
        node.msg = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Constant(None)  # the line stays: it may be the field of a dataclass
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        # Title and citation of a registered method; its data access is part of the question.
        node.decorator_list = [one for one in node.decorator_list if not _registers(one)]
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        node.module, node.level = None, 0
        return node

    def visit_If(self, node: ast.If) -> Any:
        return None if ast.unparse(node.test).endswith("TYPE_CHECKING") else self.generic_visit(node)


def _registers(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "method"


@functools.lru_cache(maxsize=256)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def tree_of(file: str, names: Mapping[str, Any]) -> ast.Module:
    """Return the tree of a file, or of a notebook's cell, which Python keeps under a made-up file name."""
    linecache.checkcache(file)
    source = "".join(linecache.getlines(file, dict(names)))
    try:
        return _parsed(source)
    except SyntaxError:  # a cell with a line for the shell, such as `%time`
        return _parsed("".join("\n" if line.lstrip()[:1] in "%!" else line for line in source.splitlines(True)))


def definitions(tree: ast.Module, code: CodeType) -> list[Function]:
    """Return the definition that `code` was compiled from; several only if lambdas share a line."""
    return _by_line(tree).get((code.co_name, code.co_firstlineno), [])


@functools.lru_cache(maxsize=256)
def _by_line(tree: ast.Module) -> dict[tuple[str, int], list[Function]]:
    """Return the functions of a file by name and first line, that of a decorator if there is one."""
    found: dict[tuple[str, int], list[Function]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            found.setdefault(("<lambda>", node.lineno), []).append(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.setdefault((node.name, first), []).append(node)
    return found


def class_called(tree: ast.Module, qualified: str) -> ast.ClassDef | None:
    """Return the class of this qualified name, the last if there are several; None if there is none."""
    name = qualified.rpartition(".")[2]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    return classes[-1] if classes else None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those under `if`, `for`, `try` and `with` too."""
    for one in body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield one
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(one, part, []))


def stored(line: ast.stmt) -> set[str]:
    """Return the names that an assignment binds."""
    targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
    return {node.id for one in targets if one is not None for node in ast.walk(one) if isinstance(node, ast.Name)}


def free_names(node: ast.AST) -> list[str]:
    """Return the names that `node` uses and does not bind itself, in order; ``a.b.c`` as a whole."""
    found: dict[str, None] = {}

    def look(one: ast.AST, bound: frozenset[str]) -> None:
        if isinstance(one, ast.Attribute | ast.Name):
            text, inner = [], one
            while isinstance(inner, ast.Attribute):
                text.append(inner.attr)
                inner = inner.value  # type: ignore[assignment]
            if isinstance(inner, ast.Name):
                if inner.id not in bound and isinstance(inner.ctx, ast.Load):
                    found[".".join([inner.id, *reversed(text)])] = None
            else:
                look(inner, bound)
            return
        inside = bound | _binds(one) if isinstance(one, Function | ast.comprehension | COMPREHENSIONS) else bound
        for child in ast.iter_child_nodes(one):
            look(child, inside)

    look(node, frozenset())
    return list(found)


COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def _binds(node: ast.AST) -> frozenset[str]:
    """Return the names that a function or comprehension binds; nested functions bind their own."""
    found: set[str] = set()
    outside: set[str] = set()
    waiting: list[ast.AST] = list(ast.iter_child_nodes(node))
    while waiting:
        one = waiting.pop()
        if isinstance(one, ast.arg):
            found.add(one.arg)
        elif isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
            found.add(one.id)
        elif isinstance(one, ast.alias):
            found.add((one.asname or one.name).partition(".")[0])
        elif isinstance(one, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and one.name:
            found.add(one.name)
        elif isinstance(one, ast.Global):
            outside.update(one.names)
        elif isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found.update({one.name} if not isinstance(one, ast.Lambda) else ())
            continue
        waiting += ast.iter_child_nodes(one)
    return frozenset(found - outside)


def dumped(node: Any) -> Any:
    """Return a tree as JSON, the same in each version of Python: fields that are empty are left out."""
    if isinstance(node, ast.AST):
        kept = {name: dumped(one) for name, one in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")}
        return [type(node).__name__, {name: one for name, one in kept.items() if one not in (None, [])}]
    if isinstance(node, list):
        return [dumped(one) for one in node]
    return node if isinstance(node, str | bool | None) else repr(node)
