"""The engine is chosen without touching a notebook: by an option, a variable, or a line of the profile."""

import importlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from projects import write_notebook
from rich.console import Console
from test_runner import printed
from typer.testing import CliRunner

from mergekit_lite.cache import ENGINE
from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import profiles, runner
from mergekit_lite.pipeline.doctor import report
from mergekit_lite.study import engines

ASKS = "import os\nprint(os.environ.get('MERGEKIT_LITE_ENGINE'))"


def project(root: Path, *cells: str, engine: str | None = None) -> profiles.Profile:
    write_notebook(root, "one", *cells, parameters=None)
    (root / "profiles").mkdir()
    told = {"suite": "miniature", "notebooks": {"one": {}}} | ({"engine": engine} if engine else {})
    (root / "profiles" / "short.yaml").write_text(yaml.safe_dump(told))
    return profiles.load("short", root)


@pytest.mark.parametrize(
    ("option", "variable", "profile", "chosen"),
    [
        ("ray cpus=2", "ray cpus=3", "ray cpus=4", "ray cpus=2"),
        (None, "ray cpus=3", "ray cpus=4", "ray cpus=3"),
        (None, "", "ray cpus=4", "ray cpus=4"),
        (None, None, "slurm partition=gpu minutes=240", "slurm partition=gpu minutes=240"),
        ("processes", "ray", "ray", "processes"),
        (None, None, None, None),
    ],
)
def test_an_option_goes_before_the_variable_and_that_before_the_profile(
    option: str | None,
    variable: str | None,
    profile: str | None,
    chosen: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = list[str | None]()

    def execute(*_: object) -> float:
        seen.append(os.environ.get(ENGINE))
        return 0.0

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.delenv(ENGINE, raising=False)
    if variable is not None:
        monkeypatch.setenv(ENGINE, variable)
    runner.run_profile(project(tmp_path, ASKS, engine=profile), tmp_path, engine=option)
    assert seen == [chosen]
    assert os.environ.get(ENGINE) == variable


def test_a_notebook_sees_the_engine_of_its_profile_and_computes_with_it(tmp_path: Path, cache: Path) -> None:
    asks = (
        "import fakes\nfrom mergekit_lite import study\n"
        "tasks = ('digits', 'signs')\n"
        "cell = study.Cell(method='slow_average', pool=tasks, evaluate=tasks)\n"
        "(record,) = study.run(fakes.fake_suite(), [cell])\nprint(record.key)\n"
    )
    project(tmp_path, ASKS, asks, engine="slurm local=yes at_once=1")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop(ENGINE, None)
    done = subprocess.run(
        [sys.executable, "-c", "from mergekit_lite.cli import app; app()", "run", "short"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown, progress, key, *_ = printed(tmp_path / "build" / "short" / "one.ipynb").splitlines()
    assert shown == "slurm local=yes at_once=1"
    assert progress.startswith("[1/1] ")
    assert (cache / "records" / "fake" / f"{key}.json").is_file()
    assert (cache / "jobs").is_dir()  # where the engine's jobs lay
    assert not list((cache / "jobs").iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rya", "There is no engine 'rya'. Did you mean 'ray'? Engines: processes, ray, slurm."),
        ("", "'' names no engine"),
        ("slurm gpu", "'gpu' is no option of its own. Write `slurm key=value ...`"),
        ("slurm partion=gpu", "The engine 'slurm' has no option 'partion'. Did you mean 'partition'?"),
        ("processes cpus=2", "The engine 'processes' has no options. Leave cpus out."),
    ],
)
def test_a_text_that_names_no_engine_is_refused_before_anything_runs(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, ASKS)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "short", "--engine", text])
    assert done.exit_code == 1
    assert words in " ".join(done.output.split())
    assert not (tmp_path / "build").exists()


def test_an_engine_that_is_not_installed_is_refused_by_a_run_and_may_stand_in_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    monkeypatch.delenv(ENGINE, raising=False)
    profile = project(tmp_path, ASKS, engine="ray")
    with pytest.raises(KitError, match=r'pip install "mergekit-lite\[ray\]"'):
        runner.run_profile(profile, tmp_path)
    assert not (tmp_path / "build").exists()
    assert engines.installed()["ray"] == 'pip install "mergekit-lite[ray]"'


def test_options_are_known_without_importing_what_is_behind_an_engine() -> None:
    code = (
        "import sys\nfrom mergekit_lite.study import engines\n"
        "print(engines.check_engine('ray cpus=2'), engines.check_engine('slurm local=yes'), engines.installed())\n"
        "assert not {'ray', 'submitit'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for known in engines._KNOWN.values():
        pytest.importorskip(known.package)
        assert known.options == importlib.import_module(known.module).OPTIONS


def test_doctor_says_which_engines_are_there(cache: Path) -> None:
    stream = io.StringIO()
    report.show(console=Console(file=stream, width=200))
    (line,) = [line for line in stream.getvalue().splitlines() if "processes: here" in line]
    assert line.split()[1] == "engines"
    assert "; ray: " in line
    assert "slurm: submitit " in line


def test_the_help_tells_which_choice_wins() -> None:
    help_text = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    told = " ".join(help_text.replace("│", " ").split())
    assert "by default what the variable MERGEKIT_LITE_ENGINE names, else engine: of the profile" in told
