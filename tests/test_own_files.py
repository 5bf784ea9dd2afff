"""Methods of one's own in files: loaded by path, with helpers beside them, under names that tell them apart."""

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Pico

from mergekit_lite.errors import KitError
from mergekit_lite.methods import MethodInfo, all_methods, get, load_method, registry

OWN = """
from mergekit_lite.methods import Access, Merged, method
from helper import FACTOR, Scale

@method(title="Mine", cite="", access=Access.NONE)
def my_merge(base, experts, *, times: float = 1.0):
    return Merged({name: Scale(FACTOR)(start) * times for name, start in base.items()})
"""
HELPER = """
FACTOR = 1.0

class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, tensor):
        return tensor * self.factor
"""


@pytest.fixture(autouse=True)
def own_methods_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def own(folder: Path, factor: float = 1.0, name: str = "own.py", text: str = OWN) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text(HELPER.replace("1.0", str(factor)))
    (folder / name).write_text(text)
    return folder / name


def factor(info: MethodInfo, pico: Pico) -> float:
    merged = info.function(pico.base, pico.experts).weights
    return float(merged["proj"][0, 0] / pico.base["proj"][0, 0])


def test_a_file_is_loaded_by_its_path(tmp_path: Path, pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path / "mine", 2.0)
    monkeypatch.chdir(tmp_path / "mine")
    (info,) = load_method("own.py")
    assert (info.name, info.title, info.source) == ("mine/own:my_merge", "Mine", tmp_path / "mine" / "own.py")
    assert get("my_merge") is get("own:my_merge") is get("mine/own:my_merge") is info
    assert info in all_methods()
    assert factor(info, pico) == 2
    with pytest.raises(KitError, match=r"Method 'my_merge' has no parameter 'tims'\. Did you mean 'times'\?"):
        registry.resolve("own:my_merge", {"tims": 1.0})


def test_two_files_may_define_one_name_and_have_helpers_of_one_name(tmp_path: Path, pico: Pico) -> None:
    (first,) = load_method(own(tmp_path / "anna", 2.0))
    (second,) = load_method(own(tmp_path / "ben", 3.0))
    (third,) = load_method(own(tmp_path / "ben", 3.0, "other.py", OWN.replace("FACTOR)", "FACTOR + 1)")))
    assert [factor(info, pico) for info in (first, second, third)] == [2, 3, 4]
    assert [get(info.name) for info in (first, second, third)] == [first, second, third]
    assert get("other:my_merge") is third
    message = (
        r"Several files define a method 'my_merge'\. Say which one: 'anna/own:my_merge', 'ben/own:my_merge', 'ben/o"
    )
    with pytest.raises(KitError, match=message):
        get("my_merge")
    with pytest.raises(KitError, match="'anna/own:my_merge', 'ben/own:my_merge'"):
        get("own:my_merge")


def test_loading_leaves_neither_path_nor_helper_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = type(sys)("helper")
    monkeypatch.setitem(sys.modules, "helper", mine)
    before = list(sys.path)
    load_method(own(tmp_path / "a"))
    assert sys.path == before
    assert sys.modules["helper"] is mine
    assert not list(tmp_path.rglob("*.pyc"))


def test_classes_of_a_helper_have_a_source_and_pickle(tmp_path: Path) -> None:
    (info,) = load_method(own(tmp_path / "a"))
    scale = inspect.unwrap(info.function).__globals__["Scale"]
    assert inspect.getsource(scale).startswith("class Scale:")
    assert pickle.loads(pickle.dumps(scale(3.0))).factor == 3


def test_a_file_that_changed_is_read_anew_with_its_helper(tmp_path: Path, pico: Pico) -> None:
    text = (
        OWN + "\n\n@method(title='', cite='', access=Access.NONE)\ndef gone(base, experts):\n    return Merged(base)\n"
    )
    first, gone = load_method(own(tmp_path / "a", 2.0, text=text))
    assert gone.name == "a/own:gone"
    (second,) = load_method(own(tmp_path / "a", 3.0))  # as many characters, within the same second
    assert get("my_merge") is second
    assert [factor(info, pico) for info in (first, second)] == [2, 3]
    with pytest.raises(KitError, match="There is no method 'gone'"):
        get("gone")


def test_a_file_that_was_imported_too_is_one_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path / "a", name="imported_too.py", text=OWN.replace("from helper", "from a_helper"))
    (tmp_path / "a" / "a_helper.py").write_text(HELPER)
    monkeypatch.syspath_prepend(path.parent)
    for name in ("imported_too", "a_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    __import__("imported_too")
    assert get("my_merge").source is None
    load_method(path)
    assert get("my_merge").source == path
    assert [info.name for info in all_methods()][-1] == "a/imported_too:my_merge"


def test_a_name_of_the_kit_is_refused_and_all_stays_as_it_was(tmp_path: Path) -> None:
    (info,) = load_method(own(tmp_path / "a"))
    before = all_methods()
    own(tmp_path / "a", text=OWN.replace("my_merge", "ties_merging"))
    with pytest.raises(KitError, match=r"There already is a method 'ties_merging' in mergekit_lite\.methods\.ties\."):
        load_method(tmp_path / "a" / "own.py")
    own(tmp_path / "a", text=OWN + "1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_method(tmp_path / "a" / "own.py")
    assert all_methods() == before
    assert get("my_merge") is info


def test_files_without_methods_and_paths_without_files_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"There is no Python file .*nowhere\.py\. Give the path"):
        load_method(tmp_path / "nowhere.py")
    (tmp_path / "own.txt").write_text(OWN)
    with pytest.raises(KitError, match=r"There is no Python file .*own\.txt"):
        load_method(tmp_path / "own.txt")
    with pytest.raises(KitError, match=r"own\.py defines no method\. Put @method"):
        load_method(own(tmp_path / "a", text="x = 1\n"))


def test_another_process_finds_a_method_by_its_source_whatever_it_is_called(tmp_path: Path) -> None:
    infos = [load_method(own(tmp_path / folder, factor))[0] for folder, factor in (("anna", 2.0), ("ben", 3.0))]
    text = (
        "import sys, torch\nfrom mergekit_lite import methods\n"
        "for source, name in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    methods.load_method(source)\n"
        "    base = {'a': torch.ones(1)}\n"
        "    print(methods.get(name).function(base, {'x': base}).weights['a'].item())\n"
    )
    arguments = [str(one) for info in reversed(infos) for one in (info.source, info.name)]
    done = subprocess.run([sys.executable, "-c", text, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3.0", "2.0"]
