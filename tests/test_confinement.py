"""The process of a submission on systems that offer less, and its limits."""

import re
import time
from pathlib import Path

import pytest
import submissions

from mergekit_lite.course import confinement, merging, private
from mergekit_lite.course.merging import Desk, Examined
from mergekit_lite.course.plan import Plan
from mergekit_lite.errors import KitError
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.miniature import tasks
from mergekit_lite.suites.suite import Suite

FLAGS = Path(__file__).parents[1] / "book/examples/flags.py"
PLAIN = Examined(name="merge", access="none")


def plan(**changes: object) -> Plan:
    pools = {"open": {"tasks": ["circles", "squares"], "evaluate": ["circles"]}}
    suite = "mergekit_lite.course.pico_suite"
    return Plan.model_validate({"suite": suite, "pools": pools, "points": {"checks": 1}, **changes})


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("mergekit_lite.course.pico_suite", "cpu")


@pytest.fixture
def poorer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without `unshare`, Landlock, `resource` and process groups, as Windows is."""
    script = tmp_path / "a poorer system" / "child.py"
    script.parent.mkdir()
    script.write_text(
        "import runpy, sys\n"
        "import psutil\n"  # which on Linux imports it itself
        "sys.modules['resource'] = None\n"
        f"sys.path.append({str(confinement.CHILD.parents[2])!r})\n"
        "from mergekit_lite.course import landlock\n"
        "landlock.version = lambda: 0\n"
        f"runpy.run_path({str(confinement.CHILD)!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(confinement, "CHILD", script)
    monkeypatch.setattr(confinement, "_network", tuple)
    monkeypatch.delattr("os.killpg", raising=False)
    return


def handed_in(folder: Path, body: str) -> Path:
    path = folder / "a method.py"
    path.write_text(submissions.merging(body))
    return path


def test_a_poorer_system_grades_too_and_says_what_it_lacks(poorer: None, tmp_path: Path, suite: Suite) -> None:
    desk = Desk(plan(), ())
    path = handed_in(tmp_path, f"return Merged({submissions.AVERAGE})")
    examined = merging.examine(path, desk)
    assert examined.problem == ""
    assert all(one.passed for one in examined.checks)
    assert examined.cut == {
        "time": "by the grader's clock",
        "network": "by Python alone",
        "files": "by Python alone",
        "memory": "by the grader, which looks at it several times a second",
    }
    merge = merging.merge(suite, path, examined, "open", 0, desk)
    assert merge.problem == ""
    assert merge.accuracy.keys() == {"circles"}


def test_time_is_limited_on_a_poorer_system_too(poorer: None, tmp_path: Path, suite: Suite) -> None:
    path = handed_in(tmp_path, "while True:\n    pass")
    begun = time.monotonic()
    merge = merging.merge(suite, path, PLAIN, "open", 0, Desk(plan(limits={"seconds": 1}), ()))
    assert merge.problem == "It did not end within 1 s."
    assert time.monotonic() - begun < confinement.STARTUP


def test_memory_is_limited(tmp_path: Path, suite: Suite) -> None:
    path = handed_in(tmp_path, "hoard = []\nwhile True:\n    hoard.append(torch.ones(2**24))")
    merge = merging.merge(suite, path, PLAIN, "open", 0, Desk(plan(limits={"memory": 1.5}), ()))
    assert "memory" in merge.problem
    assert merge.accuracy == {}


def test_memory_is_watched_where_the_system_does_not_limit_it(poorer: None, tmp_path: Path, suite: Suite) -> None:
    body = "import time\nhoard = []\nwhile True:\n    hoard.append(torch.ones(2**24))\n    time.sleep(0.05)"
    path = handed_in(tmp_path, body)
    merge = merging.merge(suite, path, PLAIN, "open", 0, Desk(plan(limits={"memory": 1.5}), ()))
    assert merge.problem == "It took more than 1.5 GiB of memory."


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return Merged({})", "returned weights that do not fit the base"),
        ("return Merged({name: tensor * float('nan') for name, tensor in base.items()})", "NaN or infinite"),
        ("return 1 / 0", r"ZeroDivisionError: division by zero \(a method.py, line 9\)"),
        ("raise SystemExit(3)", r"SystemExit: 3 \(a method.py, line 9\)"),
    ],
)
def test_what_is_no_merge_is_said_in_words(tmp_path: Path, suite: Suite, body: str, words: str) -> None:
    merge = merging.merge(suite, handed_in(tmp_path, body), PLAIN, "open", 0, Desk(plan(), ()))
    assert re.search(words, merge.problem)


def test_tests_of_the_teachers_that_cannot_be_used_are_the_teachers_to_mend(tmp_path: Path) -> None:
    (tmp_path / "tests.py").write_text("import nothing_like_this\n")
    path = handed_in(tmp_path, submissions.BASE)
    given = plan(points={"tests": {"points": 1, "file": str(tmp_path / "tests.py")}})
    with pytest.raises(KitError, match=r"tests\.py cannot be used: ModuleNotFoundError"):
        merging.examine(path, Desk(given, ()))


def test_a_private_task_is_one_of_the_graders_suite_only() -> None:
    try:
        suite = private.suite_with("miniature", FLAGS)
        assert list(suite.tasks)[-1] == "flags"
        assert list(suite.with_expert_seed(3).experts)[-1] == "flags"
        assert list(suite.loader().tasks)[-1] == "flags"  # as another process of the grader makes it
        assert suite.expert_hash("flags")
    finally:
        tasks.TASKS.pop("flags", None)
    assert "flags" not in load_suite("miniature", "cpu").tasks


def test_a_private_task_needs_a_name_of_its_own(tmp_path: Path) -> None:
    copy = tmp_path / "digits.py"
    copy.write_text(FLAGS.read_text(encoding="utf-8").replace('name="flags"', 'name="digits"'), encoding="utf-8")
    with pytest.raises(KitError, match="has a task 'digits' already"):
        private.suite_with("miniature", copy)
    with pytest.raises(KitError, match="is drawn"):
        private.suite_with("mergekit_lite.course.pico_suite", FLAGS)
    (tmp_path / "none.py").write_text("")
    with pytest.raises(KitError, match="defines no `TASK"):
        private.suite_with("miniature", tmp_path / "none.py")


def test_tests_alone_may_be_of_functions(tmp_path: Path) -> None:
    tests = tmp_path / "tests.py"
    tests.write_text(
        "def test_double(module):\n    assert module.double(2) == 4\n\n\n"
        "def test_half(given):\n    assert given.half(2) == 1, 'half of two is one'\n"
    )
    cells = [
        "import numpy as np\n\nTWO = np.array(2)",
        "def double(number):\n    return TWO * number",
        "def half(number):\n    return number\n\n\nprint(half(open('nothing here')))",
    ]
    submissions.write_notebook(tmp_path / "anna.ipynb", cells)
    given = plan(pools={}, points={"tests": {"points": 2, "file": str(tests)}})
    examined = merging.examine(tmp_path / "anna.ipynb", Desk(given, ()))
    assert (examined.problem, examined.tests_stopped, examined.name) == ("", "", "")
    assert [(one.name, one.passed) for one in examined.tests] == [("test_double", True), ("test_half", False)]
    assert examined.tests[1].reason == "half of two is one"


def test_a_notebook_without_what_is_asked_for_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "tests.py").write_text("def test_double(module):\n    assert module.double(2) == 4\n")
    submissions.write_notebook(tmp_path / "anna.ipynb", ["x = 1"])
    given = plan(pools={}, points={"tests": {"points": 2, "file": str(tmp_path / "tests.py")}})
    examined = merging.examine(tmp_path / "anna.ipynb", Desk(given, ()))
    assert "defines nothing that is asked for: double" in examined.problem
