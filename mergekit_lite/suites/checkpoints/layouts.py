"""By which names a model's tensors are stored, and under which a merge sees them.

Libraries name the tensors of one architecture differently, and some keep the projections to queries, keys and values in
one matrix where others keep three. Here both are brought to one form, so that checkpoints of different libraries can be
merged with one another, and so that whoever merges chooses the form: a method that looks at singular values gives
another answer for one matrix than for three.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.clip.encoder_layout import Shape
from mergekit_lite.suites.clip.transformers_format import PREFIX, depth_of, plan_of
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights

Names = Literal["fused", "split"]
"""Queries, keys and values as one matrix or as three."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name of the model they wrap."""

_TRIPLES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
"""What libraries call the three projections: CLIP and LLaMA, BERT and ViT, DistilBERT, T5."""
_FUSED = ("in_proj_weight", "in_proj_bias", "qkv.weight", "qkv.bias", "query_key_value.weight", "query_key_value.bias")
"""What torch and open_clip, timm, and we call the three in one matrix."""

_TOWER = "part of the text tower"
_PROJECTION = "the projection to the joint space"
_SCALE = "the logit scale"
NO_PART = "no part of CLIP's image encoder"
"""Of a CLIP with more than its two towers, such as a trained classifier."""

_TOWERS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text", "attn_mask")
"""What the text tower's names begin with, in open_clip and in transformers."""


