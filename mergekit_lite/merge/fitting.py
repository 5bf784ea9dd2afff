"""Whether an expert has the base's tensors: if not, what it has instead, and what can be done about it."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.layouts import View
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import first_three

FEW = 0.1
"""Up to this share of the tensors may differ for --exclude to be proposed; beyond, the models are different ones."""

MOST = 0.5
"""From this share of the base's tensors on, an expert is taken to differ by a prefix only."""

OUTPUTS = ("lm_head", "decoder", "embed_out", "output")
"""What libraries call the layer that returns tokens ..."""
EMBEDDINGS = ("embed_tokens", "word_embeddings", "wte", "embed_in", "shared", "tok_embeddings")
"""... and the one that takes them, to which it may be tied."""


class Renamed(LazyWeights):
    """An expert whose names differ from the base's by what comes before them all, seen under the base's names.

    A model with a head for a task is written with a prefix, and without a head it is not: ``bert.encoder...``.

    Attributes:
        view: the expert under its own names.
        sources: name -> the expert's own.
        said: what was done, in words.
    """

    def __init__(self, view: View, sources: Mapping[str, str], said: str) -> None:
        self.view, self.sources, self.said, self._names = view, dict(sources), said, tuple(sources)
        self.path, self.device, self.metadata = view.path, view.device, view.metadata

    def __getitem__(self, name: str) -> Tensor:
        return self.view[self.sources[name]]

    def __reduce__(self) -> tuple[Any, ...]:
        return Renamed, (self.view, self.sources, self.said)

    def layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of one tensor without reading it."""
        return self.view.layout(self.sources[name])

    @property
    def checkpoint(self) -> Checkpoint:
        """Whose tensors they are."""
        return self.view.checkpoint

    @property
    def layout_title(self) -> str:
        """Whose names they are stored by."""
        return self.view.layout_title


def view_of(expert: View | Renamed) -> View:
    """Return an expert under its own names."""
    return expert.view if isinstance(expert, Renamed) else expert


def fitted(base: View, expert: View, what: str) -> View | Renamed:
    """Return an expert under the base's names.

    Args:
        base: the base's tensors.
        expert: those of the expert.
        what: what the expert is called in the error.

    Raises:
        KitError: it does not have the base's tensors, or others besides. A head that one of them has alone can be left
            out: the error says how.
    """
    found = _without_prefix(base, expert)
    _check_fit(base, found, what)
    return found


def _without_prefix(base: View, expert: View) -> View | Renamed:
    """Return the expert under other names if most of them have a prefix more, or less, than the base's."""
    if sum(name in expert for name in base) >= MOST * len(base):
        return expert
    for prefix in dict.fromkeys(f"{name.partition('.')[0]}." for name in expert):
        if sum(prefix + name in expert for name in base) >= MOST * len(base):
            said = f"'{spelt(prefix)}' before its names is taken off, as the base has none"
            return Renamed(expert, {name.removeprefix(prefix): name for name in expert}, said)
    for prefix in dict.fromkeys(f"{name.partition('.')[0]}." for name in base):
        if sum(name.removeprefix(prefix) in expert for name in base if name.startswith(prefix)) >= MOST * len(base):
            said = f"'{spelt(prefix)}' is put before its names, as the base has it"
            return Renamed(expert, {name if name in base else prefix + name: name for name in expert}, said)
    return expert


def _check_fit(base: View, expert: View | Renamed, what: str) -> None:
    missing = [name for name in base if name not in expert]
    extra = [name for name in expert if name not in base]
    reshaped = [name for name in base if name in expert and base.layout(name)[0] != expert.layout(name)[0]]
    if not missing and not extra and not reshaped:
        return
    problems = [f"'{spelt(name)}' is missing" for name in missing]
    problems += [
        f"'{spelt(name)}' has shape {expert.layout(name)[0]}, the base {base.layout(name)[0]}" for name in reshaped
    ]
    problems += [f"'{spelt(name)}' is not in the base" for name in extra]
    titles = {base.layout_title, expert.layout_title}
    stored = [one for name in [*missing, *reshaped] for one in stored_names(base, name)]
    sources = expert.sources if isinstance(expert, Renamed) else {}
    stored += [one for name in extra for one in stored_names(view_of(expert), sources.get(name, name))]
    patterns = _patterns(stored, {*base.checkpoint, *expert.checkpoint})
    few = len(problems) <= max(4, FEW * len(base)) and len(patterns) <= 4
    then = (
        "If they belong to a head, leave them out of the merge, and the base's stay: "
        + " ".join(f"--exclude '{one}'" for one in patterns)
        if few
        else "Only models of one architecture, fine-tuned from the same base, can be merged"
        + (f"; these are {' and '.join(sorted(map(spelt, titles)))}" if len(titles) > 1 else "")
    )
    tied = _tied(base, missing, f"In {what}") or _tied(expert, extra, "In the base")
    raise KitError(f"The weights of {what} do not fit the base: {first_three(problems)}. {tied}{then}.")


def _tied(model: View | Renamed, alone: Iterable[str], other: str) -> str:
    """Say so if what only `model` has may be tied to the embedding of tokens in the other one, and is not stored."""
    for name in alone:
        shape = model.layout(name)[0]
        if len(shape) < 2 or not any(part in OUTPUTS for part in name.split(".")):
            continue
        for one in model:
            if one != name and any(part in EMBEDDINGS for part in one.split(".")) and model.layout(one)[0] == shape:
                return (
                    f"{other} it may be tied to '{spelt(one)}', and is stored once: untie it there "
                    "(`tie_word_embeddings=False`, with a copy) and save that model again, so that it is merged too. "
                )
    return ""


def _patterns(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return patterns that match all of `names` and nothing else of `known`, as few as their prefixes allow."""
    names = list(dict.fromkeys(names))
    others = set(known) - set(names)
    found: list[str] = []
    for name in names:
        if any(fnmatchcase(name, one) for one in found):
            continue
        parts = name.split(".")
        prefixes = [f"{'.'.join(parts[:count])}." for count in range(1, len(parts))]
        prefix = next((one for one in prefixes if not any(other.startswith(one) for other in others)), None)
        found.append(f"{escape(prefix)}*" if prefix else escape(name))
    return found


def stored_names(view: View, name: str) -> tuple[str, ...]:
    """Return the stored tensors that a tensor of a view is made of, or is a part of."""
    for piece in view.pieces:
        if name == piece.name:
            return piece.stored
        if name in piece.split:
            place = piece.split.index(name)
            return piece.stored[place : place + 1] if len(piece.stored) > 1 else piece.stored
    raise KeyError(name)
