"""A suite from a file: its model, weights and heads, what its records depend on, and a study on it."""

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from library_models import changed, open_clip_library, transformers_library
from loopback_data import connect
from loopback_hub import LoopbackHub, loopback_hub
from own_suite_files import CLASSES, write_suite
from torch import Tensor
from torch.nn.functional import normalize

from mergekit_lite import study
from mergekit_lite.errors import KitError
from mergekit_lite.figures import tables
from mergekit_lite.study import Cell, keys
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.clip import half
from mergekit_lite.suites.own import splits
from mergekit_lite.suites.own.own_suite import HELD_OUT, OwnSuite
from mergekit_lite.weight_files import read, write

TASKS = ("shades", "sides")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture
def folder(written: Path, tmp_path: Path, cache: Path) -> Path:
    """A copy of the tiny suite's folder, to be changed."""
    return Path(shutil.copytree(written.parent, tmp_path / "own"))


def load(folder: Path, **changes: Any) -> OwnSuite:
    """Return the suite in `folder` after `changes` to its file; those of both tasks are under `each`."""
    path = folder / "tiny.yaml"
    content = yaml.safe_load(path.read_text())
    for task in content["tasks"].values():
        task.update(changes.get("each", {}))
    content.update({key: value for key, value in changes.items() if key != "each"})
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    suite = load_suite(str(path), "cpu")
    assert isinstance(suite, OwnSuite)
    return suite


def head(folder: Path, task: str, features: int = 16, **others: Tensor) -> str:
    """Write a random head for a task; return its path in the suite's folder."""
    generator = torch.Generator().manual_seed(len(task))
    matrix = torch.randn(len(CLASSES[task]), features, generator=generator)
    write(folder / "heads" / f"{task}.safetensors", {"weight": matrix, **others})
    return f"heads/{task}.safetensors"


def with_heads(folder: Path, features: int = 16, **changes: Any) -> OwnSuite:
    """Return the suite with a trained head for each task."""
    content = yaml.safe_load((folder / "tiny.yaml").read_text())["tasks"]
    tasks = {task: {**entry, "head": head(folder, task, features)} for task, entry in content.items()}
    return load(folder, tasks=tasks, **changes)


# What it is


def test_a_suite_is_what_its_file_says(folder: Path) -> None:
    suite = load(folder)
    assert (suite.name, suite.title, tuple(suite.tasks), suite.side) == ("tiny", "A tiny suite", TASKS, 32)
    assert suite.tasks["sides"].classnames == CLASSES["sides"]
    assert suite.tasks["sides"].title == "sides"
    assert dict(suite.sizes) == {"shades": (8, 8), "sides": (12, 12)}
    assert suite.names("both") == TASKS
    assert suite.names("sides") == ("sides",)
    assert "proj" not in suite.base
    assert set(suite.experts["sides"]) == set(suite.base)


def test_an_unknown_task_is_said_with_the_sets(folder: Path) -> None:
    with pytest.raises(KitError, match=r"no task 'sidse'\. Did you mean 'sides'\? Tasks: shades, sides\. Sets: both\."):
        load(folder).names("sidse")


def test_base_and_heads_are_those_of_open_clip(folder: Path) -> None:
    suite = load(folder)
    state = read(folder / "base.safetensors")
    assert all(torch.equal(value, state[f"visual.{name}"]) for name, value in suite.base.items())
    text = {name: value for name, value in suite._model.state_dict().items() if not name.startswith("visual.")}
    assert all(torch.equal(value, state[name]) for name, value in text.items())
    assert suite.heads["sides"].shape == (3, 16)
    assert torch.allclose(suite.heads["sides"].norm(dim=1), state["logit_scale"].exp().expand(3))


def test_experts_of_two_libraries_are_read_under_one_set_of_names(folder: Path) -> None:
    suite = load(folder)
    expert = read(folder / "experts" / "shades.safetensors")
    assert all(torch.equal(value, expert[name]) for name, value in suite.experts["shades"].items())
    layouts = [suite.describe_expert(task) for task in TASKS]
    assert layouts == ["open_clip's image encoder", "transformers' CLIPVisionModel of version 4"]


