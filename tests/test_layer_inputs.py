"""What goes into each linear layer: recomputing every layer from it must give what the model itself gives."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mergekit_lite.suites import Suite, load_suite


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("miniature", "cpu")


@pytest.fixture(scope="module")
def images(suite: Suite) -> Tensor:
    return torch.from_numpy(np.array(suite.split("digits", "test").images[:3]))


@pytest.fixture(params=["base", "others"])
def weights(request: pytest.FixtureRequest, suite: Suite) -> dict[str, Tensor]:
    """The base, and weights that the model itself does not hold."""
    if request.param == "base":
        return suite.base
    generator = torch.Generator().manual_seed(0)
    return {name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in suite.base.items()}


def outputs(suite: Suite, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Name of a module -> what it returns, (rows, out), by hooks of our own."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], result: Tensor | tuple[Tensor, ...]) -> None:
            found[name] = (result if isinstance(result, Tensor) else result[0]).flatten(0, -2)

        return hook

    kinds = (nn.Linear, nn.MultiheadAttention, nn.LayerNorm)
    modules = [(name, one) for name, one in suite._model.visual.named_modules() if isinstance(one, kinds)]
    hooks = [one.register_forward_hook(keep(name)) for name, one in modules]
    with torch.no_grad():
        suite.encode(weights, images)
    for hook in hooks:
        hook.remove()
    return found


def test_every_linear_layer_is_there(suite: Suite, images: Tensor) -> None:
    inputs = suite.layer_inputs(suite.base, images)
    matrices = {name for name, tensor in suite.base.items() if tensor.dim() == 2 and name != "positional_embedding"}
    assert set(inputs) == matrices
    assert {name.rsplit(".", 2)[-2] + "." + name.rsplit(".", 1)[-1] for name in inputs} == {
        "attn.in_proj_weight",
        "out_proj.weight",
        "c_fc.weight",
        "c_proj.weight",
    }
    tokens = len(suite.base["positional_embedding"])
    for name, rows in inputs.items():
        assert rows.shape == (len(images) * tokens, suite.base[name].shape[1])
        assert not rows.requires_grad


def test_layers_recomputed_from_their_inputs_give_the_models_outputs(
    suite: Suite, weights: dict[str, Tensor], images: Tensor
) -> None:
    inputs, given = suite.layer_inputs(weights, images), outputs(suite, weights, images)
    compared = 0
    for name, rows in inputs.items():
        # the output projection is the last thing that the attention does
        module = name.removesuffix(".weight").removesuffix(".out_proj")
        if name.endswith("in_proj_weight"):
            continue
        again = linear(rows, weights[name], weights[name.removesuffix("weight") + "bias"])
        torch.testing.assert_close(again, given[module], rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared == 3 * sum(name.endswith("in_proj_weight") for name in inputs) > 0


def test_attention_from_the_recorded_projection_gives_the_next_layers_inputs(
    suite: Suite, weights: dict[str, Tensor], images: Tensor
) -> None:
    """Queries, keys and values by hand from what goes in, mixed by hand, must be what the output projection gets."""
    inputs, given = suite.layer_inputs(weights, images), outputs(suite, weights, images)
    for name in (one for one in inputs if one.endswith("in_proj_weight")):
        attention = name.removesuffix(".in_proj_weight")
        # every block normalises before its attention
        normed = given[attention.removesuffix("attn") + "ln_1"]
        torch.testing.assert_close(inputs[name], normed, rtol=0, atol=0)
        module = suite._model.visual.get_submodule(attention)
        assert isinstance(module, nn.MultiheadAttention)
        projected = linear(inputs[name], weights[name], weights[f"{attention}.in_proj_bias"])
        heads = projected.view(len(images), -1, 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ heads[1].transpose(-1, -2) / module.head_dim**0.5
        mixed = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2).flatten(0, 1)
        torch.testing.assert_close(inputs[f"{attention}.out_proj.weight"], mixed, rtol=1e-4, atol=1e-5)


def test_other_weights_have_other_inputs_and_the_model_stays(suite: Suite, images: Tensor) -> None:
    before = suite.encode(suite.base, images)
    first = suite.layer_inputs(suite.base, images)
    half = {name: 0.9 * tensor for name, tensor in suite.base.items()}
    second = suite.layer_inputs(half, images)
    assert not any(torch.allclose(first[name], second[name]) for name in first)
    assert torch.equal(suite.encode(suite.base, images), before)


def test_hooks_are_taken_off_even_after_an_error(suite: Suite, images: Tensor) -> None:
    suite.layer_inputs(suite.base, images)
    with pytest.raises(RuntimeError):
        suite.layer_inputs(suite.base, images[:, :, :-5])
    assert not any(module._forward_pre_hooks for module in suite._model.visual.modules())


def test_features_can_still_be_differentiated_afterwards(suite: Suite, images: Tensor) -> None:
    suite.layer_inputs(suite.base, images)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in suite.base.items()}
    suite.encode(leaves, images).sum().backward()
    assert all(leaf.grad is not None for leaf in leaves.values())
