"""An expert of one's own: the recipe, resuming to the last bit, both formats, and the command."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fakes
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mergekit_lite import suites
from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import finetune as tuning
from mergekit_lite.suites.clip.finetune import make_expert
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.weight_files import LazyWeights, read

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

SHORT: dict[str, Any] = {"steps": 7, "learning_rate": 1e-2, "batch_size": 16, "checkpoint_every": 3}


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


@pytest.fixture(scope="module")
def miniature() -> "Suite":
    """The real suite on the user's own cache: the images of one task are drawn once and stay valid."""
    return suites.load_suite("miniature", "cpu")


def stopping(suite: "Suite", steps: int) -> "Suite":
    """Make `suite` end like an interrupted run in its step number `steps` + 1."""
    made = 0
    real = suite.encode

    def encode(weights: Any, images: Tensor) -> Tensor:
        nonlocal made
        made += 1
        if made > steps:
            raise KeyboardInterrupt
        return real(weights, images)

    cast(Any, suite).encode = encode
    return suite


def same(one: Path, two: Path) -> bool:
    first, second = read(one), read(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_steps_are_those_of_adam_with_a_cosine(suite: "Suite", tmp_path: Path) -> None:
    written = make_expert(suite, "signs", output=tmp_path, **SHORT)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in suite.base.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=SHORT["learning_rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=SHORT["steps"])
    split = suite.split("signs", "train")
    order = np.concatenate([np.random.default_rng([0, epoch]).permutation(40) for epoch in range(3)])
    for step in range(SHORT["steps"]):
        rows = order[16 * step : 16 * (step + 1)]
        logits = suite.encode(weights, torch.from_numpy(split.images[rows])) @ suite.heads["signs"].T
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(split.labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    for name, tensor in read(written).items():
        torch.testing.assert_close(tensor, weights[name].detach(), rtol=1e-5, atol=1e-6)
    assert accuracy(suite, read(written), "signs") > accuracy(suite, suite.base, "signs")


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_a_resumed_run_ends_with_the_very_numbers_of_an_uninterrupted_one(
    suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: int
) -> None:
    whole = make_expert(suite, "digits", output=tmp_path / "whole", **SHORT)
    with pytest.raises(KeyboardInterrupt):
        make_expert(stopping(fakes.fake_suite(), stop), "digits", output=tmp_path / "parts", **SHORT)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint.safetensors"]
    capsys.readouterr()
    parts = make_expert(stopping(fakes.fake_suite(), 4 + 1), "digits", output=tmp_path / "parts", **SHORT)
    assert f"Resuming after step {stop // 3 * 3}, from" in capsys.readouterr().out
    assert same(whole, parts)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["encoder.safetensors"]


def test_the_miniature_resumes_too(miniature: "Suite", tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"steps": 4, "learning_rate": 1e-4, "batch_size": 8, "checkpoint_every": 2}
    whole = make_expert(miniature, "digits", output=tmp_path / "whole", **recipe)
    other = stopping(suites.load_suite("miniature", "cpu"), 3)
    with pytest.raises(KeyboardInterrupt):
        make_expert(other, "digits", output=tmp_path / "parts", **recipe)
    assert same(whole, make_expert(miniature, "digits", output=tmp_path / "parts", **recipe))
    tuned = read(whole)
    assert tuned.keys() == miniature.base.keys()
    assert not torch.equal(tuned["conv1.weight"], miniature.base["conv1.weight"])


def test_it_says_how_it_goes(suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_expert(suite, "digits", output=tmp_path, **SHORT)
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 3/7", "step 6/7", "step 7/7"]
    assert all("loss" in line and "% of the training images classified correctly" in line for line in lines)
    assert last.endswith("% of the test images of digits are classified correctly")


def test_a_finished_run_is_not_done_again(suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_expert(suite, "digits", output=tmp_path, **SHORT)
    capsys.readouterr()
    assert make_expert(stopping(suite, 0), "digits", output=tmp_path, **SHORT) == first
    assert capsys.readouterr().out == f"{first} is there already.\n"
    metadata = LazyWeights(first).metadata
    assert (metadata["suite"], metadata["task"]) == ("fake", "digits")
    assert json.loads(metadata["recipe"]) == {"steps": 7, "learning_rate": 0.01, "batch_size": 16, "seed": 0}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 8}, {"learning_rate": 1e-3}, {"batch_size": 4}, {"task": ""}]
)
def test_a_folder_of_another_run_is_refused(
    suite: "Suite", tmp_path: Path, finished: bool, change: dict[str, Any]
) -> None:
    if finished:
        make_expert(suite, "digits", output=tmp_path, **SHORT)
    else:
        with pytest.raises(KeyboardInterrupt):
            make_expert(stopping(fakes.fake_suite(), 4), "digits", output=tmp_path, **SHORT)
    task, numbers = ("signs", {}) if "task" in change else ("digits", change)
    with pytest.raises(KitError, match=r"is of a run with another suite, task, recipe or seed\. Delete it, or choose"):
        make_expert(suite, task, output=tmp_path, **{**SHORT, **numbers})


def test_wrong_arguments_are_said(suite: "Suite", tmp_path: Path) -> None:
    with pytest.raises(KitError, match="There is no task 'digit'"):
        make_expert(suite, "digit", output=tmp_path, **SHORT)


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        *((name, 0, "not 0") for name in ("steps", "learning_rate", "batch_size", "checkpoint_every")),
        *((name, -1, "not -1") for name in SHORT),
        ("seed", -1, "int from 0 to 4294967295, not -1"),
        ("seed", 2**32, "int from 0"),
        pytest.param("steps", 10**4999, "not a number of 16607 bits", id="of 5000 digits"),
        ("steps", 2.0, "int from 1 to 1000000, not 2.0"),
        ("steps", True, "not True"),
        ("batch_size", 41, "int from 1 to 40, not 41. There are 40 training images."),
        ("batch_size", 10**9, "There are 40 training images."),
        ("learning_rate", 1e30, "float from 1e-12 to 1.0, not 1e+30"),
        ("learning_rate", math.nan, "not nan"),
        ("learning_rate", math.inf, "not inf"),
        ("learning_rate", "1e-3", "not '1e-3'"),
    ],
)
def test_a_number_out_of_its_range_is_said_before_anything_is_done(
    suite: "Suite", tmp_path: Path, name: str, number: Any, words: str
) -> None:
    with pytest.raises(KitError, match=re.escape(words)) as caught:
        make_expert(stopping(suite, 0), "digits", output=tmp_path / "new", **{**SHORT, name: number})
    assert str(caught.value).startswith(f"Fine-tuning on 'digits': {name} must be ")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "zero\0byte"])
