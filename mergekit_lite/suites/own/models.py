"""The model of a suite file: an open_clip architecture with the base weights in it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from mergekit_lite.cache import content_hash
from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.suites.checkpoints.encoders import as_encoder
from mergekit_lite.suites.checkpoints.opening import Checkpoint, opened
from mergekit_lite.suites.clip import hub
from mergekit_lite.suites.own.schema import SuiteFile
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three

if TYPE_CHECKING:
    import open_clip

TIMM = "timm:"
TEXT = {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1}
"""The text tower of a model that has none: open_clip builds no CLIP without one. It is never used."""


def architecture(file: SuiteFile) -> str:
    """Return the name under which open_clip knows the model; one that a file describes is made known.

    Raises:
        KitError: open_clip knows no such model, or the file describes none.
    """
    import open_clip  # takes seconds

    if file.model.startswith(TIMM):
        name = file.model.removeprefix(TIMM)
        described = _timm_config(name)
        called = f"mergekit-lite-timm-{name}"
    elif file.model.endswith(".json"):
        described = _read(Path(file.model))
        called = f"{Path(file.model).stem}-{content_hash(described)}"  # never a name of open_clip's own
    else:
        if file.model not in open_clip.list_models():
            raise KitError(
                f"open_clip knows no model '{spelt(file.model)}'.{suggestion(file.model, open_clip.list_models())} "
                "`open_clip.list_models()` lists them; a .json file may describe one of your own."
            )
        return file.model
    open_clip.factory._MODEL_CONFIGS[called] = described
    return called


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KitError(f"The model description {path} cannot be read ({reason}). Check the path.") from error
    content = content.get("model_cfg", content) if isinstance(content, dict) else content  # open_clip_config.json
    if not isinstance(content, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(content):
        raise KitError(
            f"{path} describes no model of open_clip: it must hold embed_dim, vision_cfg and text_cfg, as "
            "`open_clip.get_model_config(NAME)` shows them, or an open_clip_config.json does."
        )
    return content


def _timm_config(name: str) -> dict[str, Any]:
    import timm

    if not timm.is_model(name):
        raise KitError(f"timm knows no model '{spelt(name)}'.{suggestion(name, timm.list_models())}")
    model: Any = timm.create_model(name, num_classes=0)
    pool = getattr(model, "global_pool", "avg")  # as the model itself: a vision transformer may take its class token
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": "none"}
    facts: Any = model.pretrained_cfg
    side = int(facts["input_size"][-1])
    return {"embed_dim": model.num_features, "vision_cfg": {**vision, "image_size": side}, "text_cfg": TEXT}


class Built(NamedTuple):
    """A model with its base weights.

    Attributes:
        clip: the model.
        tokenizer: for its text tower; None if it has none.
        features: their number D.
        hash: of the files with the weights and of the architecture.
    """

    clip: "open_clip.CLIP"
    tokenizer: Any
    features: int
    hash: str


def built(file: SuiteFile) -> Built:
    """Return the model with its base weights.

    Raises:
        KitError: the base is not there, or is not one of this model.
    """
    import open_clip

    called = architecture(file)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are about to be replaced
    try:
        model: Any = open_clip.create_model(called)
    finally:
        logging.disable(logging.NOTSET)
    place, preprocessing = _place(file, called)
    if preprocessing:
        open_clip.model.set_model_preprocess_cfg(model, {**model.visual.preprocess_cfg, **preprocessing})
    if file.model.startswith(TIMM):
        import timm

        facts = timm.get_pretrained_cfg(file.model.removeprefix(TIMM)) or model.visual.trunk.pretrained_cfg
        normalised = {"mean": tuple(facts.mean), "std": tuple(facts.std)} if hasattr(facts, "mean") else {}
        open_clip.model.set_model_preprocess_cfg(model, {**model.visual.preprocess_cfg, **normalised})
    checkpoint = opened(place)
    _fill(model, checkpoint, file)
    tokenizer = None if file.model.startswith(TIMM) else open_clip.get_tokenizer(called)
    described = open_clip.get_model_config(called)
    assert described is not None  # it was made from this
    return Built(model, tokenizer, described["embed_dim"], content_hash([checkpoint.digest(), described]))


def base_checkpoint(file: SuiteFile) -> Checkpoint:
    """Return the opened base weights of a suite."""
    return opened(_place(file, architecture(file))[0])


def _place(file: SuiteFile, called: str) -> tuple[str, dict[str, Any]]:
    """Return where the base weights are, and how a tag of open_clip says that images are normalised."""
    import open_clip

    if file.base.startswith("hf:") or Path(file.base).is_absolute():
        return file.base, {}
    tags = open_clip.list_pretrained_tags_by_model(called)
    if file.base not in tags:
        there = f"Its tags: {', '.join(tags)}." if tags else "It has none: name a file, a folder or hf:ORG/REPO."
        raise KitError(
            f"Suite '{file.name}': open_clip has no weights '{spelt(file.base)}' for {spelt(file.model)}."
            f"{suggestion(file.base, tags)} {there}"
        )
    known = open_clip.get_pretrained_cfg(called, file.base)
    repo = str(known.get("hf_hub", "")).rstrip("/")
    if not repo:
        raise KitError(
            f"Suite '{file.name}': the weights '{file.base}' of {file.model} are not on the Hugging Face hub. Download "
            "them, and name the file."
        )
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    return str(hub.downloaded(repo, HF_SAFE_WEIGHTS_NAME)), {key: known[key] for key in ("mean", "std") if key in known}


def _fill(model: Any, checkpoint: Checkpoint, file: SuiteFile) -> None:
    """Put the base weights into the model: all of an open_clip checkpoint, or of another one the image encoder."""
    state = model.state_dict()
    if not file.model.startswith(TIMM) and set(state) <= {*checkpoint, "attn_mask"}:
        problems = [
            f"'{name}' has shape {checkpoint.layout(name)[0]}, the model {tuple(tensor.shape)}"
            for name, tensor in state.items()
            if name in checkpoint and checkpoint.layout(name)[0] != tuple(tensor.shape)
        ]
        if problems:
            raise KitError(f"The base {checkpoint.place} is not {file.model}: {first_three(problems)}. Name its model.")
        model.load_state_dict({name: checkpoint[name].float() for name in state if name in checkpoint}, strict=False)
        return
    headless = [name for name, task in file.tasks.items() if task.head is None]
    if headless:
        raise KitError(
            f"The base {checkpoint.place} has no text tower under open_clip's names, from which prompts become heads. "
            f"Name open_clip's checkpoint of the whole model or one of its tags, or give task '{headless[0]}' a `head`."
        )
    own = {name: value for name, value in model.visual.named_parameters() if name != "proj"}
    loaded: dict[str, Tensor] = dict(as_encoder(checkpoint, own, what=f"The base {checkpoint.place}"))
    if hasattr(model.visual, "proj") and model.visual.proj is not None:
        loaded["proj"] = _projection(checkpoint, tuple(model.visual.proj.shape))
    model.visual.load_state_dict({**model.visual.state_dict(), **loaded})


def _projection(checkpoint: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the projection to the joint space, (width, joint); transformers stores it the other way round."""
    for name in ("visual.proj", "proj"):
        if name in checkpoint:
            return checkpoint[name]
    if "visual_projection.weight" in checkpoint:
        return checkpoint["visual_projection.weight"].T
    raise KitError(
        f"The base has no projection to the joint space {shape}. Name a checkpoint of open_clip, or of transformers' "
        "CLIPModel or CLIPVisionModelWithProjection."
    )
