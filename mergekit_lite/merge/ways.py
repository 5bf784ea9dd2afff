"""How a method is run so that little memory is needed: on pieces of tensors, on tensors one by one, or on whole models.

The outcome is the same to the last bit; a test holds that for each method that is named here. A method that is not
named sees the whole models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.merge.target import Part, Target, parts_of
from mergekit_lite.methods.registry import Merged
from mergekit_lite.suites.checkpoints.layouts import View
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import Pool, is_finite

Way = Literal["pieces", "pieces at once", "tensors", "whole"]
Merge = Callable[[Mapping[str, Tensor], Pool], Merged]
Put = Callable[[str, Tensor, int], None]
"""Called with a stored name, values of its dtype, and how many of the tensor's entries come before them."""

WAYS: Mapping[str, Way] = {
    # what becomes of an entry depends on this entry of the models alone
    "simple_average": "pieces",
    "task_arithmetic": "pieces",
    "consensus": "pieces",
    # on all entries, but not on which tensor they belong to
    "ties_merging": "pieces at once",
    "dare": "pieces at once",
    # on the tensor that the entry is a part of
    "tsv_merging": "tensors",
    "iso_c": "tensors",
    "iso_cts": "tensors",
}

PIECE = 2**22
"""Entries; 16 MiB of float32. Methods make up to seven intermediate results of what they look at."""

Span = tuple[str, int, int]
"""Name of a tensor, and the first and last entry (exclusive) of a piece of it."""


class Cut(LazyWeights):
    """Pieces of the tensors of a model, each one flat and named after its tensor and entries, read when asked for.

    Nobody writes to what it returns, and so a copy is not opened anew.
    """

    def __init__(
        self,
        whole: Mapping[str, Tensor],
        spans: Mapping[str, Span | None],
        kinds: Mapping[str, torch.dtype],
        seen: Callable[[int], None] | None = None,
    ) -> None:
        """Take a model, its pieces (None: a whole tensor of that name, in its shape), and the dtypes to see them in."""
        self._whole, self._spans, self._kinds, self._seen = whole, dict(spans), kinds, seen
        self._parts = parts_of(whole) if isinstance(whole, View) else {}
        self._names = tuple(self._spans)

    def __copy__(self) -> "Cut":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Cut, (self._whole, self._spans, self._kinds)

    def __getitem__(self, name: str) -> Tensor:
        span = self._spans[name]
        tensor = self._whole[name] if span is None else self._flat(*span)
        if self._seen:
            self._seen(tensor.numel())
        return tensor.to(self._kinds[name if span is None else span[0]])

    def layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of one piece without reading it."""
        span = self._spans[name]
        if span is None:
            whole = self._whole
            shape = whole.layout(name)[0] if isinstance(whole, LazyWeights) else tuple(whole[name].shape)
            return shape, self._kinds[name]
        return (span[2] - span[1],), self._kinds[span[0]]

    def _flat(self, name: str, first: int, last: int) -> Tensor:
        """Return entries `first` to `last` of one tensor, of those stored apart each only what is needed."""
        if not isinstance(self._whole, View):
            return self._whole[name].reshape(-1)[first:last]
        found = []
        for part, begin, end in overlaps(self._parts[name], first, last):
            stored = self._whole.checkpoint[part.stored].reshape(-1)
            found.append(stored[part.at + begin - part.start : part.at + end - part.start])
        return found[0] if len(found) == 1 else torch.cat(found)


def in_kinds(weights: Mapping[str, Tensor], kinds: Mapping[str, torch.dtype]) -> Mapping[str, Tensor]:
    """Return `weights`, their tensors in the dtypes of `kinds`; themselves if they are that already."""
    if not isinstance(weights, LazyWeights) or all(weights.layout(name)[1] == kind for name, kind in kinds.items()):
        return weights
    return Cut(weights, dict.fromkeys(weights), kinds)


def overlaps(parts: Sequence[Part], first: int, last: int) -> Iterator[tuple[Part, int, int]]:
    """Yield the parts that entries `first` to `last` of a merged tensor go to, each with those that go there."""
    for part in parts:
        begin, end = max(first, part.start), min(last, part.start + part.count)
        if begin < end or first == last:
            yield part, begin, end


def entries_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return name -> number of entries, without reading any."""
    return {
        name: torch.Size(weights.layout(name)[0] if isinstance(weights, LazyWeights) else weights[name].shape).numel()
        for name in weights
    }


def spans_of(entries: Mapping[str, int], size: int) -> dict[str, Span | None]:
    """Return the pieces, of at most `size` entries, of tensors with so many entries."""
    found: dict[str, Span | None] = {}
    for name, count in entries.items():
        if count <= size:
            found[name] = name, 0, count
        for first in range(0, count, size) if count > size else ():
            last = min(first + size, count)
            found[f"{name}[{first}:{last}]"] = name, first, last
    return found


def grouped(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yield names in order, as many at a time as have `most` entries together, at least one."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def run(
    merge: Merge,
    way: Way,
    base: Mapping[str, Tensor],
    experts: Pool,
    kinds: Mapping[str, torch.dtype],
    target: Target,
    put: Put,
    *,
    read: Callable[[int], None] | None = None,
    wrote: Callable[[int], None] | None = None,
) -> Merged:
    """Merge, and hand each part of the outcome over as soon as it is there.

    Args:
        merge: a method with its parameters.
        way: what it needs to see at a time.
        base: the base's tensors.
        experts: those of the experts.
        kinds: the dtypes that all are seen in.
        target: where merged tensors go.
        put: takes what is to be stored.
        read: told how many entries of an expert were read, at every reading.
        wrote: told how many entries were handed over.

    Returns:
        what the last call of `merge` returned, without its weights.

    Raises:
        KitError: of the method; or the outcome is too large for the dtype that it is stored in.
    """
    entries = entries_of(base)
    spans: dict[str, Span | None] = spans_of(entries, PIECE) if way.startswith("pieces") else dict.fromkeys(base)
    sizes = {label: entries[label] if span is None else span[2] - span[1] for label, span in spans.items()}
    merged = Merged({})
    for labels in grouped(sizes, PIECE) if way in ("pieces", "tensors") else [list(sizes)]:
        if way == "whole":
            merged = merge(in_kinds(base, kinds), {name: in_kinds(expert, kinds) for name, expert in experts.items()})
        else:
            some = {label: spans[label] for label in labels}
            ends = {name: Cut(expert, some, kinds, read) for name, expert in experts.items()}
            merged = merge(Cut(base, some, kinds), ends)
        for label in labels:
            name, first, last = spans[label] or (label, 0, sizes[label])
            _hand_over(name, first, last, merged.weights.pop(label), target, put)
            if wrote:
                wrote(sizes[label])
    return merged


def _hand_over(name: str, first: int, last: int, values: Tensor, target: Target, put: Put) -> None:
    flat = values.detach().reshape(-1)
    for part, begin, end in overlaps(target.parts[name], first, last):
        dtype = target.layout(part.stored)[1]
        some = flat[begin - first : end - first]
        stored = some.to(dtype)
        if some.dtype != dtype and not is_finite(stored):
            raise KitError(
                f"The merge left values in '{part.stored}' that are too large for {dtype}, in which the base stores "
                "it. Choose smaller coefficients, or a base in bfloat16 or float32."
            )
        put(part.stored, stored, part.at + begin - part.start)
