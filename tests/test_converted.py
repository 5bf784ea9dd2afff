"""Converted checkpoints of another family become a suite of their own, which says so in every record."""

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damages import made_a_folder, made_a_loop
from safetensors.torch import load_file, save_file
from tiny_clip import TASKS, TINY, promise
from torch import Tensor
from typer.testing import CliRunner, Result

from mergekit_lite import study
from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell
from mergekit_lite.suites import SUITES, load_suite
from mergekit_lite.suites.clip import ClipSuite, converted
from mergekit_lite.suites.clip.benchmark import MODELS
from mergekit_lite.suites.clip.converted import ConvertedSuite, place
from mergekit_lite.suites.clip.encoder_layout import layout
from mergekit_lite.suites.corruptions import corrupted
from mergekit_lite.weight_files import LazyWeights


@pytest.fixture
def family(suite: ClipSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    """Task -> the encoder that was pickled, with its projection, and converted by the command."""
    promise(monkeypatch, suite)
    monkeypatch.setitem(MODELS, TINY.name, TINY)
    monkeypatch.setitem(SUITES, TINY.name, "mergekit_lite.suites.clip")
    encoders = {}
    for number, task in enumerate(TASKS):
        torch.manual_seed(number)
        start = dict(suite._model.visual.named_parameters())
        encoders[task] = {name: value.detach() + 0.02 * torch.randn_like(value) for name, value in start.items()}
        torch.save({f"model.visual.{name}": value for name, value in encoders[task].items()}, tmp_path / f"{task}.pt")
        result = convert(tmp_path / f"{task}.pt", task)
        assert result.exit_code == 0, result.output
    return encoders


def convert(source: Path, task: str, *more: str) -> Result:
    return CliRunner().invoke(app, ["convert", str(source), "--suite", TINY.name, "--task", task, *more])


def oc8() -> ConvertedSuite:
    return ConvertedSuite(TINY, "OC-8", torch.device("cpu"))


def test_experts_come_from_the_converted_files_and_their_projection_is_merged(
    suite: ClipSuite, family: Mapping[str, Mapping[str, Tensor]]
) -> None:
    theirs = oc8()
    assert set(theirs.base) == set(suite.base) | {"proj"}
    for task, encoder in family.items():
        assert all(torch.equal(theirs.experts[task][name], value) for name, value in encoder.items())
    images = torch.from_numpy(suite.split("mnist", "test").images[:4])
    assert torch.equal(theirs.encode(theirs.base, images), suite.encode(suite.base, images))
    changed = {**theirs.base, "proj": family["mnist"]["proj"]}
    assert not torch.allclose(theirs.encode(changed, images), theirs.encode(theirs.base, images))


def test_a_record_says_of_which_family_its_experts_are(
    suite: ClipSuite, family: Mapping[str, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    cell = Cell(method="simple_average", pool=TASKS, evaluate=TASKS)
    theirs = oc8()
    (record,) = study.run(theirs, [cell], workers=1, folder=tmp_path / "records")
    assert record.suite == f"{TINY.name}@OC-8"
    assert theirs.title == "CLIP tiny (OC-8)"
    assert study.cell_key(suite, cell) != record.key
    told = record.provenance.sources
    assert told["base"].startswith("nobody/base@")
    assert told["mnist"].startswith("OC-8: mnist.pt, sha256 ")
    again = pickle.loads(pickle.dumps(theirs.loader))()
    assert (again.name, study.cell_key(again, cell)) == (theirs.name, record.key)


def test_a_base_that_they_were_not_made_from_is_refused(
    suite: ClipSuite, family: Mapping[str, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    oc8().prepare(TASKS, 1)
    torch.save({name: torch.randn_like(value) for name, value in family["eurosat"].items()}, tmp_path / "other.pt")
    assert convert(tmp_path / "other.pt", "eurosat").exit_code == 0
    with pytest.raises(KitError, match=r"1 of 2 experts of CLIP tiny .* were not fine-tuned from this base") as told:
        oc8().prepare(TASKS, 1)
    assert f"\n  {place(TINY.name, 'OC-8', 'eurosat').resolve()}" in str(told.value)


def test_a_key_changes_with_the_converted_file(family: Mapping[str, Mapping[str, Tensor]], tmp_path: Path) -> None:
    before = oc8().fingerprint(TASKS, ["mnist"])
    assert before == oc8().fingerprint(TASKS, ["mnist"])
    torch.save({name: value + 1 for name, value in family["eurosat"].items()}, tmp_path / "other.pt")
    assert convert(tmp_path / "other.pt", "eurosat").exit_code == 0
    after = oc8().fingerprint(TASKS, ["mnist"])
    assert {name for name in before if before[name] != after[name]} == {"experts"}
    assert before["experts"]["mnist"] == after["experts"]["mnist"]


def test_images_that_were_corrupted_serve_other_models_and_families_too(
    suite: ClipSuite, family: Mapping[str, Mapping[str, Tensor]], cache: Path
) -> None:
    pairs = [
        (suite, ClipSuite(replace(TINY, name="clip-other"), suite.device)),
        (oc8(), ConvertedSuite(TINY, "OC-20", suite.device)),  # whose clean images are cut in another way
    ]
    for number, pair in enumerate(pairs, start=1):
        first, second = (corrupted(one, "contrast").split(TASKS[0], "test").images for one in pair)
        assert (first == second).all()
        assert len(list((cache / "images" / "clip").glob("*contrast*.npy"))) == number
    assert len(list(cache.rglob("*contrast*.npy"))) == number


def test_the_family_stands_behind_the_name_of_the_suite(
    family: Mapping[str, Mapping[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "clip-vit-b-32", replace(TINY, name="clip-vit-b-32"))
    suite = load_suite("clip-vit-b-32@OC-8", "cpu")
    assert (type(suite), suite.name) == (ConvertedSuite, "clip-vit-b-32@OC-8")
    for wrong in ("miniature@OC-8", "clip-vit-b-32@", "clip-vit-b-32@../x", "nothing@OC-8"):
        with pytest.raises(KitError, match="There is no suite"):
            load_suite(wrong, "cpu")


def test_an_expert_that_is_missing_or_does_not_fit_is_worded(
    family: Mapping[str, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=r"no OC-8 expert of 'dtd'.* mergekit-lite convert FILE.pt --suite clip-tiny "):
        oc8().prepare(["mnist", "dtd"], 1)
    path = place(TINY.name, "OC-8", "mnist")
    facts = LazyWeights(path).metadata
    save_file(load_file(path), path, facts | {"family": "OC-20"})
    with pytest.raises(KitError, match=r"the expert of 'mnist' of the family OC-20, not that of 'mnist' of OC-8\. Del"):
        oc8().expert("mnist")
    save_file(load_file(path), path, {"family": "OC-8"})
    with pytest.raises(KitError, match=r"does not say what `mergekit-lite convert` notes of a checkpoint\. Delete it"):
        oc8().expert_hash("mnist")


def test_a_checkpoint_of_another_model_is_refused_at_once(
    family: Mapping[str, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    path = place(TINY.name, "OC-8", "mnist")
    before = path.read_bytes()
    narrow = layout(width=32, patch=8, positions=17, depth=2, joint=16, inner=128)
    torch.save({name: torch.ones(shape) for name, shape in narrow.items()}, tmp_path / "narrow.pt")
    result = convert(tmp_path / "narrow.pt", "mnist")
    assert result.exit_code == 1
    assert "its tensors are not those of CLIP tiny: 'class_embedding' has shape (32,), not (64,)" in result.output
    without = {name: value for name, value in family["mnist"].items() if name != "proj"}
    torch.save(without, tmp_path / "short.pt")
    assert "'proj' is missing" in convert(tmp_path / "short.pt", "mnist").output
    assert path.read_bytes() == before


def flipped(path: Path) -> None:
    """One bit of an exponent; size and time stamp stay."""
    written = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))


def zeroed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def swapped(path: Path) -> None:
    path.write_bytes(path.with_name("eurosat.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flipped, "is damaged: its numbers are not those that were converted"),
        (zeroed, "is damaged: its numbers are not those that were converted"),
        (truncated, "is not a whole safetensors file"),
        (made_a_folder, "is not a whole safetensors file"),
        (made_a_loop, "There is no OC-8 expert of 'mnist'"),
        (Path.unlink, "There is no OC-8 expert of 'mnist'"),
        (swapped, "says that it is the expert of 'eurosat' of the family OC-8, not that of 'mnist'"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_damaged_expert_is_found_and_converted_again(
    family: Mapping[str, Mapping[str, Tensor]], damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    suite, path = oc8(), place(TINY.name, "OC-8", "mnist")
    before = suite.expert_hash("mnist")
    damage(path)
    converted._hash_of.cache_clear()  # as in another process
    for used in (suite.expert, suite.expert_hash):
        with pytest.raises(KitError, match=rf"{words}.* mergekit-lite convert FILE\.pt --suite clip-tiny --task mnist"):
            used("mnist")
    assert convert(tmp_path / "mnist.pt", "mnist").exit_code == 0
    assert suite.expert_hash("mnist") == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suite", "miniature", "--task", "dtd"], "'miniature' takes no converted experts"),
        (["--suite", "clip-vit-b-32", "--task", "cars"], "no task 'cars'"),
        (["--task", "dtd"], "'None' takes no converted experts"),
        (["--suite", "clip-vit-b-32", "--task", "dtd", "--family", "a/b"], "A family cannot be called 'a/b'"),
        (["--suite", "clip-vit-b-32", "--task", "dtd", "--output", "x.safetensors"], "Leave out --output"),
    ],
)
def test_options_that_name_no_place_are_worded(options: list[str], words: str, tmp_path: Path, cache: Path) -> None:
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "x.pt")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "x.pt"), *options])
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())
