"""What changes the hash of code, and what does not."""

import functools
import importlib.util
import linecache
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mergekit_lite.fingerprints import code_of

SOURCE = '''
"""A module."""
import math
from dataclasses import dataclass

import torch

SCALE = 0.3
TABLE = {"a": SCALE}
state: dict = {}


@dataclass
class Part:
    """A part."""

    size: int = 2

    def double(self) -> int:
        """Twice."""
        return 2 * self.size


def helper(x: float) -> float:
    """Help."""
    if x < 0:
        raise ValueError(f"{x} is negative")
    return x * SCALE  # scaled


def answer(x: float) -> float:
    """Answer."""
    state["seen"] = x
    return helper(x) + Part().double() + math.sqrt(2) + TABLE["a"]


def other() -> int:
    return 1
'''


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """Return a function that makes a module from a source text, in a file of its own."""
    names: list[str] = []

    def make(source: str = SOURCE, name: str = "first", folder: str = "here") -> ModuleType:
        path = tmp_path / folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        names.append(name)
        linecache.clearcache()
        spec.loader.exec_module(made)
        return made

    yield make
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Help."""', '"""Help with\nmany words."""'),
        ("# scaled", "# multiplied by a constant"),
        ("x: float) -> float", "x: int) -> int"),
        ("{x} is negative", "{x!r} must not be negative"),
        ("def other() -> int:\n    return 1", "def other() -> int:\n    return 2"),
        ("state: dict = {}", "state: dict[str, float] = {}"),
        ('"""A module."""', '"""Another."""\n\n'),
    ],
)
def test_words_and_what_is_not_used_do_not_change_the_hash(
    module: Callable[..., ModuleType], before: str, after: str
) -> None:
    assert before in SOURCE
    first = code_of(module().answer)
    assert code_of(module(SOURCE.replace(before, after)).answer) == first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SCALE = 0.3", "SCALE = 0.4"),
        ("x * SCALE", "SCALE + x"),
        ("size: int = 2", "size: int = 3"),
        ("2 * self.size", "3 * self.size"),
        ("if x < 0", "if x <= 0"),
        ("math.sqrt(2)", "math.log(2)"),
        ("import math\n", "import cmath as math\n"),
        ('{"a": SCALE}', '{"a": 1.0}'),
    ],
)
def test_what_is_computed_changes_the_hash(module: Callable[..., ModuleType], before: str, after: str) -> None:
    assert before in SOURCE
    first = code_of(module().answer)
    assert code_of(module(SOURCE.replace(before, after)).answer) != first


def test_moves_do_not_change_the_hash(module: Callable[..., ModuleType]) -> None:
    assert code_of(module().answer) == code_of(module(name="second", folder="there").answer)


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_libraries_count_by_name_wherever_they_are_installed(module: Callable[..., ModuleType], folder: str) -> None:
    # `pip install --user`, and a venv that sees the system's: neither is where this Python installs.
    first = code_of(module(folder=folder).answer)
    assert first == code_of(module(SOURCE.replace("0.3", "0.4"), folder=folder).answer)


def test_a_file_that_asks_where_it_lies_does_not_bring_the_place_into_the_hash(
    module: Callable[..., ModuleType],
) -> None:
    placed = SOURCE.replace("SCALE = 0.3\n", "SCALE = 0.3 if Path(__file__).parents[0] else 0.3\n")
    placed = placed.replace("import math\n", "import math\nfrom pathlib import Path\n")
    first = module(placed, name="first", folder="here")
    assert code_of(first.answer) == code_of(module(placed, name="second", folder="there").answer)


def test_running_code_does_not_change_its_hash(module: Callable[..., ModuleType]) -> None:
    made = module()
    first = code_of(made.answer)
    made.answer(1.0)
    assert code_of(made.answer) == first


@pytest.mark.parametrize(
    "use",
    [
        "import helper_file\n\ndef answer(x):\n    return helper_file.scaled(x)\n",
        "from helper_file import scaled\n\ndef answer(x):\n    return scaled(x)\n",
        "from helper_file import FACTOR\n\ndef answer(x):\n    return FACTOR * x\n",
        "def answer(x):\n    from helper_file import scaled\n    return scaled(x)\n",
        "import functools\nimport helper_file\n\nanswer = functools.partial(helper_file.scaled, y=2)\n",
        "import helper_file\n\ndef answer(x, f=helper_file.scaled):\n    return f(x)\n",
        "import helper_file\n\nclass Answer(helper_file.Base):\n    pass\n\nanswer = Answer\n",
        "import helper_file\n\ndef make(f):\n    return lambda x: f(x)\n\nanswer = make(helper_file.scaled)\n",
        "import helper_file\n\ndef answer(x):\n    return [one for one in helper_file.many(x)]\n",
    ],
)
def test_a_second_file_counts_with_what_is_used_of_it(module: Callable[..., ModuleType], use: str) -> None:
    helper = (
        "FACTOR = 2\n\ndef scaled(x, y=1):\n    return FACTOR * x * y\n\ndef many(x):\n    yield scaled(x)\n\n"
        "class Base:\n    def run(self):\n        return FACTOR\n\ndef unused():\n    return 1\n"
    )
    module(helper, "helper_file")
    first = code_of(module(use).answer)
    module(helper.replace("return 1", "return 2"), "helper_file")
    assert code_of(module(use).answer) == first
    module(helper.replace("FACTOR = 2", "FACTOR = 3"), "helper_file")
    assert code_of(module(use).answer) != first


def cell(source: str, names: dict[str, Any], number: int) -> None:
    """Run a notebook's cell as IPython does: under a file name that only `linecache` knows."""
    file = f"<ipython-input-{number}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), names)


