"""CLIP's image encoder between two ways of naming it: transformers' CLIPVisionModel and open_clip's VisionTransformer.

The numbers are the same in both; one thing differs beyond names. transformers keeps the projections to queries, keys
and values apart, open_clip puts them one below the other into one matrix (3 * width, width).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import Weights, first_three

PREFIX = "vision_model."
"""Before every name transformers 4 wrote, the published experts' among them; 5 writes without it and reads both."""

_BEFORE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # spelt so in transformers
    "ln_pre.bias": "pre_layrnorm.bias",
}
_AFTER = {"ln_post.weight": "post_layernorm.weight", "ln_post.bias": "post_layernorm.bias"}
_MODULES = {
    "ln_1.{}": ("layer_norm1.{}",),
    "attn.in_proj_{}": ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
    "attn.out_proj.{}": ("self_attn.out_proj.{}",),
    "ln_2.{}": ("layer_norm2.{}",),
    "mlp.c_fc.{}": ("mlp.fc1.{}",),
    "mlp.c_proj.{}": ("mlp.fc2.{}",),
}
"""What a block holds, each with a weight and a bias: open_clip's name -> transformers' names, in the order of rows."""

_POSITIONS = "embeddings.position_ids"  # 0, 1, 2 ...: a buffer that old versions of transformers stored


def from_transformers(weights: Mapping[str, Tensor]) -> Weights:
    """Return the image encoder `weights`, named as transformers names them, with open_clip's names, in its order.

    Args:
        weights: of a CLIPVisionModel, with or without the prefix ``vision_model.``. `position_ids` is left out, since
            it is no parameter.

    Raises:
        KitError: names are missing or not known; the first three are named.
    """
    return {name: _fused([weights[one] for one in sources]) for name, sources in _sources(weights).items()}


def to_transformers(weights: Mapping[str, Tensor]) -> Weights:
    """Return the image encoder `weights`, named as open_clip names them (without ``visual.``), for transformers.

    The names have the prefix ``vision_model.``, which every version of `CLIPVisionModel.from_pretrained` can read. The
    projection to the joint space is not part of a CLIPVisionModel: take the pre-trained one.

    Raises:
        KitError: names are missing or not known; the first three are named.
    """
    plan = _plan(depth_of(weights))
    _check_names(plan, weights, "open_clip's VisionTransformer (without `visual.` and without `proj`)")
    return {
        PREFIX + source: part.contiguous()
        for name, sources in plan.items()
        for source, part in zip(sources, weights[name].chunk(len(sources)), strict=True)
    }


def depth_of(names: Iterable[str]) -> int:
    """Return how many blocks an encoder has whose tensors open_clip named so; 1 if there is no block."""
    return _depth(names, r"transformer\.resblocks\.(\d+)\.")


def names_of(depth: int) -> list[str]:
    """Return open_clip's names of the tensors of an encoder of `depth` blocks, without the projection."""
    return list(_plan(depth))


class TransformersWeights(LazyWeights):
    """A transformers file read tensor by tensor under open_clip's names.

    Queries, keys and values are put together when they are asked for, so that a merge streams experts from the files
    the hub gave, and no second copy of twenty experts (24 GB for L/14) has to be written and kept.

    Raises:
        KitError: there is no such file, it is truncated or of another kind, or its names are not those of a
            CLIPVisionModel.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu") -> None:
        """Open the file at `path` (its header only); tensors will be put on `device`."""
        super().__init__(path, device)
        self._stored = LazyWeights(path, device)
        try:
            self._parts = _sources(self._stored)
        except KitError as error:
            raise KitError(f"{self.path}: {error}") from error
        self._names = tuple(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        return _fused([self._stored[part] for part in self._parts[name]])

    def layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of one tensor without reading it."""
        shapes, dtypes = zip(*(self._stored.layout(part) for part in self._parts[name]), strict=True)
        if len(shapes) == 1:
            return shapes[0], dtypes[0]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]), dtypes[0]


def _fused(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _plan(depth: int) -> dict[str, tuple[str, ...]]:
    """Return open_clip's name -> transformers' names without prefix, for an encoder of `depth` blocks."""
    blocks = {
        f"transformer.resblocks.{block}.{ours}".format(kind): tuple(
            f"encoder.layers.{block}.{one}".format(kind) for one in theirs
        )
        for block in range(depth)
        for ours, theirs in _MODULES.items()
        for kind in ("weight", "bias")
    }
    return {
        **{ours: (theirs,) for ours, theirs in _BEFORE.items()},
        **blocks,
        **{ours: (theirs,) for ours, theirs in _AFTER.items()},
    }


def plan_of(depth: int) -> dict[str, tuple[str, ...]]:
    """Return the same for who reads other layouts; by its own name, since that of `_plan` is part of records' keys."""
    return _plan(depth)


def _sources(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return open_clip's name -> the names among `names`, transformers', that it is made of; all must be used up."""
    names = list(names)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    depth = _depth(names, re.escape(prefix) + r"encoder\.layers\.(\d+)\.")
    plan = {ours: tuple(prefix + one for one in theirs) for ours, theirs in _plan(depth).items()}
    found = [name for name in names if name != prefix + _POSITIONS]
    _check_names([one for theirs in plan.values() for one in theirs], found, "transformers' CLIPVisionModel")
    return plan


def _depth(names: Iterable[str], pattern: str) -> int:
    """Return how many blocks are named, however high their numbers are."""
    found = (re.match(pattern, name) for name in names)
    return max(1, len({match[1] for match in found if match}))


def _check_names(expected: Iterable[str], found: Iterable[str], what: str) -> None:
    expected, found = dict.fromkeys(expected), dict.fromkeys(found)
    problems = [f"'{name}' is missing" for name in expected if name not in found]
    problems += [f"'{spelt(name)}' is not known" for name in found if name not in expected]
    if problems:
        raise KitError(
            f"These are not the weights of {what}: {first_three(problems)}. "
            "Give the image encoder of a CLIP, whole and alone, without text encoder, projection or adapters."
        )
