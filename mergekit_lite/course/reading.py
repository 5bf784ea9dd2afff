"""What a student hands in, read: a file, a folder or a notebook becomes one Python file with its helpers beside it."""

import ast
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from mergekit_lite.errors import KitError
from mergekit_lite.syntax import free_names, statements, stored

FILE = "method.py"
"""The file that a folder is known by."""


def read(submission: Path, into: Path, also: Collection[str] = ()) -> Path:
    """Write what `submission` computes to the folder `into`, and return the .py file there for `load_method`.

    Nothing of it is run. Modules that it imports and that lie beside it are copied, and whatever else lies there is
    not. Of a notebook only the methods and what they use are written, in the order of its cells: see `sliced`.

    Args:
        submission: a .py file; a folder with `FILE`, or with one .py file or notebook that defines a method; or a
            notebook.
        into: an empty folder, or one that is to be made.
        also: of a notebook, write what these names stand for too, such as functions that tests call. Then it need not
            define a method.

    Raises:
        KitError: there is no such file, it defines no method or does not parse, several files define one, or a link
            leads out of the submission's folder.
    """
    source = _source(submission)
    folder = source.parent
    into.mkdir(parents=True, exist_ok=True)
    file = into / f"{source.stem}.py"
    if source.suffix == ".ipynb":
        file.write_text(sliced(source, also), encoding="utf-8")
    else:
        _copy(source, file, folder)
    waiting, seen = [_parsed(file, source)], {source.stem}
    while waiting:
        for name in _imported(waiting.pop()):
            module, package = folder / f"{name}.py", folder / name
            if name in seen or not (module.is_file() or (package / "__init__.py").is_file()):
                continue
            seen.add(name)
            inside = sorted(package.rglob("*.py")) if package.is_dir() else [module]
            for one in inside:
                waiting.append(_parsed(_copy(one, into / one.relative_to(folder), folder), one))
    return file


def sliced(notebook: Path, also: Collection[str] = ()) -> str:
    """Return the source of a notebook's methods and of what they use, in the order of its cells.

    Used are the imports, functions, classes and constants whose names a method, or what it uses, mentions. So a
    study, a plot and the imports for them stay out, and so do magics and lines for the shell. The names `also` count as
    used.

    Raises:
        KitError: it is no notebook, a cell does not parse, or no cell defines a method or one of the names.
    """
    found = list(_statements(notebook))
    registers = _names_of_method([one for one, _ in found])
    needed = {one.name for one, _ in found if isinstance(one, ast.FunctionDef) and _is_method(one, registers)}
    needed |= {name for one, _ in found for name in _binds(one)} & set(also)
    if not needed and also:
        raise KitError(f"{notebook} defines nothing that is asked for: {', '.join(also)}. Keep the names as given.")
    if not needed:
        raise KitError(f"{notebook} defines no method. Put @method(...) above a function in one of its cells.")
    kept: set[int] = set()
    while True:
        more = [
            place
            for place, (one, _) in enumerate(found)
            if place not in kept and (needed & (binds := _binds(one)) or "*" in binds)
        ]
        if not more:
            return "\n\n".join(["# The methods of the notebook " + notebook.name, *(found[n][1] for n in sorted(kept))])
        kept |= set(more)
        needed |= {name.partition(".")[0] for place in more for name in free_names(found[place][0])}


def defines_method(tree: ast.Module) -> bool:
    """Return whether a file registers a method with the decorator of the kit."""
    registers = _names_of_method(tree.body)
    return any(isinstance(one, ast.FunctionDef) and _is_method(one, registers) for one in ast.walk(tree))


def _source(submission: Path) -> Path:
    """Return the file that holds the method."""
    if submission.is_file() and submission.suffix in (".py", ".ipynb"):
        return submission
    if not submission.is_dir():
        raise KitError(f"There is no {submission}. Name a .py file, a notebook, or a folder with one of them.")
    if (submission / FILE).is_file():
        return submission / FILE
    modules = [one for one in sorted(submission.glob("*.py")) if defines_method(_parsed(one, one))]
    found = modules or sorted(submission.glob("*.ipynb"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise KitError(f"{submission} holds no method. Put a file {FILE} into it, with @method(...) above a function.")
    names = ", ".join(one.name for one in found)
    raise KitError(f"{submission} holds several files that may be the method: {names}. Call the one meant {FILE}.")


def _parsed(file: Path, source: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise KitError(f"{source} is not Python: {error.msg}, line {error.lineno}. Correct that line.") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a zero byte; nested too deep to be anything
        raise KitError(f"{source} is not Python: {error or 'it is nested too deep'}.") from error


def _copy(source: Path, target: Path, folder: Path) -> Path:
    # A link could hand over what is not the student's, such as a file of the teacher's.
    if not source.resolve().is_relative_to(folder.resolve()):
        raise KitError(f"{source} is a link that leads out of its folder. Put the file itself there.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the first parts of the modules that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _statements(notebook: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Yield each statement of a notebook with its text; imports from the future come first, as in a file they must."""
    import nbformat
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except Exception as error:  # nbformat raises its own, and those of json and of whatever a broken file lacks
        raise KitError(f"{notebook} is no notebook: {type(error).__name__}: {error}") from error
    later = []
    for number, cell in enumerate(cells, start=1):
        if cell.cell_type != "code":
            continue
        try:  # magics become calls, which no method uses
            source = TransformerManager().transform_cell(cell.source)
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            raise KitError(f"Cell {number} of {notebook}{where} is not Python: {error}. Correct that cell.") from error
        for one in tree.body:
            if isinstance(one, ast.ImportFrom) and one.module == "__future__":
                yield one, ast.unparse(one)
            else:
                later.append((one, _text(one, source)))
    yield from later


def _text(node: ast.stmt, source: str) -> str:
    """Return a statement as it was written, with its comments and decorators."""
    decorators = getattr(node, "decorator_list", [])
    if not decorators:
        return ast.get_source_segment(source, node) or ast.unparse(node)
    return "\n".join(source.splitlines()[decorators[0].lineno - 1 : node.end_lineno])


def _binds(node: ast.stmt) -> set[str]:
    """Return the names that a statement of a module binds, or whose content it changes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    bound: set[str] = set()
    for one in statements([node]):
        if isinstance(one, ast.ImportFrom) and one.module == "__future__":
            bound.add("*")
        elif isinstance(one, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in one.names}
        else:
            bound |= stored(one)
    inner = (one for one in ast.walk(node) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))
    return bound | {one.name for one in inner}


def _names_of_method(body: list[ast.stmt]) -> set[str]:
    """Return what the decorator `method` is called in a file."""
    imports = (one for one in body if isinstance(one, ast.ImportFrom))
    aliases = (alias for one in imports for alias in one.names)
    return {"method"} | {alias.asname for alias in aliases if alias.name == "method" and alias.asname}


def _is_method(node: ast.FunctionDef, registers: set[str]) -> bool:
    calls = (one.func for one in node.decorator_list if isinstance(one, ast.Call))
    return any(ast.unparse(one).rpartition(".")[2] in registers for one in calls)
