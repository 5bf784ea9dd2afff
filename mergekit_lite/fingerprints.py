"""What code computes, as a hash: it changes with the computation, not with docstrings, comments, messages or moves.

Starting from a function, class or value, the hash follows every name that is used: into other functions, constants,
notebook cells, and files that lie beside. Names of modules and files are left out, so that code may move. Libraries
that were installed count by their names only: records keep the versions that matter.
"""

import ast
import builtins
import enum
import functools
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from mergekit_lite.cache import content_hash
from mergekit_lite.syntax import class_called, definitions, read, statements, stored, tree_of

PACKAGE = __name__.partition(".")[0]

_PLACE = ("__file__", "__name__", "__package__", "__path__", "__spec__")  # where code lies, not what it computes

_INSTALLED = tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
_ALWAYS = ("torch", "open_clip")  # libraries that are loaded in every process that computes
_LIBRARIES = {"site-packages", "dist-packages"}  # also a user's own, a system's below a venv, or links into a store


def code_of(*things: object) -> str:
    """Return 16 hexadecimal digits for what `things` compute.

    Args:
        things: functions, methods, classes and modules, which are read and followed; and plain values (numbers, texts,
            containers, dataclasses, tensors, arrays), which count as they are.
    """
    reader = _Reader()
    return content_hash([[reader.value(thing) for thing in things], reader.read])


