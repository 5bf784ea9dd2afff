"""The papers' suite with a tiny CLIP, the check of its experts, and files of a hub that is a server on this machine."""

import errno
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fakes
import open_clip
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from tiny_clip import CONFIG, TASKS, TINY, promise

from mergekit_lite import machine, study
from mergekit_lite.cache import cache_dir, content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.methods import task_arithmetic
from mergekit_lite.study import Cell
from mergekit_lite.suites import SUITES, load_suite, scoring
from mergekit_lite.suites.clip import (
    ClipSuite,
    ConvertedSuite,
    check,
    decoded,
    half,
    hub,
    pins,
    sources,
    trouble,
)
from mergekit_lite.suites.clip.benchmark import MODELS, base_file, expert_file, hub_tasks
from mergekit_lite.suites.clip.printed import Row, prints
from mergekit_lite.suites.clip.transformers_format import TransformersWeights, to_transformers
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.weight_files import LazyWeights, write


def reference(files: dict[str, Path]) -> Any:
    return open_clip.create_model(TINY.architecture, pretrained=str(files["nobody/base"])).eval()


def test_the_papers_three_models_are_registered_with_quickgelu_and_weights_on_the_hub() -> None:
    assert set(MODELS) < set(SUITES)
    for model in MODELS.values():
        assert open_clip.get_model_config(model.architecture)["quick_gelu"] is True
        assert open_clip.get_pretrained_cfg(model.architecture, model.pretrained)["quick_gelu"] is True
        repo, filename = base_file(model)
        assert repo.startswith("timm/vit_")
        assert repo.endswith(".openai")
        assert filename == "open_clip_model.safetensors"
        assert expert_file(model, hub_tasks()["dtd"])[0].startswith("tanganke/clip-vit-")


def test_a_suite_is_loaded_by_name(suite: ClipSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "clip-vit-b-32", replace(TINY, name="clip-vit-b-32"))
    loaded = load_suite("clip-vit-b-32", "cpu")
    assert (loaded.name, list(loaded.tasks)) == ("clip-vit-b-32", list(hub_tasks()))
    assert loaded.names("twenty") == tuple(hub_tasks())
    again = pickle.loads(pickle.dumps(suite.loader))()
    assert again.name == suite.name


def test_the_base_is_open_clips_without_its_projection(suite: ClipSuite, files: dict[str, Path]) -> None:
    expected = dict(reference(files).visual.named_parameters())
    assert set(suite.base) == set(expected) - {"proj"}
    assert all(torch.equal(value, expected[name]) for name, value in suite.base.items())


def test_features_are_open_clips_own_with_quickgelu(suite: ClipSuite, files: dict[str, Path]) -> None:
    model = reference(files)
    images = torch.from_numpy(suite.split("mnist", "test").images[:4])
    mean, std = (torch.tensor(one)[:, None, None] for one in (constants_of_clip()))
    inputs = (images.float() / 255 - mean) / std
    with torch.no_grad():
        assert torch.allclose(suite.encode(suite.base, images), model.encode_image(inputs, normalize=True), atol=1e-6)
        plain = open_clip.CLIP(**{**CONFIG, "quick_gelu": False}).eval()
        plain.load_state_dict(model.state_dict())
        assert not torch.allclose(
            suite.encode(suite.base, images), plain.encode_image(inputs, normalize=True), atol=1e-6
        )


def constants_of_clip() -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def test_heads_are_open_clips_zero_shot_classifiers(suite: ClipSuite, files: dict[str, Path]) -> None:
    model, task = reference(files), hub_tasks()["eurosat"]
    tokenizer = open_clip.get_tokenizer(TINY.architecture)
    columns = open_clip.build_zero_shot_classifier(model, tokenizer, task.classnames, task.templates)
    assert torch.allclose(suite.heads["eurosat"], columns.T * model.logit_scale.exp(), atol=1e-5)


def test_experts_are_read_lazily_and_can_be_merged(suite: ClipSuite) -> None:
    assert isinstance(suite.experts["mnist"], TransformersWeights)
    merged = task_arithmetic(suite.base, {task: suite.experts[task] for task in TASKS}).for_task("mnist")
    expected = {
        name: start + 0.3 * sum(suite.experts[task][name] - start for task in TASKS)
        for name, start in suite.base.items()
    }
    assert all(torch.allclose(merged[name], value, atol=1e-6) for name, value in expected.items())
    assert 0 <= accuracy(suite, merged, "mnist") <= 100


