"""Checkpoints as people have them: where the weights are found, what they are called, and what is refused."""

import json
import os
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.encoders import as_encoder
from mergekit_lite.suites.checkpoints.layouts import Names, layout_of, viewed
from mergekit_lite.suites.checkpoints.opening import opened
from mergekit_lite.suites.clip.transformers_format import to_transformers
from mergekit_lite.weight_files import LazyWeights, write

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2, dtype=torch.bfloat16)}


def same(left: Any, right: Any) -> bool:
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_a_file_a_folder_and_a_pickle_hold_the_same(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", TENSORS)
    write(tmp_path / "folder" / "model.safetensors", TENSORS)
    (tmp_path / "folder" / "config.json").write_text("{}")
    (tmp_path / "folder" / "README.md").write_text("a card")
    torch.save(TENSORS, tmp_path / "x.pt")
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "wrapped.ckpt")
    found = [opened(tmp_path / name) for name in ("x.safetensors", "folder", "x.pt", "wrapped.ckpt")]
    assert all(same(one, TENSORS) for one in found)
    assert [one.format for one in found] == ["safetensors", "safetensors", "pickle", "pickle"]
    assert [path.name for path in found[1].beside] == ["config.json"]
    assert found[0].digest() == found[1].digest() != found[2].digest()
    assert all(same(copy(one), TENSORS) for one in found)  # as methods and other processes open it


def sharded(folder: Path) -> Path:
    """Write TENSORS as transformers writes large models."""
    folder.mkdir(exist_ok=True)
    shards = {name: f"model-0000{n}-of-00002.safetensors" for n, name in enumerate(TENSORS, start=1)}
    for name, file in shards.items():
        write(folder / file, {name: TENSORS[name]})
    index = {"metadata": {"total_size": 28}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_one_file_beside_an_index_is_the_model_as_for_transformers(tmp_path: Path) -> None:
    write(sharded(tmp_path) / "model.safetensors", {"a.weight": torch.zeros(2, 3)})
    assert opened(tmp_path).format == "safetensors"
    assert opened(tmp_path / "model.safetensors.index.json").format == "sharded"


def test_of_twenty_sharded_models_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError("a tensor was read")

    for number in range(20):
        sharded(tmp_path / str(number))
    monkeypatch.setattr(LazyWeights, "__getitem__", never)
    views = [viewed(opened(tmp_path / str(number))) for number in range(20)]
    assert all(view.layout("a.weight") == ((2, 3), torch.float32) for view in views)


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(KitError, match=r"cannot be read \(Permission denied\)\. Ask its owner for the right to"):
        opened(tmp_path)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    model = opened(sharded(tmp_path))
    assert same(model, TENSORS)
    assert model.format == "sharded"
    assert model.layout("b.bias") == ((2,), torch.bfloat16)
    assert same(opened(tmp_path / "model.safetensors.index.json"), TENSORS)
    assert len(model.digest()) == 64


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = sharded(folder) / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        change(content["weight_map"])
        path.write_text(json.dumps(content))

    return edit


def twice(folder: Path) -> None:
    path = sharded(folder) / "model.safetensors.index.json"
    path.write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}}'
    )


def more(**tensors: Tensor) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        path = sharded(folder) / "model-00001-of-00002.safetensors"
        write(
            path, {"a.weight": TENSORS["a.weight"], **{name.replace("__", "."): one for name, one in tensors.items()}}
        )

    return add


def unlisted(folder: Path) -> None:
    (sharded(folder) / "model.safetensors.index.json").unlink()


def pickled_shard(folder: Path) -> None:
    edited(lambda shards: shards.update(a="model-1.bin"))(folder)
    torch.save(TENSORS, folder / "model-1.bin")


