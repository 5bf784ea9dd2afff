"""The book's example of a task of one's own is a file and a row, and then a task like all others, wherever it lies."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mergekit_lite.suites import load_suite, miniature
from mergekit_lite.suites.miniature import canvas
from mergekit_lite.suites.miniature.drawing import DrawnTask, draw, drawing_hash
from mergekit_lite.suites.miniature.tasks import TASKS
from mergekit_lite.suites.scoring import accuracy

EXAMPLE = Path(__file__).parents[1] / "book" / "examples" / "flags.py"


def task_in(path: Path) -> DrawnTask:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task: DrawnTask = module.TASK
    return task


@pytest.fixture(scope="module")
def flags() -> DrawnTask:
    return task_in(EXAMPLE)


def test_the_example_is_short() -> None:
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 35  # of which the imports are six


def test_its_pictures_differ_and_its_classes_are_balanced(flags: DrawnTask) -> None:
    images, labels = draw(flags, "test", 100)
    assert len({picture.numpy().tobytes() for picture in images}) == 100
    assert labels.bincount().tolist() == [20] * 5


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""Draw a cloth before the sky', '"""Draw a piece of cloth before the sky', True),
        ("    cloth = box(f, 0.9, 0.6)\n", "\n    # twice as wide as high\n    cloth = box(f, 0.9, 0.6)\n", True),
        ("zero_shot=50.0", "zero_shot=60.0", True),  # what the base is taught, which is hashed itself
        ("0.9, 0.6", "0.9, 0.5", False),  # of all classes
        ("disc(f, 0.35)", "disc(f, 0.45)", False),  # of one
        ("zero_shot=50.0", "zero_shot=50.0, grain=0.1", False),
    ],
)
def test_the_hash_of_its_pictures_follows_what_is_drawn(tmp_path: Path, before: str, after: str, same: bool) -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert before in source
    (tmp_path / "elsewhere.py").write_text(source.replace(before, after), encoding="utf-8")
    assert (drawing_hash(task_in(EXAMPLE)) == drawing_hash(task_in(tmp_path / "elsewhere.py"))) is same


def test_the_hash_follows_the_canvas_too(flags: DrawnTask, monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawing_hash(flags)
    monkeypatch.setitem(flags.classes[0].draw.func.__globals__, "box", canvas.ellipse)  # type: ignore[attr-defined]
    assert drawing_hash(flags) != before


@pytest.mark.skipif(not miniature.BASE.exists(), reason="there are no base weights")
def test_with_its_row_it_is_a_task_of_the_suite_that_can_be_learnt(
    flags: DrawnTask, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setitem(TASKS, flags.name, flags)
    suite = load_suite("miniature", "cpu")
    assert list(suite.tasks)[-1] == "flags"
    assert suite.names("eight") == tuple(suite.tasks)[:8]  # the benchmark's sets stay what they are
    assert np.shape(suite.split("flags", "test").images) == (1000, 3, 32, 32)
    assert accuracy(suite, suite.experts["flags"], "flags") > max(80, accuracy(suite, suite.base, "flags"))