def test_a_study_runs_on_it_and_is_not_computed_twice(
    suite: ClipSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch, suite)
    cells = [
        Cell(method="task_arithmetic", pool=TASKS, evaluate=("mnist",)),
        Cell(method="layer_wise_adamerging", parameters={"steps": 2, "images_per_task": 4}, pool=TASKS, evaluate=TASKS),
    ]
    records = study.run(suite, cells, workers=1, folder=tmp_path)
    assert [list(record.accuracy) for record in records] == [["mnist"], list(TASKS)]
    assert records[0].provenance.suite["base"] == hub.source("nobody/base", "").sha256
    assert study.run(suite, cells, workers=1, folder=tmp_path) == records


def test_one_set_of_experts_exists(suite: ClipSuite) -> None:
    with pytest.raises(KitError, match="has one set of experts"):
        suite.with_expert_seed(1)


def test_half_precision_is_inside_the_encoder_only(suite: ClipSuite) -> None:
    """As on a GPU: features and gradients are float32, and what calibration looks at is exact."""
    images = torch.from_numpy(suite.split("mnist", "test").images[:8])
    exact = suite.encode(suite.base, images)
    inputs = suite.layer_inputs(suite.base, images)
    suite._half = True
    weights = {name: value.clone().requires_grad_() for name, value in suite.base.items()}
    features = suite.encode(weights, images)
    assert features.dtype == torch.float32
    assert 0 < (features - exact).abs().max() < 0.03
    assert torch.allclose(features.norm(dim=1), torch.ones(8))
    gradients = torch.autograd.grad((features @ torch.randn(16)).sum(), list(weights.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert all(torch.equal(value, inputs[name]) for name, value in suite.layer_inputs(suite.base, images).items())
    assert suite._half


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_used_on_a_gpu_that_multiplies_in_it_itself(
    suite: ClipSuite, monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    """An older GPU says that it takes bfloat16, but it makes do with float32, and slowly."""
    asked: list[tuple[str, bool]] = []
    places: list[str] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append((places[-1], including_emulation))
        return native or including_emulation

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        places.append(str(device))
        yield

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", current)
    suite._half = half.computes_in_bfloat16(torch.device("cuda:1"))
    assert asked == [("cuda:1", False)]
    assert suite.working_dtype == expected
    assert not half.computes_in_bfloat16(torch.device("cpu"))
    features = suite.encode(suite.base, torch.from_numpy(suite.split("mnist", "test").images[:2]))
    assert features.dtype == torch.float32


def test_a_key_says_in_which_precision_a_record_was_computed(suite: ClipSuite) -> None:
    cell = Cell(method="simple_average", pool=TASKS, evaluate=("mnist",))
    keys = []
    for suite._half in (False, True):
        keys.append(study.cell_key(suite, cell))
    assert len(set(keys)) == 2


def test_all_models_share_the_images_of_a_crop_and_each_crop_has_its_own() -> None:
    sides = {open_clip.get_model_config(model.architecture)["vision_cfg"]["image_size"] for model in MODELS.values()}
    assert sides == {224}  # the side, the crop and the data set name a file of images, and no model does
    assert (ClipSuite.crop, ConvertedSuite.crop) == ("transformers", "open_clip")


def test_images_of_the_suites_crop_are_asked_for(suite: ClipSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    decode = decoded.decoded_split

    def noted(*given: Any, crop: Any, **more: Any) -> Any:
        asked.append(crop)
        return decode(*given, **more)

    monkeypatch.setattr(decoded, "decoded_split", noted)
    prints = []
    for suite.crop in ("transformers", "open_clip"):
        suite.split("mnist", "test")
        suite.split("mnist", "train")
        prints += [suite.data_hash("mnist", which) for which in ("test", "train", "held-out")]
    assert asked == ["transformers", "transformers", "open_clip", "open_clip"]
    assert len(set(prints)) == 6


def test_another_number_of_test_images_than_was_counted_on_is_refused_once(suite: ClipSuite) -> None:
    assert suite.sizes["mnist"] == (5000, 10000)
    with pytest.raises(KitError, match=r"'mnist' has 60 test images, not 10000 as published.* Run the same again"):
        suite._bring_test_images("mnist", 1)
    suite._bring_test_images("mnist", 1)
    suite._bring_test_images("eurosat", 1)  # nobody counted on a number


def test_the_fingerprint_follows_the_files(
    suite: ClipSuite, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = suite.fingerprint(TASKS, ["mnist"])
    assert before == suite.fingerprint(TASKS, ["mnist"])
    content_hash(before)  # is plain JSON
    other = tmp_path / "other.safetensors"
    write(other, to_transformers(suite.base))
    monkeypatch.setitem(files, hub_tasks()["eurosat"].experts["b32"], other)
    after = suite.fingerprint(TASKS, ["mnist"])
    assert {name for name in before if before[name] != after[name]} == {"experts"}
    assert before["experts"]["mnist"] == after["experts"]["mnist"]
    assert suite.sources(["mnist"]) == {
        "base": f"nobody/base@{'c' * 40}/open_clip_model.safetensors",
        "mnist": f"tanganke/clip-vit-base-patch32_mnist@{'c' * 40}/model.safetensors",
    }


def test_experts_that_are_what_they_should_be_pass_and_are_measured_once(
    suite: ClipSuite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    promise(monkeypatch, suite, mnist=0.5, eurosat=-0.5)
    true = accuracy(suite, suite.experts["mnist"], "mnist")
    suite.prepare(TASKS, workers=1)
    told = capsys.readouterr().out
    assert f"Expert mnist on its own task: {true:.2f} %, published {true + 0.5:.2f} %.\n" in told
    assert "The base on mnist, zero-shot: " in told
    assert "away from" not in told
    monkeypatch.setattr(suite, "split", lambda *args: pytest.fail("measured again"))
    monkeypatch.setattr(suite, "experts", {})
    found = check.check_base(suite, TASKS) + check.check_experts(suite, TASKS)
    assert [(one.weights, one.task) for one in found] == [
        *(("base", task) for task in ("eurosat", "mnist")),
        *(("expert", task) for task in TASKS),
    ]
    assert [one.difference for one in found] == [0, 0, -0.5, 0.5]
    assert {one.verdict for one in found} == {"agrees"}


def test_the_nearer_of_two_prints_counts_and_both_are_shown() -> None:
    printed = (("twenty tasks", "78.52"), ("eight tasks", "78.3"))
    for measured, difference, verdict in (
        (78.40, 0.1, "agrees"),
        (77.80, -0.5, "agrees"),  # 0.72 from the other print
        (77.79, -0.51, "somewhat off"),
        (80.02, 1.5, "somewhat off"),
        (80.03, 1.51, "far off"),
    ):
        row = check.Checked("expert", "stanford-cars", measured, printed)
        assert (row.difference, row.verdict) == (difference, verdict)
    assert row.words.endswith("published 78.52 % (twenty tasks) and 78.3 % (eight tasks), difference +1.51")
    assert check.Checked("base", "stanford-cars", 81.52, printed).verdict == "somewhat off"
    assert check.Checked("base", "stanford-cars", 81.53, printed).verdict == "far off"


def test_what_was_printed_is_there_for_every_model_and_task() -> None:
    for model in MODELS.values():
        for row, column in (("Pre-trained", "pretrained"), ("Fine-tuned", "finetuned")):
            printed = prints(model.key, cast(Row, row))
            for number, (task, entry) in enumerate(hub_tasks().items()):
                assert list(printed[task]) == ["twenty tasks", "eight tasks"][: 2 if number < 8 else 1]
                assert float(printed[task]["twenty tasks"]) == entry.accuracy[model.key][column]
    assert dict(prints("b32", "Fine-tuned")["sun397"]) == {"twenty tasks": "74.86", "eight tasks": "75.0"}


def test_a_damaged_answer_of_the_check_is_measured_again(
    suite: ClipSuite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    promise(monkeypatch, suite)
    check.check_experts(suite, TASKS)
    path, other = (next(cache_dir("checks", suite.name).glob(f"{task}-*.json")) for task in TASKS)
    content = path.read_text()
    swapped = {one: one.with_name(f"{one.name}.sha256").read_bytes() for one in (path, other)}
    for damaged in (content.replace('"measured": ', '"measured": 9'), content[:-9], "", "[]", "\0" * 99):
        path.write_text(damaged)
        check.check_experts(suite, TASKS)  # raises if it believes another number
        assert path.read_text() == content
    path.write_bytes(other.read_bytes())
    path.with_name(f"{path.name}.sha256").write_bytes(swapped[other])
    check.check_experts(suite, TASKS)
    path.unlink()
    path.mkdir()
    check.check_experts(suite, TASKS)
    assert path.read_text() == content
    assert "is damaged: it is made anew" in capsys.readouterr().out


def test_what_is_somewhat_off_is_told_once_and_used(
    suite: ClipSuite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "_told", set())
    promise(monkeypatch, suite, base=-2.0, eurosat=1.5)
    true = accuracy(suite, suite.experts["eurosat"], "eurosat")
    suite.prepare(TASKS, workers=1)
    told = capsys.readouterr().out
    assert "1 of 2 experts of CLIP tiny is between 0.5 and 1.5 points away from what FusionBench printed, and" in told
    assert f"  eurosat: measured {true:.2f} %, published {true + 1.5:.2f} % (twenty tasks), difference -1.50\n" in told
    assert "The base of CLIP tiny is on 2 of 2 tasks, without any training, between 1 and 3 points away" in told
    suite.prepare(TASKS, workers=1)
    assert "points away" not in capsys.readouterr().out
    monkeypatch.setattr(check, "_told", set())  # as in another process
    suite.prepare(TASKS, workers=1)
    assert capsys.readouterr().out.count("points away") == 2


def test_a_wrong_expert_is_refused_with_the_numbers_unless_told_to_go_on(
    suite: ClipSuite, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch, suite, eurosat=60.0)
    true = accuracy(suite, suite.experts["eurosat"], "eurosat")
    with pytest.raises(KitError) as told:
        suite.prepare(TASKS, workers=1)
    words = str(told.value)
    assert "1 of 2 experts of CLIP tiny is more than 1.5 points away from what FusionBench printed:" in words
    assert f"eurosat: measured {true:.2f} %, published {true + 60:.2f} % (twenty tasks), difference -60.00" in words
    assert "(tanganke/clip-vit-base-patch32_eurosat on tanganke/eurosat, split test)" in words
    assert "mnist:" not in words
    _, paths = words.split("after deleting these files:\n")
    entry = hub_tasks()["eurosat"]
    pinned = [sources.place(entry, split) for split in (entry.train_split, entry.test_split)]
    expected = [files[entry.experts["b32"]], pins.place(entry.experts["b32"]), *pinned]
    assert paths.splitlines() == [f"  {path.resolve()}" for path in expected]
    for advice in ("the checkpoint of another task", "mergekit-lite fetch clip-tiny", f"set {check.VARIABLE}=1"):
        assert advice in words
    assert [one.verdict for one in check.expert_rows(suite, TASKS)] == ["agrees", "far off"]  # for tables: no error
    monkeypatch.setenv(check.VARIABLE, "1")
    suite.prepare(TASKS, workers=1)


def test_a_base_that_is_off_on_what_it_never_learnt_is_refused_before_any_expert_is_measured(
    suite: ClipSuite, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch, suite, base=4.0)
    monkeypatch.setattr(check, "check_experts", lambda *args: pytest.fail("too early"))
    with pytest.raises(KitError) as told:
        suite.prepare(TASKS, workers=1)
    words = str(told.value)
    assert "The base of CLIP tiny is on 2 of 2 tasks, without any training, more than 3 points away" in words
    assert "difference -4.00 (the base on ylecun/mnist, split test)" in words
    assert "A wrong base spoils every task vector." in words
    assert f"\n  {files['nobody/base'].resolve()}\n" in words
    monkeypatch.setenv(check.VARIABLE, "1")
    suite.prepare(TASKS, workers=1)


def test_a_base_that_experts_were_not_made_from_is_refused(
    suite: ClipSuite, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    promise(monkeypatch, suite)
    near = check.distances(suite, TASKS)
    assert all(0.2 < one < 0.4 for one in near.values())
    torch.manual_seed(1)
    write(tmp_path / "other.safetensors", open_clip.create_model(TINY.architecture).state_dict())
    monkeypatch.setitem(files, "nobody/base", tmp_path / "other.safetensors")
    other = ClipSuite(TINY, torch.device("cpu"))
    far = check.distances(other, TASKS)
    assert all(1.3 < one < 1.6 for one in far.values())  # 1.41 between two networks that have nothing in common
    with pytest.raises(KitError) as told:
        check.check_base(other, TASKS)
    words = str(told.value)
    assert "2 of 2 experts of CLIP tiny were not fine-tuned from this base: their matrices lie more than 0.5" in words
    assert f"\n  mnist: {far['mnist']:.2f}\n" in words
    assert "If it is all of them the base is of another model" in words
    assert f"\n  {(tmp_path / 'other.safetensors').resolve()}\n" in words


def test_a_distance_is_that_of_matrices_and_reads_tensor_by_tensor() -> None:
    base = {"matrix": torch.tensor([[3.0, 4.0]]), "bias": torch.tensor([1.0])}
    read: list[str] = []

    class Expert(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            read.append(name)
            return super().__getitem__(name)

    expert = Expert(matrix=torch.tensor([[3.0, 4.5]]), bias=torch.tensor([90.0]))
    assert check.distance(base, expert) == pytest.approx(0.1)
    assert read == ["matrix"]
    assert check.distance(base, base) == 0
    assert not check.distance(base, {"matrix": base["matrix"] * torch.nan}) <= check.FAR


def test_the_base_is_tried_on_small_tasks_that_it_can_do(suite: ClipSuite) -> None:
    assert check.zero_shot_tasks(suite, ["mnist", "eurosat", "dtd"]) == ["dtd", "eurosat"]
    assert check.zero_shot_tasks(suite, list(hub_tasks())) == ["dtd", "eurosat"]
    assert check.zero_shot_tasks(suite, ["rendered-sst2", "sun397", "kmnist", "svhn"]) == ["sun397", "svhn"]
    assert check.zero_shot_tasks(suite, ["kmnist"]) == ["kmnist"]


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_fitting", {})
    suite = fakes.FakeSuite()
    expected = accuracy(cast(Any, suite), suite.base, "digits")
    sizes: list[int] = []
    encode = suite.encode

    def limited(weights: Any, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(weights, images)

    monkeypatch.setattr(suite, "encode", limited)
    assert accuracy(cast(Any, suite), suite.base, "digits") == expected
    assert sizes == [40, 40, 31, 15, *[7] * 5, 5]  # 125, 62, 31, 15 and 7 at once, but there are only 40
    sizes.clear()
    accuracy(cast(Any, suite), suite.base, "signs")
    assert sizes == [*[7] * 5, 5]
    sizes.clear()
    accuracy(cast(Any, suite), suite.base, "signs", batch_size=16)
    assert sizes == [7, 7, 2, 7, 7, 2, 7, 1]


def test_what_is_read_ahead_comes_in_order_from_a_thread_that_ends() -> None:
    loaded: list[tuple[int, str]] = []

    def load(number: int) -> int:
        loaded.append((number, threading.current_thread().name))
        return 10 * number

    before = threading.active_count()
    coming = scoring.ahead(load, range(4))
    assert next(coming) == 0
    assert [number for number, _ in loaded] in ([0], [0, 1])  # one is read while the caller works, and not more
    assert list(coming) == [10, 20, 30]
    assert [number for number, _ in loaded] == [0, 1, 2, 3]
    assert {name for _, name in loaded} == {"ahead_0"}
    assert threading.active_count() == before
    assert list(scoring.ahead(load, [])) == []


def test_what_goes_wrong_while_reading_ahead_is_raised_in_its_turn() -> None:
    def load(number: int) -> int:
        if number == 2:
            raise KitError("image 2 is lost")
        return number

    before, seen = threading.active_count(), list[int]()
    with pytest.raises(KitError, match="image 2 is lost"):
        seen.extend(scoring.ahead(load, range(9)))
    assert seen == [0, 1]
    assert threading.active_count() == before


def test_whoever_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    with closing(scoring.ahead(lambda number: number, range(9))) as coming:
        assert next(coming) == 0
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [None, 7])
def test_accuracy_is_the_same_when_images_are_read_ahead(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    """As on a GPU, but for the kind of memory."""
    suite = cast(Any, fakes.FakeSuite())
    expected, before = accuracy(suite, suite.base, "digits", size), threading.active_count()
    spans: list[slice] = []

    def noted(split: Any, rows: list[slice], device: torch.device) -> Any:
        spans.extend(rows)
        load = partial(scoring._loaded, split, False)
        yield from scoring.ahead(load, rows)

    monkeypatch.setattr(scoring, "_batches", noted)
    assert accuracy(suite, suite.base, "digits", size) == expected
    assert len(spans) == (6 if size else 1)
    monkeypatch.setattr(suite, "encode", lambda weights, images: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        accuracy(suite, suite.base, "digits", 7)
    assert threading.active_count() == before


def test_an_expert_in_a_file_is_read_once_not_once_per_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = fakes.FakeSuite()
    write(tmp_path / "expert.safetensors", suite.base)
    lazy, read = LazyWeights(tmp_path / "expert.safetensors"), []
    get = LazyWeights.__getitem__

    def noted(self: LazyWeights, name: str) -> torch.Tensor:
        read.append(name)
        return get(self, name)

    monkeypatch.setattr(LazyWeights, "__getitem__", noted)
    accuracy(cast(Any, suite), lazy, "digits", batch_size=10)
    assert sorted(read) == sorted(suite.base)


def test_no_memory_for_one_image_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_fitting", {})
    suite = fakes.FakeSuite()

    def full(weights: Any, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(suite, "encode", full)
    words = r"not enough memory on 'cpu' for the features of a single image of fake. End what else runs"
    with pytest.raises(KitError, match=words):
        accuracy(cast(Any, suite), suite.base, "digits")


# Files of the hub.

REPO, NAME, COMMIT = "someone/expert", "model.safetensors", "0123456789abcdef" * 2 + "01234567"
BYTES = b"weights" * 1000
SHA256 = hashlib.sha256(BYTES).hexdigest()


class Hub(SimpleNamespace):
    """What the server on this machine answers: `statuses` are used up one by one, then comes the file."""

    statuses: list[tuple[int, dict[str, str]]]
    content: bytes
    asked: list[str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub(statuses=[], content=BYTES, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if REPO not in self.path:  # huggingface_hub has some questions of its own
                return self.send_error(404)
            state.asked.append(f"{self.command} {self.path}")
            status, headers = state.statuses.pop(0) if state.statuses else (200, {})
            self.send_response(status)
            length = len(BYTES) if status == 200 else 0
            facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{SHA256}"', "Content-Length": str(length)}
            for name, value in {**facts, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if status == 200 and self.command == "GET":
                self.wfile.write(state.content)

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, *args: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.announced.cache_clear()
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(tmp_path / "kit"))
    yield state
    served.shutdown()
    served.server_close()


def test_a_file_is_fetched_once_and_known_by_commit_and_hash(server: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    announced = hub.source(REPO, NAME)
    assert announced == hub.Source(REPO, NAME, COMMIT, SHA256)
    assert server.asked == [f"HEAD /{REPO}/resolve/main/{NAME}"]  # nothing was fetched for it
    path = hub.downloaded(REPO, NAME)
    assert path.read_bytes() == BYTES
    server.asked.clear()
    assert hub.downloaded(REPO, NAME) == path
    told = capfd.readouterr()
    assert told.out == f"Fetching {REPO}/{NAME}.\n"
    assert "%" not in told.err  # no bar where there is no terminal
    assert hub.source(REPO, NAME) == announced
    assert not server.asked
    assert str(announced) == f"{REPO}@{COMMIT}/{NAME}"


def test_a_damaged_file_is_deleted_and_can_be_fetched_again(server: Hub) -> None:
    server.content = b"WEIGHTS" * 1000
    with pytest.raises(KitError, match=r"someone/expert/model\.safetensors arrived damaged: its SHA-256"):
        hub.downloaded(REPO, NAME)
    server.content = BYTES
    assert hub.downloaded(REPO, NAME).read_bytes() == BYTES


def spoil(path: Path) -> None:
    """Change one bit of what the hub's cache keeps; size and time stamp stay."""
    written = path.stat()
    path.resolve().write_bytes(b"Weights" + BYTES[7:])
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    hub._digest.cache_clear()  # as in another process


def test_what_was_damaged_on_the_disk_is_found_and_fetched_anew(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hub.downloaded(REPO, NAME)
    spoil(path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KitError, match=rf"is damaged: it is not what the hub lists .* Delete {path.resolve()}, unset"):
        hub.downloaded(REPO, NAME)
    assert path.exists()  # whoever is offline may want to look at it
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.downloaded(REPO, NAME).read_bytes() == BYTES
    assert f"{path} is damaged: it is fetched anew.\n" in capsys.readouterr().out


def test_a_file_of_the_hub_is_read_whole_once_per_process(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.downloaded(REPO, NAME)
    monkeypatch.setattr(hub, "file_digest", lambda path: pytest.fail(f"{path} is read again"))
    assert hub.downloaded(REPO, NAME) == hub.downloaded(REPO, NAME)


@pytest.mark.parametrize("where", ["name", "content"])
@pytest.mark.parametrize("what", ["nothing", "folder", "loop", "nothing at the end"])
def test_whatever_stands_in_a_files_place_it_is_fetched_again(server: Hub, where: str, what: str) -> None:
    path = hub.downloaded(REPO, NAME)
    spoilt = path if where == "name" else path.resolve()
    spoilt.unlink()
    if what == "folder":
        spoilt.mkdir()
    elif what != "nothing":
        spoilt.symlink_to(spoilt if what == "loop" else "nowhere")
    assert hub.downloaded(REPO, NAME).read_bytes() == BYTES


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, "no such repository, or it is private. Check the name"),
        (404, {"X-Error-Code": "EntryNotFound"}, r"has no such file \(404\). Look at its files on the hub"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no longer has the commit that is pinned here. Delete the folder"),
        (
            403,
            {"X-Error-Code": "GatedRepo"},
            "it is gated: .* Ask for access on its page of the hub, then set HF_TOKEN",
        ),
        (403, {}, r"the hub refused it \(403\). Set HF_TOKEN to a valid token"),
        (429, {}, r"limit of requests is reached \(429\). Wait some minutes and run `mergekit-lite fetch SUITE`"),
        (503, {}, r"the hub has trouble \(503\). Look at status.huggingface.co, then run"),
    ],
)
def test_what_the_hub_answers_is_explained(server: Hub, status: int, headers: dict[str, str], words: str) -> None:
    server.statuses = [(status, headers)] * 1000
    with pytest.raises(KitError, match=rf"^someone/expert/model.safetensors could not be .*{words}"):
        hub.downloaded(REPO, NAME)


def test_rate_limits_and_server_errors_pass(server: Hub) -> None:
    server.statuses = [(503, {}), (429, {}), (200, {}), (500, {})]  # the last one to the download itself
    assert hub.downloaded(REPO, NAME).read_bytes() == BYTES


def test_a_hub_that_does_not_answer_is_explained(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    for call in (hub.downloaded, hub.source):
        with pytest.raises(KitError, match=r"does not answer. Look at the network and proxy, or set HF_ENDPOINT"):
            call(REPO, NAME)


def test_an_answer_that_is_not_the_hubs_is_explained(server: Hub) -> None:
    server.statuses = [(200, {"X-Repo-Commit": ""})] * 10
    with pytest.raises(KitError, match=r"lacks the commit and hash .* Unset HF_ENDPOINT"):
        hub.source(REPO, NAME)


def test_trouble_on_this_machine_is_explained() -> None:
    cases = [
        (
            OfflineModeIsEnabled("offline"),
            r"HF_HUB_OFFLINE is set\). Unset HF_HUB_OFFLINE and run `mergekit-lite fetch",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "is full. Free some space or set HF_HOME to another disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written to. Make it writable or set HF_HOME"),
        (OSError("Consistency check failed: file should be of size 3"), "arrived incomplete. Look at the network"),
        (RuntimeError("odd."), "RuntimeError: odd. If this may pass"),
    ]
    for error, words in cases:
        with pytest.raises(KitError, match=f"the images could not be fetched: .*{words}"):
            raise trouble.explained(error, "the images")
    mine = KitError("said already")
    assert trouble.explained(mine, "the images") is mine


def test_pauses_grow_and_respect_what_the_hub_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)

    class Busy(Exception):
        def __init__(self, status: int, **headers: str) -> None:
            self.response = SimpleNamespace(status_code=status, headers=headers)

    outcomes: list[Any] = [Busy(500), Busy(429, **{"Retry-After": "60"}), Busy(503), "done"]

    def call() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    assert trouble.retried(call) == "done"
    assert waited == [2, 60, 30]
    outcomes[:] = [Busy(404), "never"]
    with pytest.raises(Busy):
        trouble.retried(call)
