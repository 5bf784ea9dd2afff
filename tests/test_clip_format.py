"""Image encoders of transformers and of open_clip are one and the same model under two sets of names."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from mergekit_lite.errors import KitError
from mergekit_lite.methods import task_arithmetic
from mergekit_lite.suites.clip.transformers_format import TransformersWeights, from_transformers, to_transformers
from mergekit_lite.weight_files import write
from mergekit_lite.weights import check_same

transformers = pytest.importorskip("transformers")

SHAPES: dict[str, dict[str, int]] = {  # of the papers' three, with fewer blocks
    "B/32": {"width": 768, "patch": 32, "embed": 512, "depth": 2},
    "B/16": {"width": 768, "patch": 16, "embed": 512, "depth": 1},
    "L/14": {"width": 1024, "patch": 14, "embed": 768, "depth": 2},
}


def theirs(width: int, patch: int, embed: int, depth: int, side: int = 224) -> Any:
    """Return a transformers model in which every parameter matters: by default biases are 0 and norms do nothing."""
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_hidden_layers=depth,
        patch_size=patch,
        image_size=side,
        projection_dim=embed,
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        size = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        noise = torch.randn(parameter.shape, generator=generator) * size
        parameter.data = noise + (1 if parameter.ndim == 1 else 0)
    return model


def ours(shape: Mapping[str, int], quick_gelu: bool = True) -> Any:
    text = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": shape.get("side", 224), "layers": shape["depth"], "width": shape["width"]}
    vision["patch_size"] = shape["patch"]
    return open_clip.CLIP(shape["embed"], vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu).visual.eval()


def vision_weights(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if name != "visual_projection.weight"}


SMALL = {"width": 64, "patch": 8, "embed": 16, "depth": 2, "side": 32}


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    return vision_weights(theirs(**SMALL))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_features_are_equal_through_the_conversion_both_ways(shape: dict[str, int]) -> None:
    model = theirs(**shape)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    visual = ours(shape)
    converted = from_transformers(vision_weights(model))
    visual.load_state_dict(converted | {"proj": model.visual_projection.weight.T})
    with torch.no_grad():
        expected = normalize(model(images).image_embeds, dim=-1)
        assert (normalize(visual(images), dim=-1) - expected).abs().max() < 1e-5

    back = to_transformers(converted)
    fresh = transformers.CLIPVisionModelWithProjection(model.config).eval()
    fresh.load_state_dict(back | {"visual_projection.weight": visual.proj.T})
    with torch.no_grad():
        assert (normalize(fresh(images).image_embeds, dim=-1) - expected).abs().max() < 1e-5


def test_features_differ_with_plain_gelu() -> None:
    """What the tolerance above would not let pass: the silent mistake that QuickGELU's variants are chosen against."""
    model, visual = theirs(**SMALL), ours(SMALL, quick_gelu=False)
    visual.load_state_dict(from_transformers(vision_weights(model)) | {"proj": model.visual_projection.weight.T})
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gap = normalize(visual(images), dim=-1) - normalize(model(images).image_embeds, dim=-1)
    assert gap.abs().max() > 1e-4


def test_there_and_back_no_bit_changes(small: dict[str, Tensor]) -> None:
    back = to_transformers(from_transformers(small))
    assert set(back) == set(small)
    assert all(torch.equal(back[name], small[name]) for name in small)


def test_names_and_their_order_are_open_clips(small: dict[str, Tensor]) -> None:
    names = [name for name, _ in ours(SMALL).named_parameters() if name != "proj"]
    assert list(from_transformers(small)) == names


def test_the_prefix_and_stored_positions_are_optional(small: dict[str, Tensor]) -> None:
    bare = {name.removeprefix("vision_model."): value for name, value in small.items()}
    old = small | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    expected = from_transformers(small)
    for variant in (bare, old):
        found = from_transformers(variant)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_transformers_itself_can_read_what_is_published(small: dict[str, Tensor], tmp_path: Path) -> None:
    model = theirs(**SMALL)
    model.vision_model.config.save_pretrained(tmp_path)
    save_file(to_transformers(from_transformers(small)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    read, told = transformers.CLIPVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(read.eval()(images).pooler_output, model.vision_model(images).pooler_output, atol=1e-6)


def test_missing_and_unknown_names_are_named(small: dict[str, Tensor]) -> None:
    some = {name: value for name, value in small.items() if "k_proj" not in name}
    with pytest.raises(KitError, match=r"transformers' CLIPVisionModel: 'vision_model.encoder.layers.0.self_attn.k_pr"):
        from_transformers(some)
    with pytest.raises(KitError, match=r"is missing; .* is missing; .* is missing; and 1 more. Give the image encoder"):
        from_transformers(some)
    with pytest.raises(KitError, match=r"'visual_projection.weight' is not known"):
        from_transformers(small | {"visual_projection.weight": torch.zeros(1)})
    with pytest.raises(KitError, match=r"open_clip's VisionTransformer .*: 'proj' is not known"):
        to_transformers(from_transformers(small) | {"proj": torch.zeros(1)})
    with pytest.raises(KitError, match="'class_embedding' is missing"):
        to_transformers({})
    with pytest.raises(KitError, match=r"'encoder.layers.0.layer_norm1.weight' is missing"):
        from_transformers(
            {name.removeprefix("vision_model."): one for name, one in small.items() if "encoder" not in name}
        )


def test_an_expert_is_read_from_transformers_file_tensor_by_tensor(small: dict[str, Tensor], tmp_path: Path) -> None:
    expected = from_transformers(small)
    write(tmp_path / "model.safetensors", small)
    lazy = TransformersWeights(tmp_path / "model.safetensors")
    again = pickle.loads(pickle.dumps(lazy))
    assert list(again) == list(lazy) == list(expected)
    assert len(lazy) == len(expected)
    assert "proj" not in lazy
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert {name: lazy.layout(name) for name in lazy} == {
        name: (tuple(value.shape), value.dtype) for name, value in expected.items()
    }
    with pytest.raises(KeyError):
        lazy["vision_model.pre_layrnorm.weight"]
    check_same(expected, lazy, name="the expert")
    merged = task_arithmetic({name: torch.zeros_like(value) for name, value in expected.items()}, {"one": lazy})
    assert set(merged.weights) == set(expected)


def test_a_file_of_another_model_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"lm_head.weight": torch.zeros(2)})
    with pytest.raises(KitError, match=r"model.safetensors: These are not the weights of transformers' CLIPVisionM"):
        TransformersWeights(tmp_path / "model.safetensors")
