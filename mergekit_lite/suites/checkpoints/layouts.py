"""By which names a model's tensors are stored, and under which a merge sees them.

Libraries name the tensors of one architecture differently, and some keep the projections to queries, keys and values in
one matrix where others keep three. Here both are brought to one form, so that checkpoints of different libraries can be
merged with one another, and so that whoever merges chooses the form: a method that looks at singular values gives
another answer for one matrix than for three.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.checkpoints.pieces import Piece, apart, possible, single, together
from mergekit_lite.suites.clip.encoder_layout import Shape
from mergekit_lite.suites.clip.transformers_format import PREFIX, depth_of, plan_of
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights

Names = Literal["fused", "split"]
"""Queries, keys and values as one matrix or as three."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name of the model they wrap."""

VISUAL, TRUNK = "visual.", "trunk."
"""Before open_clip's names of an image tower, and in there before those of timm's."""

BESIDE = 8
"""So many tensors at most may lie beside a CLIP, a classifier; more are another model, of which CLIP is only a part."""

_TOWER = "part of the text tower"
PROJECTION = "the projection to the joint space"
_SCALE = "the logit scale"
_POSITIONS = "a count of positions"
NO_PART = "no part of CLIP's image encoder"
"""Of a CLIP with more than its two towers, such as a trained classifier."""

_TOWERS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text", "attn_mask")
"""What the text tower's names begin with, in open_clip and in transformers."""

_PROJECTIONS = ("proj", "visual.proj", "visual.head.", "visual_projection.")
"""What the projection is called: in open_clip's image encoder, whole CLIP and timm's image tower, in transformers."""

_INSIDE = (
    *("class_embedding", "positional_embedding", "conv1.", "ln_pre.", "transformer.", "ln_post.", "attn_pool."),
    *("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm."),
)
"""What the names of an image encoder begin with: open_clip's modules, and transformers'."""


@dataclass(frozen=True)
class Layout:
    """How the tensors of a checkpoint are named.

    Attributes:
        title: whose names they are.
        pieces: what a merge sees.
        alone: name of a stored tensor that a merge does not see -> why.
        outer: what stands before all names of a CLIP.
    """

    title: str
    pieces: tuple[Piece, ...]
    alone: Mapping[str, str] = field(default_factory=dict)
    outer: str = ""


def layout_of(names: Iterable[str]) -> Layout:
    """Return the layout of a checkpoint with tensors of these names; any model has one."""
    names = list(names)
    return _open_clip(names) or _transformers_clip(names) or _timm(names) or _other_clip(names) or _any(names)


def _open_clip(names: Sequence[str]) -> Layout | None:
    """Read CLIP as open_clip names it: the whole model, or its image encoder with or without ``visual.`` before it."""
    prefix = _before(names, "class_embedding", "conv1.weight")
    if prefix is None:
        return None
    parts = _inside(names, prefix, VISUAL)
    plan = [name for name in plan_of(depth_of(parts)) if name in parts]
    others = [name for name in parts if name not in plan]  # of models with other blocks, or pooled by attention
    pieces = [single(name, parts[name]) for name in [*plan, *others]]
    bare = "open_clip's image encoder"  # even where something of a text tower is left beside it
    both = "open_clip's CLIP" if prefix.endswith(VISUAL) else bare
    return _of_clip(bare, both, names, pieces, prefix.removesuffix(VISUAL))