def test_held_out_images_are_the_last_of_the_training_images(folder: Path) -> None:
    suite = load(folder)
    train, held_out, test = (suite.split("sides", which) for which in ("train", "held-out", "test"))
    assert (len(train.labels), len(held_out.labels), len(test.labels)) == (11, 1, 12)
    assert HELD_OUT == 20
    assert isinstance(train.images.base, np.memmap | np.ndarray)
    assert set(train.labels[:5].tolist()) == {0, 1, 2}


def test_it_is_made_again_in_another_process_by_its_loader(folder: Path) -> None:
    suite = load(folder)
    again = pickle.loads(pickle.dumps(suite.loader))()
    assert again.fingerprint(TASKS, TASKS, TASKS) == suite.fingerprint(TASKS, TASKS, TASKS)


def test_preparing_brings_experts_and_test_images_only(folder: Path) -> None:
    suite = load(folder)
    assert not suite.has_images("sides", "test")
    suite.prepare(TASKS, workers=1)
    assert [suite.has_images("sides", which) for which in ("test", "train", "held-out")] == [True, False, False]
    (folder / "experts" / "shades.safetensors").unlink()
    assert (suite.has_expert("shades"), suite.has_expert("sides")) == (False, True)
    with pytest.raises(KitError, match=r"There is no checkpoint .*shades\.safetensors"):
        suite.prepare(TASKS, workers=1)


def test_a_split_that_is_not_there_has_no_images_to_have(folder: Path) -> None:
    shutil.rmtree(folder / "images" / "sides" / "train")
    suite = load(folder)
    assert suite.sizes["sides"] == (0, 12)
    assert not suite.has_images("sides", "train")
    with pytest.raises(KitError, match=r"'sides' has no training images, which this method needs"):
        suite.split("sides", "train")


def test_an_expert_of_another_architecture_is_said(folder: Path) -> None:
    write(
        folder / "experts" / "shades.safetensors", {"conv1.weight": torch.zeros(3), "class_embedding": torch.zeros(3)}
    )
    with pytest.raises(KitError, match=r"The expert of 'shades' is not the image encoder that is wanted here"):
        load(folder).prepare(TASKS, workers=1)


def test_no_place_of_this_machine_is_in_what_records_keep(folder: Path) -> None:
    suite = load(folder)
    kept = [suite.sources(TASKS), suite.fingerprint(TASKS, TASKS, TASKS)]
    assert str(folder) not in json.dumps(kept)
    assert kept[0] == {"base": "base.safetensors", "shades": "shades.safetensors", "sides": "sides"}


def test_there_is_one_set_of_experts(folder: Path) -> None:
    with pytest.raises(KitError, match=r"Suite 'tiny' has one set of experts\. Leave expert_seed at 0\."):
        load(folder).with_expert_seed(1)


def test_on_a_gpu_with_bfloat16_the_encoder_works_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "computes_in_bfloat16", lambda device: True)
    suite = load(folder)
    assert suite.working_dtype == torch.bfloat16
    images = torch.from_numpy(np.array(suite.split("sides", "test").images))
    features = suite.encode(suite.base, images)
    assert features.dtype == torch.float32


# What records depend on


def fingerprint(suite: OwnSuite) -> dict[str, Any]:
    return suite.fingerprint(TASKS, TASKS, TASKS)


def test_the_fingerprint_stays_when_the_folder_moves(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(load(folder))
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert fingerprint(load(moved)) == before


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("base", ["base"]),
        ("expert", ["experts"]),
        ("class names", ["heads"]),
        ("templates", ["heads"]),
        ("image", ["data"]),
        ("training image", ["training data"]),
        ("crop", ["data", "training data"]),
        ("name", ["suite"]),
        ("activation", ["base"]),
        ("normalisation", ["base"]),
    ],
)
def test_the_fingerprint_changes_with_what_an_answer_depends_on(folder: Path, change: str, where: list[str]) -> None:
    before = fingerprint(load(folder))
    changes: dict[str, Any] = {}
    config = json.loads((folder / "tiny.json").read_text())
    if change in ("base", "expert"):
        path = folder / {"base": "base.safetensors", "expert": "experts/sides/model.safetensors"}[change]
        write(path, {name: value + 0.5 for name, value in read(path).items()})
    elif change == "class names":
        (folder / "sides.txt").write_text("left\nright\nNone of both\n")
    elif change == "templates":
        changes = {"each": {"templates": ["a drawing of a {}"]}}
    elif change in ("image", "training image"):
        shutil.copy(
            folder / "images" / "sides" / "test" / "left" / "0.png",
            folder / "images" / "sides" / ("test" if change == "image" else "train") / "right" / "1.png",
        )
    elif change == "crop":
        changes = {"crop": "transformers"}
    elif change == "name":
        changes = {"name": "other"}
    elif change == "activation":
        (folder / "tiny.json").write_text(json.dumps({**config, "quick_gelu": False}))
    else:
        facts = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
        (folder / "tiny.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": facts}))
    after = fingerprint(load(folder, **changes))
    assert [key for key in before if before[key] != after[key]] == where


