"""What describes a model: a file as open_clip writes it, a model of timm; and how its images are normalised."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.words import spelt

TIMM = "timm:"
TEXT = {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1}
"""The text tower of a model that has none: open_clip builds no CLIP without one. It is never used."""

BESIDE: Mapping[str, Callable[[Mapping[str, Any]], tuple[Any, Any]]] = {
    "open_clip_config.json": lambda said: (said["preprocess_cfg"]["mean"], said["preprocess_cfg"]["std"]),
    "preprocessor_config.json": lambda said: (said["image_mean"], said["image_std"]),
    "config.json": lambda said: (said["pretrained_cfg"]["mean"], said["pretrained_cfg"]["std"]),  # timm's
}
"""Files beside weights, of open_clip, transformers and timm, that say how images are normalised, and where in them."""


def described(model: str) -> dict[str, Any] | None:
    """Return the description of a model as open_clip reads it; None if `model` is the name of one of open_clip's own.

    Raises:
        KitError: it is a file that cannot be read or describes no model, or a model that timm does not know.
    """
    if model.startswith(TIMM):
        return _of_timm(model.removeprefix(TIMM))
    return _of_file(Path(model)) if model.endswith(".json") else None


def normalisation_of(model: str) -> dict[str, tuple[float, ...]]:
    """Return mean and standard deviation for a model that is described by a file, or is timm's; or nothing."""
    if model.startswith(TIMM):
        import timm

        facts: Any = timm.get_pretrained_cfg(model.removeprefix(TIMM))
        return _three_numbers(getattr(facts, "mean", None), getattr(facts, "std", None))
    if model.endswith(".json"):
        return _three_numbers(*_found(BESIDE["open_clip_config.json"], _content(Path(model))))
    return {}


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KitError(
            f"The model description {spelt(path)} cannot be read ({spelt(reason)}). Check the path."
        ) from error
    return content if isinstance(content, dict) else {}


def _of_file(path: Path) -> dict[str, Any]:
    whole = _content(path)
    config = whole.get("model_cfg", whole)  # open_clip_config.json has two parts
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise KitError(
            f"{spelt(path)} describes no model of open_clip: it must hold embed_dim, vision_cfg and text_cfg, as "
            "`open_clip.get_model_config(NAME)` shows them, or an open_clip_config.json does."
        )
    return config


def _of_timm(name: str) -> dict[str, Any]:
    import timm

    if not timm.is_model(name):
        raise KitError(f"timm knows no model '{spelt(name)}'.{suggestion(name, timm.list_models())}")
    model: Any = timm.create_model(name, num_classes=0)
    # As the model itself does it: a vision transformer may take its class token, others tell their pooling by a module.
    pool = model.global_pool if isinstance(getattr(model, "global_pool", None), str) else "avg"
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": "none"}
    side = int(model.pretrained_cfg["input_size"][-1])
    with torch.no_grad():  # some have layers before the classifier that change the number of features
        features = int(model.eval()(torch.zeros(1, 3, side, side)).shape[-1])
    return {"embed_dim": features, "vision_cfg": {**vision, "image_size": side}, "text_cfg": TEXT}


def normalisation_beside(checkpoint: Checkpoint) -> dict[str, tuple[float, ...]]:
    """Return mean and standard deviation as a file beside the weights says, or nothing."""
    for path in checkpoint.beside:
        if path.name in BESIDE:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):  # it is not needed
                continue
            if said := _three_numbers(*_found(BESIDE[path.name], content)):
                return said
    return {}


def _found(look: Callable[[Any], tuple[Any, Any]], content: Any) -> tuple[Any, Any]:
    try:
        return look(content)
    except (LookupError, TypeError):
        return None, None


def _three_numbers(mean: Any, std: Any) -> dict[str, tuple[float, ...]]:
    for one in (mean, std):
        if not (isinstance(one, list | tuple) and len(one) == 3 and all(isinstance(n, int | float) for n in one)):
            return {}
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
