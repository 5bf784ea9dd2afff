"""The blocks of an encoder, one after another: what goes into each, and what it hands on."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import LayerData


class Walk(Protocol):
    """A way through the blocks of an encoder, for which a batch of images is in a state between two blocks."""

    def enter(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the state in front of the first block."""

    def inputs(self, weights: Mapping[str, Tensor], block: str, state: Tensor) -> Mapping[str, Tensor]:
        """Return name of a weight (out, in) -> inputs (rows, in), for a block's linear layers at least."""

    def onward(self, weights: Mapping[str, Tensor], block: str, state: Tensor) -> Tensor:
        """Return the state behind a block."""


@dataclass(frozen=True)
class FromTheImages:
    """The walk for data that know the whole encoder only: the state is the images, and each look goes all the way."""

    data: LayerData

    def enter(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the images."""
        return images

    def inputs(self, weights: Mapping[str, Tensor], block: str, state: Tensor) -> Mapping[str, Tensor]:
        """Return the inputs of all linear layers."""
        return self.data.inputs(weights, state)

    def onward(self, weights: Mapping[str, Tensor], block: str, state: Tensor) -> Tensor:
        """Return the images."""
        return state


def by_block(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return block -> its tensors, in the order of the blocks: names that begin alike up to their first number.

    Raises:
        KitError: there are no numbered blocks.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for name in names:
        if match := re.match(r"(.*?\.)?(\d+)\.", name):
            found.setdefault((match[1] or "", int(match[2])), []).append(name)
    if not found:
        raise KitError(
            "No tensor has the number of a block in its name, such as 'transformer.resblocks.0.mlp.c_fc.weight', so "
            "the model cannot be merged block by block. Use RegMean, which needs no blocks."
        )
    return {f"{before}{number}": tuple(found[before, number]) for before, number in sorted(found)}
