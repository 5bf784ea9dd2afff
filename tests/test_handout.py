"""What a student gets, on a machine like theirs: the folder, its tests and notebook, and the check of a method."""

import glob
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import papermill
import pytest
import torch
from typer.testing import CliRunner

from mergekit_lite import study
from mergekit_lite.cli import app
from mergekit_lite.course import public, starting
from mergekit_lite.course.pico_suite import PicoSuite
from mergekit_lite.errors import KitError
from mergekit_lite.study.checks import resolved
from mergekit_lite.study.keys import what_decides
from mergekit_lite.suites import load_suite

ROOT = Path(__file__).parents[1]
PICO = "mergekit_lite.course.pico_suite"
FILES = {
    *("method.py", "test_method.py", "method.ipynb", "README.md", "requirements.txt"),
    *("LICENSE.md", "LICENSE-Apache-2.0", ".devcontainer/devcontainer.json"),
}

# Runs the command as Windows would: without /proc, `resource`, `fcntl` and what else is of Unix, on a terminal that
# knows few letters. The public pool is the pico pool, whose experts are there at once.
COMMAND = """
import builtins, io, os, sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import SimpleNamespace

import filelock, psutil, torch  # what they import on this system is theirs

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in ("resource", "fcntl"):
    sys.modules.pop(name, None)
for name in ("sched_getaffinity", "fork", "geteuid"):
    delattr(os, name)
opened = io.open

def windows(file, *arguments, **named):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return opened(file, *arguments, **named)

io.open = builtins.open = windows
psutil.Process = lambda *pid: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=2**28, rss=2**28))

import mergekit_lite.suites
from mergekit_lite.cli import app
from mergekit_lite.course import public
from mergekit_lite.course.pico_suite import PicoSuite

if "PUBLIC" in os.environ:
    mergekit_lite.suites.load_suite = lambda name, device: PicoSuite(torch.device(device))
    public.POOL = tuple(PicoSuite(torch.device("cpu")).tasks)
    public.QUESTION = public.QUESTION.model_copy(update={"pool": public.POOL, "evaluate": public.POOL})
    public.FILE = Path(os.environ["PUBLIC"])
app()
"""


def command(*arguments: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "cp1252",
        "COLUMNS": "200",
        "MERGEKIT_LITE_CACHE": str(folder / "cache"),
        **variables,
    }
    line = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, encoding="cp1252", check=False)


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a student whose name has spaces and an umlaut, and in it `My method`, made by `course new`."""
    home = tmp_path_factory.mktemp("home") / "Jörg Müller"
    home.mkdir()
    done = command("course", "new", "My method", folder=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "My method\n", "")
    return home


@pytest.fixture(scope="module")
def public_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of the kit's methods on the pico pool, in the place of those that are shipped."""
    folder = tmp_path_factory.mktemp("public")
    suite = PicoSuite(torch.device("cpu"))
    pool = tuple(suite.tasks)
    names = ("individual", "simple_average", "iso_c")
    cells = [study.Cell(method=name, pool=pool, evaluate=pool) for name in names]
    public.write(study.run(suite, cells, workers=1, folder=folder / "records"), folder / "public.json")
    return folder / "public.json"


def test_a_folder_holds_all_that_a_student_needs_and_nothing_of_ours(home: Path) -> None:
    assert written(home / "My method") == FILES
    assert {path.name for path in home.iterdir()} - {"cache"} == {"My method"}
    assert "colab" not in (home / "My method/README.md").read_text(encoding="utf-8").lower()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for place in (tmp_path / "mine", tmp_path / "mine/notes.txt"):
        with pytest.raises(KitError, match=r"is not empty\. Name a folder that is not there yet: nothing is"):
            starting.start(place)
    with pytest.raises(KitError, match=r"'kit' is no repository on GitHub\. Give it as owner/name"):
        starting.start(tmp_path / "other", "kit")
    assert written(tmp_path) == {"mine/notes.txt"}
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    monkeypatch.chdir("here")
    starting.start(Path("."))
    assert written(tmp_path / "here") == FILES


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_a_folder_that_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    if there:
        (tmp_path / "mine").mkdir()
    monkeypatch.setattr(starting, "_link", full)
    done = CliRunner().invoke(app, ["course", "new", str(tmp_path / "mine"), "--repository", "me/kit"])
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr
    assert list(tmp_path.rglob("*")) == ([tmp_path / "mine"] if there else [])


def test_without_a_repository_the_kit_comes_from_a_copy_and_from_no_index(tmp_path: Path) -> None:
    starting.start(tmp_path / "mine")
    assert (tmp_path / "mine/requirements.txt").read_text().split() == ["pytest", "jupyterlab"]
    assert starting.FROM_A_COPY in (tmp_path / "mine/README.md").read_text(encoding="utf-8")