def test_a_trained_head_is_part_of_the_fingerprint(folder: Path) -> None:
    plain, before = fingerprint(load(folder)), fingerprint(with_heads(folder))
    assert "trained heads" not in plain
    assert set(before["trained heads"]) == set(TASKS)
    matrix = read(folder / "heads" / "sides.safetensors")["weight"]
    write(folder / "heads" / "sides.safetensors", {"weight": 2 * matrix})
    after = fingerprint(load(folder))
    assert [task for task in TASKS if after["trained heads"][task] != before["trained heads"][task]] == ["sides"]


def test_a_key_holds_the_code_of_zero_shot_heads_and_of_what_reads_experts(folder: Path) -> None:
    names = [part.__qualname__ for part in load(folder).computing]
    assert {"Suite._head", "OwnSuite._head", "as_encoder", "HalfSuite.encode"} <= set(names)


def test_images_are_looked_at_once_for_all_cells(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, asked = load(folder), list[Any]()
    usual = splits.fingerprint

    def counting(*given: Any) -> str:
        asked.append(given)
        return usual(*given)

    monkeypatch.setattr(splits, "fingerprint", counting)
    for seed in range(3):
        keys.cell_key(suite, Cell(method="task_arithmetic", pool=TASKS, evaluate=TASKS, seed=seed))
    assert len(asked) == 2


# Heads


def test_a_trained_head_is_taken_as_it_is(folder: Path) -> None:
    suite = with_heads(folder)
    assert torch.equal(suite.heads["sides"], read(folder / "heads" / "sides.safetensors")["weight"])


def test_a_bias_of_zeros_is_no_bias(folder: Path) -> None:
    write(folder / "head.safetensors", {"fc.weight": torch.ones(3, 16, dtype=torch.float16), "fc.bias": torch.zeros(3)})
    suite = load(folder)
    content = yaml.safe_load((folder / "tiny.yaml").read_text())["tasks"]
    content["sides"]["head"] = "head.safetensors"
    suite = load(folder, tasks=content)
    assert suite.heads["sides"].dtype == torch.float32
    assert suite.heads["shades"].norm(dim=1).min() > 10  # of prompts, with the logit scale


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"weight": torch.ones(3, 16), "bias": torch.ones(3)},
            r"'sides': the head head\.safetensors has 'bias' \(3,\) beside its matrix, which is not zero: a bias can",
        ),
        (
            {"weight": torch.ones(4, 16)},
            r"one matrix \(3, 16\), of classes and features, but holds 'weight' \(4, 16\)\.",
        ),
        (
            {"weight": torch.ones(3, 8)},
            r"holds 'weight' \(3, 8\)\. Check that it is of this task, model and list of cl",
        ),
        ({"weight": torch.ones(16, 3)}, r"holds 'weight' \(16, 3\)\. Transpose it\."),
        ({"a": torch.ones(3, 16), "b": torch.ones(3, 16)}, r"one matrix .* holds 'a' \(3, 16\); 'b' \(3, 16\)\."),
        ({"weight": torch.full((3, 16), torch.nan)}, r"holds numbers that are not finite"),
        ({"weight": torch.ones(3, 16, dtype=torch.int64)}, r"or whole ones \(torch\.int64\)\. Train it anew\."),
        (None, r"There is no weights file .*head\.safetensors"),
        (b"not safetensors", r"head\.safetensors is not a whole safetensors file"),
    ],
    ids=["bias", "classes", "features", "turned", "two", "nan", "integers", "missing", "damaged"],
)
def test_a_head_that_does_not_fit_is_said(folder: Path, content: Any, words: str) -> None:
    if isinstance(content, bytes):
        (folder / "head.safetensors").write_bytes(content)
    elif content is not None:
        write(folder / "head.safetensors", content)
    tasks = yaml.safe_load((folder / "tiny.yaml").read_text())["tasks"]
    tasks["sides"]["head"] = "head.safetensors"
    suite = load(folder, tasks=tasks)
    with pytest.raises(KitError, match=words):
        suite.heads["sides"]


