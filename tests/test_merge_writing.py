"""Merged folders: what is in them, byte by byte, and that nothing half-written is ever left."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from mergekit_lite import __version__
from mergekit_lite.cache import file_digest
from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.merge import running, streamed
from mergekit_lite.merge.folders import check_space, new_folder
from mergekit_lite.merge.streamed import StreamedFile

CODED = [*streamed._CODES]


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["merge", *arguments])
    return result.exit_code, result.stdout, result.stderr


def weights(seed: int, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.0.weight": (8, 6), "layer.0.bias": (8,), "layer.1.weight": (5, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | more


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders base, a and b in the current one."""
    for seed, name in enumerate(("base", "a", "b")):
        (tmp_path / name).mkdir()
        save_file(weights(seed, steps=torch.tensor([seed])), tmp_path / name / "model.safetensors", {"format": "pt"})
    (tmp_path / "base" / "config.json").write_text('{"model_type": "x"}')
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TWO = ("--base", "base", "--expert", "a=a", "--expert", "b=b")


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_streamed_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {f"{letter}{place} ü": torch.ones(3, 2).to(kind) for place, kind in enumerate(CODED) for letter in "ba"}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4), "z": torch.ones(1, dtype=torch.bool)}
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    layouts = {name: (tuple(one.shape), one.dtype) for name, one in tensors.items()}
    with StreamedFile(tmp_path / "ours", layouts, {"format": "pt"}) as file:
        for name, one in tensors.items():
            for entry in reversed(range(one.numel())):
                file.put(name, one.reshape(-1)[entry : entry + 1], entry)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_file_with_a_hole_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="never written"),
        StreamedFile(tmp_path / "x", {"a": ((3,), torch.float32)}, {}) as file,
    ):
        file.put("a", torch.ones(2))


def test_a_dtype_without_a_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"'a' is torch\.complex128, which cannot be written"):
        StreamedFile(tmp_path / "x", {"a": ((3,), torch.complex128)}, {})
    assert not list(tmp_path.iterdir())


def test_what_belongs_to_the_base_is_copied_and_what_is_no_float_is_listed(here: Path) -> None:
    code, said, _ = call("task_arithmetic", *TWO, "-o", "merged")
    assert code == 0
    assert "Task Arithmetic of 2 experts: 3 tensors, 96 numbers; 1 more is copied from the base." in said
    assert "Names: fused" in said
    assert said.endswith("Merged: merged\nTo share it: hf upload ORG/NAME merged\n")
    files = {path.name for path in (here / "merged").iterdir()}
    assert files == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    found = load_file(here / "merged" / "model.safetensors")
    assert found["steps"].tolist() == [0]
    expected = weights(0)["layer.0.bias"] + 0.3 * sum(
        weights(seed)["layer.0.bias"] - weights(0)["layer.0.bias"] for seed in (1, 2)
    )
    torch.testing.assert_close(found["layer.0.bias"], expected)
    card = (here / "merged" / "README.md").read_text(encoding="utf-8")
    assert "Copied from the base (torch.int64, no floating-point numbers): `steps`." in card


def test_the_card_tells_how_to_make_the_model_again(here: Path, tmp_path: Path) -> None:
    place = str((here / "b").absolute())
    call(
        "dare",
        "--base",
        "base",
        "--expert",
        "a=./a",
        "--expert",
        f"b={place}",
        "-p",
        "drop=0.5",
        "--seed",
        "3",
        "-o",
        f"{here}/merged",
    )
    text = (here / "merged" / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "unknown",
        "tags": ["merge", "mergekit-lite"],
    }
    assert str(here) not in text
    command = "mergekit-lite merge dare --base base --expert a=./a --expert b=b -p drop=0.5 --seed 3 -o merged"
    assert command in text
    assert "| drop | `0.5` |" in text
    assert "| scaling | `0.3` |" in text  # a default
    assert "| seed | 3 |" in text
    assert f"| mergekit-lite | {__version__} |" in text
    assert f"| torch | {torch.__version__} |" in text
    for name in ("base", "a", "b"):
        assert file_digest(here / name / "model.safetensors") in text
    shutil.rmtree(here / "merged")
    assert call(*command.split()[2:])[0] == 0  # it does what it says


