"""Weights in safetensors files: written whole, read tensor by tensor."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergekit_lite.cache import sealed, written_whole
from mergekit_lite.errors import KitError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


_FACTS = "mergekit_lite"  # the one entry of a file's metadata: safetensors writes several in a random order


def write(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, seal: bool = False
) -> None:
    """Write weights as one safetensors file, whole or not at all; equal weights and metadata give equal files.

    Args:
        path: of the file.
        weights: name -> tensor.
        metadata: what `LazyWeights` returns as such; in the file they are one entry, as JSON.
        seal: whether to write the file's SHA-256 beside it, see `cache.sealed`.

    Raises:
        KitError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    facts = {_FACTS: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    try:
        with (sealed if seal else written_whole)(path) as temporary:
            save_file(tensors, temporary, metadata=facts)
    except SafetensorError as error:
        raise KitError(f"{path} cannot be written: {error}. Free some space or choose another folder.") from error


def read(path: Path) -> dict[str, Tensor]:
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
            self.metadata: dict[str, str] = _unfolded(self._file.metadata() or {})
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


def _unfolded(metadata: dict[str, str]) -> dict[str, str]:
    try:
        facts = json.loads(metadata[_FACTS])
    except (KeyError, ValueError, RecursionError):  # somebody else's file
        return metadata
    return {name: str(fact) for name, fact in facts.items()} if isinstance(facts, dict) else metadata