# Models


def save_base(folder: Path, library: Any, seed: int = 3) -> Any:
    """Put a library's model into the suite's folder as `base/` and two changed ones as experts; return the first."""
    torch.manual_seed(seed)
    model = library.make().eval()
    library.save(model, folder / "base")
    for number, task in enumerate(TASKS):
        state = changed(model, number)
        expert = library.make().eval()
        expert.load_state_dict(state)
        shutil.rmtree(folder / "experts" / task, ignore_errors=True)
        library.save(expert, folder / "experts" / task)
    (folder / "experts" / "shades.safetensors").unlink()
    return model


EXPERTS = {"shades": "experts/shades", "sides": "experts/sides"}


def model_of(folder: Path, width: int = 64, **vision: Any) -> str:
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": width, "patch_size": 8, **vision},
        "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "model.json").write_text(json.dumps(config))
    return "model.json"


def tasks_with_heads(folder: Path, features: int) -> dict[str, Any]:
    tasks: dict[str, Any] = yaml.safe_load((folder / "tiny.yaml").read_text())["tasks"]
    return {
        task: {**entry, "head": head(folder, task, features), "expert": EXPERTS[task]} for task, entry in tasks.items()
    }


def normalised(suite: OwnSuite) -> Tensor:
    return suite._normalised(torch.from_numpy(np.array(suite.split("sides", "test").images[:3])))


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModelWithProjection"])
def test_base_and_experts_of_transformers_give_its_features(folder: Path, kind: str) -> None:
    pytest.importorskip("transformers")
    library = transformers_library(kind)
    model = save_base(folder, library)
    suite = load(
        folder,
        model=model_of(folder, 32, head_width=16, mlp_ratio=2.0),
        base="base",
        tasks=tasks_with_heads(folder, 16),
    )
    images = normalised(suite)
    with torch.no_grad():
        expert: Any = library.load(folder / "experts" / "sides")
        expert.visual_projection.load_state_dict(model.visual_projection.state_dict())  # a suite takes the base's
        for weights, theirs in ((suite.base, model), (suite.experts["sides"], expert)):
            given = (
                theirs.get_image_features(images).pooler_output if kind == "CLIPModel" else theirs(images).image_embeds
            )
            assert torch.allclose(suite.encode(weights, images), normalize(given, dim=-1), atol=1e-5)


def test_a_base_without_text_tower_needs_heads(folder: Path) -> None:
    pytest.importorskip("transformers")
    save_base(folder, transformers_library("CLIPVisionModelWithProjection"))
    with pytest.raises(KitError, match=r"has no text tower under open_clip's names.* give task 'shades' a `head`\."):
        load(folder, model=model_of(folder, 32, head_width=16, mlp_ratio=2.0), base="base")


def test_a_base_without_projection_is_said(folder: Path) -> None:
    pytest.importorskip("transformers")
    save_base(folder, transformers_library("CLIPVisionModel"))
    with pytest.raises(
        KitError, match=r"has no projection to the joint space \(32, 16\)\. Name a checkpoint of open_cl"
    ):
        load(
            folder,
            model=model_of(folder, 32, head_width=16, mlp_ratio=2.0),
            base="base",
            tasks=tasks_with_heads(folder, 16),
        )


def test_a_folder_as_open_clip_writes_it_says_how_images_are_normalised(folder: Path) -> None:
    model = save_base(folder, open_clip_library())
    path = folder / "base" / "open_clip_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}}))
    suite = load(folder, model="base/open_clip_config.json", base="base", tasks=tasks_with_heads(folder, 16))
    assert suite._mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    images = normalised(suite)
    with torch.no_grad():
        assert torch.allclose(suite.encode(suite.base, images), model.encode_image(images, normalize=True), atol=1e-6)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_mambaout"])
