"""Base weights of any layout into a model of open_clip."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.encoders import as_encoder
from mergekit_lite.suites.checkpoints.layouts import WRAPPERS
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.own.schema import SuiteFile
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three

TOWERS = ("transformer.", "text.")
"""What open_clip's names of a text tower begin with."""


def fill(model: Any, checkpoint: Checkpoint, file: SuiteFile) -> None:
    """Put the base weights into a model: all of an open_clip checkpoint, of another one the image encoder.

    Raises:
        KitError: they are another model's, or have no text tower where a task has prompts and no head.
    """
    wrapper = next((one for one in WRAPPERS if all(name.startswith(one) for name in checkpoint)), "")
    names = {name.removeprefix(wrapper): name for name in checkpoint}
    if any(name.startswith(TOWERS) for name in names) and any(name.startswith("visual.") for name in names):
        _fill_whole(model, checkpoint, names, file)
        return
    headless = [name for name, task in file.tasks.items() if task.head is None]
    if headless:
        beside = [path.name for path in checkpoint.files[0].parent.glob("open_clip_model.safetensors")]
        hint = f"There is {beside[0]} beside it: name that file." if beside else ""
        raise KitError(
            f"The base {spelt(checkpoint.place)} has no text tower under open_clip's names, from which prompts become "
            f"heads. {hint or 'Name a checkpoint of the whole model as open_clip writes it, or one of its tags,'}"
            f"{' Or' if hint else ' or'} give task '{headless[0]}' a `head`."
        )
    own = {name: value for name, value in model.visual.named_parameters() if name != "proj"}
    loaded: dict[str, Tensor] = dict(as_encoder(checkpoint, own, what=f"The base {spelt(checkpoint.place)}"))
    if getattr(model.visual, "proj", None) is not None:
        loaded["proj"] = _projection(checkpoint, tuple(model.visual.proj.shape))
    # What is left are buffers that the model has computed from its description.
    model.visual.load_state_dict({**model.visual.state_dict(), **loaded})


def _fill_whole(model: Any, checkpoint: Checkpoint, names: Mapping[str, str], file: SuiteFile) -> None:
    state = model.state_dict()
    lacking = [f"'{spelt(name)}' is missing" for name, _ in model.named_parameters() if name not in names]
    strange = [
        f"'{spelt(name)}' is no tensor of the model"
        for name in _unknown(names, state)
        if _counts(checkpoint, names[name])
    ]
    other = [
        f"'{spelt(name)}' has shape {checkpoint.layout(names[name])[0]}, the model {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in names and checkpoint.layout(names[name])[0] != tuple(tensor.shape)
    ]
    problems = [*other, *lacking, *strange]
    if problems:
        raise KitError(
            f"The base {spelt(checkpoint.place)} is not {spelt(file.model)}: {first_three(problems)}. Name the model "
            "that it is of."
        )
    model.load_state_dict({**state, **{name: checkpoint[names[name]].float() for name in state if name in names}})


def _unknown(names: Iterable[str], state: Mapping[str, Tensor]) -> list[str]:
    # Masks and position numbers were stored by some versions and are computed by others.
    return [name for name in names if name not in state and not name.endswith(("attn_mask", "position_ids"))]


def _counts(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a tensor is a weight: OpenAI's own files hold three whole numbers besides."""
    shape, kind = checkpoint.layout(name)
    return kind.is_floating_point and bool(shape)


def _projection(checkpoint: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the projection to the joint space, (width, joint); transformers stores it the other way round."""
    for name in ("visual.proj", "proj", "visual_projection.weight"):
        if name in checkpoint:
            found = checkpoint[name].T if name.endswith(".weight") else checkpoint[name]
            if tuple(found.shape) == shape:
                return found.float()
            raise KitError(f"The base has a projection '{name}' of {tuple(found.shape)}, the model one of {shape}.")
    raise KitError(
        f"The base has no projection to the joint space {shape}. Name a checkpoint of open_clip, or of transformers' "
        "CLIPModel or CLIPVisionModelWithProjection."
    )