@dataclass(frozen=True)
class Piece:
    """A tensor as a merge sees it.

    Attributes:
        name: under which a merge sees it when fused.
        stored: the tensors it is made of, one below the other: one, or those for queries, keys and values.
        split: under which names a merge sees it when split; empty for all that is no query, key and value.
    """

    name: str
    stored: tuple[str, ...]
    split: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How the tensors of a checkpoint are named.

    Attributes:
        title: whose names they are.
        pieces: what a merge sees.
        alone: name of a stored tensor that a merge does not see -> why.
    """

    title: str
    pieces: tuple[Piece, ...]
    alone: Mapping[str, str] = field(default_factory=dict)


def layout_of(names: Iterable[str]) -> Layout:
    """Return the layout of a checkpoint with tensors of these names; any model has one."""
    names = list(names)
    return _open_clip(names) or _transformers_clip(names) or _timm(names) or _any(names)


def _open_clip(names: Sequence[str]) -> Layout | None:
    """Read CLIP as open_clip names it: the whole model, or its image encoder with or without ``visual.`` before it."""
    prefix = next(
        (one for one in ("visual.", "") if {f"{one}conv1.weight", f"{one}class_embedding"} <= set(names)), None
    )
    if prefix is None:
        return None
    own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    plan = plan_of(depth_of(own))
    pieces = [Piece(name, (prefix + name,), _split_names(name)) for name in plan if name in own]
    rest = [name for name in names if name.removeprefix(prefix) not in plan or not name.startswith(prefix)]
    alone = {name: _why(name, prefix) for name in rest}
    whole = "open_clip's CLIP" if any(name.startswith("transformer.") for name in rest) else "open_clip's image encoder"
    return Layout(whole, tuple(pieces), alone)


def _transformers_clip(names: Sequence[str]) -> Layout | None:
    """Read CLIP as transformers 4 and 5 name it: CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection."""
    ends = [name.removesuffix("embeddings.class_embedding") for name in names if "embeddings.class_embedding" in name]
    if len(ends) != 1 or f"{ends[0]}pre_layrnorm.weight" not in names:
        return None
    (prefix,) = ends
    layers = {match[1] for name in names if (match := re.match(re.escape(prefix) + r"encoder\.layers\.(\d+)\.", name))}
    plan = {name: tuple(prefix + one for one in parts) for name, parts in plan_of(max(1, len(layers))).items()}
    there = set(names)
    pieces = [
        Piece(name, parts, _split_names(name) if len(parts) > 1 else ())
        for name, parts in plan.items()
        if there.issuperset(parts)
    ]
    used = {one for piece in pieces for one in piece.stored}
    alone = {name: _why(name, prefix) for name in names if name not in used}
    text, projection = (any(name.startswith(one) for name in names) for one in ("text_model.", "visual_projection."))
    title = "CLIPModel" if text else "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
    written = "" if text or projection else " of version 4" if prefix.startswith(PREFIX) else " of version 5"
    return Layout(f"transformers' {title}{written}", tuple(pieces), alone)


def _timm(names: Sequence[str]) -> Layout | None:
    """Read a VisionTransformer of timm, bare or as the image tower of an open_clip model."""
    for prefix in ("", "trunk.", "visual.trunk."):
        if f"{prefix}patch_embed.proj.weight" in names and f"{prefix}blocks.0.attn.qkv.weight" in names:
            own = [name for name in names if name.startswith(prefix)]
            pieces = [
                Piece(name.removeprefix(prefix), (name,), _split_names(name.removeprefix(prefix))) for name in own
            ]
            alone = {name: _why(name, prefix) for name in names if not name.startswith(prefix)}
            return Layout("timm's VisionTransformer", tuple(pieces), alone)
    return None


def _any(names: Sequence[str]) -> Layout:
    """Take the names as they are, but for what a wrapper put before all of them; three projections are one piece."""
    prefix = next((one for one in WRAPPERS if all(name.startswith(one) for name in names)), "")
    there = {name.removeprefix(prefix): name for name in names}
    pieces: dict[str, Piece] = {}
    for name, stored in there.items():
        triple = _triple(name, there)
        if triple:
            fused, parts = triple
            pieces.setdefault(fused, Piece(fused, tuple(there[one] for one in parts), parts))
        else:
            pieces[name] = Piece(name, (stored,), _split_names(name))
    title = "names as they are" + (f", without '{prefix}' before all of them" if prefix else "")
    return Layout(title, tuple(pieces.values()))


def _triple(name: str, there: Mapping[str, str]) -> tuple[str, tuple[str, ...]] | None:
    """Return what the three projections that `name` is one of are called together, and their own names."""
    head, _, kind = name.rpartition(".")
    before, _, last = head.rpartition(".")
    dot = f"{before}." if before else ""
    for three in _TRIPLES:
        parts = tuple(f"{dot}{one}.{kind}" for one in three)
        if last in three and kind in ("weight", "bias") and all(part in there for part in parts):
            return f"{dot}query_key_value.{kind}", parts
    return None


def _split_names(name: str) -> tuple[str, ...]:
    """Return what the three parts of a fused matrix or bias are called; nothing for all else."""
    last = next((one for one in _FUSED if name == one or name.endswith(f".{one}")), None)
    if last is None:
        return ()
    kind = "bias" if last.endswith("bias") else "weight"
    before = name.removesuffix(last)
    return tuple(f"{before}{one}.{kind}" for one in ("q_proj", "k_proj", "v_proj"))


def _why(name: str, prefix: str) -> str:
    """Return why a merge does not see a tensor of a CLIP."""
    if name.endswith("logit_scale") or name.endswith("logit_bias"):
        return _SCALE
    if name in (f"{prefix}proj", "visual_projection.weight"):
        return _PROJECTION
    if prefix and name.startswith(prefix):
        return "not a parameter of the encoder"
    return _TOWER if name.startswith(_TOWERS) else NO_PART


class View(LazyWeights):
    """The tensors of a checkpoint as a merge sees them: floating-point, under the names of its layout.

    Attributes:
        checkpoint: whose they are.
        layout_title: whose names they are stored by.
        names: how queries, keys and values are seen.
        left_alone: stored name -> why no merge sees it.
    """

    def __init__(
        self, checkpoint: Checkpoint, names: Names = "fused", *, whole: bool = False, without: Sequence[str] = ()
    ) -> None:
        """See `viewed`."""
        layout = layout_of(checkpoint)
        self.checkpoint, self.names, self.whole, self.without = checkpoint, names, whole, tuple(without)
        self.layout_title, self.device, self.path = layout.title, checkpoint.device, checkpoint.path
        self.metadata = checkpoint.metadata
        pieces, alone = [*layout.pieces], dict(layout.alone)
        if whole:
            # open_clip's text tower has the names of its image encoder, once `visual.` is taken off those.
            taken = {piece.name for piece in pieces}
            shown = {name: f"text.{name}" if name in taken else name for name in alone}
            pieces += [Piece(one, (name,), _split_names(one)) for name, one in shown.items()]
            alone = {}
        self.pieces: list[Piece] = []
        for piece in pieces:
            if excluded := [one for one in piece.stored if one in without]:
                alone |= dict.fromkeys(piece.stored, f"excluded, by '{excluded[0]}'" if excluded else "")
                continue
            kinds = {checkpoint.layout(one)[1] for one in piece.stored}
            if not all(kind.is_floating_point for kind in kinds):
                alone |= dict.fromkeys(piece.stored, f"{next(iter(kinds))}, no floating-point numbers")
                continue
            self.pieces.append(piece)
        self.left_alone: dict[str, str] = alone
        self._parts: dict[str, tuple[Piece, int | None]] = {}
        for piece in self.pieces:
            if names == "split" and piece.split:
                self._parts |= {one: (piece, place) for place, one in enumerate(piece.split)}
            else:
                self._parts[piece.name] = piece, None
        self._names = tuple(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        piece, place = self._parts[name]
        if place is not None and len(piece.stored) > 1:
            return self.checkpoint[piece.stored[place]]
        parts = [self.checkpoint[one] for one in piece.stored]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if place is None else whole.chunk(3)[place]

    def __reduce__(self) -> Any:
        """Let another process open the checkpoint anew."""
        return _anew, (self.checkpoint, self.names, self.whole, self.without)

    def layout(self, name: str) -> tuple[Shape, torch.dtype]:
        """Return shape and dtype of one tensor without reading it."""
        piece, place = self._parts[name]
        shapes = [self.checkpoint.layout(one)[0] for one in piece.stored]
        kind = self.checkpoint.layout(piece.stored[0])[1]
        if place is not None and len(shapes) > 1:
            return shapes[place], kind
        rows = sum(shape[0] for shape in shapes) if shapes[0] else 0
        if place is not None:
            rows //= 3
        return ((rows, *shapes[0][1:]) if shapes[0] else ()), kind

    def back(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return merged tensors under the names they are stored by; what a merge did not see is not among them."""
        found: dict[str, Tensor] = {}
        for piece in self.pieces:
            parts = [merged[one] for one in (piece.split if self.names == "split" and piece.split else [piece.name])]
            if len(parts) == len(piece.stored):
                found |= dict(zip(piece.stored, parts, strict=True))
            elif len(parts) == 1:
                rows = [self.checkpoint.layout(one)[0][0] for one in piece.stored]
                found |= dict(zip(piece.stored, parts[0].split(rows), strict=True))
            else:
                found[piece.stored[0]] = torch.cat(parts)
        return found


def _anew(checkpoint: Checkpoint, names: Names, whole: bool, without: Sequence[str]) -> View:
    return View(checkpoint, names, whole=whole, without=without)


def viewed(checkpoint: Checkpoint, *, names: Names = "fused", whole: bool = False, without: Sequence[str] = ()) -> View:
    """Return the tensors of a checkpoint as a merge sees them.

    Of a CLIP that is the image encoder, under open_clip's names without ``visual.`` and in its order, whichever library
    stored it; the projection to the joint space, the text tower and the logit scale stay as they are.

    Args:
        checkpoint: opened.
        names: queries, keys and values as one matrix ("fused") or as three ("split"), however they are stored.
        whole: whether the text tower, projection and logit scale of a CLIP are merged too.
        without: stored names to leave out.

    Raises:
        KitError: nothing is left to be merged.
    """
    view = View(checkpoint, names, whole=whole, without=without)
    if not view:
        reasons = ", ".join(f"'{spelt(name)}' ({why})" for name, why in list(view.left_alone.items())[:3])
        raise KitError(f"{checkpoint.place} has nothing to merge, only {reasons}. Exclude less.")
    return view
