"""Tiny models that their own libraries make, write and load again: transformers, open_clip and timm."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 16,
    "projection_dim": 16,
}
OPEN_CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Library:
    """How one library makes a model, writes it into a folder, loads it from there, and what the model says.

    Attributes:
        make: returns the model with random weights.
        save: writes it.
        load: reads it.
        features: of 2 images or texts.
        merged: whether a tensor of this name takes part in a merge.
    """

    make: Callable[[], Any]
    save: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]
    features: Callable[[Any], Tensor]
    merged: Callable[[str], bool] = lambda name: True


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def transformers_library(model: str) -> Library:
    transformers: Any = import_module("transformers")
    kind = getattr(transformers, model)

    def make() -> nn.Module:
        if model == "CLIPModel":
            return kind(transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16))
        if model.startswith("Bert"):
            return kind(
                transformers.BertConfig(
                    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
                )
            )
        return kind(transformers.CLIPVisionConfig(**VISION))

    def features(module: Any) -> Tensor:
        if model.startswith("Bert"):
            return module(torch.arange(20).reshape(2, 10)).last_hidden_state
        if model == "CLIPModel":
            return module.get_image_features(pixel_values=images()).pooler_output
        output = module(pixel_values=images())
        return output.image_embeds if "Projection" in model else output.pooler_output

    def merged(name: str) -> bool:
        return model.startswith("Bert") or not name.startswith(("text_", "visual_projection", "logit"))

    return Library(make, lambda module, folder: module.save_pretrained(folder), kind.from_pretrained, features, merged)


def open_clip_library() -> Library:
    def save(module: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(module.state_dict(), folder / "open_clip_model.safetensors")
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {"mean": mean, "std": std}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))

    return Library(
        lambda: open_clip.CLIP(**OPEN_CLIP),
        save,
        lambda folder: open_clip.create_model(f"local-dir:{folder}"),
        lambda module: module.encode_image(images()),
        lambda name: name.startswith("visual.") and name != "visual.proj",
    )


def timm_library() -> Library:
    import timm
    from timm.models import save_for_hf
    from timm.models.vision_transformer import VisionTransformer

    def make() -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=5)

    def save(module: nn.Module, folder: Path) -> None:
        args = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}
        save_for_hf(module, str(folder), model_args=args, safe_serialization=True)

    def load(folder: Path) -> nn.Module:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)

    def features(module: Any) -> Tensor:
        assert isinstance(module, VisionTransformer)
        return module.forward_head(module.forward_features(images()))

    return Library(make, save, load, features)


LIBRARIES: dict[str, Callable[[], Library]] = {
    "CLIPVisionModel": lambda: transformers_library("CLIPVisionModel"),
    "CLIPVisionModelWithProjection": lambda: transformers_library("CLIPVisionModelWithProjection"),
    "CLIPModel": lambda: transformers_library("CLIPModel"),
    "BertModel": lambda: transformers_library("BertModel"),
    "open_clip": open_clip_library,
    "timm": timm_library,
}


def changed(module: nn.Module, seed: int, share: float = 0.02) -> dict[str, Tensor]:
    """Return the weights of `module`, the floating-point ones a little changed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + share * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in module.state_dict().items()
    }
