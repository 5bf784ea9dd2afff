"""Weights: the floating-point parameters of an image encoder by name, and strict arithmetic on them.

A mismatch between two models is never repaired or skipped: it raises and names the first three offenders.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergekit_lite.cache import written_whole
from mergekit_lite.errors import KitError

Weights = dict[str, Tensor]
"""Parameters of the image encoder by open_clip's names, without the ``visual.`` prefix."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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


class Geometry(NamedTuple):
    """How the task vectors of K experts lie: their lengths, and the angles between them.

    Attributes:
        names: the experts, in order.
        norms: (K,) Euclidean length of each task vector, divided by that of the base weights.
        cosines: (K, K) cosine of the angle between any two; NaN where a task vector is zero and has no direction.
    """

    names: tuple[str, ...]
    norms: Tensor
    cosines: Tensor


def geometry(base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]) -> Geometry:
    """Return lengths and angles of the task vectors of `experts`, in float64, all P parameters taken as one vector.

    Tensors are read one after another, so K copies of the largest one have to fit into memory, not K models.

    Raises:
        KitError: names, shapes or dtypes differ, or a task vector holds NaN or infinite values.
    """
    opened = {name: experts[name] for name in experts}  # a suite opens the file anew each time it is asked
    for name, expert in opened.items():
        check_same(base, expert, name=f"the expert '{name}'")
    products = torch.zeros(len(opened), len(opened), dtype=torch.float64)
    size = 0.0
    for key, start in base.items():
        size += float(start.double().square().sum())
        vectors = torch.stack([difference(expert[key], start).flatten() for expert in opened.values()])
        for part in vectors.split(2**20, dim=1):  # float64 takes twice the memory: not of all columns at once
            part = part.double()
            products += (part @ part.T).cpu()
    squares = products.diagonal()
    broken = [f"'{name}'" for name, square in zip(opened, squares, strict=True) if not square.isfinite()]
    if broken:
        raise KitError(f"NaN or infinite values in the expert {first_three(broken)}. Fetch or train it again.")
    lengths = squares.sqrt()
    cosines = (products / (lengths[:, None] * lengths)).clamp(-1, 1)
    return Geometry(tuple(opened), lengths / size**0.5, cosines)


def _layout(weights: Mapping[str, Tensor], name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Return shape and dtype of one tensor; of a file only the header is read."""
    if isinstance(weights, LazyWeights):
        return weights.layout(name)
    return tuple(weights[name].shape), weights[name].dtype


def check_same(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], *, name: str) -> None:
    """Check that `other` has the names, shapes and dtypes of `reference`; `name` says in the error what `other` is.

    Raises:
        KitError: they differ; the first three offending tensors are named.
    """
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
    problems += [f"'{key}' is not in the base" for key in other if key not in reference]
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


def is_finite(tensor: Tensor) -> bool:
    """Return whether no entry is NaN or infinite; both show in the extremes, which take a third of isfinite's time."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


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


def write(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write weights as one safetensors file, whole or not at all.

    Raises:
        KitError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata=dict(metadata or {}))
    except (OSError, SafetensorError) as error:
        raise KitError(f"{path} cannot be written: {error}. Free some space or choose another folder.") from error


def read(path: Path) -> Weights:
    """Read all tensors of one safetensors file.

    Raises:
        KitError: there is no such file, or it is truncated or of another kind.
    """
    return dict(LazyWeights(path))


class LazyWeights(Mapping[str, Tensor]):
    """Weights in a safetensors file, each tensor read when it is asked for.

    Merges go tensor by tensor, so a pool of these needs the memory of one tensor per expert, not of one model.

    Raises:
        KitError: there is no such file, or it is truncated or of another kind.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu") -> None:
        """Open the file at `path` (its header only); tensors will be put on `device`."""
        self.path = Path(path)
        self.device = device
        try:
            self._file: Any = safe_open(self.path, framework="pt", device=str(device))
            self._names: tuple[str, ...] = tuple(self._file.keys())
        except FileNotFoundError as error:
            raise KitError(f"There is no weights file {self.path}. Check the path, or make the file again.") from error
        except (OSError, SafetensorError) as error:
            raise KitError(
                f"{self.path} is not a whole safetensors file ({error}). "
                "Delete it and make or fetch it again; weights of another format must be converted first."
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise KitError(f"'{name}' cannot be read from {self.path} ({error}). Make the file again.") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor to find out
        return name in self._names

    def __reduce__(self) -> tuple[type[Self], tuple[Path, str | torch.device]]:
        """Let another process open the file anew: an open file does not travel."""
        return type(self), (self.path, self.device)

    def layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of one tensor without reading it."""
        header = self._file.get_slice(name)
        known = _DTYPES.get(header.get_dtype())
        return tuple(header.get_shape()), known if known else self[name].dtype


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 over names, dtypes, shapes and bytes, whatever the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