def _transformers_clip(names: Sequence[str]) -> Layout | None:
    """Read CLIP as transformers 4 and 5 name it: CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection."""
    prefix = _before(names, "embeddings.class_embedding", "pre_layrnorm.weight")
    if prefix is None:
        return None
    parts = _inside(names, prefix, PREFIX)
    layers = {match[1] for name in parts if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    pieces, used = list[Piece](), set[str]()
    for name, theirs in plan_of(max(1, len(layers))).items():
        if set(theirs) <= set(parts):
            fused = single(name, "").split if len(theirs) > 1 else ()
            pieces.append(Piece(name, tuple(parts[one] for one in theirs), fused))
            used |= set(theirs)
    pieces += [single(name, stored) for name, stored in parts.items() if name not in used]
    outer = prefix.removesuffix(PREFIX)
    projected = any(name.startswith(f"{outer}visual_projection.") for name in names)
    written = "of version 4" if prefix.endswith(PREFIX) else "of version 5"
    title = "CLIPVisionModelWithProjection" if projected else f"CLIPVisionModel {written}"
    return _of_clip(f"transformers' {title}", "transformers' CLIPModel", names, pieces, outer)


def _timm(names: Sequence[str]) -> Layout | None:
    """Read a VisionTransformer of timm, bare or as the image tower of an open_clip model."""
    prefix = _before(names, "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
    if prefix is None:
        return None
    pieces = [single(name.removeprefix(prefix), name) for name in names if name.startswith(prefix)]
    outer = prefix.removesuffix(TRUNK).removesuffix(VISUAL)
    return _of_clip("timm's VisionTransformer", "timm's VisionTransformer", names, pieces, outer)


def _other_clip(names: Sequence[str]) -> Layout | None:
    """Read a CLIP of open_clip whose image tower is none of the above, such as a ConvNeXt."""
    outer = _before(names, "logit_scale")
    if outer is None or not any(name.startswith((f"{outer}text.", f"{outer}token_embedding.")) for name in names):
        return None
    tower = f"{outer}{VISUAL}"
    seen = [name for name in names if name.startswith(tower) and not name.startswith(_under(outer, _PROJECTIONS))]
    trunk = f"{tower}{TRUNK}"
    prefix = trunk if all(name.startswith(trunk) for name in seen) else tower
    pieces = together({name.removeprefix(prefix): name for name in seen})
    return _of_clip("", "open_clip's CLIP", names, pieces, outer) if seen else None


def _any(names: Sequence[str]) -> Layout:
    """Take the names as they are, but for what a wrapper put before all of them; three projections are one piece."""
    prefix = next((one for one in WRAPPERS if all(name.startswith(one) for name in names)), "")
    pieces = together({name.removeprefix(prefix): name for name in names})
    return Layout("names as they are" + (f", without '{prefix}' before all of them" if prefix else ""), tuple(pieces))


def _before(names: Sequence[str], *lasts: str) -> str | None:
    """Return what stands before all of `lasts`, names of one module; None if they are not there, or more than once."""
    there = set(names)
    found = [name.removesuffix(lasts[0]) for name in names if name.endswith(lasts[0])]
    found = [one for one in found if one[-1:] in ("", ".") and all(one + last in there for last in lasts)]
    return found[0] if len(found) == 1 else None


def _inside(names: Sequence[str], prefix: str, own: str) -> dict[str, str]:
    """Return the tensors of an image encoder, without what stands before their names -> their names.

    Args:
        names: all there are.
        prefix: before the encoder's names.
        own: the end of it if the encoder is a module of its own; if not, a classifier may lie among its modules.
    """
    parts = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {
        name: stored
        for name, stored in parts.items()
        if (prefix.endswith(own) or name.startswith(_INSIDE)) and name != "proj" and not name.endswith("position_ids")
    }


def _of_clip(bare: str, both: str, names: Sequence[str], pieces: Sequence[Piece], outer: str) -> Layout | None:
    """Return the layout with these pieces, and why each other tensor is none; None if those are another model's.

    Args:
        bare: the title if there is no text tower.
        both: the title if there is one.
        names: of all stored tensors.
        pieces: of the image encoder.
        outer: what stands before all names of the CLIP.
    """
    seen = {one for piece in pieces for one in piece.stored}
    alone = {name: _why(name, outer) for name in names if name not in seen}
    if sum(why == NO_PART for why in alone.values()) > BESIDE:
        return None
    title = both if _TOWER in alone.values() else bare
    said = f", without '{spelt(outer)}' before its names" if outer else ""
    return Layout(title + said, tuple(pieces), alone, outer)


def _why(name: str, outer: str) -> str:
    """Return why a merge does not see a tensor of a CLIP."""
    if not name.startswith(outer):
        return NO_PART
    name = name.removeprefix(outer)
    if name in ("logit_scale", "logit_bias"):
        return _SCALE
    if name.endswith("position_ids"):
        return _POSITIONS
    if name == "proj" or name.startswith(_PROJECTIONS[1:]):
        return PROJECTION
    return _TOWER if name.startswith(_TOWERS) else NO_PART


def _under(outer: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(outer + name for name in names)


class View(LazyWeights):
    """The tensors of a checkpoint as a merge sees them: floating-point, under the names of its layout.

    Attributes:
        checkpoint: whose they are.
        layout_title: whose names they are stored by.
        names: how queries, keys and values are seen.
        left_alone: stored name -> why no merge sees it.
        outer: what stands before all names of a CLIP.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: Names = "fused",
        *,
        whole: bool = False,
        without: Sequence[str] = (),
        also: Sequence[str] = (),
    ) -> None:
        """See `viewed`."""
        layout = layout_of(checkpoint)
        self.checkpoint, self.names, self.whole = checkpoint, names, whole
        self.without, self.also = tuple(without), tuple(also)
        self.layout_title, self.device, self.path = layout.title, checkpoint.device, checkpoint.path
        self.metadata, self.outer = checkpoint.metadata, layout.outer
        shown = _shown(layout, [name for name in layout.alone if whole or name in also])
        self.left_alone: dict[str, str] = {
            name: why for name, why in layout.alone.items() if name not in shown.values()
        }
        shapes = {name: checkpoint.layout(name)[0] for name in checkpoint}
        pieces = possible([*layout.pieces, *together(shown)], shapes)
        self.pieces: list[Piece] = []
        for piece in apart(pieces) if names == "split" else pieces:
            kinds = [checkpoint.layout(one)[1] for one in piece.stored]
            excluded = [one for one in piece.stored if one in without]
            if excluded:
                self.left_alone |= dict.fromkeys(piece.stored, f"excluded, by '{excluded[0]}'")
            elif not all(kind.is_floating_point for kind in kinds):
                self.left_alone |= dict.fromkeys(piece.stored, f"{kinds[0]}, no floating-point numbers")
            else:
                self.pieces.append(piece)
        self._parts: dict[str, tuple[Piece, int | None]] = {}
        for piece in self.pieces:
            if names == "split" and piece.split:
                self._parts |= {one: (piece, place) for place, one in enumerate(piece.split)}
            else:
                self._parts[piece.name] = piece, None
        self._names = tuple(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        piece, place = self._parts[name]
        parts = [self.checkpoint[one] for one in piece.stored]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if place is None else whole.chunk(len(piece.split))[place]

    def __reduce__(self) -> Any:
        """Let another process open the checkpoint anew."""
        return _anew, (self.checkpoint, self.names, self.whole, self.without, self.also)

    def layout(self, name: str) -> tuple[Shape, torch.dtype]:
        """Return shape and dtype of one tensor without reading it."""
        piece, place = self._parts[name]
        shapes, kinds = zip(*(self.checkpoint.layout(one) for one in piece.stored), strict=True)
        rows = [shape[0] for shape in shapes if shape]
        shape = (sum(rows) // (1 if place is None else len(piece.split)), *shapes[0][1:]) if rows else ()
        return shape, reduce(torch.promote_types, kinds)

    def back(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return merged tensors under the names they are stored by; what a merge did not see is not among them."""
        found: dict[str, Tensor] = {}
        for piece in self.pieces:
            if self.names == "split" and piece.split:
                found[piece.stored[0]] = torch.cat([merged[one] for one in piece.split])
            elif len(piece.stored) == 1:
                found[piece.stored[0]] = merged[piece.name]
            else:
                rows = [self.checkpoint.layout(one)[0][0] for one in piece.stored]
                found |= dict(zip(piece.stored, merged[piece.name].split(rows), strict=True))
        return found


def _anew(checkpoint: Checkpoint, names: Names, whole: bool, without: Sequence[str], also: Sequence[str]) -> View:
    return View(checkpoint, names, whole=whole, without=without, also=also)


def _shown(layout: Layout, stored: Iterable[str]) -> dict[str, str]:
    """Return how a merge sees tensors that it leaves alone otherwise -> their names."""
    taken = {piece.name for piece in layout.pieces}
    bare = {name: name.removeprefix(layout.outer) for name in stored}
    # open_clip's text tower has the names of its image encoder, once `visual.` is taken off those.
    return {f"text.{one}" if one in taken else one: name for name, one in bare.items()}


def viewed(
    checkpoint: Checkpoint,
    *,
    names: Names = "fused",
    whole: bool = False,
    without: Sequence[str] = (),
    also: Sequence[str] = (),
) -> View:
    """Return the tensors of a checkpoint as a merge sees them.

    Of a CLIP that is the image encoder, under open_clip's names without ``visual.`` and in its order, whichever library
    stored it; the projection to the joint space, the text tower and the logit scale stay as they are.

    Args:
        checkpoint: opened.
        names: queries, keys and values as one matrix ("fused") or as three ("split"), however they are stored.
        whole: whether the text tower, projection and logit scale of a CLIP are merged too.
        without: stored names to leave out.
        also: stored names of what stays as it is by itself, but is to be seen here.

    Raises:
        KitError: nothing is left to be merged.
    """
    view = View(checkpoint, names, whole=whole, without=without, also=also)
    if not view:
        reasons = ", ".join(f"'{spelt(name)}' ({why})" for name, why in list(view.left_alone.items())[:3])
        raise KitError(f"{checkpoint.place} has nothing to merge, only {reasons}. Exclude less.")
    return view
