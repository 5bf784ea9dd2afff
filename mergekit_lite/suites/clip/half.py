"""A suite whose encoder works in bfloat16 where the GPU multiplies in it itself."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import normalize

from mergekit_lite.suites.suite import Suite


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether it is a GPU that multiplies in bfloat16 itself, as NVIDIA's do from Ampere (2020) on.

    Older ones take float16, too, but then gradients below 6e-8 become zero, and activations above 65,504 infinite.
    """
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


class HalfSuite(Suite):
    """What suites of full-sized models share: weights and features are float32, the encoder's work may be bfloat16."""

    def __init__(self, *arguments: Any) -> None:
        """Take what `Suite` takes."""
        super().__init__(*arguments)
        self._half = computes_in_bfloat16(self.device)

    @property
    def working_dtype(self) -> torch.dtype:
        """The precision that `encode` works in."""
        return torch.bfloat16 if self._half else torch.float32

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the features (N, D) of unit length that the encoder with `weights` gives for `images` (N, 3, H, W).

        On a GPU with bfloat16 the encoder works in that (autocast: weights and their gradients stay float32), the
        features are float32 again. On an older GPU, and on a CPU, all of it is float32.
        """
        images = self._normalised(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            features = functional_call(self._model.visual, dict(weights), (images,))
        return normalize(features.float() if self._half else features, dim=-1)

    def layer_inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Return what goes into each linear layer, see `Suite.layer_inputs`; float32 on a GPU too.

        RegMean inverts the sums of their products, and bfloat16 keeps less than three digits.
        """
        exact = copy(self)
        exact._half = False
        return Suite.layer_inputs(exact, weights, images)