def cut(folder: Path) -> None:
    path = sharded(folder) / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def files(**content: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, tensors in content.items():
            path = folder / name.replace("__", ".")
            path.write_text(tensors) if isinstance(tensors, str) else write(path, tensors)

    return make


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo never",)


def pickled(folder: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Evil()}, folder / "pytorch_model.bin")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "an empty folder": (lambda folder: None, "holds no weights, but nothing at all. Name the folder with model"),
    "a folder of other things": (files(readme__md="x"), r"holds no weights, but readme\.md"),
    "two candidates": (
        files(a__safetensors=TENSORS, b__safetensors=TENSORS),
        r"has 2 files that could be the model: a",
    ),
    "an adapter": (files(adapter_model__safetensors=TENSORS), "holds an adapter"),
    "a text called safetensors": (files(model__safetensors="hello"), "is not a whole safetensors file"),
    "no tensor": (files(model__safetensors={}), "holds no tensors. Fetch or save"),
    "a truncated shard": (cut, r"model-00001-of-00002\.safetensors is not a whole safetensors file"),
    "a missing shard": (
        edited(lambda shards: shards.update(c="lost.safetensors")),
        "lost.safetensors, which is not th",
    ),
    "a shard above": (edited(lambda shards: shards.update(c="../x.safetensors")), "lies in another folder. Files of a"),
    "a shard elsewhere": (edited(lambda shards: shards.update(c="/etc/passwd")), "lies in another folder"),
    "a lost tensor": (
        edited(lambda shards: shards.update(c="model-00001-of-00002.safetensors")),
        "the index names tensors that its files lack: 'c' in model-00001",
    ),
    "a tensor in two shards": (
        more(b__bias=torch.zeros(2)),
        "hold tensors that the index does not name, or names in a",
    ),
    "a tensor without an entry": (
        more(c=torch.zeros(2)),
        "another file: 'c' in model-00001-of-00002.safetensors. Which",
    ),
    "an entry twice": (twice, r"is no index of weights \(ValueError: it has 'a' twice\)"),
    "shards without an index": (
        unlisted,
        "but no index of them. Fetch the whole model again, with model.safetensors.in",
    ),
    "a shard that is a pickle": (pickled_shard, "names the file model-1.bin, which is not called safetensors. Save"),
    "an empty index": (edited(lambda shards: shards.clear()), "is no index of weights"),
    "float8": (
        files(model__safetensors={"a": torch.ones(2).to(torch.float8_e4m3fn)}),
        "holds numbers of one byte: 'a' is torch.float8_e4m3fn",
    ),
    "a pickle that runs something": (pickled, r"refers to `(posix|nt)\.system`, which no image encoder needs"),
    "sharded pickles": (files(**{"pytorch_model__bin__index__json": "{}"}), "has its weights in several pickles. Load"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused_in_words(case: str, tmp_path: Path) -> None:
    make, words = BAD[case]
    make(tmp_path)
    with pytest.raises(KitError, match=words):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["nowhere.safetensors", "no/such/folder", "hf:../x", "hf:one"])
def test_a_place_that_is_none_is_said(place: str) -> None:
    with pytest.raises(KitError, match=r"There is no checkpoint|names no repository of the hub"):
        opened(place)


# Names

ARCHITECTURE = {"width": 8, "layers": 2}


def encoder(seed: int = 0) -> dict[str, Tensor]:
    """Return a CLIP image encoder of two blocks under open_clip's names."""
    import open_clip

    torch.manual_seed(seed)
    visual = open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=16
    )
    return {name: torch.randn_like(value) for name, value in visual.named_parameters()}


def stored(kind: str) -> dict[str, Tensor]:
    """Return the same encoder as different libraries store it."""
    own = encoder()
    bare = {name: value for name, value in own.items() if name != "proj"}
    theirs = to_transformers(bare)
    match kind:
        case "open_clip":
            text = {"transformer.resblocks.0.ln_1.weight": torch.ones(3), "token_embedding.weight": torch.ones(5, 3)}
            visual = {f"visual.{name}": value for name, value in own.items()}
            return visual | text | {"logit_scale": torch.tensor(4.6), "attn_mask": torch.ones(2, 2)}
        case "encoder":
            return own
        case "transformers 4":
            return theirs | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
        case "transformers 5":
            return {name.removeprefix("vision_model."): value for name, value in theirs.items()}
        case "with projection":
            return theirs | {"visual_projection.weight": own["proj"].T.contiguous()}
    raise AssertionError(kind)