def test_links_lead_to_the_repository_that_was_named(tmp_path: Path) -> None:
    starting.start(tmp_path / "Übung 1", "me/my-kit")
    folder = tmp_path / "Übung 1"
    badge = "https://colab.research.google.com/github/me/my-kit/blob/main/%C3%9Cbung%201/method.ipynb"
    assert f"({badge})\n" in (folder / "README.md").read_text(encoding="utf-8")
    requirement, *_ = (folder / "requirements.txt").read_text().splitlines()
    assert requirement == "mergekit-lite @ git+https://github.com/me/my-kit"
    assert "path/to" not in (folder / "README.md").read_text(encoding="utf-8")
    cells = json.loads((folder / "method.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join(cells[1]["source"])
    assert "!git clone --quiet --depth 1 https://github.com/me/my-kit\n" in text
    assert "os.chdir('my-kit/Übung 1')" in text
    assert "pip install -r requirements.txt" in (folder / ".devcontainer/devcontainer.json").read_text()


def test_every_file_is_packaged_hidden_ones_too() -> None:
    package = ROOT / "mergekit_lite"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["mergekit_lite"]
    # as setuptools looks for them, whose ** passes hidden folders by
    packaged = {one for pattern in patterns for one in glob.glob(pattern, root_dir=package, recursive=True)}
    data = {f"course/handout/{name}" for name in FILES if not name.endswith(".py")}
    assert {name.replace("/", os.sep) for name in data} <= packaged
    assert (starting.HANDOUT / "LICENSE-Apache-2.0").read_text() == (ROOT / "LICENSE").read_text()


def test_the_students_own_tests_pass_and_fail_where_the_method_is_wrong(home: Path, tmp_path: Path) -> None:
    def tested(folder: Path) -> str:
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout

    assert "3 passed" in tested(home / "My method")
    starting.start(tmp_path / "wrong")
    file = tmp_path / "wrong/method.py"
    file.write_text(file.read_text().replace("merged[name] = start +", "merged[name] = 0.5 * start +"))
    said = tested(tmp_path / "wrong")
    assert "2 failed, 1 passed" in said
    assert "experts equal to the base give the base" in said


def test_the_notebook_runs_with_workers_that_find_the_method(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(home / "cache of the notebook"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder, executed = home / "My method", home / "executed.ipynb"
    parameters = {"suite": PICO, "tasks": "circles, squares, stripes"}
    papermill.execute_notebook(
        str(folder / "method.ipynb"),
        str(executed),
        parameters,
        cwd=str(folder),
        kernel_name="python3",
        log_output=False,
    )
    outputs = [
        one for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"] for one in cell.get("outputs", [])
    ]
    text = json.dumps(outputs, ensure_ascii=False)
    assert "Median" in text
    assert "Bars of the average accuracy over 3 tasks in percent: Pre-trained " in text  # the figure, in words
    assert re.search(r"circles: [-+]\d+\.\d points", text)
    records = [json.loads(path.read_text()) for path in (home / "cache of the notebook").rglob("*.json")]
    assert {one["cell"]["method"] for one in records} >= {"individual", "median"}


def test_a_good_method_is_checked_and_placed(home: Path, public_file: Path) -> None:
    done = command("course", "check", "My method/method.py", folder=home, PUBLIC=str(public_file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Median (median), data access: none" in done.stdout
    assert len(re.findall("^yes ", done.stdout, re.MULTILINE)) == 10  # the terminal knows no ✓
    assert re.search(r"Place \d of 3 among the methods with data access 'none': \d+\.\d %", done.stdout)
    for name in ("Median (yours)", "Simple average", "Iso-C"):
        assert name in done.stdout
    assert written(home / "My method") == FILES  # nothing is left in the student's folder


def test_a_wrong_method_is_told_why(home: Path, public_file: Path) -> None:
    text = (home / "My method/method.py").read_text(encoding="utf-8")
    (home / "wrong.py").write_text(
        text.replace("merged[name] = start +", "merged[name] = 0.9 * start +"), encoding="utf-8"
    )
    done = command("course", "check", "wrong.py", folder=home, PUBLIC=str(public_file))
    assert done.returncode == 1
    assert re.search(r"NO +experts equal to the base give the base", done.stdout)
    assert "Place" in done.stdout  # it runs, so it is placed all the same
    (home / "fails.py").write_text(text.replace("return Merged(merged)", "return merged"), encoding="utf-8")
    done = command("course", "check", "fails.py", folder=home, PUBLIC=str(public_file))
    assert done.returncode == 1
    assert "It returned dict. Return `Merged(weights)`." in done.stdout
    assert "Place" not in done.stdout
    (home / "typo.py").write_text("import torhc\n" + text, encoding="utf-8")
    done = command("course", "check", "typo.py", folder=home, PUBLIC=str(public_file))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: typo.py cannot be loaded: ModuleNotFoundError: \"No module named 'torhc'\"")
    assert "(typo.py, line 1)" in done.stderr


def test_shipped_records_are_of_todays_code() -> None:
    suite = load_suite("miniature", "cpu")
    shipped = public.shipped()
    assert next(iter(shipped)) == "individual"
    assert {"simple_average", "tsv_merging", "regmean"} <= set(shipped) <= {"individual", *public.MERGES}
    for name, record in shipped.items():
        cell = resolved(suite, public.asked(name))
        assert record.cell == cell
        code = what_decides(suite, cell)["code"]
        assert record.provenance.code == code, f"{name}: run python -m mergekit_lite.course.public"
