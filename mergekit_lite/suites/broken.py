"""Experts that are broken on purpose, to see what a method does with a model that has learnt nothing."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mergekit_lite.weights import difference

Damage = Literal["noise", "shuffled"]
"""How an expert is broken: its task vector becomes Gaussian noise, or its own entries at random places."""


@dataclass(frozen=True, eq=False)
class Broken(Mapping[str, Tensor]):
    """The base plus a vector that is as long as the expert's, tensor by tensor, and points nowhere in particular.

    A broken tensor depends on its name, the task and the seed only, not on the rest of the pool. It is made anew each
    time it is asked for, so that a broken expert takes no more memory than one in a file.

    Attributes:
        base: the pre-trained weights.
        expert: the fine-tuned weights that are to be broken.
        how: "noise" draws the entries from a normal distribution; "shuffled" keeps the expert's and moves them about.
        task: whose expert it is.
        seed: of the draw.
    """

    base: Mapping[str, Tensor]
    expert: Mapping[str, Tensor]
    how: Damage
    task: str
    seed: int = 0

    def __getitem__(self, name: str) -> Tensor:
        start = self.base[name]
        change = difference(self.expert[name], start)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.task} {name} {self.seed}".encode()))
        if self.how == "noise":
            drawn = torch.randn(change.shape, generator=generator, dtype=change.dtype).to(change.device)
            drawn *= change.norm() / drawn.norm().clamp(min=torch.finfo(change.dtype).tiny)
        else:
            places = torch.randperm(change.numel(), generator=generator).to(change.device)
            drawn = change.flatten()[places].view(change.shape)
        return (start.to(drawn.dtype) + drawn).to(start.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)