KINDS = ("open_clip", "encoder", "transformers 4", "transformers 5", "with projection")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["fused", "split"])
def test_a_merge_sees_clip_under_the_same_names_whoever_stored_it(kind: str, names: Names, tmp_path: Path) -> None:
    reference = {name: value for name, value in encoder().items() if name != "proj"}
    write(tmp_path / "x.safetensors", stored(kind))
    view = viewed(opened(tmp_path / "x.safetensors"), names=names)
    if names == "fused":
        assert same(view, reference)
        assert [name for name in view] == [name for name in reference if name in view]
    else:
        block = "transformer.resblocks.1.attn."
        parts = [view[f"{block}{one}_proj.weight"] for one in "qkv"]
        assert torch.equal(torch.cat(parts), reference[f"{block}in_proj_weight"])
        assert not any("in_proj" in name for name in view)
    assert all(view.layout(name) == (tuple(view[name].shape), view[name].dtype) for name in view)
    assert same(copy(view), view)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["fused", "split"])
def test_what_a_merge_saw_goes_back_to_what_was_stored(kind: str, names: Names, tmp_path: Path) -> None:
    content = stored(kind)
    write(tmp_path / "x.safetensors", content)
    view = viewed(opened(tmp_path / "x.safetensors"), names=names)
    back = view.back(dict(view))
    assert back.keys() | view.left_alone.keys() == content.keys()
    assert not back.keys() & view.left_alone.keys()
    assert all(torch.equal(value, content[name]) for name, value in back.items())


def test_what_is_no_image_encoder_is_left_alone_unless_all_is_wanted(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", stored("open_clip"))
    checkpoint = opened(tmp_path / "x.safetensors")
    alone = viewed(checkpoint).left_alone
    assert alone["logit_scale"] == "the logit scale"
    assert alone["visual.proj"] == "the projection to the joint space"
    assert alone["token_embedding.weight"] == "part of the text tower"
    whole = viewed(checkpoint, whole=True)
    assert not whole.left_alone
    assert torch.equal(whole["logit_scale"], torch.tensor(4.6))


def test_whole_numbers_and_what_is_excluded_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {"a": torch.ones(2), "steps": torch.tensor(3), "head.weight": torch.ones(2, 2)})
    view = viewed(opened(tmp_path / "x.safetensors"), without=["head.weight"])
    assert list(view) == ["a"]
    assert view.left_alone == {
        "steps": "torch.int64, no floating-point numbers", "head.weight": "excluded, by 'head.weight'"
    }  # fmt: skip
    with pytest.raises(KitError, match="has nothing to merge, only"):
        viewed(opened(tmp_path / "x.safetensors"), without=["a", "head.weight"])


@pytest.mark.parametrize("three", [("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v")])
def test_three_projections_are_seen_as_one_and_written_as_three(three: tuple[str, ...], tmp_path: Path) -> None:
    # Two heads of keys and values for four of queries: the three have unequal rows.
    shapes = dict(zip(three, (4, 2, 2), strict=True))
    content = {f"layer.{one}.weight": torch.randn(rows, 4) for one, rows in shapes.items()} | {"x": torch.ones(1)}
    write(tmp_path / "x.safetensors", content)
    checkpoint = opened(tmp_path / "x.safetensors")
    view = viewed(checkpoint)
    assert view.layout("layer.query_key_value.weight")[0] == (8, 4)
    assert torch.equal(
        view["layer.query_key_value.weight"], torch.cat([content[f"layer.{one}.weight"] for one in three])
    )
    assert same(view.back(dict(view)), content)
    assert same(viewed(checkpoint, names="split"), content)


def test_a_wrapper_s_name_before_all_others_is_taken_off(tmp_path: Path) -> None:
    content = {f"module.{name}": value for name, value in TENSORS.items()}
    write(tmp_path / "x.safetensors", content)
    view = viewed(opened(tmp_path / "x.safetensors"))
    assert same(view, TENSORS)
    assert same(view.back(dict(view)), content)
    assert view.layout_title == "names as they are, without 'module.' before all of them"


