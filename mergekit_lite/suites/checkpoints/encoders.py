"""A checkpoint of any layout as the image encoder of a suite."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.layouts import View, viewed
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.clip.encoder_layout import Shape
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import first_three

PREFIXES = ("", "trunk.", "visual.")
"""What open_clip's names of an image tower have before those of a checkpoint: nothing for CLIP, ``trunk.`` for timm."""


class Encoder(LazyWeights):
    """An image encoder under the names of a suite's base, read tensor by tensor and in the base's dtypes."""

    def __init__(self, view: View, sources: Mapping[str, str], dtypes: Mapping[str, torch.dtype]) -> None:
        """Take for each name of the base the tensor of `view` that `sources` names."""
        self.view, self.sources, self.dtypes = view, dict(sources), dict(dtypes)
        self.device, self.path, self.metadata = view.device, view.path, view.metadata
        self._names = tuple(self.sources)

    def __getitem__(self, name: str) -> Tensor:
        return self.view[self.sources[name]].to(self.dtypes[name])

    def __reduce__(self) -> Any:
        """Let another process open the checkpoint anew."""
        return Encoder, (self.view, self.sources, self.dtypes)

    def layout(self, name: str) -> tuple[Shape, torch.dtype]:
        """Return shape and dtype of one tensor without reading it."""
        return self.view.layout(self.sources[name])[0], self.dtypes[name]


def as_encoder(checkpoint: Checkpoint, base: Mapping[str, Tensor], *, what: str = "") -> Encoder:
    """Return the image encoder in a checkpoint, under the names of a suite's base.

    Text towers, logit scales, projections and classifiers that the checkpoint has besides are left out: a suite
    classifies with its own heads.

    Args:
        checkpoint: opened.
        base: parameters of the suite's encoder.
        what: whose it is, for the error; by default the place it was opened at.

    Raises:
        KitError: tensors are missing or have another shape; the first three are named.
    """
    view = viewed(checkpoint, names="fused", whole="proj" in base)

    def lacking(prefix: str) -> list[str]:
        return [name for name in base if name.removeprefix(prefix) not in view or not name.startswith(prefix)]

    prefix = min(PREFIXES, key=lambda one: len(lacking(one)))
    problems = [f"'{spelt(name)}' is missing" for name in lacking(prefix)]
    sources = {name: name.removeprefix(prefix) for name in base if name.removeprefix(prefix) in view}
    for name, source in sources.items():
        shape = view.layout(source)[0]
        if shape != tuple(base[name].shape):
            problems.append(f"'{name}' has shape {shape}, the base {tuple(base[name].shape)}")
    if problems:
        raise KitError(
            f"{what or checkpoint.place} is not the image encoder that is wanted here: {first_three(problems)}. It has "
            f"{view.layout_title}. Give a checkpoint of the same architecture as the base."
        )
    return Encoder(view, sources, {name: tensor.dtype for name, tensor in base.items()})
