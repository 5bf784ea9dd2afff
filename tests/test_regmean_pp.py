"""RegMean++ against a walk through the blocks by hand, and in the limits where its answer is known, in float64."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import gelu, layer_norm, normalize, softmax

from mergekit_lite.errors import KitError
from mergekit_lite.methods import all_methods, regmean, regmean_plus_plus, simple_average
from mergekit_lite.methods.shared.blocks import by_block
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.suite import Suite
from mergekit_lite.suites.walking import BlockByBlock, walk_through
from mergekit_lite.weight_files import LazyWeights, write

SIDE, PATCH, WIDTH, HEADS, LAYERS = 16, 8, 8, 2, 3
TASKS = ("a", "b", "c")
LINEAR = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

Weights = dict[str, Tensor]


def close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(dict(left), dict(right), rtol=tolerance, atol=tolerance)


@dataclass
class Given:
    """A vision transformer in open_clip's layout and images by task."""

    module: VisionTransformer
    heads: Mapping[str, Tensor]
    pictures: dict[str, Tensor]

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return normalize(functional_call(self.module, dict(weights), (images,)), dim=1)

    def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
        suite = SimpleNamespace(_model=SimpleNamespace(visual=self.module), encode=self.encode)
        return Suite.layer_inputs(cast(Suite, suite), weights, images)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        return iter([{task: images[:images_per_task] for task, images in self.pictures.items()}] * steps)


Pool = tuple[Weights, dict[str, Weights], Given]


@pytest.fixture
def pool() -> Pool:
    torch.manual_seed(2)
    module = VisionTransformer(SIDE, PATCH, WIDTH, layers=LAYERS, heads=HEADS, mlp_ratio=2.0, output_dim=6)
    module = module.double().eval()
    base = {name: value.detach().clone() for name, value in module.named_parameters() if name != "proj"}
    base = {name: value + 0.1 * torch.randn_like(value) for name, value in base.items()}
    experts = {task: {name: value + 0.2 * torch.randn_like(value) for name, value in base.items()} for task in TASKS}
    heads = {task: torch.randn(3, 6, dtype=torch.float64) for task in TASKS}
    pictures = {task: torch.randn(7, 3, SIDE, SIDE).double() + 2 * torch.randn(1, 3, SIDE, SIDE) for task in TASKS}
    return base, experts, Given(module, heads, pictures)


