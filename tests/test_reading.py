"""What students hand in: a file with its helpers, a folder, or a notebook, each read without being run."""

import os
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mergekit_lite.course.reading import read
from mergekit_lite.errors import KitError
from mergekit_lite.methods import load_method, registry

METHOD = """
from mergekit_lite.methods import Access, Merged, method
from helper import FACTOR

@method(title="Mine", cite="", access=Access.NONE)
def mine(base, experts, *, times: float = 1.0):
    return Merged({name: start * FACTOR * times for name, start in base.items()})
"""


@pytest.fixture(autouse=True)
def own_methods_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def notebook(path: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Mine"), *map(new_code_cell, cells)]), path)
    return path


def test_a_file_comes_with_the_helpers_it_imports_and_with_nothing_else(tmp_path: Path) -> None:
    own = tmp_path / "Übung 1"
    (own / "tools" / "inner").mkdir(parents=True)
    (own / "mine.py").write_text(METHOD)
    (own / "helper.py").write_text("def late():\n    import tools.inner.deep\n\nFACTOR = 2.0\n")
    (own / "tools" / "__init__.py").write_text("")
    (own / "tools" / "inner" / "__init__.py").write_text("")
    (own / "tools" / "inner" / "deep.py").write_text("import other\n")
    (own / "other.py").write_text("")
    (own / "stranger.py").write_text("raise SystemExit\n")
    (own / "notes.txt").write_text("")
    file = read(own / "mine.py", tmp_path / "in to")
    assert file == tmp_path / "in to" / "mine.py"
    modules = {"mine.py", "helper.py", "other.py"}
    packages = {"tools/__init__.py", "tools/inner/__init__.py", "tools/inner/deep.py"}
    assert written(file.parent) == modules | packages
    assert [info.function.__name__ for info in load_method(file)] == ["mine"]


def test_a_folder_is_read_by_its_method_file_or_by_the_one_file_with_a_method(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "helper.py").write_text("FACTOR = 2.0\n")
    (tmp_path / "test_mine.py").write_text("from mine import mine\n")
    assert read(tmp_path, tmp_path / "a").name == "mine.py"
    (tmp_path / "second.py").write_text(METHOD.replace("import Access, Merged, method", "import *"))
    with pytest.raises(KitError, match=r"several files that may be the method: mine\.py, second\.py\. Call"):
        read(tmp_path, tmp_path / "b")
    (tmp_path / "method.py").write_text(METHOD)
    assert written(read(tmp_path, tmp_path / "c").parent) == {"method.py", "helper.py"}


def test_of_a_notebook_the_methods_and_what_they_use_are_read(tmp_path: Path) -> None:
    path = notebook(
        tmp_path / "mine.ipynb",
        "from __future__ import annotations\n%matplotlib inline\nimport torch, seaborn\n!pip install nothing",
        "from mergekit_lite import study\nfrom mergekit_lite.suites import load_suite\n"
        "from mergekit_lite.methods import Access, Merged, method as register\nfrom helper import FACTOR",
        "Weights = dict[str, torch.Tensor]\nTABLE = {}\nTABLE['times'] = 3.0\nplotted = 1 / 0",
        "def unused():\n    return seaborn.heatmap(plotted)\n\n"
        "def scaled(start):\n    # this comment is kept\n    return start * FACTOR * TABLE['times']",
        "%%time\nsuite = load_suite('miniature')",
        "@register(title='Mine', cite='', access=Access.NONE)\ndef mine(base: Weights, experts):\n"
        "    return Merged({name: scaled(start) for name, start in base.items()})",
        "study.run(suite, [])",
    )
    (tmp_path / "helper.py").write_text("FACTOR = 2.0\n")
    file = read(path, tmp_path / "in")
    text = file.read_text()
    assert written(file.parent) == {"mine.py", "helper.py"}
    assert "# this comment is kept" in text
    for word in ("suite", "study", "seaborn.", "unused", "plotted", "pip", "matplotlib"):
        assert word not in text
    (info,) = load_method(file)
    ones = {"a": torch.ones(1)}
    assert float(info.function(ones, {"one": ones}).weights["a"]) == 6.0


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(KitError, match=words):
            read(path, tmp_path / "into")

    refused(tmp_path / "nothing.py", r"There is no .*nothing\.py\. Name a \.py file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no method. Put a file method.py into it")
    (tmp_path / "wrong.py").write_text("x = (\n")
    refused(tmp_path / "wrong.py", r"wrong\.py is not Python: .*line 1")
    (tmp_path / "zero.py").write_bytes(b"x = 1\0")
    refused(tmp_path / "zero.py", r"zero\.py is not Python")
    (tmp_path / "broken.ipynb").write_text("{}")
    refused(tmp_path / "broken.ipynb", "is no notebook")
    refused(notebook(tmp_path / "wrong.ipynb", "x = ("), r"Cell 2 of .*wrong\.ipynb, line 1 is not Python")
    refused(notebook(tmp_path / "none.ipynb", "x = 1"), "defines no method. Put @method")


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links need rights on Windows")
def test_a_link_hands_over_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "private.py").write_text("SECRET = 1\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "method.py").write_text(METHOD)
    (tmp_path / "own" / "helper.py").symlink_to(tmp_path / "private.py")
    with pytest.raises(KitError, match=r"helper\.py is a link that leads out of its folder"):
        read(tmp_path / "own", tmp_path / "into")
