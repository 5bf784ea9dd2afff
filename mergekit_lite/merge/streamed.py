"""A safetensors file written tensor by tensor: its header first, then each piece of a tensor where it belongs.

safetensors' own `save_file` needs all tensors in memory at once. What comes out here is the same file, byte by byte.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mergekit_lite.errors import KitError

Layouts = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name of a tensor -> its shape and dtype."""

_CODES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls a dtype, in the order in which it keeps tensors: the wide ones first, so that all are aligned.
"""
_ORDER = {dtype: place for place, dtype in enumerate(_CODES)}


def bytes_of(layouts: Layouts) -> int:
    """Return how many bytes tensors of these shapes and dtypes take."""
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layouts.values())


class StreamedFile:
    """A safetensors file that grows by `put`; a context manager that closes it.

    Args:
        path: of the file; there is none yet.
        layouts: of all tensors that it will hold.
        metadata: of the header, texts by name. Give one at most: safetensors itself writes several in no fixed order.

    Raises:
        KitError: a dtype that the format does not know.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, layouts: Layouts, metadata: Mapping[str, str]) -> None:
        strange = [name for name, (_, dtype) in layouts.items() if dtype not in _CODES]
        if strange:
            raise KitError(
                f"'{strange[0]}' is {layouts[strange[0]][1]}, which cannot be written. Save the base without it, in "
                "float32 or bfloat16, with its own library."
            )
        self.path, self.layouts = path, dict(layouts)
        entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._places: dict[str, int] = {}
        self._missing = {name: torch.Size(shape).numel() for name, (shape, _) in layouts.items()}
        end = 0
        for name in sorted(layouts, key=lambda one: (_ORDER[layouts[one][1]], one)):
            (shape, dtype), self._places[name] = layouts[name], end
            end += bytes_of({name: layouts[name]})
            entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [self._places[name], end]}
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        self._start, self.size = 8 + len(header), 8 + len(header) + end
        self._stream = path.open("xb")
        self._stream.write(len(header).to_bytes(8, "little") + header)

    def put(self, name: str, values: Tensor, at: int = 0) -> None:
        """Write entries of one tensor; each is written once, in any order.

        Args:
            name: of the tensor.
            values: of any shape, in the tensor's dtype, on any device.
            at: how many of the tensor's entries come before the first of them.
        """
        raw = values.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        self._stream.seek(self._start + self._places[name] + at * values.dtype.itemsize)
        self._stream.write(raw.data)
        self._missing[name] -= values.numel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *others: object) -> None:
        try:
            if kind is None:
                lacking = [name for name, entries in self._missing.items() if entries]
                assert not lacking, f"never written, or written twice: {lacking[:3]}"
                self._stream.truncate(self.size)  # tensors without entries may be the last
                self._stream.flush()
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()
