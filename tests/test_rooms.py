"""The house: a room imports only from the rooms below it, and nothing is named twice."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mergekit_lite

PACKAGE = Path(mergekit_lite.__file__).parent
ROOMS = (
    *("cli", "course", "pipeline", "evaluate", "merge", "figures", "analysis", "study", "suites", "methods"),
    *(
        "weights",
        "weight_files",
        "workers",
        "machine",
        "fingerprints",
        "syntax",
        "cache",
        "leases",
        "yaml_files",
        "errors",
    ),
    "__init__",
)
"""From the roof to the ground: data walks up, imports go down."""


def sources() -> Iterator[tuple[str, Path, ast.Module]]:
    """Yield room, path and tree of each file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the rooms that a file imports from, inside functions too, but not those that only a type checker sees."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "mergekit_lite":
            yield from (alias.name if alias.name in ROOMS else "__init__" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mergekit_lite."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (one.name.split(".")[1] for one in node.names if one.name.startswith("mergekit_lite."))
        waiting += ast.iter_child_nodes(node)


def test_every_file_lies_in_a_room() -> None:
    assert {room for room, *_ in sources()} == set(ROOMS)


def test_rooms_import_only_from_rooms_below() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for room, path, tree in sources()
        for other in imported(tree)
        if other != room and ROOMS.index(other) < ROOMS.index(room)
    ]
    assert not wrong


def test_no_function_is_named_as_its_module() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for _, path, tree in sources()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == path.stem
    ]
    assert not wrong
