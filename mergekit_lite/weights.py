"""Weights: the floating-point parameters of an image encoder by name, and strict arithmetic on them.

A mismatch between two models is never repaired or skipped: it raises and names the first three offenders.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.weight_files import LazyWeights

Weights = dict[str, Tensor]
"""Parameters of the image encoder by open_clip's names, without the ``visual.`` prefix."""

Pool = Mapping[str, Mapping[str, Tensor]]
"""Models by name: most often the experts that are merged, by task, each read tensor by tensor from its file."""


def first_three(offenders: list[str]) -> str:
    """Join the first three of `offenders` and count the others."""
    more = len(offenders) - 3
    return "; ".join(offenders[:3]) + (f"; and {more} more" if more > 0 else "")


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that sums are formed in: float64 for float64, float32 for everything smaller."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def widest(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return the working dtype of all tensors together."""
    return max((working_dtype(tensor) for tensor in weights.values()), key=lambda dtype: dtype.itemsize)


def in_dtypes_of(base: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Weights:
    """Return `weights` as a merge hands them over: in the dtypes of `base`, without gradients."""
    return {name: weights[name].detach().to(start.dtype) for name, start in base.items()}


def flat_columns(weights: Mapping[str, Tensor]) -> dict[str, slice]:
    """Return for each tensor the columns it takes up when all P parameters lie in one row, in the order of names."""
    columns, start = {}, 0
    for name, tensor in weights.items():
        columns[name] = slice(start, start + tensor.numel())
        start += tensor.numel()
    return columns


def difference(end: Tensor, start: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``end - start`` on the device of `start`, in its working dtype; written into `out` if given.

    A loop over experts saves most of its time with one `out` for all: fresh memory costs more than the subtraction.
    """
    dtype = working_dtype(start)
    return torch.sub(end.to(start.device, dtype), start.to(dtype), out=out)


PIECE = 2**19  # entries; 2 MiB of float32 stay in a processor's cache


def pieces(tensors: Sequence[Tensor], size: int = PIECE) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same n <= `size` entries of all tensors of one shape, as views (n,), from the first to the last.

    Sums over many models wait for memory most of the time; what is computed piece by piece waits for the models only,
    not for intermediate results. To write into a tensor through its pieces, it has to be contiguous.
    """
    return zip(*(tensor.reshape(-1).split(size) for tensor in tensors), strict=True)


def task_vector(expert: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Weights:
    """Return the task vector: expert minus base, tensor by tensor (Ilharco et al. 2023, section 2).

    The differences are float32 (float64 where the base is float64), since in half precision they would lose most of
    their digits: a task vector is a few per cent of the weights.

    Raises:
        KitError: names, shapes or dtypes differ.
    """
    check_same(base, expert, name="the expert")
    return {name: difference(expert[name], start) for name, start in base.items()}


def _layout(weights: Mapping[str, Tensor], name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Return shape and dtype of one tensor; of a file only the header is read."""
    if isinstance(weights, LazyWeights):
        return weights.layout(name)
    return tuple(weights[name].shape), weights[name].dtype


def mismatches(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Return in words where names, shapes and dtypes of `other` differ from those of `reference`, the base."""
    problems = []
    for key in reference:
        if key not in other:
            problems.append(f"'{key}' is missing")
            continue
        (shape, dtype), (its_shape, its_dtype) = _layout(reference, key), _layout(other, key)
        if its_shape != shape:
            problems.append(f"'{key}' has shape {its_shape}, the base {shape}")
        elif its_dtype != dtype:
            problems.append(f"'{key}' is {its_dtype}, the base {dtype}")
    return problems + [f"'{key}' is not in the base" for key in other if key not in reference]


def check_same(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], *, name: str) -> None:
    """Check that `other` has the names, shapes and dtypes of `reference`; `name` says in the error what `other` is.

    Raises:
        KitError: they differ; the first three offending tensors are named.
    """
    problems = mismatches(reference, other)
    if problems:
        raise KitError(
            f"The weights of {name} do not fit the base weights: {first_three(problems)}. "
            "Only models that were fine-tuned from the same base, and stored alike, can be merged."
        )


def check_floating(weights: Mapping[str, Tensor], *, name: str) -> None:
    """Check that all tensors are floating-point.

    Raises:
        KitError: some are not; the first three are named.
    """
    kinds = ((key, _layout(weights, key)[1]) for key in weights)
    problems = [f"'{key}' is {dtype}" for key, dtype in kinds if not dtype.is_floating_point]
    if problems:
        raise KitError(
            f"{name[0].upper()}{name[1:]} must be floating-point, but {first_three(problems)}. "
            "Leave counters and indices out of what is merged."
        )


def private(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the same weights for somebody who may write to them: `weights` stay as they are, whatever happens.

    Tensors in memory are copied. A file is opened anew: what is written to its tensors is seen where it was opened
    only. Other mappings make their tensors when they are asked for, new ones each time.
    """
    if isinstance(weights, dict):
        return {name: tensor.clone() for name, tensor in weights.items()}
    return copy(weights) if isinstance(weights, LazyWeights) else weights


def is_finite(tensor: Tensor) -> bool:
    """Return whether no entry is NaN or infinite; both show in the extremes, which take a third of isfinite's time."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no entry of any tensor is NaN or infinite; a GPU is waited for once, not for each of them."""
    ends = [torch.isfinite(end) for tensor in tensors if tensor.numel() for end in tensor.aminmax()]
    return not ends or bool(torch.stack(ends).all())


def check_finite(weights: Mapping[str, Tensor], *, name: str) -> None:
    """Check that no tensor holds a NaN or an infinity; `name` says in the error whose weights they are.

    Raises:
        KitError: some do; the first three are named.
    """
    problems = [f"'{key}'" for key in weights if not is_finite(weights[key])]
    if problems:
        raise KitError(
            f"NaN or infinite values in {name}: {first_three(problems)}. "
            "Such a model cannot be merged: fetch or train it again."
        )


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 over names, dtypes, shapes and bytes, whatever the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
