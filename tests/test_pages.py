"""What the pages name exists: modules and what is in them, and files; and code that they hold fits onto a page."""

import functools
import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "book").rglob("*.md"))
        if "_build" not in path.parts
    ),
    "README.md",
    "benchmarks/README.md",
    "mergekit_lite/reference/README.md",
]
WIDEST = 88  # columns that a page shows without scrolling
TOP = r"(?:mergekit_lite|tests|notebooks|profiles|benchmarks|coursework|book)"
MADE = re.compile(r"book/_build|NAME")  # by a build, or by the reader

every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@every_page
def test_modules_and_what_is_in_them_exist(page: str) -> None:
    found = set(re.findall(r"\bmergekit_lite(?:\.\w+)+", text_of(page)))
    found |= {
        f"mergekit_lite.{name}"
        for name in re.findall(r"`((?:study|analysis|pipeline|methods|suites)\.\w+)`", text_of(page))
    }
    for name in found - {f"mergekit_lite.{extension}" for extension in ("egg", "py")}:
        look_up(name)
    for module, names in re.findall(r"^ *from (mergekit_lite[\w.]*) import (.+)$", text_of(page), flags=re.MULTILINE):
        for name in names.split(", "):
            if (module, name) != ("mergekit_lite.suites.miniature.tasks", "flags"):  # which the reader writes
                look_up(f"{module}.{name}")


def look_up(dotted: str) -> object:
    """Return a module, or what is in one, by its dotted name."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[count:], module)
    raise ModuleNotFoundError(dotted)


@every_page
def test_files_exist(page: str) -> None:
    there = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {f"{parent.as_posix()}/" for path in there for parent in Path(path).parents}
    for path in re.findall(rf"(?<![\w./]){TOP}/[\w./-]*", text_of(page)):
        if not MADE.search(path):
            assert path.rstrip(".") in there or f"{path.rstrip('./')}/" in folders, path


@every_page
def test_code_fits_onto_the_page(page: str) -> None:
    blocks = re.findall(r"^```(?:python|sh|bash|text)$(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)
    blocks += [path.read_text(encoding="utf-8") for path in (ROOT / "book/examples").glob("*.py")]
    assert [line for block in blocks for line in block.splitlines() if len(line) > WIDEST] == []
