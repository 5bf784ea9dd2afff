"""The family OC-20 on the loopback hub: fetched, converted once, and named in records with what is odd about it."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import open_clip
import pytest
import torch
from loopback_data import CONFIG, connect, put_data, put_models
from loopback_hub import LoopbackHub, loopback_hub
from torch import Tensor

from mergekit_lite import study
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.clip import check, oc20
from mergekit_lite.suites.clip.benchmark import MODELS, hub_tasks
from mergekit_lite.suites.clip.converted import place

pytest.importorskip("datasets")
SUITE, TASKS = "clip-vit-b-32@OC-20", ("mnist", "dtd")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODELS["clip-vit-b-32"].architecture, CONFIG)
    monkeypatch.setenv(check.VARIABLE, "1")  # nothing is known of what random weights reach
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        put_data(served, *TASKS)
        put_models(served)
        yield served


@pytest.fixture
def encoders(hub: LoopbackHub) -> Mapping[str, Mapping[str, Tensor]]:
    """Task -> the encoder that lies on the hub, as the authors stored theirs: without the text's blocks only."""
    torch.manual_seed(0)
    clip = open_clip.create_model(MODELS["clip-vit-b-32"].architecture)
    found, content = {}, {}
    for task in TASKS:
        state = {name: value for name, value in clip.state_dict().items() if not name.startswith("transformer.")}
        state = {f"model.{name}": value + 0.01 * torch.randn_like(value) for name, value in state.items()}
        stream = io.BytesIO()
        torch.save(state, stream)
        content[f"single_task/ViT-B-32/{oc20.NAMES[task]}Val/nonlinear_finetuned.pt"] = stream.getvalue()
        visual = "model.visual."
        found[task] = {name.removeprefix(visual): value for name, value in state.items() if visual in name}
    hub.put("model", oc20.REPOSITORY, content)
    return found


def downloads(hub: LoopbackHub) -> list[str]:
    return [path for method, path, _ in hub.asked if method == "GET" and path.endswith(".pt")]


def test_experts_are_fetched_and_converted_once_with_their_projection(
    hub: LoopbackHub, encoders: Mapping[str, Mapping[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    suite = load_suite(SUITE, "cpu")
    assert (type(suite), suite.title) == (oc20.OC20Suite, "CLIP ViT-B/32 (OC-20)")
    before = suite.fingerprint(TASKS, TASKS)
    assert downloads(hub) == []  # a key is a question to the hub
    for task in TASKS:
        assert set(suite.experts[task]) == set(suite.base) == set(encoders[task])
        assert all(torch.equal(suite.experts[task][name], value) for name, value in encoders[task].items())
    assert len(downloads(hub)) == len(TASKS)
    assert (
        "Converting nik-dim/tall_masks/single_task/ViT-B-32/MNISTVal/nonlinear_finetuned.pt." in capsys.readouterr().out
    )
    assert suite.fingerprint(TASKS, TASKS) == before
    hub.asked.clear()
    again = suite.loader()
    assert (type(again), again.fingerprint(TASKS, ())["experts"]) == (oc20.OC20Suite, before["experts"])
    assert not downloads(hub)


def test_every_record_names_the_familys_oddities(
    hub: LoopbackHub, encoders: Mapping[str, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    suite = load_suite(SUITE, "cpu")
    before = suite.sources(TASKS)
    (record,) = study.run(
        suite, [Cell(method="simple_average", pool=TASKS, evaluate=("mnist",))], workers=1, folder=tmp_path / "records"
    )
    told = record.provenance.sources
    assert record.suite == SUITE
    assert told["base"].startswith("timm/vit_base_patch32_clip_224.openai@")
    commit = next(iter(hub.repositories["model", oc20.REPOSITORY]))
    file = f"nik-dim/tall_masks@{commit}/single_task/ViT-B-32/DTDVal/nonlinear_finetuned.pt"
    assert told["dtd"].startswith(f"OC-20: {file}, sha256 ")
    assert before["dtd"] == file
    assert "EMNIST of this family is the ten digits" in told["OC-20"]
    assert "the test images of DTD that its authors report on overlap those its expert was trained on" in told["OC-20"]
    assert before["OC-20"] == told["OC-20"]


def test_the_letters_have_no_expert_here_and_that_is_said_before_anything_is_fetched(
    hub: LoopbackHub, encoders: Mapping[str, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    suite = load_suite(SUITE, "cpu")
    hub.asked.clear()
    words = (
        r"no expert of 'emnist_letters'. Its EMNIST is the ten digits, another task than the 26 letters.* Leave it out"
    )
    with pytest.raises(KitError, match=words):
        suite.prepare(["mnist", "emnist_letters"], 1)
    cell = Cell(method="simple_average", pool=("emnist_letters",), evaluate=("mnist",))
    with pytest.raises(KitError, match=words):
        study.run(suite, [cell], workers=1, folder=tmp_path / "records")
    assert not downloads(hub)


def test_a_file_that_is_not_there_is_named(hub: LoopbackHub, encoders: Mapping[str, Mapping[str, Tensor]]) -> None:
    file = r"nik-dim/tall_masks/single_task/ViT-B-32/SVHNVal/nonlinear_finetuned\.pt"
    with pytest.raises(KitError, match=rf"{file} could not be fetched: the repository has no such file"):
        load_suite(SUITE, "cpu").expert("svhn")


def test_a_damaged_expert_is_converted_anew_after_it_was_deleted(
    hub: LoopbackHub, encoders: Mapping[str, Mapping[str, Tensor]]
) -> None:
    suite = load_suite(SUITE, "cpu")
    suite.expert("mnist")
    path = place("clip-vit-b-32", "OC-20", "mnist")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(
        KitError, match=r"is not a whole safetensors file\. Delete it and run the same again: it is fet"
    ):
        suite.expert("mnist")
    path.unlink()
    assert torch.equal(suite.expert("mnist")["proj"], encoders["mnist"]["proj"])


def test_another_models_checkpoint_is_refused_by_its_tensors(hub: LoopbackHub) -> None:
    stream = io.BytesIO()
    torch.save(
        {"model.visual.conv1.weight": torch.ones(8, 3, 4, 4), "model.visual.class_embedding": torch.ones(8)}, stream
    )
    hub.put("model", oc20.REPOSITORY, {oc20.expert_file("b32", "mnist")[1]: stream.getvalue()})
    with pytest.raises(
        KitError, match=r"its tensors are not those of CLIP ViT-B/32: 'positional_embedding' is missing"
    ):
        load_suite(SUITE, "cpu").expert("mnist")


def test_names_are_those_of_the_benchmark_but_for_the_letters() -> None:
    assert [*oc20.NAMES, "emnist_letters"] == [*(t for t in hub_tasks() if t != "emnist_letters"), "emnist_letters"]
    assert set(oc20.FOLDERS) == {model.key for model in MODELS.values()}
    assert oc20.expert_file("b16", "stanford-cars")[1] == "single_task/VIT-B-16/CarsVal/nonlinear_finetuned.pt"
