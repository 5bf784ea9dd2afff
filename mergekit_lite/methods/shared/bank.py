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
from mergekit_lite.methods.shared.places import Write, filled_table
from mergekit_lite.weights import Pool, Weights, check_finite, difference, flat_columns, is_finite, widest


@dataclass(frozen=True)
class Bank:
    """Base weights and task vectors, flat, side by side.

    Attributes:
        experts: names of the K experts, the rows.
        shapes: shape of each of the L tensors by name.
        columns: which of the P columns each tensor takes up.
        base: (P,) base weights; float32, float64 where they were that. Sums are formed in this dtype, on this device.
        vectors: (K, P) task vectors, in the dtype and on the device of the base unless `place` says otherwise.
        write: called with row, columns and values (n,): changes a part of `vectors`, wherever they lie.
        place: where they lie, in words, if that is not the device: see `places`.
    """

    experts: tuple[str, ...]
    shapes: Mapping[str, torch.Size]
    columns: Mapping[str, slice]
    base: Tensor
    vectors: Tensor
    write: Write
    place: str

    @classmethod
    def of(cls, base: Mapping[str, Tensor], experts: Pool) -> "Bank":
        """Lay out a pool that fits its base: on the base's device, or where there is room, see `places`.

        Raises:
            KitError: NaN or infinite weights, or no place holds the task vectors.
        """
        check_finite(base, name="the base weights")
        dtype = widest(base)
        flat = torch.cat([tensor.detach().to(dtype).flatten() for tensor in base.values()])
        shapes, columns = {name: tensor.shape for name, tensor in base.items()}, flat_columns(base)

        def fill(write: Write) -> None:
            for row, (name, expert) in enumerate(experts.items()):
                for key, where in columns.items():
                    vector = difference(expert[key].detach(), base[key].detach()).flatten()
                    if not is_finite(vector):
                        check_finite(expert, name=f"expert '{name}'")
                    write(row, where, vector.to(dtype))

        table = filled_table(len(experts), flat, fill)
        return cls(tuple(experts), shapes, columns, flat, table.vectors, table.write, table.place)

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
        spread = coefficients.to(self.base).expand(rows, layers)
        flat = torch.empty_like(self.base)
        for layer, columns in enumerate(self.columns.values()):
            torch.addmv(self.base[columns], self._at(columns).T, spread[:, layer], out=flat[columns])
        return {name: flat[columns].view(self.shapes[name]) for name, columns in self.columns.items()}

    def gradient(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return dL/dc, (K, L), from dL/dtheta by tensor name; a tensor that is not there has gradient zero."""
        result = self.base.new_zeros(len(self.experts), len(self.shapes))
        for layer, (name, columns) in enumerate(self.columns.items()):
            if name in gradients:
                result[:, layer] = self._at(columns) @ gradients[name].to(self.base).flatten()
        return result

    def _at(self, columns: slice) -> Tensor:
        """Return the task vectors of one tensor (K, n) where sums are formed: themselves, or a copy that comes over."""
        vectors = self.vectors[:, columns]
        if vectors.device == self.base.device:
            return vectors.to(self.base.dtype)
        here = self.base.new_empty(vectors.shape)
        for row, there in zip(here, vectors, strict=True):  # each is contiguous: a GPU fetches it without the processor
            row.copy_(there, non_blocking=True)
        return here