def test_a_folder_that_cannot_be_written_to_is_said_before_training(suite: "Suite", tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match=r"cannot be written \(.*\)\. Free some space|is no name of a folder"):
        make_expert(stopping(suite, 0), "digits", output=tmp_path / place, **SHORT)


@pytest.mark.parametrize("steps", [3, 7])
def test_a_loss_that_is_not_a_number_ends_the_run_and_nothing_is_written(
    suite: "Suite", tmp_path: Path, steps: int
) -> None:
    cast(Any, suite).encode = lambda weights, images: weights["layer.bias"].expand(len(images), -1) * math.nan
    with pytest.raises(KitError, match=r"by step 3 the loss became NaN or infinite, so nothing is written\. Choose a"):
        make_expert(suite, "digits", output=tmp_path, **{**SHORT, "steps": steps})
    assert not list(tmp_path.iterdir())


def test_weights_that_the_last_step_breaks_are_not_written(suite: "Suite", tmp_path: Path) -> None:
    real = suite.encode

    def infinitely_steep(weights: Any, images: Tensor) -> Tensor:
        features = real(weights, images)
        features.register_hook(lambda gradient: gradient * math.inf)
        return features

    cast(Any, suite).encode = infinitely_steep
    with pytest.raises(KitError, match=r"by step 1 the layer\.weight; layer\.bias became NaN or infinite"):
        make_expert(suite, "digits", output=tmp_path, **{**SHORT, "steps": 1})
    assert not list(tmp_path.iterdir())


def test_images_come_in_shuffled_epochs() -> None:
    rows = np.concatenate([tuning._rows(10, 4, step, seed=3) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])
    assert np.array_equal(tuning._rows(10, 4, 2, seed=3), rows[8:12])


def test_transformers_reads_what_is_written_for_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from open_clip.transformer import QuickGELU, VisionTransformer

    torch.manual_seed(0)
    encoder = VisionTransformer(16, 4, 128, 2, heads=2, mlp_ratio=4.0, output_dim=12, act_layer=QuickGELU).eval()
    weights = {name: one.detach() for name, one in encoder.named_parameters() if name != "proj"}
    tuning._write_for_transformers(tmp_path, weights, 12)
    model = transformers.CLIPVisionModel.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours, theirs = encoder(images), model(images).pooler_output @ encoder.proj
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_clip_is_written_in_both_formats(suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(tuning, "_write_for_transformers", lambda *given: asked.append(given))
    make_expert(suite, "digits", output=tmp_path / "fake", **SHORT)
    assert not asked
    named = fakes.fake_suite("clip-vit-b-32")
    tuned = read(make_expert(named, "digits", output=tmp_path / "clip", **SHORT))
    ((folder, weights, projection),) = asked
    assert (folder, projection) == (tmp_path / "clip" / "transformers", fakes.DIMENSION)
    assert all(torch.equal(tuned[name], weights[name]) for name in tuned)


def test_the_command_hands_over_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "load_suite", lambda name, device: fakes.fake_suite())
    short = ["--steps", "2", "--learning-rate", "1e-3", "--batch-size", "4"]
    result = CliRunner().invoke(app, ["finetune", "fake", "digits", *short])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "finetuned/fake/digits/encoder.safetensors"
    (tuned,) = (tmp_path / "finetuned").rglob("*.safetensors")
    moved = (read(tuned)["layer.bias"] - fakes.fake_suite().base["layer.bias"]).abs().max()
    assert 0 < moved < 1e-3 * (1 + (1 + math.cos(math.pi / 2)) / 2) * 1.01


def test_what_a_dead_process_left_unfinished_is_removed_and_a_living_ones_file_is_not(
    suite: "Suite", tmp_path: Path
) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = tmp_path / f".checkpoint.safetensors.{int(ended.stdout)}.tmp"
    alive = tmp_path / f".checkpoint.safetensors.{os.getppid()}.tmp"
    dead.touch()
    alive.touch()
    make_expert(suite, "digits", output=tmp_path, **SHORT)
    assert not dead.exists()
    assert alive.exists()
