"""Names that libraries and wrappers give: what of a model is seen, fused and split, and what is not taken for CLIP."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from safetensors.torch import save_file
from torch import Tensor, nn

from mergekit_lite.errors import KitError
from mergekit_lite.merge.material import gathered
from mergekit_lite.suites.checkpoints.encoders import as_encoder
from mergekit_lite.suites.checkpoints.layouts import Names, View, layout_of, viewed
from mergekit_lite.suites.checkpoints.opening import Checkpoint, opened

TEXT: dict[str, Any] = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VISION: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}


def clip(**vision: Any) -> nn.Module:
    torch.manual_seed(0)
    return open_clip.CLIP(16, {**VISION, **vision}, TEXT)


def coca() -> nn.Module:
    pooled = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    model = CoCa(16, TEXT, TEXT, pooled)
    for value in model.parameters():  # open_clip leaves one of them as the memory was
        nn.init.normal_(value)
    return model


def trunk(name: str) -> nn.Module:
    return clip(timm_model_name=name, timm_pool="", timm_proj="linear", image_size=160)


MODELS = {
    "plain": clip,
    "scaled layers": lambda: clip(ls_init_value=0.1),
    "pooled by attention": lambda: clip(attentional_pool=True, attn_pooler_heads=2),
    "queries and keys normalised": lambda: clip(qk_norm=True),
    "without ln_pre": lambda: clip(no_ln_pre=True),
    "a text tower of its own": lambda: open_clip.model.CustomTextCLIP(16, VISION, TEXT),
    "CoCa": coca,
    "timm's ViT": lambda: trunk("test_vit"),
    "timm's ConvNeXt": lambda: trunk("test_convnext"),
}


def stored(folder: Path, content: Mapping[str, Tensor]) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file({name: value.detach().clone() for name, value in content.items()}, folder / "model.safetensors")
    return opened(folder)


def parts(view: View) -> dict[str, Tensor]:
    """Return what a merge sees; its shapes and dtypes are those that were announced."""
    found = dict(view)
    assert {name: view.layout(name) for name in view} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()
    }
    return found


def assert_back(view: View) -> None:
    back = view.back(parts(view))
    assert back.keys() | view.left_alone.keys() == set(view.checkpoint)
    assert not back.keys() & view.left_alone.keys()
    for name, value in back.items():
        assert torch.equal(value, view.checkpoint[name]), name


@pytest.mark.parametrize("kind", MODELS)
def test_all_of_an_image_tower_is_seen_and_nothing_of_the_text_tower(kind: str, tmp_path: Path) -> None:
    model: Any = MODELS[kind]()
    checkpoint = stored(tmp_path, model.state_dict())
    for names in get_args(Names):
        view = viewed(checkpoint, names=names)
        assert_back(view)
        alone = {name for name in checkpoint if not name.startswith("visual.") or name.startswith("visual.head.proj")}
        assert set(view.left_alone) == alone | ({"visual.proj"} & set(checkpoint))
        assert_back(viewed(checkpoint, names=names, whole=True))
    assert not viewed(checkpoint, whole=True).left_alone


@pytest.mark.parametrize("kind", MODELS)
def test_any_image_tower_is_found_for_a_suite_in_the_whole_model_and_by_itself(kind: str, tmp_path: Path) -> None:
    model: Any = MODELS[kind]()
    own = {name: value for name, value in model.visual.named_parameters() if name != "proj"}
    for number, content in enumerate([model.state_dict(), own, {f"module.{one}": own[one] for one in own}]):
        found = as_encoder(stored(tmp_path / str(number), content), own)
        assert list(found) == list(own)
        assert all(torch.equal(found[name], value) for name, value in own.items())


def test_a_suite_may_have_the_projection(tmp_path: Path) -> None:
    own = dict(clip().get_submodule("visual").named_parameters())
    for number, before in enumerate(["", "visual."]):
        found = as_encoder(stored(tmp_path / str(number), {before + one: own[one] for one in own}), own)
        assert torch.equal(found["proj"], own["proj"])


def test_blocks_that_an_image_tower_lacks_are_not_those_of_the_text_tower(tmp_path: Path) -> None:
    same = {"width": 64, "heads": 1, "layers": 2}  # as in the image tower
    model = open_clip.CLIP(16, VISION, TEXT | same)
    own = dict(model.visual.named_parameters())
    content = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("visual.transformer.resblocks.1.")
    }
    with pytest.raises(KitError, match=r"'transformer\.resblocks\.1\.ln_1\.weight' is missing"):
        as_encoder(stored(tmp_path, content), own)


def test_projections_that_timm_keeps_apart_are_found_for_a_suite(tmp_path: Path) -> None:
    names = [f"blocks.0.attn.{one}_proj.weight" for one in "qkv"]
    base = {f"trunk.{name}": torch.randn(4, 4) for name in names}
    found = as_encoder(stored(tmp_path, {f"visual.{name}": value for name, value in base.items()}), base)
    assert all(torch.equal(found[name], value) for name, value in base.items())


@pytest.mark.parametrize("outer", ["module.", "model.", "_orig_mod.", "module.model."])
def test_names_before_a_whole_clip_are_taken_off_and_said(outer: str, tmp_path: Path) -> None:
    content = clip().state_dict()
    bare = viewed(stored(tmp_path / "bare", content))
    wrapped = viewed(stored(tmp_path / "wrapped", {outer + name: value for name, value in content.items()}))
    assert wrapped.layout_title == f"open_clip's CLIP, without '{outer}' before its names"
    assert wrapped.left_alone == {outer + name: why for name, why in bare.left_alone.items()}
    assert all(torch.equal(wrapped[name], value) for name, value in bare.items())
    assert set(wrapped) == set(bare)
    assert_back(wrapped)
    whole = viewed(wrapped.checkpoint, whole=True)
    assert set(whole) == set(viewed(bare.checkpoint, whole=True))


def test_a_checkpoint_of_training_with_its_optimizer_is_read(tmp_path: Path) -> None:
    content = clip().state_dict()
    kept = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save(kept | {"state_dict": {f"module.{name}": content[name] for name in content}}, tmp_path / "epoch_3.pt")
    view = viewed(opened(tmp_path / "epoch_3.pt"))
    assert view.layout_title.startswith("open_clip's CLIP")
    assert torch.equal(view["conv1.weight"], content["visual.conv1.weight"])
    assert "optimizer.state.0.exp_avg" not in view


def transformers_vision(before: str) -> dict[str, Tensor]:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16))
    return {before + name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}


def test_a_clip_that_is_a_part_of_another_model_is_not_taken_for_all_of_it(tmp_path: Path) -> None:
    language = {f"language_model.layers.{n}.mlp.up_proj.weight": torch.randn(4, 4) for n in range(12)}
    content = transformers_vision("vision_tower.vision_model.") | language
    view = viewed(stored(tmp_path, content))
    assert view.layout_title == "names as they are"
    assert not view.left_alone
    assert_back(view)


def test_a_classifier_beside_an_encoder_is_no_other_model(tmp_path: Path) -> None:
    content = transformers_vision("encoder.vision_model.") | {"head.weight": torch.ones(3, 32)}
    view = viewed(stored(tmp_path, content))
    assert view.left_alone == {"head.weight": "no part of CLIP's image encoder"}
    assert "CLIPVisionModel of version 4, without 'encoder.' before its names" in view.layout_title


def test_what_is_added_to_an_encoder_is_not_left_out_in_silence(tmp_path: Path) -> None:
    added = {"vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
    positions = {"vision_model.embeddings.position_ids": torch.arange(5.0)[None]}  # by a script that halves all it sees
    view = viewed(stored(tmp_path, transformers_vision("vision_model.") | added | positions))
    assert "encoder.layers.0.self_attn.q_proj.lora_A.weight" in view
    assert view.left_alone == {"vision_model.embeddings.position_ids": "a count of positions"}


def test_the_text_tower_of_transformers_is_fused_too_if_it_is_wanted(tmp_path: Path) -> None:
    import transformers

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=text | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=vision | {"image_size": 32, "patch_size": 16},
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    view = viewed(opened(tmp_path), whole=True)
    assert view.layout("text_model.encoder.layers.0.self_attn.query_key_value.weight")[0] == (48, 16)
    assert not any("k_proj" in name for name in view)
    assert_back(view)


# Queries, keys and values that are not three equal parts

OTHER: dict[str, tuple[dict[str, tuple[int, ...]], list[str], list[str]]] = {
    # stored shapes; names fused; names split
    "keys of another width": (
        {"x.q.weight": (4, 4), "x.k.weight": (4, 6), "x.v.weight": (4, 6)},
        ["x.q.weight", "x.k.weight", "x.v.weight"],
        ["x.q.weight", "x.k.weight", "x.v.weight"],
    ),
    "single numbers": (
        {"q.weight": (), "k.weight": (), "v.weight": ()},
        ["q.weight", "k.weight", "v.weight"],
        ["q.weight", "k.weight", "v.weight"],
    ),
    "no bias of keys": (
        {"q.bias": (4,), "v.bias": (4,)},
        ["q.bias", "v.bias"],
        ["q.bias", "v.bias"],
    ),
    "fewer keys than queries": (
        {"q_proj.weight": (4, 4), "k_proj.weight": (2, 4), "v_proj.weight": (2, 4)},
        ["query_key_value.weight"],
        ["q_proj.weight", "k_proj.weight", "v_proj.weight"],
    ),
    "rows that are no three parts": ({"attn.qkv.weight": (8, 4)}, ["attn.qkv.weight"], ["attn.qkv.weight"]),
    "heads that alternate": (
        {"attention.query_key_value.weight": (12, 4)},
        ["attention.query_key_value.weight"],
        ["attention.query_key_value.weight"],
    ),
    "columns": ({"h.0.attn.c_attn.weight": (4, 12)}, ["h.0.attn.c_attn.weight"], ["h.0.attn.c_attn.weight"]),
    "two attentions under one name": (
        {f"a.{one}.weight": (4, 4) for one in ("q_proj", "k_proj", "v_proj", "query", "key", "value")},
        ["a.query_key_value.weight", "a.query.weight", "a.key.weight", "a.value.weight"],
        [f"a.{one}.weight" for one in ("q_proj", "k_proj", "v_proj", "query", "key", "value")],
    ),
    "apart and together": (
        {"a.q_proj.weight": (4, 4), "a.k_proj.weight": (4, 4), "a.v_proj.weight": (4, 4), "a.qkv.weight": (12, 4)},
        ["a.query_key_value.weight", "a.qkv.weight"],
        ["a.query_key_value.weight", "a.qkv.weight"],
    ),
}


@pytest.mark.parametrize("kind", OTHER)
def test_unusual_projections_are_seen_whole_or_apart_and_written_as_they_were(kind: str, tmp_path: Path) -> None:
    shapes, fused, split = OTHER[kind]
    checkpoint = stored(tmp_path, {name: torch.randn(shape) for name, shape in shapes.items()})
    for names, expected in zip(get_args(Names), (fused, split), strict=True):
        view = viewed(checkpoint, names=names)
        assert set(view) == set(expected)
        assert_back(view)


def test_projections_of_several_dtypes_are_seen_in_the_widest(tmp_path: Path) -> None:
    kinds = {"q.weight": torch.float16, "k.weight": torch.float32, "v.weight": torch.float16}
    checkpoint = stored(tmp_path, {name: torch.ones(2, 2, dtype=kind) for name, kind in kinds.items()})
    assert parts(viewed(checkpoint))["query_key_value.weight"].dtype == torch.float32
    assert {name: tensor.dtype for name, tensor in parts(viewed(checkpoint, names="split")).items()} == kinds


def test_seen_apart_one_of_three_projections_can_be_left_out(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, {f"{one}_proj.weight": torch.ones(2, 2) for one in "qkv"})
    assert list(viewed(checkpoint, names="split", without=["k_proj.weight"])) == ["q_proj.weight", "v_proj.weight"]
    with pytest.raises(KitError, match="has nothing to merge"):
        viewed(checkpoint, without=["k_proj.weight"])


@pytest.mark.parametrize("tied", ["base", "expert"])
def test_an_output_layer_that_is_tied_and_not_stored_is_said(tied: str, tmp_path: Path) -> None:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    for name in ("base", "expert"):
        config = transformers.LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=name == tied)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    problem, there = ("is not in the base", "In the base") if tied == "base" else ("is missing", "In expert 'a'")
    words = (
        f"'lm_head.weight' {problem}. {there} it may be tied to 'model.embed_tokens.weight', and is stored once: untie"
    )
    with pytest.raises(KitError, match=re.escape(words)):
        gathered(str(tmp_path / "base"), {"a": str(tmp_path / "expert")})


def test_any_names_have_a_layout() -> None:
    assert layout_of(["logit_scale", "visual.x", "conv1.weight"]).title == "names as they are"
    assert layout_of([]).pieces == ()