@pytest.mark.parametrize(
    ("changed", "same"),
    [("def helper(x):\n    return 3 * x\n", False), ("def helper(x):\n    'Help.'\n    return 2 * x  # twice\n", True)],
)
def test_another_cell_of_a_notebook_counts(changed: str, same: bool) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    cell("scale = 0.5\ndef helper(x):\n    return 2 * x\n", names, 1)
    cell("def answer(x):\n    return scale * helper(x)\n", names, 2)
    first = code_of(names["answer"])
    cell(changed, names, 3)
    assert (code_of(names["answer"]) == first) == same
    names["scale"] = 0.25
    assert code_of(names["answer"]) != first


@dataclass(frozen=True)
class Drawn:
    name: str
    draw: Callable[[float], float]


def test_values_count_as_they_are() -> None:
    import numpy as np
    import torch

    pairs: list[tuple[object, object]] = [
        (1, 2),
        (1, True),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        (torch.ones(2), torch.zeros(2)),
        (np.ones(2), np.ones(3)),
        (Drawn("a", math.sin), Drawn("a", math.cos)),
        (Drawn("a", math.sin), Drawn("b", math.sin)),
        (functools.partial(math.pow, 1), functools.partial(math.pow, 2)),
    ]
    for one, other in pairs:
        assert code_of(one) == code_of(one)
        assert code_of(one) != code_of(other)
    assert code_of({1, 2, 3}) == code_of({3, 2, 1})


def test_a_library_imported_inside_a_function_counts_the_same_before_and_after_it_is_loaded(
    module: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module("def answer(x):\n    from colorsys import rgb_to_hls\n    return rgb_to_hls(x, x, x)\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    first = code_of(made.answer)
    made.answer(0.5)
    assert "colorsys" in sys.modules
    assert code_of(made.answer) == first
    other = module("def answer(x):\n    from colors import rgb_to_hls\n    return rgb_to_hls(x, x, x)\n", name="other")
    assert code_of(other.answer) != first


def test_a_drawn_task_is_the_same_whether_its_library_is_loaded_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit_lite.suites.miniature.tasks import digits

    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    first = code_of(digits.real)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", ModuleType("sklearn.datasets"))
    vars(sys.modules["sklearn.datasets"])["load_digits"] = math.sqrt
    assert code_of(digits.real) == first