def block(weights: Mapping[str, Tensor], place: int, hidden: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the inputs of a block's four linear layers, (rows, in), and what it hands on, (images, tokens, width)."""
    own = {key.split(f"resblocks.{place}.")[1]: one for key, one in weights.items() if f"resblocks.{place}." in key}
    normed = layer_norm(hidden, (WIDTH,), own["ln_1.weight"], own["ln_1.bias"])
    qkv = normed @ own["attn.in_proj_weight"].T + own["attn.in_proj_bias"]
    mixed = torch.zeros_like(hidden)
    size = WIDTH // HEADS
    for head in range(HEADS):
        query, key, value = (qkv[..., part * WIDTH + head * size :][..., :size] for part in range(3))
        mixed[..., head * size :][..., :size] = softmax(query @ key.mT / size**0.5, dim=-1) @ value
    after = hidden + mixed @ own["attn.out_proj.weight"].T + own["attn.out_proj.bias"]
    second = layer_norm(after, (WIDTH,), own["ln_2.weight"], own["ln_2.bias"])
    wide = gelu(second @ own["mlp.c_fc.weight"].T + own["mlp.c_fc.bias"])
    out = after + wide @ own["mlp.c_proj.weight"].T + own["mlp.c_proj.bias"]
    rows = zip(LINEAR, (normed, mixed, second, wide), strict=True)
    return {name: one.flatten(0, 1) for name, one in rows}, out


def embedded(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return what goes into the first block."""
    patches = torch.nn.functional.conv2d(images, weights["conv1.weight"], stride=PATCH).flatten(2).mT
    start = weights["class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([start, patches], dim=1) + weights["positional_embedding"]
    return layer_norm(tokens, (WIDTH,), weights["ln_pre.weight"], weights["ln_pre.bias"])


def by_hand(pool: Pool, ratio: float) -> Weights:
    """Return the merge as the authors' algorithm has it: hidden states are kept, and each block is merged in turn."""
    base, experts, data = pool
    merged = {name: torch.stack([expert[name] for expert in experts.values()]).mean(0) for name in base}
    merged |= {name: base[name] for name in ("ln_post.weight", "ln_post.bias")}
    hidden = {task: embedded(merged, data.pictures[task]) for task in experts}
    for place in range(LAYERS):
        found = {task: block(expert, place, hidden[task])[0] for task, expert in experts.items()}
        for name in LINEAR:
            whole = f"transformer.resblocks.{place}.{name}"
            total, pulled = torch.zeros(()).double(), torch.zeros(()).double()
            for task, expert in experts.items():
                rows = found[task][name]
                gram = rows.T @ rows / len(rows)
                gram = ratio * gram + (1 - ratio) * gram.diag().diag()
                total, pulled = total + gram, pulled + gram @ expert[whole].T
            merged[whole] = (torch.inverse(total) @ pulled).T
        hidden = {task: block(merged, place, rows)[1] for task, rows in hidden.items()}
    return merged


def test_the_walk_by_hand_is_the_encoder(pool: Pool) -> None:
    base, _, data = pool
    images = data.pictures["a"]
    hidden, inputs = embedded(base, images), data.inputs(base, images)
    for place in range(LAYERS):
        rows, hidden = block(base, place, hidden)
        close({name: inputs[f"transformer.resblocks.{place}.{name}"] for name in LINEAR}, rows)


@pytest.mark.parametrize("ratio", [0.95, 0.5])
def test_it_is_the_algorithm_of_the_authors(pool: Pool, ratio: float) -> None:
    close(regmean_plus_plus(*pool, off_diagonal=ratio).weights, by_hand(pool, ratio))


def test_the_ratio_is_the_papers_unless_another_is_given(pool: Pool) -> None:
    close(regmean_plus_plus(*pool).weights, by_hand(pool, 0.95))


@pytest.mark.parametrize("ratio", [0.0, 0.95])
def test_one_expert_and_equal_experts_give_the_expert_but_for_the_last_norm(pool: Pool, ratio: float) -> None:
    base, experts, data = pool
    expected = experts["b"] | {name: base[name] for name in base if name.startswith("ln_post.")}
    close(regmean_plus_plus(base, {"b": experts["b"]}, data, off_diagonal=ratio).weights, expected)
    same = dict.fromkeys(TASKS, experts["b"])
    close(regmean_plus_plus(base, same, data, off_diagonal=ratio).weights, expected)


def test_what_is_no_linear_layer_of_a_block_is_averaged_and_the_last_norm_is_the_bases(pool: Pool) -> None:
    base, experts, data = pool
    merged, average = regmean_plus_plus(base, experts, data).weights, simple_average(base, experts).weights
    assert list(merged) == list(base)
    for name in base:
        if name.startswith("ln_post."):
            assert torch.equal(merged[name], base[name])
        elif name.endswith(LINEAR):
            assert (merged[name] - average[name]).norm() > 1e-3
        else:
            torch.testing.assert_close(merged[name], average[name], rtol=0, atol=1e-14)


def test_without_off_diagonals_each_column_is_a_weighted_mean(pool: Pool) -> None:
    base, experts, data = pool
    merged = regmean_plus_plus(base, experts, data, off_diagonal=0.0).weights
    average = simple_average(base, experts).weights
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    shares = {}
    for task, expert in experts.items():
        rows = block(expert, 0, embedded(average, data.pictures[task]))[0]["mlp.c_fc.weight"]
        shares[task] = rows.square().mean(0)
    pulled = sum((expert[name] * shares[task] for task, expert in experts.items()), torch.zeros(()).double())
    torch.testing.assert_close(merged[name], pulled / sum(shares.values()), rtol=0, atol=1e-11)


def test_a_single_block_on_equal_embeddings_is_regmean(pool: Pool) -> None:
    base, experts, data = pool
    front = ("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias")
    alike = {task: one | {name: base[name] for name in front} for task, one in experts.items()}
    merged = regmean_plus_plus(base, alike, data, off_diagonal=0.9).weights
    plain = regmean(base, alike, data, off_diagonal=0.9).weights
    first = [name for name in base if "resblocks.0." in name]
    close({name: merged[name] for name in first}, {name: plain[name] for name in first})
    later = "transformer.resblocks.1.mlp.c_fc.weight"  # its inputs come from block 0, which is merged in one only
    assert (merged[later] - plain[later]).norm() > 1e-3


def test_order_of_experts_and_images_and_size_of_batches_do_not_matter(pool: Pool, tmp_path: Path) -> None:
    base, experts, data = pool
    merged = regmean_plus_plus(base, experts, data).weights
    close(merged, regmean_plus_plus(base, {task: experts[task] for task in reversed(TASKS)}, data).weights)
    close(merged, regmean_plus_plus(base, experts, data, batch_size=3).weights)
    turned = {task: images.flip(0) for task, images in data.pictures.items()}
    close(merged, regmean_plus_plus(base, experts, replace(data, pictures=turned)).weights)
    for task, expert in experts.items():
        write(tmp_path / task, expert)
    lazy = {task: LazyWeights(tmp_path / task) for task in TASKS}
    assert all(torch.equal(one, merged[name]) for name, one in regmean_plus_plus(base, lazy, data).weights.items())


def test_tensors_in_any_order_give_the_same_merge(pool: Pool) -> None:
    base, experts, data = pool
    merged = regmean_plus_plus(base, experts, data).weights
    shuffled = [{name: one[name] for name in sorted(one, reverse=True)} for one in (base, *experts.values())]
    close(regmean_plus_plus(shuffled[0], dict(zip(TASKS, shuffled[1:], strict=True)), data).weights, merged)


def test_blocks_are_walked_by_their_numbers() -> None:
    names = [f"encoder.layers.{place}.fc.weight" for place in (10, 9, 2)]
    found = by_block(["pre.weight", *names, "post_layernorm.weight"])
    assert list(found.values()) == [(name,) for name in reversed(names)]
    assert list(found) == ["encoder.layers.2", "encoder.layers.9", "encoder.layers.10"]


def test_half_precision_comes_back_in_half_precision(pool: Pool) -> None:
    base, experts, data = pool
    halves = {task: {name: one.bfloat16() for name, one in expert.items()} for task, expert in experts.items()}

    class Wide(Given):
        def inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> Mapping[str, Tensor]:
            return super().inputs({name: one.double() for name, one in weights.items()}, images)

    wide = Wide(data.module, data.heads, data.pictures)
    merged = regmean_plus_plus({name: one.bfloat16() for name, one in base.items()}, halves, wide).weights
    assert {one.dtype for one in merged.values()} == {torch.bfloat16}
    exact = regmean_plus_plus(base, experts, data).weights
    assert all((merged[name].double() - one).norm() < 0.05 * one.norm() for name, one in exact.items() if one.dim() > 1)


def test_models_without_blocks_bad_experts_and_missing_images_are_named(pool: Pool) -> None:
    base, experts, data = pool
    with pytest.raises(KitError, match=r"No tensor has the number of a block in its name.*Use RegMean"):
        regmean_plus_plus({"fc.weight": torch.eye(2)}, {"a": {"fc.weight": torch.eye(2)}}, data)
    with pytest.raises(KitError, match="there are none for 'cats'"):
        regmean_plus_plus(base, {**experts, "cats": base}, data)
    few = {task: torch.zeros_like(images) for task, images in data.pictures.items()}
    with pytest.raises(KitError, match="have a singular sum"):
        regmean_plus_plus(base, experts, replace(data, pictures=few), off_diagonal=1.0)
    experts["c"]["ln_pre.bias"][0] = float("nan")
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'c': 'ln_pre\.bias'"):
        regmean_plus_plus(base, experts, data)


def test_it_is_registered_beside_regmean() -> None:
    names = [info.name for info in all_methods()]
    assert names.index("regmean_plus_plus") == names.index("regmean") + 1
    known: Any = next(info for info in all_methods() if info.name == "regmean_plus_plus")
    assert (known.title, str(known.access)) == ("RegMean++", "calibration inputs")


# Block by block


def walk(pool: Pool) -> BlockByBlock:
    return BlockByBlock(pool[2].module, lambda images: images)


def test_with_hidden_states_kept_the_merge_is_the_same(pool: Pool) -> None:
    merged = regmean_plus_plus(*pool, batch_size=3).weights
    close(regmean_plus_plus(*pool, batch_size=3, walk=walk(pool)).weights, merged)
    close(merged, by_hand(pool, 0.95))


def test_the_walk_shows_what_the_whole_encoder_shows(pool: Pool) -> None:
    base, _, data = pool
    images, whole, way = data.pictures["b"], data.inputs(base, data.pictures["b"]), walk(pool)
    state = way.enter(base, images)
    seen: Weights = {}
    torch.testing.assert_close(state, embedded(base, images), rtol=1e-12, atol=1e-12)
    for block_name in by_block(base):
        seen |= way.inputs(base, block_name, state)
        state = way.onward(base, block_name, state)
    assert seen.keys() == whole.keys()
    close(seen, whole)
    last = layer_norm(state, (WIDTH,), base["ln_post.weight"], base["ln_post.bias"])[:, 0]
    close({"": normalize(last @ data.module.proj, dim=1)}, {"": data.encode(base, images)})


def test_a_walk_looks_at_each_block_once_for_its_expert_and_once_merged(pool: Pool) -> None:
    calls: list[tuple[str, str]] = []

    class Counted(BlockByBlock):
        def enter(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
            calls.append(("enter", ""))
            return super().enter(weights, images)

        def onward(self, weights: Mapping[str, Tensor], block: str, state: Tensor) -> Tensor:
            calls.append(("run", block))
            return super().onward(weights, block, state)

    regmean_plus_plus(*pool, walk=Counted(pool[2].module, lambda images: images))
    assert calls.count(("enter", "")) == len(TASKS)
    for place in range(LAYERS):
        assert calls.count(("run", f"transformer.resblocks.{place}")) == 2 * len(TASKS)


def test_no_hook_is_left_behind(pool: Pool) -> None:
    regmean_plus_plus(*pool, walk=walk(pool))
    assert not [module for module in pool[2].module.modules() if module._forward_pre_hooks]


def test_a_suite_gives_its_walk_and_others_none(cache: Path) -> None:
    suite = load_suite("miniature", "cpu")
    way = walk_through(suite)
    assert way is not None
    images = torch.from_numpy(suite.split("digits", "test").images[:2].copy())
    inputs = suite.layer_inputs(suite.base, images)
    state = way.enter(suite.base, images)
    first = next(iter(by_block(suite.base)))
    for name, rows in way.inputs(suite.base, first, state).items():
        torch.testing.assert_close(rows, inputs[name], rtol=1e-4, atol=1e-5)
    assert walk_through(cast(Suite, object())) is None
