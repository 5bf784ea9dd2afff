"""RegMean++: RegMean block by block, on what the merged blocks before hand over (Nguyen et al. 2026)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Annotated

from pydantic import Field
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Access, Count, LayerData, Merged, method
from mergekit_lite.methods.regmean_merging import gram, merge_with_grams
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
) -> Merged:
    r"""Merge block by block: :math:`W^l = \big(\sum_k W_k^l G_k^l\big) \big(\sum_k G_k^l\big)^{-1}` on merged features.

    Nguyen et al. 2026 (arXiv 2508.03121), section 3; details are of the authors' code. :math:`G_k^l` is the Gram matrix
    of the inputs of a linear layer inside block l of expert k, when that block is fed with what the *merged* blocks
    before l make of images of task k. RegMean lets expert k's own blocks feed it. What is in front of the blocks
    (embeddings, the first norm), and biases and norms within them, are averaged; the norm behind the last block keeps
    its pre-trained value, as in the authors' code. A linear layer outside the blocks is averaged, too.

    For each block the images pass through the whole encoder once more, so a model of L blocks costs L times as many
    passes as RegMean; in memory are the merged model, one block of one expert, and two Gram matrices of each of its
    layers.

    Args:
        base: the pre-trained weights; of them only the norm behind the last block is used.
        experts: K fine-tuned weights by task name.
        data: layer inputs and calibration images of the experts' tasks.
        images: how many images of its own task an expert's Gram matrices are formed from.
        off_diagonal: factor of the Gram matrices' entries off the diagonal. It is all the regularisation there is.
        batch_size: images in one forward pass; only rounding depends on it.
        seed: which images are drawn.

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
    for names in blocks(base):
        start = {name: base[name] for name in names}
        # copies, because tensors of a file may start at any address, and products of such tensors round differently
        parts = {task: {name: expert[name].clone() for name in names} for task, expert in experts.items()}
        grams = (
            block_grams(data, {**merged, **part}, names, calibration[task], off_diagonal, batch_size)
            for task, part in parts.items()
        )
        merged |= merge_with_grams(start, parts, grams)
    return Merged(merged)


def blocks(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield the tensors of each block, in the order of the blocks: names that begin alike up to the first number.

    Raises:
        KitError: there are no numbered blocks.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for name in names:
        if match := re.match(r"(.*?\.)?(\d+)\.", name):
            found.setdefault((match[1] or "", int(match[2])), []).append(name)
    if not found:
        raise KitError(
            "RegMean++ merges block by block, but no tensor has the number of a block in its name, such as "
            "'transformer.resblocks.0.mlp.c_fc.weight'. Use RegMean, which needs none."
        )
    for block in sorted(found):
        yield tuple(found[block])


def block_grams(
    data: LayerData,
    weights: Mapping[str, Tensor],
    names: Iterable[str],
    images: Tensor,
    off_diagonal: float,
    batch_size: int,
) -> Weights:
    """Return name of a linear layer's weight -> Gram matrix (in, in) of its inputs, for the layers among `names`."""
    total: Weights = {}
    for part in images.split(batch_size):
        inputs = data.inputs(weights, part)
        for name in inputs.keys() & set(names):
            share = gram(inputs[name], off_diagonal).mul_(len(part) / len(images))
            total[name] = total[name].add_(share) if name in total else share
    return total


def _local(name: str) -> str:
    """Return a tensor's name without the modules around its last one: 'ln_post.weight'."""
    return ".".join(name.split(".")[-2:])
