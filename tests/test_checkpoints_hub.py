"""Checkpoints of the hub: what is fetched, what is kept, and what is said where there is nothing to fetch."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from loopback_data import connect
from loopback_hub import LoopbackHub, loopback_hub
from safetensors.torch import save

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.opening import REPOSITORY, opened

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2)}
SHARDS = {name: f"model-0000{n}-of-00002.safetensors" for n, name in enumerate(TENSORS, start=1)}


def index(shards: dict[str, str]) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": shards}).encode()


BESIDE = {"config.json": b"{}", "tokenizer.json": b"{}", "vocab.txt": b"a", "preprocessor_config.json": b"{}"}
FILES: dict[str, bytes] = {
    **{SHARDS[name]: save({name: value}) for name, value in TENSORS.items()},
    **BESIDE,
    "model.safetensors.index.json": index(SHARDS),
    "pytorch_model.bin": b"not wanted",
    "README.md": b"not wanted",
    "old/model.safetensors": save({"a.weight": torch.zeros(1)}),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    pytest.importorskip("datasets")
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        yield served


@pytest.mark.parametrize("place", ["hf:ann/birds", "ann/birds"])
def test_shards_and_what_belongs_to_them_are_fetched_and_nothing_else(place: str, hub: LoopbackHub) -> None:
    commit = hub.put("model", "ann/birds", FILES)
    model = opened(place)
    assert model.format == "sharded"
    assert all(torch.equal(model[name], value) for name, value in TENSORS.items())
    assert {path.name for path in model.beside} == set(BESIDE)
    assert (model.place, model.source) == (place, f"ann/birds@{commit}")
    asked = {path.rpartition("/")[2] for _, path, _ in hub.asked}
    assert not asked & {"pytorch_model.bin", "README.md"}


def test_what_was_fetched_is_opened_offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("model", "ann/birds", FILES)
    digest = opened("hf:ann/birds").digest()
    hub.put("model", "ann/birds", {"model.safetensors": save({"a.weight": torch.zeros(1)})})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert opened("hf:ann/birds").digest() == digest
    assert len(hub.asked) == asked


def test_what_another_program_fetched_into_the_hub_s_cache_is_opened_offline(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    hub.put("model", "ann/birds", FILES)
    huggingface_hub.snapshot_download("ann/birds")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(opened("hf:ann/birds")["a.weight"], TENSORS["a.weight"])


def test_a_commit_and_a_file_can_be_named(hub: LoopbackHub) -> None:
    first = hub.put("model", "ann/birds", FILES)
    hub.put("model", "ann/birds", {"model.safetensors": save({"a.weight": torch.ones(1)})})
    assert list(opened("hf:ann/birds")) == ["a.weight"]
    assert set(opened(f"hf:ann/birds@{first}")) == set(TENSORS)
    old = opened(f"hf:ann/birds@{first}/old/model.safetensors")
    assert torch.equal(old["a.weight"], torch.zeros(1))
    assert old.source == f"ann/birds@{first}"


def test_shards_of_the_hub_that_climb_out_are_refused(hub: LoopbackHub) -> None:
    hub.put("model", "ann/birds", {**FILES, "model.safetensors.index.json": index({"a.weight": "../../x.safetensors"})})
    with pytest.raises(KitError, match=r"lies in another folder\. Files of a model lie beside its index"):
        opened("hf:ann/birds")


def test_a_shard_that_the_hub_lacks_is_said(hub: LoopbackHub) -> None:
    hub.put("model", "ann/birds", {name: content for name, content in FILES.items() if "00002-of" not in name})
    with pytest.raises(KitError, match=r"names the file model-00002-of-00002\.safetensors, which is not there"):
        opened("hf:ann/birds")


def test_a_repository_of_pickles_in_several_files_is_told_what_to_do(hub: LoopbackHub) -> None:
    hub.put("model", "ann/birds", {"pytorch_model.bin.index.json": b"{}", "config.json": b"{}"})
    with pytest.raises(
        KitError, match=r"ann/birds on the hub has its weights in several pickles\. Load the model with"
    ):
        opened("hf:ann/birds")


def test_a_repository_a_file_or_a_commit_that_is_not_there_is_said(hub: LoopbackHub) -> None:
    hub.put("model", "ann/birds", FILES)
    with pytest.raises(KitError, match="ann/bird"):
        opened("hf:ann/bird")
    with pytest.raises(KitError, match=r"There is no path ann/bird here, so it was looked for on the hub: "):
        opened("ann/bird")
    with pytest.raises(KitError, match=r"ann/birds has no file x\.safetensors\. It has .*config\.json"):
        opened("hf:ann/birds/x.safetensors")
    with pytest.raises(KitError, match="ann/birds@0123456"):
        opened("hf:ann/birds@0123456")


def test_offline_what_was_never_fetched_is_said(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("model", "ann/birds", FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KitError, match="ann/birds"):
        opened("hf:ann/birds")
    assert not hub.asked


@pytest.mark.parametrize(
    ("named", "revision", "file"),
    [
        ("org/name@refs/pr/1", "refs/pr/1", None),
        ("org/name@refs/pr/1/part/model.safetensors", "refs/pr/1", "part/model.safetensors"),
        ("org/name@v1.0/model.safetensors", "v1.0", "model.safetensors"),
        ("org/name@refs/model.safetensors", "refs", "model.safetensors"),
    ],
)
def test_revisions_with_slashes_are_not_taken_for_files(named: str, revision: str, file: str | None) -> None:
    match = REPOSITORY.fullmatch(named)
    assert match
    assert (match["repo"], match["revision"], match["file"]) == ("org/name", revision, file)
