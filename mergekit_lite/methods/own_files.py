"""Methods of one's own that lie in a file anywhere: loaded by path, with the modules that lie beside it."""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import MethodInfo, all_methods, registering


def load_method(path: str | Path) -> tuple[MethodInfo, ...]:
    """Register the methods that a Python file defines, and return them in the order of their definition.

    The file may import modules that lie beside it, at its top; they are read anew each time, as the file is, and two
    folders may hold modules of the same name. Cells name a method by its function's name. Should several files define
    that name, the file's own comes before it, and its folder's if need be: ``my_merge``, ``anna:my_merge`` or
    ``submissions/anna:my_merge``, which is the `name` of its `MethodInfo`.

    Args:
        path: of the file. Loading it again puts what it defines now in the place of what it defined before.

    Raises:
        KitError: there is no such Python file, it defines no method, or a method's name is taken by one that comes from
            no file, such as the kit's own. What was registered before stays.
    """
    file = Path(path).expanduser().resolve()
    if file.suffix != ".py" or not file.is_file():
        raise KitError(f"There is no Python file {file}. Give the path of a .py file with a method in it.")
    place = hashlib.sha256(str(file.parent).encode()).hexdigest()[:8]
    module = ModuleType(f"{file.stem}@{place}")
    module.__file__ = str(file)
    with registering(file), _beside(file, place):
        sys.modules[module.__name__] = module  # where pickle, dataclasses and inspect look for it
        exec(compile(file.read_bytes(), file, "exec", dont_inherit=True), vars(module))
        found = tuple(info for info in all_methods() if info.source == file)
        if not found:
            raise KitError(f"{file} defines no method. Put @method(...) above a function in it.")
    return found


@contextmanager
def _beside(file: Path, place: str) -> Iterator[None]:
    """Let `import helper` find ``helper.py`` beside `file` and no other; afterwards it is called ``helper@place``."""
    names = {path.stem for path in file.parent.glob("*.py")} - {"__init__", "__main__"}
    hidden = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path.insert(0, str(file.parent))
    importlib.invalidate_caches()
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # compiled files miss a change within a second
    try:
        yield
    finally:
        sys.dont_write_bytecode = written
        sys.path.remove(str(file.parent))
        for name in names & sys.modules.keys():
            module = sys.modules.pop(name)
            module.__name__ = f"{name}@{place}"
            sys.modules[module.__name__] = module
            for thing in vars(module).values():
                if isinstance(thing, type | FunctionType) and thing.__module__ == name:
                    thing.__module__ = module.__name__
        sys.modules.update(hidden)