class _Reader:
    """Reads what it is shown, once, and numbers it; `read` holds for each number its syntax tree and what it uses."""

    def __init__(self) -> None:
        self.read: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # so that no other object gets the id of one that was seen

    def value(self, thing: Any) -> Any:
        """Return something that JSON knows and that is the same for things that compute the same."""
        match thing:
            case None | bool() | str():
                return thing
            case enum.Enum():
                return [type(thing).__qualname__, self.value(thing.value)]
            case int() | float() | complex() | bytes() | range() | slice():
                return repr(thing)
            case list() | tuple():
                return ["sequence", *map(self.value, thing)]
            case set() | frozenset():
                return ["set", *sorted(content_hash(self.value(one)) for one in thing)]
            case dict():
                return ["mapping", *([self.value(key), self.value(one)] for key, one in thing.items())]
            case re.Pattern():
                return ["pattern", thing.pattern, thing.flags]
            case functools.partial():
                return ["partial", *map(self.value, (thing.func, thing.args, thing.keywords))]
            case property():
                return ["property", self.value(thing.fget)]
            case staticmethod() | classmethod() | MethodType():
                return self.value(thing.__func__)
            case ModuleType():
                return self._module(thing)
            case type():
                return self._class(thing)
            case BuiltinFunctionType():
                return thing.__qualname__
        unwrapped = inspect.unwrap(thing) if callable(thing) else thing
        if isinstance(unwrapped, FunctionType):
            return self._function(unwrapped)
        if is_dataclass(thing):
            return [self._class(type(thing)), {one.name: self.value(getattr(thing, one.name)) for one in fields(thing)}]
        if hasattr(thing, "__array__") and hasattr(thing, "shape"):
            array = thing.detach().cpu().float().numpy() if hasattr(thing, "detach") else thing
            return ["array", str(thing.dtype), list(thing.shape), content_hash(array.tobytes().hex())]
        if (type(thing).__module__ or "").partition(".")[0] in ("torch", "numpy"):
            return repr(thing)  # dtypes and devices
        return ["instance", self._class(type(thing))]

    def _numbered(self, thing: object) -> tuple[str, bool]:
        """Return the number of `thing`, and whether it is new and has to be read."""
        known = id(thing) in self._numbers
        number = self._numbers.setdefault(id(thing), len(self.read))
        if not known:
            self.read.append(None)
            self._alive.append(thing)
        return f"#{number}", not known

    def _function(self, function: FunctionType) -> Any:
        code = function.__code__
        if not _ours(function.__module__, code.co_filename):
            return f"{function.__module__}.{function.__qualname__}"
        number, new = self._numbered(function)
        if new:
            found = definitions(tree_of(code.co_filename, function.__globals__), code)
            if not found:  # made by `exec`: there is no source
                self.read[int(number[1:])] = [code.co_code.hex(), repr(code.co_consts), code.co_names]
                return number
            cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
            closure = {name: _content(cell) for name, cell in cells}
            self.read[int(number[1:])] = [self._read(node, function.__globals__, closure) for node in found]
        return number

    def _class(self, kind: type) -> Any:
        module = sys.modules.get(kind.__module__)
        own = [one.__code__.co_filename for one in vars(kind).values() if isinstance(one, FunctionType)]
        # A class of a notebook has no file; its methods remember the cell.
        file = getattr(module, "__file__", None) or next((one for one in own if not one.startswith("<")), "")
        if kind.__module__ == "builtins" or not _ours(kind.__module__, file):
            return f"{kind.__module__}.{kind.__qualname__}"
        number, new = self._numbered(kind)
        if new:
            node = class_called(tree_of(file, vars(module)), kind.__qualname__)
            known = {name: one for name, one in vars(kind).items() if not name.startswith("__")}
            self.read[int(number[1:])] = self._read(node, vars(module), {}) if node else self.value(known)
        return number

    def _module(self, module: ModuleType) -> Any:
        file = getattr(module, "__file__", None)
        if not file or not _ours(module.__name__, file):
            return module.__name__
        number, new = self._numbered(module)
        if new:
            self.read[int(number[1:])] = self._read(tree_of(file, vars(module)), vars(module), {})
        return number

    def _read(self, node: ast.AST, names: Mapping[str, Any], closure: Mapping[str, Any]) -> Any:
        """Return the tree of `node` and, by name, all that it uses from outside."""
        tree, free, imports = read(node)
        used: dict[str, Any] = {}
        for dotted in free:
            name = dotted.partition(".")[0]
            if name in closure:
                used[dotted] = self.value(closure[name])
            elif name in _PLACE:
                used[dotted] = name
            elif name in names:
                used[dotted] = self._named(dotted, names)
            elif not hasattr(builtins, name):
                used[dotted] = "?"
        for one in imports:
            used.update(self._imported(one, names))
        return [tree, used]

    def _named(self, dotted: str, names: Mapping[str, Any]) -> Any:
        """Return the value of a global name, or of an attribute of a module: ``helper.scale`` is not all of helper."""
        name, _, rest = dotted.partition(".")
        thing = names[name]
        if isinstance(thing, ModuleType) and rest:
            if not _ours(thing.__name__, getattr(thing, "__file__", None) or ""):
                return thing.__name__
            if rest.partition(".")[0] in vars(thing):
                return self._named(rest, vars(thing))
        if isinstance(thing, type | ModuleType | FunctionType | MethodType) or callable(thing):
            return self.value(thing)
        # A constant of a file counts by the lines that make it, not by what has become of it: a cache fills up.
        return self._bound(name, names) if names.get("__file__") else self.value(thing)

    def _bound(self, name: str, names: Mapping[str, Any]) -> Any:
        tree = tree_of(names["__file__"], names)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    origin = _module_named(node, names)
                    if (alias.asname or alias.name) == name and origin and alias.name in vars(origin):
                        if not _ours(origin.__name__, getattr(origin, "__file__", None) or ""):
                            return f"{origin.__name__}.{alias.name}"
                        return self._named(alias.name, vars(origin))
        lines = [one for one in statements(tree.body) if name in stored(one)]
        if not lines:
            return self.value(names[name])
        number, new = self._numbered(lines[0])
        if new:
            self.read[int(number[1:])] = [self._read(line, {**names, name: None}, {}) for line in lines]
        return number

    def _imported(self, node: ast.ImportFrom | ast.Import, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an import inside a function brings.

        A library counts by its name in the import, since whether it is loaded already depends on what else this process
        did; in the kit's own code not at all, which has no choice of libraries.
        """
        found: dict[str, Any] = {}
        for alias in node.names:
            module = _module_named(node, names) if isinstance(node, ast.ImportFrom) else _loaded(alias.name)
            library = not module or not _ours(module.__name__, getattr(module, "__file__", None) or "")
            if library and not (module and module.__name__.partition(".")[0] in _ALWAYS):
                if str(names.get("__name__")).partition(".")[0] != PACKAGE:
                    found[alias.asname or alias.name] = f"{getattr(node, 'module', None)}.{alias.name}"
            elif module and isinstance(node, ast.ImportFrom) and alias.name in vars(module):
                found[alias.asname or alias.name] = self._named(alias.name, vars(module))
            elif module:
                found[alias.asname or alias.name] = self.value(module)
        return found


def _ours(module: str | None, file: str) -> bool:
    """Return whether code is the kit's or its user's, and no library's."""
    if (module or "").partition(".")[0] == PACKAGE:
        return True
    if file.startswith("<frozen"):
        return False
    if not file or _LIBRARIES.intersection(Path(file).parts):
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(folder) for folder in _INSTALLED)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _module_named(node: ast.ImportFrom, names: Mapping[str, Any]) -> ModuleType | None:
    package = str(names.get("__package__") or "").split(".")
    above = package[: len(package) - node.level + 1] if node.level else []
    dotted = ".".join([*above, *([node.module] if node.module else [])])
    # A module beside a file of one's own, see `load_method`, bears its folder's name behind an @.
    beside = f"{dotted}@{str(names.get('__name__')).partition('@')[2]}"
    return sys.modules.get(beside) or _loaded(dotted)


def _loaded(name: str) -> ModuleType | None:
    """Return a module; one of ours that only a running function would import is imported now, a library's is not."""
    if name not in sys.modules:
        try:
            # of the root, since to find what is inside a package imports the package
            spec = importlib.util.find_spec(name.partition(".")[0])
            if spec and spec.origin and _ours(name, spec.origin):
                return importlib.import_module(name)
        except (ImportError, ValueError):
            return None
    return sys.modules.get(name)
