"""Task vectors as sums of singular components that can be switched off, for `adapt` to learn which (AdaRank)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.spectral import truncated_svd
from mergekit_lite.weights import Pool, Weights, difference

TEMPERATURE = 10.0
"""What the raw masks are divided by in the backward pass; the only value in the authors' code."""


@dataclass(frozen=True)
class Spectrum:
    """The thin singular value decompositions of one tensor's K task vectors (m, n), R components each.

    Attributes:
        origin: (m, n), what the task vectors are added to.
        left: (m, K R), the left singular vectors of all experts side by side.
        values: (K, R), singular values in descending order; zero beyond the numerical rank.
        right: (K R, n), the right singular vectors.
    """

    origin: Tensor
    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of(cls, origin: Tensor, ends: Sequence[Tensor]) -> "Spectrum":
        """Decompose the task vectors that lead from `origin` to each of the K `ends`."""
        rank = min(origin.shape)
        left = origin.new_zeros(origin.shape[0], len(ends), rank)
        values = origin.new_zeros(len(ends), rank)
        right = origin.new_zeros(len(ends), rank, origin.shape[1])
        for row, end in enumerate(ends):
            u, s, v = truncated_svd(difference(end, origin), rank)
            left[:, row, : len(s)], values[row, : len(s)], right[row, : len(s)] = u, s, v
        return cls(origin, left.flatten(1), values, right.flatten(0, 1))

    def merged(self, strengths: Tensor) -> Tensor:
        r"""Return :math:`O + \sum_{k,r} c_{kr} u_{kr} v_{kr}^\top` for strengths c (K, R)."""
        return torch.addmm(self.origin, self.left * strengths.flatten(), self.right)

    def along(self, gradient: Tensor) -> Tensor:
        r"""Return the gradient of each strength, :math:`u_{kr}^\top \nabla v_{kr}`, (K, R)."""
        return ((self.left.T @ gradient) * self.right).sum(dim=1).view_as(self.values)


@dataclass(frozen=True)
class Components:
    """What is learned about K experts: a coefficient per expert and tensor, a mask per singular component.

    Attributes:
        raw: (N,) all that is learned: K rows of L coefficients, then (K, R) raw masks of each matrix. It is changed in
            place; what is computed follows it.
        coefficients: (K, L) view of `raw`.
        masks: name of a matrix -> (K, R) view of `raw`; a component stays where it is above zero.
        spectra: name of a matrix -> its decompositions.
        rest: origin and task vectors of the other tensors.
        places: the number of each of the L tensors by name, in the order of the weights.
    """

    raw: Tensor
    coefficients: Tensor
    masks: Mapping[str, Tensor]
    spectra: Mapping[str, Spectrum]
    rest: Bank
    places: Mapping[str, int]

    @classmethod
    def of(cls, origin: Mapping[str, Tensor], experts: Pool, decomposed: Sequence[str]) -> "Components":
        """Lay out a pool whose task vectors lead from `origin`; all coefficients and raw masks are zero.

        Raises:
            KitError: NaN or infinite weights, or no room for the task vectors.
        """
        rest = {name: tensor for name, tensor in origin.items() if name not in decomposed}
        bank = Bank.of(rest, {task: {name: one[name] for name in rest} for task, one in experts.items()})
        spectra = {}
        for name in decomposed:
            start = origin[name].to(bank.base.dtype)
            spectra[name] = Spectrum.of(start, [expert[name] for expert in experts.values()])
        sizes = [len(experts) * len(origin), *(one.values.numel() for one in spectra.values())]
        raw = bank.base.new_zeros(sum(sizes))
        first, *others = raw.split(sizes)
        masks = {name: part.view_as(spectra[name].values) for name, part in zip(spectra, others, strict=True)}
        places = {name: place for place, name in enumerate(origin)}
        return cls(raw, first.view(len(experts), -1), masks, spectra, bank, places)

    @property
    def place(self) -> str:
        """Where the task vectors lie if that is not the device."""
        return self.rest.place

    def merged(self, raw: Tensor) -> Weights:
        """Return the weights that the masks and coefficients in `raw`, which is `self.raw`, lead to."""
        others = self.rest.merged(self.coefficients[:, [self.places[name] for name in self.rest.shapes]])
        for name, spectrum in self.spectra.items():
            scale = self.coefficients[:, self.places[name], None]
            others[name] = spectrum.merged(scale * (self.masks[name] > 0) * spectrum.values)
        return {name: others[name] for name in self.places}

    def gradient(self, gradients: Mapping[str, Tensor]) -> Tensor:
        r"""Return dL/d(raw), (N,), from dL/dtheta by tensor name; straight through the step of the masks.

        A mask b is 1 or 0 in the forward pass, and sigmoid(b / T) in the backward pass, T = `TEMPERATURE`:
        :math:`\partial L / \partial b_{kr} = \lambda_k s_{kr}\, u_{kr}^\top \nabla v_{kr}\, \sigma'(b_{kr} / T) / T`.
        """
        scales = torch.zeros_like(self.coefficients)
        scales[:, [self.places[name] for name in self.rest.shapes]] = self.rest.gradient(gradients)
        flips = [torch.zeros_like(mask) for mask in self.masks.values()]
        for flip, (name, mask) in zip(flips, self.masks.items(), strict=True):
            if name in gradients:
                pull = self.spectra[name].values * self.spectra[name].along(gradients[name].to(mask))
                scales[:, self.places[name]] = (pull * (mask > 0)).sum(dim=1)
                soft = torch.sigmoid(mask / TEMPERATURE)
                flip.copy_(self.coefficients[:, self.places[name], None] * pull * soft * (1 - soft) / TEMPERATURE)
        return torch.cat([part.flatten() for part in (scales, *flips)])
