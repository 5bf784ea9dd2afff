"""What surrounds the library: requirements, package data, licence, citation and the make file."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import mergekit_lite

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))

CONDA_NAMES = {
    "torch": "pytorch",
    "huggingface-hub": "huggingface_hub",
    "playwright": "playwright-python",
    "ray": "ray-core",
}  # besides "_", which conda-forge writes "-"
ONLY_ON_PYPI = {"sphinx-mathjax-offline"}  # comes with the last line of environment.yml, -e .[book,test]


def split(requirement: str) -> tuple[str, frozenset[str]]:
    """Return the name as conda-forge spells it, and the bounds: "torch>=2.11,<3" is ("pytorch", {">=2.11", "<3"})."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", requirement)
    assert found, requirement
    name = found[1].lower().replace("_", "-")
    return CONDA_NAMES.get(name, name), frozenset(part.strip() for part in found[2].split(",") if part.strip())


def pypi_requirements() -> dict[str, frozenset[str]]:
    project = PROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    return dict(map(split, [*project["dependencies"], *extras]))


def test_conda_environment_is_in_step() -> None:
    *packages, last = CONDA["dependencies"]
    conda = dict(map(split, packages))
    assert conda.pop("python") == {PROJECT["project"]["requires-python"]}
    assert conda.pop("pip") == frozenset()
    pypi = pypi_requirements()
    assert pypi.keys() >= ONLY_ON_PYPI
    assert conda == {name: bounds for name, bounds in pypi.items() if name not in ONLY_ON_PYPI}
    assert last == {"pip": ["-e .[book,test]"]}
    assert CONDA["channels"] == ["conda-forge"]


def test_every_data_file_is_packaged() -> None:
    package = ROOT / "mergekit_lite"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["mergekit_lite"]
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} - packaged == set()
    modules = {path.parent for path in files if path.suffix == ".py"}
    assert {folder for folder in modules if not (folder / "__init__.py").is_file()} == set()


def test_licence_and_citation() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"
    assert citation["version"] == PROJECT["project"]["version"] == mergekit_lite.__version__


def test_quality_gate_can_be_run() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run") for step in workflow["jobs"]["build"]["steps"]]
    assert steps.index("make test") < steps.index("make book")


def test_the_scheduled_job_runs_the_whole_book_with_one_worker_and_with_two() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    *_, run, compare = [step.get("run", "") for step in workflow["jobs"]["again"]["steps"]]
    (profiles,) = re.findall(r"for profile in (.+); do", run)
    executed = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "book/executed").glob("*.ipynb")]
    assert set(profiles.split()) == {one["metadata"]["mergekit_lite"]["profile"] for one in executed}
    assert 'taskset -c "$cores" .venv/bin/mergekit-lite run "$profile" --force' in run
    assert compare.startswith(".venv/bin/python -m benchmarks.same_records ")


def make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    environment = {**inherited, "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("target", ["book", "test"])
def test_make_refuses_an_old_python(tmp_path: Path, target: str) -> None:
    old = script(tmp_path / "bin/python-old", "exit 1")  # what any interpreter answers that is older than asked for
    done = make(tmp_path, f"PYTHON={old}", target)
    assert done.returncode != 0
    assert f"needs Python 3.11 or newer; tried: {old}." in done.stderr
    assert f"make PYTHON=/path/to/python3.12 {target}" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_takes_a_newer_python_beside_an_old_one(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    for name, answer in (("python3", 1), ("python3.13", 1), ("python3.12", 0), ("python3.11", 0)):
        script(tmp_path / "bin" / name, f'case "$1" in -c) exit {answer};; -m) echo {name} "$@" >>{log}; exit 9;; esac')
    done = make(tmp_path, "install", path=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert log.read_text() == "python3.12 -m venv --clear .venv\n"
    assert done.returncode != 0
    assert "python3.12 could not make a virtual environment" in done.stderr


def test_make_installs_once_and_again_when_requirements_change(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    script(tmp_path / ".venv/bin/python", f'case "$1" in -m) echo "$@" >>{log};; esac')

    def installs() -> int:
        assert make(tmp_path, "install").returncode == 0
        return len(log.read_text().splitlines())

    stamp = tmp_path / ".venv/.installed"
    assert installs() == 1
    assert "-e .[book,test]" in log.read_text()
    os.utime(stamp, (2**31, 2**31))  # the stamp is newer than pyproject.toml, which `make` above wrote again
    assert installs() == 1
    os.utime(stamp, (0, 0))
    assert installs() == 2
