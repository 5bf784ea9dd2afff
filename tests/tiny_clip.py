"""A CLIP of the papers' form, tiny and with random weights, and the suite around it: fixtures of several files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from mergekit_lite.cache import file_digest
from mergekit_lite.suites.clip import ClipSuite, check, clip_suite, decoded, hub
from mergekit_lite.suites.clip.benchmark import ClipModel, hub_tasks
from mergekit_lite.suites.clip.transformers_format import to_transformers
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.suites.suite import Split
from mergekit_lite.weight_files import write

TINY = ClipModel("clip-tiny", "CLIP tiny", "b32", "mergekit-lite-test-quickgelu", "openai")
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}
TASKS = ("mnist", "eurosat")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repository -> its one file: a tiny CLIP in open_clip's format and experts in transformers' format."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / f"{TINY.architecture}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(TINY.architecture)
    write(folder / "base.safetensors", model.state_dict())
    paths = {"nobody/base": folder / "base.safetensors"}
    for task in TASKS:
        weights = {name: value.detach() for name, value in model.visual.named_parameters() if name != "proj"}
        expert = {name: value + 0.02 * torch.randn_like(value) for name, value in weights.items()}
        path = paths[hub_tasks()[task].experts["b32"]] = folder / f"{task}.safetensors"
        write(path, to_transformers(expert))
    return paths


@pytest.fixture
def suite(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cache: Path) -> ClipSuite:
    """The tiny suite: what comes from the hub lies in `files`, images are noise."""

    def split(task: Any, which: str, side: int, *, crop: str = "", workers: int = 1) -> Split:
        rng = np.random.default_rng([len(task.name), which == "test"])
        labels = rng.integers(len(task.classnames), size=60)
        return Split(rng.integers(256, size=(60, 3, side, side), dtype=np.uint8), labels)

    def source(repo: str, filename: str) -> hub.Source:
        return hub.Source(repo, filename, "c" * 40, file_digest(files[repo]))

    monkeypatch.setattr(hub, "downloaded", lambda repo, filename: files[repo])
    monkeypatch.setattr(hub, "source", source)
    monkeypatch.setattr(decoded, "decoded_split", split)
    monkeypatch.setattr(decoded, "fingerprint", lambda task, which, *how: f"{task.name}-{which}-{how}")
    for module in (clip_suite, check):
        monkeypatch.setattr(module, "base_file", lambda model: ("nobody/base", "open_clip_model.safetensors"))
    monkeypatch.delenv(check.VARIABLE, raising=False)
    return ClipSuite(TINY, torch.device("cpu"))


def promise(patch: pytest.MonkeyPatch, suite: ClipSuite, base: float = 0.0, **experts: float) -> None:
    """Let FusionBench have printed what base and experts of TASKS reach here, and for some so many points more."""
    reached = {
        "Pre-trained": {task: accuracy(suite, suite.base, task) + base for task in TASKS},
        suite.printed: {task: accuracy(suite, suite.experts[task], task) + experts.get(task, 0.0) for task in TASKS},
    }
    printed = {
        row: {task: {"twenty tasks": f"{percent:.2f}"} for task, percent in of.items()} for row, of in reached.items()
    }
    patch.setattr(check, "prints", lambda model, row: printed[row])
