"""The model of a suite file: an open_clip architecture with the base weights in it."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergekit_lite.cache import content_hash
from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.suites.checkpoints.opening import HUB, Checkpoint, opened
from mergekit_lite.suites.clip import hub
from mergekit_lite.suites.own import filling, places
from mergekit_lite.suites.own.descriptions import TIMM, described, normalisation_beside, normalisation_of
from mergekit_lite.suites.own.schema import SuiteFile
from mergekit_lite.suites.words import spelt

if TYPE_CHECKING:
    import open_clip


class Built(NamedTuple):
    """A model with its base weights.

    Attributes:
        clip: the model.
        tokenizer: for its text tower; None if it has none.
        features: their number D.
        hash: of the files with the weights, of the architecture, and of how images are normalised.
        source: where the weights come from, without folders of this machine.
    """

    clip: "open_clip.CLIP"
    tokenizer: Any
    features: int
    hash: str
    source: str


def architecture(file: SuiteFile) -> str:
    """Return the name under which open_clip knows the model; one that a file describes is made known.

    Raises:
        KitError: open_clip knows no such model, or the file describes none.
    """
    import open_clip  # takes seconds

    config = described(file.model)
    if config is None:
        if file.model not in open_clip.list_models():
            raise KitError(
                f"open_clip knows no model '{spelt(file.model)}'.{suggestion(file.model, open_clip.list_models())} "
                "`open_clip.list_models()` lists them; a .json file may describe one of your own."
            )
        return file.model
    called = f"{Path(file.model.removeprefix(TIMM)).stem}-{content_hash(config)}"  # never a name of open_clip's own
    open_clip.factory._MODEL_CONFIGS[called] = config
    return called


def built(file: SuiteFile) -> Built:
    """Return the model with its base weights.

    Images are normalised as it is written beside the base (by open_clip, transformers or timm), as open_clip knows of
    its tag, as the description of the model says, or else as OpenAI's CLIP does; of a timm model as timm does.

    Raises:
        KitError: there is no such model, it cannot be merged as its weights are not all that it has learnt, or the base
            is not there or not one of this model.
    """
    import open_clip

    called = architecture(file)
    config = open_clip.get_model_config(called)
    assert config is not None
    model: Any = _guarded(file, lambda: open_clip.create_model(called))
    _check_merges(model, file)
    place, known = _place(file, called, config)
    checkpoint = opened(place)
    filling.fill(model, checkpoint, file)
    normalisation: dict[str, Any] = {
        **normalisation_of(file.model),
        **normalisation_beside(checkpoint),
        **{key: known[key] for key in ("mean", "std") if key in known},
    }
    open_clip.model.set_model_preprocess_cfg(model, {**model.visual.preprocess_cfg, **normalisation})
    tokenizer = None if file.model.startswith(TIMM) else _guarded(file, lambda: open_clip.get_tokenizer(called))
    print_ = [checkpoint.digest(), config, list(model.visual.image_mean), list(model.visual.image_std)]
    source = checkpoint.source if place.startswith(HUB) else Path(place).name
    return Built(model, tokenizer, config["embed_dim"], content_hash(print_), known.get("source", source))


def base_checkpoint(file: SuiteFile) -> Checkpoint:
    """Return the opened base weights of a suite."""
    import open_clip

    called = architecture(file)
    return opened(_place(file, called, open_clip.get_model_config(called) or {})[0])


class Announced(NamedTuple):
    """What is known of a model before it is built.

    Attributes:
        side: of its images in pixels.
        base: where its weights lie: a path, or what of the hub.
        on_hub: whether they can be fetched.
        here: whether they are on this machine.
    """

    side: int
    base: str
    on_hub: bool
    here: bool


def announced(file: SuiteFile) -> Announced:
    """Return what is known of the model; nothing is built or fetched, and no weight is read.

    Raises:
        KitError: there is no such model, or it has no such base.
    """
    import open_clip

    called = architecture(file)
    config = open_clip.get_model_config(called) or {}
    image = config["vision_cfg"].get("image_size", 224)  # open_clip's own default
    side = int(image[0] if isinstance(image, list | tuple) else image)
    if not _is_tag(file):
        return Announced(side, file.base, file.base.startswith(HUB), places.is_here(file.base))
    repo, weights, _ = _of_tag(file, called, config)
    return Announced(side, f"{HUB}{repo}/{weights}", True, hub.cached(repo, weights) is not None)


def _guarded(file: SuiteFile, make: Any) -> Any:
    """Return what open_clip makes; it takes descriptions at their word, and fails in any way.

    It warns of random weights, which are about to be replaced.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    except Exception as error:
        raise KitError(
            f"open_clip cannot make the model {spelt(Path(file.model).name)} or its tokenizer: "
            f"{type(error).__name__}: {spelt(error)}. Compare the description with `open_clip.get_model_config(NAME)`."
        ) from error
    finally:
        logging.disable(before)


def _check_merges(model: Any, file: SuiteFile) -> None:
    counted = [name for name, _ in model.visual.named_buffers() if name.endswith("running_mean")]
    if counted:
        raise KitError(
            f"{spelt(file.model)} normalises over batches ('{counted[0]}' and {len(counted) - 1} more): what it "
            "counted of its images is no parameter, and would be wrong for merged ones. Take a model without batch "
            "normalisation, such as a ViT."
        )


def _place(file: SuiteFile, called: str, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return where the base weights are, and what open_clip knows of its tag: mean, std; and the source."""
    if not _is_tag(file):
        return file.base, {}
    repo, weights, known = _of_tag(file, called, config)
    path = hub.downloaded(repo, weights)
    return str(path), {**known, "source": str(hub.source(repo, weights))}


def _is_tag(file: SuiteFile) -> bool:
    return not file.base.startswith(HUB) and not Path(file.base).is_absolute()


def _of_tag(file: SuiteFile, called: str, config: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return repository and file of the weights that open_clip has under a tag, and what else it knows of it."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(called)
    if file.base not in tags:
        there = f"Its tags: {', '.join(tags)}." if tags else "It has none: name a file, a folder or hf:ORG/REPO."
        raise KitError(
            f"Suite '{file.name}': open_clip has no weights '{spelt(file.base)}' for {spelt(file.model)}."
            f"{suggestion(file.base, tags)} {there}"
        )
    known = dict(open_clip.get_pretrained_cfg(called, file.base))
    _check_activation(file, called, config, bool(known.get("quick_gelu", False)))
    repo = str(known.get("hf_hub", "")).rstrip("/")
    if not repo:
        raise KitError(
            f"Suite '{file.name}': the weights '{file.base}' of {file.model} are not on the Hugging Face hub. Download "
            "them, and name the file."
        )
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    return repo, HF_SAFE_WEIGHTS_NAME, known


def _check_activation(file: SuiteFile, called: str, config: dict[str, Any], quick: bool) -> None:
    """Refuse weights whose activation is another one: open_clip only warns, and all accuracies would be wrong."""
    import open_clip

    if bool(config.get("quick_gelu", False)) == quick:
        return
    other = f"{called}-quickgelu" if quick else called.removesuffix("-quickgelu")
    instead = f"Name {other}." if other in open_clip.list_models() else "Describe the model in a .json file."
    raise KitError(
        f"Suite '{file.name}': the weights '{spelt(file.base)}' were trained with {'Quick' if quick else 'plain '}"
        f"GELU, and {spelt(file.model)} has the other one: all accuracies would be wrong. {instead}"
    )
