"""From the hub to a table, in processes of their own: fetch, the experts' check, a study, a notebook, and no network.

The hub is a small one on this machine. Its CLIP is ViT-B/32 with two thin blocks, its experts are random, and its data
sets have the columns of the real ones. Accuracies mean nothing here; where everything comes from does.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import yaml
from loopback_data import CONFIG, put_data, put_models
from loopback_hub import LoopbackHub, loopback_hub

from mergekit_lite.suites.clip.benchmark import MODELS

pytest.importorskip("datasets")
SUITE, TASKS = "clip-vit-b-32", ("eurosat", "svhn", "mnist")
ROOT = Path(__file__).parents[1]
REDUCE = """
import builtins, sys
_import = builtins.__import__
def _reducing(name, *args, **kwargs):
    module = _import(name, *args, **kwargs)
    if name.partition(".")[0] == "open_clip" and hasattr(sys.modules.get("open_clip"), "add_model_config"):
        builtins.__import__ = _import
        sys.modules["open_clip"].add_model_config({path!r})
    return module
builtins.__import__ = _reducing
"""
"""`sitecustomize`: every new process takes the thin CLIP for ViT-B/32, as soon as it has imported open_clip."""


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as served, pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, MODELS[SUITE].architecture, CONFIG)
        put_data(served, *TASKS)
        put_models(served, *TASKS)
        yield served


@pytest.fixture(scope="module")
def environment(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("loopback")
    model = folder / f"{MODELS[SUITE].architecture}.json"
    model.write_text(json.dumps(CONFIG))
    (folder / "sitecustomize.py").write_text(REDUCE.format(path=str(model)))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MERGEKIT_"))},
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf"),
        "MERGEKIT_LITE_CACHE": str(folder / "kit"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.fixture(scope="module")
def fetched(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    tasks = ",".join(TASKS)
    return call(environment, "fetch", SUITE, "--tasks", tasks, "--workers", "1")


def call(environment: dict[str, str], *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mergekit_lite.cli import app; app()", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def script(environment: dict[str, str], code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fetch_brings_weights_and_images(fetched: subprocess.CompletedProcess[str]) -> None:
    assert fetched.returncode == 0, fetched.stderr
    assert "All is there." in fetched.stdout


def test_offline_a_study_runs_and_wrong_experts_are_refused(
    hub: LoopbackHub, environment: dict[str, str], fetched: subprocess.CompletedProcess[str]
) -> None:
    assert fetched.returncode == 0
    hub.asked.clear()
    code = f"""
import json, os
from mergekit_lite import study
from mergekit_lite.errors import KitError
from mergekit_lite.suites import load_suite
suite = load_suite({SUITE!r}, "cpu")
pool = {TASKS!r}
cells = [study.Cell(method=name, pool=pool, evaluate=pool) for name in ("pretrained", "task_arithmetic", "individual")]
try:
    study.run(suite, cells, workers=1)
except KitError as error:
    print("refused:", error)
os.environ["MERGEKIT_LITE_SKIP_EXPERT_CHECK"] = "1"
for record in study.run(suite, cells, workers=1):
    print(record.cell.method, json.dumps(record.accuracy))
"""
    said = script({**environment, "HF_HUB_OFFLINE": "1"}, code)
    assert "refused: The base of CLIP ViT-B/32 is on 2 of 2 tasks, without any training, more than 3 points" in said
    for method in ("pretrained", "task_arithmetic", "individual"):
        assert f'{method} {{"eurosat": ' in said
    assert hub.asked == []


def test_notebooks_run_offline_on_fewer_tasks_and_the_pilot_sees_wrong_experts(
    hub: LoopbackHub, environment: dict[str, str], fetched: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    assert fetched.returncode == 0
    hub.asked.clear()
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    for name in ("pyproject.toml", "_config.yml", "_toc.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "profiles").mkdir()
    parameters = {"tasks": ",".join(TASKS), "scalings": "0.3", "points": 2, "workers": 1}
    pilot = {"tasks": ",".join(TASKS), "steps": 2, "images_per_task": 2, "workers": 1}
    notebooks = {"task_arithmetic": parameters, "pilot": pilot}
    profile = {"description": "A thin CLIP.", "suite": SUITE, "notebooks": notebooks}
    (tmp_path / "profiles" / "thin.yaml").write_text(yaml.safe_dump(profile))
    offline = {**environment, "HF_HUB_OFFLINE": "1", "MERGEKIT_LITE_SKIP_EXPERT_CHECK": "1"}
    done = call(offline, "run", "thin", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "build" / "thin" / "task_arithmetic.ipynb").exists()
    executed = (tmp_path / "build" / "thin" / "pilot.ipynb").read_text(encoding="utf-8")
    (told,) = re.findall(
        r"\*\*(\d) of 6 accuracies agree with those of FusionBench, ViT-B/32 \(FB\)\. These do not", executed
    )
    assert int(told) < 3  # the experts are random, and not one of them agrees
    assert hub.asked == []