def test_titles_say_whose_names_they_are() -> None:
    titles = {kind: layout_of(stored(kind)).title for kind in KINDS}
    assert titles == {
        "open_clip": "open_clip's CLIP",
        "encoder": "open_clip's image encoder",
        "transformers 4": "transformers' CLIPVisionModel of version 4",
        "transformers 5": "transformers' CLIPVisionModel of version 5",
        "with projection": "transformers' CLIPVisionModelWithProjection",
    }


# As libraries write them


def saved(name: str, folder: Path, **how: Any) -> nn.Module:
    """Write a tiny model with its own library and return it."""
    import transformers

    torch.manual_seed(1)
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision |= {"image_size": 32, "patch_size": 16, "projection_dim": 16}
    text: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config: Any
    match name:
        case "CLIPModel":
            text |= {"vocab_size": 50, "projection_dim": 16}
            config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
        case "BertModel":
            config = transformers.BertConfig(**text, vocab_size=50)
        case _:
            config = transformers.CLIPVisionConfig(**vision)
    model: nn.Module = getattr(transformers, name)(config)
    model.save_pretrained(folder, **how)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "BertModel"])
@pytest.mark.parametrize("how", [{}, {"max_shard_size": "20KB"}])
def test_what_transformers_writes_is_read_seen_and_written_back(name: str, how: Any, tmp_path: Path) -> None:
    model = saved(name, tmp_path, **how)
    checkpoint = opened(tmp_path)
    assert checkpoint.format == ("sharded" if how else "safetensors")
    assert [path.name for path in checkpoint.beside] == ["config.json"]
    for names in ("fused", "split"):
        view = viewed(checkpoint, names=names)
        assert same(view.back(dict(view)), {key: checkpoint[key] for key in checkpoint if key not in view.left_alone})
    if name != "BertModel":
        assert layout_of(checkpoint).title.startswith(f"transformers' {name}")
        assert len(viewed(checkpoint)) == 5 + 2 + 2 * 12
    else:
        parts = [
            model.get_parameter(f"encoder.layer.0.attention.self.{one}.weight") for one in ("query", "key", "value")
        ]
        fused = viewed(checkpoint)["encoder.layer.0.attention.self.query_key_value.weight"]
        assert torch.equal(fused, torch.cat(tuple(parts)))


@pytest.mark.parametrize("prefix", ["", "visual.trunk."])
def test_timm_s_vision_transformer_is_seen_under_its_own_names(prefix: str, tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=2)
    content = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    if prefix:
        content["text.x"] = torch.ones(1)
    write(tmp_path / "model.safetensors", content)
    for names, seen in (("fused", "blocks.1.attn.qkv.weight"), ("split", "blocks.1.attn.k_proj.weight")):
        view = viewed(opened(tmp_path), names=names)  # type: ignore[arg-type]
        assert seen in view
        assert same(view.back(dict(view)), {key: value for key, value in content.items() if key != "text.x"})


# As a suite's encoder


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_becomes_the_encoder_of_a_suite(kind: str, tmp_path: Path) -> None:
    base = {name: value for name, value in encoder(3).items() if name != "proj"}
    write(tmp_path / "x.safetensors", {name: value for name, value in stored(kind).items()})
    found = as_encoder(opened(tmp_path / "x.safetensors"), base)
    assert list(found) == list(base)
    assert same(found, {name: value for name, value in encoder().items() if name != "proj"})


def test_half_precision_becomes_the_base_s(tmp_path: Path) -> None:
    base = {name: value for name, value in encoder(3).items() if name != "proj"}
    write(tmp_path / "x.safetensors", {name: value.half() for name, value in stored("encoder").items()})
    found = as_encoder(opened(tmp_path / "x.safetensors"), base)
    assert found["conv1.weight"].dtype == torch.float32 == found.layout("conv1.weight")[1]


def test_another_architecture_is_refused_by_its_first_three_tensors(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", TENSORS)
    with pytest.raises(KitError, match=r"is not the image encoder that is wanted here: 'class_embedding' is missing; "):
        as_encoder(opened(tmp_path / "x.safetensors"), encoder())
