"""The bank: all task vectors of a pool as one (K, P) matrix, so that a merge and its gradient are matrix products.

The merged weights are linear in the coefficients, theta_l = theta_0,l + sum_k c[k,l] tau[k,l]. Hence
dL/dc[k,l] = <dL/dtheta_l, tau[k,l]>: one backward pass through one merged encoder and K inner products per tensor,
never autograd through the sum of K task vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.weights import Pool, Weights, check_finite, difference, flat_columns, is_finite, widest


@dataclass(frozen=True)
class Bank:
    """Base weights and task vectors, flat, side by side.

    Attributes:
        experts: names of the K experts, the rows.
        shapes: shape of each of the L tensors by name.
        columns: which of the P columns each tensor takes up.
        base: (P,) base weights.
        vectors: (K, P) task vectors; float32, float64 where the base is float64.
    """

    experts: tuple[str, ...]
    shapes: Mapping[str, torch.Size]
    columns: Mapping[str, slice]
    base: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, base: Mapping[str, Tensor], experts: Pool) -> "Bank":
        """Lay out a pool that fits its base, on the base's device.

        Raises:
            KitError: NaN or infinite weights.
        """
        check_finite(base, name="the base weights")
        dtype = widest(base)
        flat = torch.cat([tensor.detach().to(dtype).flatten() for tensor in base.values()])
        vectors = flat.new_empty(len(experts), flat.numel())
        shapes = {name: tensor.shape for name, tensor in base.items()}
        bank = cls(tuple(experts), shapes, flat_columns(base), flat, vectors)
        for row, (name, expert) in zip(vectors, experts.items(), strict=True):
            for key, columns in bank.columns.items():
                row[columns] = difference(expert[key].detach(), base[key].detach()).flatten()
            if not is_finite(row):
                check_finite(expert, name=f"expert '{name}'")
        return bank

    def merged(self, coefficients: Tensor) -> Weights:
        """Return theta_0 + sum_k c[k] tau[k]: new memory, one flat vector that the named tensors are views of.

        Args:
            coefficients: (K, L), or (K, 1) for one coefficient per expert.

        Raises:
            KitError: coefficients of another shape.
        """
        rows, layers = len(self.experts), len(self.shapes)
        if coefficients.shape not in {(rows, layers), (rows, 1)}:
            raise KitError(
                f"The coefficients have shape {tuple(coefficients.shape)}; {rows} experts with {layers} tensors need "
                f"({rows}, {layers}), or ({rows}, 1) for one coefficient per expert."
            )
        spread = coefficients.to(self.vectors).expand(rows, layers)
        flat = torch.empty_like(self.base)
        for layer, columns in enumerate(self.columns.values()):
            torch.addmv(self.base[columns], self.vectors[:, columns].T, spread[:, layer], out=flat[columns])
        return {name: flat[columns].view(self.shapes[name]) for name, columns in self.columns.items()}

    def gradient(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return dL/dc, (K, L), from dL/dtheta by tensor name; a tensor that is not there has gradient zero."""
        result = self.vectors.new_zeros(len(self.experts), len(self.shapes))
        for layer, (name, columns) in enumerate(self.columns.items()):
            if name in gradients:
                result[:, layer] = self.vectors[:, columns] @ gradients[name].to(self.vectors).flatten()
        return result
