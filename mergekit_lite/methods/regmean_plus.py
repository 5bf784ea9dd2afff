"""RegMean++: RegMean block by block, on what the merged blocks before hand over (Nguyen et al. 2026)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Annotated

from pydantic import Field
from torch import Tensor

from mergekit_lite.methods.registry import Access, Count, LayerData, Merged, method
from mergekit_lite.methods.regmean_merging import gram, merge_with_grams
from mergekit_lite.methods.shared.blocks import FromTheImages, Walk, by_block
from mergekit_lite.methods.shared.calibration import calibration_images
from mergekit_lite.weights import Pool, Weights, check_finite

AFTER_THE_BLOCKS = ("ln_post.", "post_layernorm.")
"""What the names of tensors behind the last block begin with, in OpenCLIP and in transformers."""


@method(title="RegMean++", cite="nguyen2026regmeanpp", access=Access.CALIBRATION)
def regmean_plus_plus(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: LayerData,
    *,
    images: Count = 256,
    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 0.95,
    batch_size: Count = 32,
    seed: int = 0,
    walk: Walk | None = None,
) -> Merged:
    r"""Merge block by block: :math:`W^l = \big(\sum_k W_k^l G_k^l\big) \big(\sum_k G_k^l\big)^{-1}` on merged features.

    Nguyen et al. 2026 (arXiv 2508.03121), section 3; details are of the authors' code. :math:`G_k^l` is the Gram matrix
    of the inputs of a linear layer inside block l of expert k, when that block is fed with what the *merged* blocks
    before l make of images of task k. RegMean lets expert k's own blocks feed it. What is in front of the blocks
    (embeddings, the first norm), and biases and norms within them, are averaged; the norm behind the last block keeps
    its pre-trained value, as in the authors' code. A linear layer outside the blocks is averaged, too.

    In memory are the merged model, one block of each expert, two Gram matrices of each of its layers, and what the
    merged blocks hand on for all images: 0.3 GB for eight tasks on ViT-B/32. Without a `walk` nothing is handed on,
    and the images pass through the whole encoder for each block.

    Args:
        base: the pre-trained weights; of them only the norm behind the last block is used.
        experts: K fine-tuned weights by task name.
        data: layer inputs and calibration images of the experts' tasks.
        images: how many images of its own task an expert's Gram matrices are formed from.
        off_diagonal: factor of the Gram matrices' entries off the diagonal. It is all the regularisation there is.
        batch_size: images in one forward pass; only rounding depends on it.
        seed: which images are drawn.
        walk: runs the encoder block by block; `mergekit_lite.study` hands it in.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range, an
            expert whose task has no images, weights without numbered blocks, or Gram matrices whose sum cannot be
            inverted.
    """
    calibration = calibration_images(data, experts, images=images, seed=seed)
    for task, expert in experts.items():
        check_finite(expert, name=f"expert '{task}'")
    merged = merge_with_grams(base, experts, repeat({}, len(experts)))  # the average
    merged |= {name: start for name, start in base.items() if _local(name).startswith(AFTER_THE_BLOCKS)}
    walk = walk or FromTheImages(data)
    states = {task: [walk.enter(merged, part) for part in calibration[task].split(batch_size)] for task in experts}
    for block, names in by_block(base).items():
        start = {name: base[name] for name in names}
        # copies, because tensors of a file may start at any address, and products of such tensors round differently
        parts = {task: {name: expert[name].clone() for name in names} for task, expert in experts.items()}
        grams = (
            block_grams(walk, {**merged, **part}, block, names, states[task], off_diagonal)
            for task, part in parts.items()
        )
        merged |= merge_with_grams(start, parts, grams)
        states = {task: [walk.onward(merged, block, state) for state in own] for task, own in states.items()}
    return Merged(merged)


def block_grams(
    walk: Walk,
    weights: Mapping[str, Tensor],
    block: str,
    names: Iterable[str],
    states: Sequence[Tensor],
    off_diagonal: float,
) -> Weights:
    """Return name of a linear layer's weight -> Gram matrix (in, in) of its inputs, for the layers among `names`."""
    total: Weights = {}
    rows: dict[str, int] = {}
    for state in states:
        inputs = walk.inputs(weights, block, state)
        for name in inputs.keys() & set(names):
            share = gram(inputs[name], off_diagonal).mul_(len(inputs[name]))
            total[name] = total[name].add_(share) if name in total else share
            rows[name] = rows.get(name, 0) + len(inputs[name])
    return {name: one.div_(rows[name]) for name, one in total.items()}


def _local(name: str) -> str:
    """Return a tensor's name without the modules around its last one: 'ln_post.weight'."""
    return ".".join(name.split(".")[-2:])