def test_a_model_of_timm_is_a_suite(folder: Path, name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5).eval()
    for place, seed in (("base", 0), ("experts/shades", 1), ("experts/sides", 2)):
        write(folder / place / "model.safetensors", changed(model, seed, 0.0 if place == "base" else 0.01))
    features = model.forward_head(model.forward_features(torch.zeros(1, 3, 160, 160)), pre_logits=True).shape[1]
    suite = load(folder, model=f"timm:{name}", base="base", tasks=tasks_with_heads(folder, features))
    assert suite.side == 160
    facts = timm.get_pretrained_cfg(name)
    assert suite._mean.flatten().tolist() == pytest.approx(facts.mean)
    assert suite.features == features
    images = normalised(suite)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        assert torch.allclose(suite.encode(suite.base, images), normalize(pooled, dim=-1), atol=1e-5)
    assert all(torch.isfinite(value).all() for value in suite.experts["sides"].values())
    assert suite.layer_inputs(suite.base, images)


def test_normalisation_over_batches_is_refused(folder: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(
        KitError, match=r"timm:test_resnet normalises over batches \('trunk\.conv1\.1\.running_mean' and \d+"
    ):
        load(folder, model="timm:test_resnet", tasks=tasks_with_heads(folder, 16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "ViT-B-33"}, r"open_clip knows no model 'ViT-B-33'\. Did you mean 'ViT-B-3"),
        ({"model": "timm:vit_tinny"}, r"timm knows no model 'vit_tinny'"),
        ({"model": "none.json"}, r"The model description .*none\.json cannot be read \(No such file"),
        ({"base": "none.safetensors"}, r"There is no checkpoint .*none\.safetensors"),
        (
            {"model": "ViT-B-32-quickgelu", "base": "open_ai"},
            r"no weights 'open_ai' for .*Did you mean 'openai'\? Its t",
        ),
        (
            {"model": "ViT-B-32", "base": "openai"},
            r"'openai' were trained with QuickGELU, and ViT-B-32 has the other one: all accuracies would be wrong\. "
            r"Name ViT-B-32-quickgelu\.",
        ),
        (
            {"model": "ViT-B-32-quickgelu", "base": "laion2b_s34b_b79k"},
            r"no weights 'laion2b_s34b_b79k' for|trained with plain GELU",
        ),
    ],
    ids=["model", "timm", "json", "base", "tag", "activation", "other activation"],
)
def test_a_model_or_base_that_there_is_not_is_said(folder: Path, changes: dict[str, Any], words: str) -> None:
    pytest.importorskip("timm")
    heads = {"tasks": tasks_with_heads(folder, 16)} if "timm" in str(changes) else {}
    with pytest.raises(KitError, match=words):
        load(folder, **changes, **heads)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", r"describes no model of open_clip: it must hold embed_dim, vision_cfg and text_cfg"),
        ("{", r"cannot be read \(Expecting property name"),
        (
            json.dumps({"embed_dim": 16, "vision_cfg": {"layers": 2, "colour": 3}, "text_cfg": {}}),
            r"open_clip cannot make the model tiny\.json or its tokenizer: TypeError: .*colour",
        ),
    ],
    ids=["a list", "no JSON", "an unknown field"],
)
def test_a_description_that_is_none_is_said(folder: Path, content: str, words: str) -> None:
    (folder / "tiny.json").write_text(content)
    with pytest.raises(KitError, match=words):
        load(folder)


def wider(config: dict[str, Any]) -> None:
    config["vision_cfg"]["width"] = 128


def deeper(config: dict[str, Any]) -> None:
    config["vision_cfg"]["layers"] = 3


def shallower(config: dict[str, Any]) -> None:
    config["vision_cfg"]["layers"] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wider, r"base\.safetensors is not .*tiny\.json: .*has shape .*, the model .*Name the model that it is of"),
        (deeper, r"'visual\.transformer\.resblocks\.2\.ln_1\.weight' is missing"),
        (shallower, r"'visual\.transformer\.resblocks\.1\.\S+' is no tensor of the model"),
    ],
)
def test_a_base_of_another_architecture_is_said(folder: Path, change: Any, words: str) -> None:
    config = json.loads((folder / "tiny.json").read_text())
    change(config)
    (folder / "tiny.json").write_text(json.dumps(config))
    with pytest.raises(KitError, match=words):
        load(folder)


def test_what_wraps_all_names_of_a_base_is_taken_off(folder: Path) -> None:
    before = load(folder)
    path = folder / "base.safetensors"
    write(path, {f"module.{name}": value for name, value in read(path).items()})
    after = load(folder)
    assert all(torch.equal(after.base[name], value) for name, value in before.base.items())
    assert torch.equal(after.heads["sides"], before.heads["sides"])


