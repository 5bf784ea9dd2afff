"""What will be written: the base's tensors in the base's files, merged where they are merged, and copied elsewhere."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mergekit_lite.merge.streamed import Layouts
from mergekit_lite.suites.checkpoints.choosing import INDEX
from mergekit_lite.suites.checkpoints.layouts import View
from mergekit_lite.suites.checkpoints.opening import Checkpoint

SINGLE, OPEN_CLIP = "model.safetensors", "open_clip_model.safetensors"


@dataclass(frozen=True)
class Part:
    """Where entries of a merged tensor go: `count` of them, from the one at `start` on, into `stored` at `at`."""

    stored: str
    at: int
    start: int
    count: int


@dataclass(frozen=True)
class Target:
    """The files of a merged model.

    Attributes:
        files: file name -> the tensors in it.
        parts: name of a merged tensor -> where its entries go.
        copied: stored name -> why it is the base's.
        source: where those come from.
        beside: files to be copied, such as the configuration.
        index: name of the index of several files; empty if there is one file.
        said: what is different from the base, in a sentence; empty if nothing is.
    """

    files: Mapping[str, Layouts]
    parts: Mapping[str, tuple[Part, ...]]
    copied: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Tensor] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    index: str = ""
    said: str = ""

    def layout(self, stored: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of a tensor as it will be stored."""
        return next(layouts[stored] for layouts in self.files.values() if stored in layouts)


def like_base(view: View) -> Target:
    """Return a target in the format of the checkpoint that `view` is of; a pickle becomes one safetensors file."""
    checkpoint = view.checkpoint
    layouts = {name: checkpoint.layout(name) for name in checkpoint}
    index = ""
    if checkpoint.format == "sharded":
        files: dict[str, Layouts] = {
            file.name: {name: layouts[name] for name, where in checkpoint.shards.items() if where == file.name}
            for file in checkpoint.files
        }
        index = re.sub(r"(-\d+-of-\d+)?\.safetensors$", INDEX, checkpoint.path.name)
    else:
        files = {file_name(checkpoint, view): layouts}
    said = "The base is a pickle; the merged model is written as safetensors." if checkpoint.format == "pickle" else ""
    return Target(files, parts_of(view), view.left_alone, checkpoint, checkpoint.beside, index, said)


def in_dtype(target: Target, dtype: torch.dtype) -> Target:
    """Return the target with merged tensors stored in `dtype`, whatever the base's is."""
    files = {
        file: {name: (shape, kind if name in target.copied else dtype) for name, (shape, kind) in layouts.items()}
        for file, layouts in target.files.items()
    }
    return replace(target, files=files)


def plain(layouts: Layouts) -> Target:
    """Return a target of one file that holds tensors of these names, all of them merged."""
    parts = {name: (Part(name, 0, 0, torch.Size(shape).numel()),) for name, (shape, _) in layouts.items()}
    return Target({SINGLE: layouts}, parts)


def file_name(checkpoint: Checkpoint, view: View) -> str:
    """Return how the library whose model it is looks for its one file."""
    beside = {file.name for file in checkpoint.beside}
    if checkpoint.path.name in (SINGLE, OPEN_CLIP):
        return checkpoint.path.name
    if "open_clip_config.json" in beside or (view.layout_title == "open_clip's CLIP" and "config.json" not in beside):
        return OPEN_CLIP
    return SINGLE


def parts_of(view: View) -> dict[str, tuple[Part, ...]]:
    """Return for each tensor that a merge sees where its entries are stored."""
    found: dict[str, tuple[Part, ...]] = {}
    for piece in view.pieces:
        sizes = [torch.Size(view.checkpoint.layout(one)[0]).numel() for one in piece.stored]
        split = piece.split if view.names == "split" else ()
        if not split:
            starts = [sum(sizes[:place]) for place in range(len(sizes))]
            found[piece.name] = tuple(map(Part, piece.stored, [0] * len(sizes), starts, sizes))
        elif len(sizes) > 1:
            found |= {
                name: (Part(one, 0, 0, size),) for name, one, size in zip(split, piece.stored, sizes, strict=True)
            }
        else:
            third = sizes[0] // 3
            found |= {name: (Part(piece.stored[0], place * third, 0, third),) for place, name in enumerate(split)}
    return found
