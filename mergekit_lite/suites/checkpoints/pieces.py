"""Tensors as a merge sees them, made of stored ones: queries, keys and values as one matrix or as three."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mergekit_lite.suites.clip.encoder_layout import Shape

_TRIPLES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
"""What libraries call the three projections: CLIP and LLaMA, BERT and ViT, DistilBERT, T5."""
_FUSED = ("in_proj_weight", "in_proj_bias", "qkv.weight", "qkv.bias")
"""What torch and open_clip, and timm, call the three one below the other in one matrix.

Not so in matrices called ``query_key_value`` (BLOOM, GPT-NeoX, Falcon), whose rows alternate head by head, and
``c_attn`` (GPT-2), whose columns are meant: a third of them is no projection, and they are always seen as stored.
"""


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


def single(name: str, stored: str) -> Piece:
    """Return the piece that one stored tensor is."""
    return Piece(name, (stored,), split_names(name))


def together(there: Mapping[str, str]) -> list[Piece]:
    """Return the pieces of a model of any kind: three projections that belong together are one.

    Args:
        there: name that a merge would see -> name of the stored tensor.
    """
    pieces: dict[str, Piece] = {}
    for name, stored in there.items():
        fused, parts = _triple(name, there)
        piece = Piece(fused, tuple(there[one] for one in parts), parts) if parts else single(name, stored)
        if parts and (fused in there or pieces.get(fused, piece) != piece):  # two attentions under one name
            piece = Piece(name, (stored,))
        pieces[piece.name] = piece
    return list(pieces.values())


def possible(pieces: Iterable[Piece], shapes: Mapping[str, Shape]) -> list[Piece]:
    """Return the pieces, those apart whose tensors do not fit below one another, and whole what has no three parts.

    Args:
        pieces: of a layout.
        shapes: of the stored tensors.
    """
    found: list[Piece] = []
    for piece in pieces:
        stored = [shapes[one] for one in piece.stored]
        if len(stored) > 1 and (not stored[0] or len({shape[1:] for shape in stored}) > 1):
            # Cross-attention: keys and values are of something with another width than the queries.
            found += [Piece(name, (one,)) for name, one in zip(piece.split or piece.stored, piece.stored, strict=True)]
        elif len(stored) == 1 and piece.split and (not stored[0] or stored[0][0] % len(piece.split)):
            found.append(replace(piece, split=()))
        else:
            found.append(piece)
    often = Counter(name for piece in found for name in piece.split or (piece.name,))
    return [replace(piece, split=()) if any(often[one] > 1 for one in piece.split) else piece for piece in found]


def apart(pieces: Iterable[Piece]) -> list[Piece]:
    """Return the pieces with queries, keys and values that are stored apart as three pieces."""
    found: list[Piece] = []
    for piece in pieces:
        if len(piece.stored) > 1 and piece.split:
            found += [Piece(name, (one,)) for name, one in zip(piece.split, piece.stored, strict=True)]
        else:
            found.append(piece)
    return found


def split_names(name: str) -> tuple[str, ...]:
    """Return what the three parts of a fused matrix or bias are called; nothing for all else."""
    last = next((one for one in _FUSED if name == one or name.endswith(f".{one}")), None)
    if last is None:
        return ()
    kind = "bias" if last.endswith("bias") else "weight"
    before = name.removesuffix(last)
    return tuple(f"{before}{one}.{kind}" for one in ("q_proj", "k_proj", "v_proj"))


def _triple(name: str, there: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return what the three projections that `name` is one of are called together, and their own names, if any."""
    head, _, kind = name.rpartition(".")
    before, _, last = head.rpartition(".")
    dot = f"{before}." if before else ""
    for three in _TRIPLES:
        parts = tuple(f"{dot}{one}.{kind}" for one in three)
        if last in three and kind in ("weight", "bias") and all(part in there for part in parts):
            return f"{dot}query_key_value.{kind}", parts
    return "", ()