def test_a_base_of_half_precision_becomes_float32(folder: Path) -> None:
    path = folder / "base.safetensors"
    write(path, {name: value.half() for name, value in read(path).items()})
    assert {value.dtype for value in load(folder).base.values()} == {torch.float32}


# On the hub


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    pytest.importorskip("datasets")
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        yield served


def test_weights_of_the_hub_are_known_before_they_are_fetched(hub: LoopbackHub, folder: Path) -> None:
    base, expert = ((folder / name).read_bytes() for name in ("base.safetensors", "experts/shades.safetensors"))
    hub.put("model", "ann/base", {"open_clip_model.safetensors": base})
    commit = hub.put("model", "ann/shades", {"model.safetensors": expert, "README.md": b"birds"})
    local = load(folder)
    tasks = yaml.safe_load((folder / "tiny.yaml").read_text())["tasks"]
    tasks["shades"]["expert"] = "hf:ann/shades"
    suite = load(folder, base="hf:ann/base", tasks=tasks)
    assert not suite.has_expert("shades")
    assert suite.fingerprint(TASKS, TASKS) == local.fingerprint(TASKS, TASKS)
    assert not suite.has_expert("shades")
    assert all(torch.equal(value, local.base[name]) for name, value in suite.base.items())
    suite.prepare(TASKS, workers=1)
    assert suite.has_expert("shades")
    assert suite.expert_hash("shades") == local.expert_hash("shades")
    assert suite.sources(["shades"])["shades"] == f"ann/shades@{commit}"


def test_what_was_fetched_of_the_hub_needs_no_network_and_stays_what_it_is(hub: LoopbackHub, folder: Path) -> None:
    base, expert = ((folder / name).read_bytes() for name in ("base.safetensors", "experts/shades.safetensors"))
    hub.put("model", "ann/base", {"open_clip_model.safetensors": base, "open_clip_config.json": b"{}"})
    hub.put("model", "ann/shades", {"model.safetensors": expert})
    tasks = yaml.safe_load((folder / "tiny.yaml").read_text())["tasks"]
    for revision in ("", "@main"):
        tasks["shades"]["expert"] = f"hf:ann/shades{revision}"
        suite = load(folder, base="hf:ann/base", tasks=tasks)
        suite.prepare(TASKS, workers=1)
        before, asked = fingerprint(suite), len(hub.asked)
        hub.put("model", "ann/shades", {"model.safetensors": b"what it is now"})
        again = load(folder)
        assert again.has_expert("shades")
        assert again.expert("shades")
        assert fingerprint(again) == before
        assert len(hub.asked) == asked
        hub.put("model", "ann/shades", {"model.safetensors": expert})


# A study


CELLS: Mapping[str, Cell] = {
    "average": Cell(method="task_arithmetic", pool=TASKS, evaluate=TASKS),
    "ties": Cell(method="ties_merging", pool=TASKS, evaluate=TASKS),
    "experts": Cell(method="individual", pool=TASKS, evaluate=TASKS),
    "base": Cell(method="pretrained", pool=TASKS, evaluate=TASKS),
    "adamerging": Cell(
        method="layer_wise_adamerging", pool=TASKS, evaluate=TASKS, parameters={"steps": 2, "images_per_task": 2}
    ),
    "regmean": Cell(method="regmean", pool=TASKS, evaluate=TASKS),
    "fisher": Cell(method="fisher_merging", pool=TASKS, evaluate=TASKS),
}


def test_a_study_on_a_suite_from_a_file_gives_records_and_tables(folder: Path, tmp_path: Path) -> None:
    suite = load(folder)
    records = study.run(suite, CELLS, workers=2, folder=tmp_path / "records")
    assert set(records) == set(CELLS)
    assert all(set(one.accuracy) == set(TASKS) for one in records.values())
    assert str(folder) not in "".join(path.read_text() for path in (tmp_path / "records").rglob("*.json"))
    again = study.run(load(folder), CELLS, workers=1, folder=tmp_path / "records")
    assert {name: one.key for name, one in again.items()} == {name: one.key for name, one in records.items()}
    assert "Layer-wise AdaMerging" in str(tables.accuracy_table(records.values()).data)
    assert "Shades (shades)" in str(tables.task_table(suite, TASKS).data)