def test_shards_stay_shards(here: Path) -> None:
    base, index = weights(0), {}
    (here / "base" / "model.safetensors").unlink()
    for place, (name, tensor) in enumerate(base.items(), start=1):
        index[name] = f"model-0000{place}-of-00003.safetensors"
        save_file({name: tensor}, here / "base" / index[name])
    (here / "base" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for name in "ab":
        save_file(weights(ord(name)), here / name / "model.safetensors")
    assert call("ties_merging", *TWO, "-o", "merged")[0] == 0
    written = json.loads((here / "merged" / "model.safetensors.index.json").read_text())
    assert written == {"metadata": {"total_size": 4 * 96}, "weight_map": index}
    assert {name: set(load_file(here / "merged" / file)) for name, file in index.items()} == {
        name: {name} for name in index
    }


def test_a_pickled_base_is_written_as_safetensors(here: Path) -> None:
    (here / "base" / "model.safetensors").unlink()
    torch.save(weights(0, steps=torch.tensor([7])), here / "base" / "pytorch_model.bin")
    code, said, _ = call("simple_average", *TWO, "-o", "merged")
    assert code == 0
    assert "The base is a pickle; the merged model is written as safetensors." in said
    assert {path.name for path in (here / "merged").iterdir()} >= {"model.safetensors", "config.json"}
    assert load_file(here / "merged" / "model.safetensors")["steps"].tolist() == [7]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_stays_what_it_is(kind: torch.dtype, here: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        save_file({key: one.to(kind) for key, one in weights(seed).items()}, here / name / "model.safetensors")
    assert call("tsv_merging", *TWO, "-o", "merged")[0] == 0
    assert {one.dtype for one in load_file(here / "merged" / "model.safetensors").values()} == {kind}


def test_experts_of_a_wider_dtype_lose_nothing_before_the_sum(here: Path) -> None:
    base = {name: one.bfloat16() for name, one in weights(0).items()}
    save_file(base, here / "base" / "model.safetensors")
    for seed, name in enumerate("ab", start=1):
        save_file(weights(seed), here / name / "model.safetensors")
    _, said, _ = call("task_arithmetic", *TWO, "--dry-run")
    assert "3 bfloat16 (merged in float32)" in " ".join(said.replace("│", " ").split())
    assert call("task_arithmetic", *TWO, "-o", "merged")[0] == 0
    found = load_file(here / "merged" / "model.safetensors")
    for name, start in base.items():
        total = sum(weights(seed)[name] - start.float() for seed in (1, 2))
        assert torch.equal(found[name], (start.float() + 0.3 * total).bfloat16())


def test_an_empty_folder_may_be_filled(here: Path) -> None:
    (here / "merged").mkdir()
    assert call("task_arithmetic", *TWO, "-o", "merged")[0] == 0
    assert (here / "merged" / "model.safetensors").is_file()


def full(*some: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*some: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["StreamedFile.put", "copyfile", "model_card"])
@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        (
            full,
            1,
            "The disk of {here}/new/merged is full: it filled up while the model was written (0.00 GB). Nothing ",
        ),
        (interrupted, 130, "Interrupted. Nothing was written."),
    ],
)
def test_nothing_is_left_of_a_merge_that_did_not_end(
    where: str, trouble: Callable[..., None], code: int, words: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        "StreamedFile.put": (StreamedFile, "put"),
        "copyfile": (shutil, "copyfile"),
        "model_card": (running, "model_card"),
    }
    monkeypatch.setattr(*places[where], trouble)
    before = {path.name for path in here.iterdir()}
    found, said, complaint = call("task_arithmetic", *TWO, "-o", "new/merged")
    assert found == code
    assert words.format(here=here) in complaint
    assert "Merged" not in said
    assert {path.name for path in here.iterdir()} == before  # the folder `new` is gone too


def test_a_disk_that_is_too_small_is_seen_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(
        KitError, match=r"is full: the merged model takes \d{9,}.00 GB, and .* GB are free\. Nothing was left"
    ):
        check_space(tmp_path / "new" / "merged", 10**18)


def test_what_a_killed_merge_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    for process in (2**30, os.getppid()):
        (tmp_path / f".merged.{process}.tmp").mkdir()
    with new_folder(tmp_path / "merged") as place:
        (place / "x").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".merged.{os.getppid()}.tmp", "merged"]


def test_a_folder_that_was_filled_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "model").mkdir(parents=True)
    with pytest.raises(KitError, match="was filled by somebody else meanwhile"), new_folder(tmp_path / "merged"):
        (tmp_path / "theirs").rename(tmp_path / "merged")
    assert [path.name for path in tmp_path.rglob("*")] == ["merged", "model"]
