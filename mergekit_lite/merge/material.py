"""What is merged: a base and its experts, opened, brought to the same names, and checked against one another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.merge.fitting import Renamed, fitted, view_of
from mergekit_lite.suites.checkpoints.layouts import NO_PART, Names, View, layout_of, viewed
from mergekit_lite.suites.checkpoints.opening import Checkpoint, opened
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three


@dataclass(frozen=True)
class Material:
    """A base and experts as a merge sees them.

    Attributes:
        base: the base's tensors.
        experts: those of the experts, by name; names and shapes are the base's.
        kinds: name -> the dtype that all are seen in: their own where it is the same, else a wider one.
        excluded: the patterns that were given.
        notes: what the user should know, in sentences.
    """

    base: View
    experts: Mapping[str, View | Renamed]
    kinds: Mapping[str, torch.dtype]
    excluded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """What each model is called in messages -> its checkpoint."""
        return {"the base": self.base.checkpoint} | {
            f"expert '{name}'": view.checkpoint for name, view in self.experts.items()
        }


def gathered(
    base: str,
    experts: Mapping[str, str],
    *,
    names: Names = "fused",
    whole: bool = False,
    exclude: Sequence[str] = (),
    device: str = "cpu",
) -> Material:
    """Open a base and experts, and check that they can be merged; of safetensors only headers are read.

    Args:
        base: a place, see `opened`.
        experts: name -> place.
        names: queries, keys and values as one matrix or as three.
        whole: of a CLIP, the text tower, projection and logit scale too.
        exclude: patterns as of a shell, on stored names; what matches is copied from the base, and overlooked in
            experts.
        device: for the tensors.

    Raises:
        KitError: a place holds no model, a pattern matches nothing, or models do not fit one another.
    """
    opened_base = opened(base, device)
    opened_experts = {name: opened(place, device) for name, place in experts.items()}
    everyone = [opened_base, *opened_experts.values()]
    _check_patterns(exclude, everyone)
    for checkpoint in everyone:
        _check_something_left(checkpoint, exclude)

    def view(checkpoint: Checkpoint) -> View:
        return viewed(checkpoint, names=names, whole=whole, without=list(excluded(checkpoint, exclude)))

    start = view(opened_base)
    ends = {name: fitted(start, view(one), f"expert '{name}'") for name, one in opened_experts.items()}
    kinds = {name: _kind({start.layout(name)[1], *(end.layout(name)[1] for end in ends.values())}) for name in start}
    notes = [
        *_copies(opened_base, opened_experts),
        *_overlooked(opened_base, opened_experts, exclude),
        *_heads(opened_base, ends),
        *(f"Expert '{name}': {end.said}." for name, end in ends.items() if isinstance(end, Renamed)),
    ]
    return Material(start, ends, kinds, tuple(exclude), tuple(notes))


def names_as_stored(base: str) -> Names:
    """Return how the queries, keys and values of a model are stored; "split" if it has none."""
    pieces = layout_of(opened(base)).pieces
    return "fused" if any(piece.split and len(piece.stored) == 1 for piece in pieces) else "split"


def excluded(checkpoint: Checkpoint, patterns: Sequence[str]) -> dict[str, str]:
    """Return stored name -> the first of `patterns` that matches it, of those that any matches."""
    found = {name: [one for one in patterns if fnmatchcase(name, one)] for name in checkpoint}
    return {name: matching[0] for name, matching in found.items() if matching}


def _kind(kinds: set[torch.dtype]) -> torch.dtype:
    """Return the dtype that loses nothing of any of `kinds`."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return torch.float64 if torch.float64 in kinds else torch.float32


def _check_something_left(checkpoint: Checkpoint, patterns: Sequence[str]) -> None:
    place = spelt(checkpoint.place)
    floating = [name for name in checkpoint if checkpoint.layout(name)[1].is_floating_point]
    if not floating:
        some = first_three([f"'{spelt(name)}' is {checkpoint.layout(name)[1]}" for name in checkpoint])
        raise KitError(f"{place} holds no floating-point numbers: {some}. There is nothing to merge: name a model.")
    if set(floating) <= set(excluded(checkpoint, patterns)):
        given = " ".join(f"--exclude '{spelt(one)}'" for one in patterns)
        raise KitError(f"{given} leaves nothing of {place} to merge. Exclude less.")


def _check_patterns(patterns: Sequence[str], checkpoints: Sequence[Checkpoint]) -> None:
    known = list(dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            ends = [*known, *dict.fromkeys(f"{name.partition('.')[0]}.*" for name in known)]
            some = first_three([f"'{spelt(one)}'" for one in known])
            raise KitError(
                f"--exclude '{spelt(pattern)}' matches no tensor of any of the models.{suggestion(pattern, ends)} "
                f"Patterns are as a shell's, on names as they are stored: {some}."
            )


def _copies(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> Iterable[str]:
    """Say which of the models are the same files, whose task vectors are zero or count twice."""
    seen = {_files(base): "the base"}
    for name, checkpoint in experts.items():
        files = _files(checkpoint)
        if files in seen:
            other = seen[files]
            so = "its task vector is zero" if other == "the base" else "its task vector counts twice"
            yield f"Expert '{name}' is the same file as {other}: {so}."
        seen.setdefault(files, f"expert '{name}'")


def _overlooked(base: Checkpoint, experts: Mapping[str, Checkpoint], patterns: Sequence[str]) -> Iterable[str]:
    """Say what of the experts is excluded that the base does not have."""
    for name, checkpoint in experts.items():
        names = [f"'{spelt(one)}'" for one in excluded(checkpoint, patterns) if one not in base]
        if names:
            yield f"Of expert '{name}' is left out, and the base has nothing like it: {first_three(names)}."


def _heads(base: Checkpoint, experts: Mapping[str, View | Renamed]) -> Iterable[str]:
    """Say what experts have besides CLIP's two towers that the base has not, such as a trained classifier."""
    for name, expert in experts.items():
        alone = view_of(expert).left_alone
        names = [f"'{spelt(one)}'" for one, why in alone.items() if why == NO_PART and one not in base]
        if names:
            yield f"Of expert '{name}' is left out, as it is no part of CLIP's image encoder: {first_three(names)}."


def _files(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(sorted(str(file.resolve()) for file in checkpoint.files))
