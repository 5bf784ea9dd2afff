"""A project of one's own, from a clone and from a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.pipeline import profiles, runner

ROOT = Path(__file__).parents[1]


def test_a_new_project_has_notebooks_profiles_and_an_example(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "below" / "mine")])
    assert done.exit_code == 0, done.output
    assert "mergekit-lite run miniature" in done.output
    project = tmp_path / "below" / "mine"
    there = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert {"README.md", "birds.yaml", "suite.schema.json", "notebooks/eight_tasks.ipynb"} <= there
    assert {path.name for path in (project / "notebooks").iterdir()} == {
        path.name for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    profile = profiles.load("miniature", profiles.find_root(project))
    assert {name: runner.check_parameters(profile, name, project) for name in profile.notebooks}
    assert not [name for name in there if "smoke" in name]


def test_an_empty_folder_may_be_filled_and_any_other_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert CliRunner().invoke(app, ["init", str(tmp_path / "empty")]).exit_code == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    told = CliRunner().invoke(app, ["init", str(tmp_path / "full")])
    assert told.exit_code == 1
    assert "is there already and is not empty. Name a new folder" in told.output
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_nothing_is_left_where_it_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    for folder in (tmp_path / "mine", tmp_path / "below" / "mine"):
        told = CliRunner().invoke(app, ["init", str(folder)])
        assert told.exit_code == 1
        assert "cannot be made (No space left on device). Free some space" in told.output
        assert not list(tmp_path.iterdir())


def test_the_folder_that_one_stands_in_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A shell in it would otherwise be left in a folder that is gone.
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "link")
    assert CliRunner().invoke(app, ["init", "."]).exit_code == 0
    assert Path("README.md").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]
    assert not [path for path in (tmp_path / "mine").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("place", ["file/mine", "n" * 300])
def test_where_no_folder_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    told = CliRunner().invoke(app, ["init", str(tmp_path / place)])
    assert told.exit_code == 1
    assert "cannot be made (" in told.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_book_is_built_in_a_clone_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["init", str(tmp_path / "mine")]).exit_code == 0
    monkeypatch.chdir(tmp_path / "mine")
    told = CliRunner().invoke(app, ["book"])
    assert told.exit_code == 1
    assert "There is no book in" in told.output


def test_a_wheel_brings_all_that_a_new_project_needs(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves a folder where it builds.
    copy = tmp_path / "clone"
    for name in ("mergekit_lite", "notebooks", "profiles"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        "-q",
    ]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert any(name.endswith("share/mergekit-lite/notebooks/eight_tasks.ipynb") for name in names)
    assert any(name.endswith("benchmark_files/classnames/sun397.txt") for name in names)
    # As pip lays it out: the data beside the package are found through the installation's own list of files.
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "installed")!r})
from mergekit_lite.pipeline import starting
assert starting.mergekit_lite.__file__.startswith({str(tmp_path)!r})
print(*(path.name for path in starting.begin(starting.Path({str(tmp_path / "mine")!r}))))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["README.md", "birds.yaml", "notebooks", "profiles", "suite.schema.json"]
