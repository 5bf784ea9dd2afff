"""Running a vision transformer block by block, so that a method that changes one need not begin at the images."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mergekit_lite.methods.shared.blocks import Walk, by_block
from mergekit_lite.suites.suite import Suite

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer


def walk_through(suite: Suite) -> Walk | None:
    """Return the walk through the encoder of `suite`; None if that is no vision transformer of open_clip's."""
    from open_clip.transformer import VisionTransformer

    visual = suite._model.visual if hasattr(suite, "_model") else None
    return BlockByBlock(visual, suite._normalised) if isinstance(visual, VisionTransformer) else None


class _Reached(Exception):
    """The first block is reached: no error, but the way to stop a forward pass half-way."""

    def __init__(self, state: Tensor) -> None:
        self.state = state


class BlockByBlock:
    """The walk through a vision transformer; the state is what one block hands to the next, in the weights' dtype."""

    def __init__(self, visual: "VisionTransformer", normalised: Callable[[Tensor], Tensor]) -> None:
        """Take the encoder's module, and what images pass through in front of it."""
        self._visual, self._normalised = visual, normalised

    def enter(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return what goes into the first block."""

        def stop(module: nn.Module, args: tuple[Tensor, ...]) -> NoReturn:
            raise _Reached(args[0])

        hook = self._visual.get_submodule(next(iter(by_block(weights)))).register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                functional_call(self._visual, dict(weights), (self._normalised(images),))
        except _Reached as reached:
            return reached.state
        finally:
            hook.remove()
        raise AssertionError("the encoder did not call its first block")

    def inputs(self, weights: Mapping[str, Tensor], block: str, state: Tensor) -> Mapping[str, Tensor]:
        """Return name of a weight (out, in) -> inputs (rows, in), for the block's linear layers."""
        # `Suite.layer_inputs` watches the layers of any module: here the block is the whole model.
        alone: Any = SimpleNamespace(
            _model=SimpleNamespace(visual=self._visual.get_submodule(block)),
            encode=lambda weights, state: self.onward(weights, block, state),
        )
        return {f"{block}.{name}": rows for name, rows in Suite.layer_inputs(alone, weights, state).items()}

    def onward(self, weights: Mapping[str, Tensor], block: str, state: Tensor) -> Tensor:
        """Return what the block makes of the state."""
        own = {name.removeprefix(f"{block}."): one for name, one in weights.items() if name.startswith(f"{block}.")}
        with torch.no_grad():
            return functional_call(self._visual.get_submodule(block), own, (state,))
