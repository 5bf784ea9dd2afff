"""A checkpoint of any layout as the image encoder of a suite."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.layouts import NO_PART, PROJECTION, TRUNK, VISUAL, View, viewed
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.clip.encoder_layout import Shape
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import first_three

PREFIXES = ("", TRUNK)
"""What open_clip's names of an image tower have before those of a view: nothing for CLIP, ``trunk.`` for timm."""


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
    view = viewed(checkpoint)
    also = _left_alone(view, [name for name in base if name not in _sources(view, base)])
    views = [viewed(checkpoint, names=names, also=also) for names in ("fused", "split")]  # as the base has them
    view = max(views, key=lambda one: len(_sources(one, base)))
    sources = _sources(view, base)
    problems = [f"'{spelt(name)}' is missing" for name in base if name not in sources]
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


def _sources(view: View, base: Iterable[str]) -> dict[str, str]:
    """Return name of the base -> name of the view, of those that are there."""

    def found(prefix: str) -> dict[str, str]:
        return {name: name.removeprefix(prefix) for name in base if name.removeprefix(prefix) in view}

    sources = max((found(prefix) for prefix in PREFIXES), key=len)
    return {name: sources.get(name, VISUAL + name) for name in base if name in sources or VISUAL + name in view}


def _left_alone(view: View, lacking: Iterable[str]) -> list[str]:
    """Return the stored names of tensors that a merge leaves alone and a suite's encoder has: the projection.

    Those of the text tower are none, though open_clip calls them as it calls those of the image encoder.
    """
    wanted = {stored for name in lacking for stored in (name, VISUAL + name)}
    return [
        stored
        for stored, why in view.left_alone.items()
        if why in (PROJECTION, NO_PART) and stored.removeprefix(view.outer) in wanted
    ]
