"""Where the task vectors of a bank lie: on the device if they fit, else in pinned memory, else in a mapped file.

All three hold them exactly, only time differs. So which one it is may depend on what happens to be free; the trace says
it. bfloat16 takes half the memory of the device and rounds the task vectors. It is never chosen, only asked for, and
then part of a record's key.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.cache import cache_dir, existing
from mergekit_lite.errors import KitError
from mergekit_lite.machine import available_memory, collect
from mergekit_lite.workers import beside

VARIABLE = "MERGEKIT_LITE_BANK"
"""Environment variable with the name of a place; without it, the fastest that holds the task vectors."""

Name = Literal["device", "pinned", "mapped", "bfloat16"]

BESIDES = 8
"""So much room in models there must be for all else where the merge is computed: four for the base, the merged weights
before and after a step, and their gradient; and four for activations, enough for 20 images of ViT-L/14 or B/16 and for
80 of B/32 at a time (computed). The gradient takes as many images at a time as fit."""

SPARE = 2 * 2**30
"""Bytes that must stay free beside the task vectors in pinned memory, which nobody else can use, and on a disk."""

Write = Callable[[int, slice, Tensor], None]
"""Called with row, columns and values (n,), puts them into the table."""


class Table(NamedTuple):
    """A place's room for K task vectors of P entries, filled or to be filled.

    Attributes:
        vectors: (K, P), on any device.
        write: how to write into it.
        place: where it is, in words; empty for the ordinary place.
        finish: called when all is written.
    """

    vectors: Tensor
    write: Write
    place: str = ""
    finish: Callable[[], None] = lambda: None


class Place(NamedTuple):
    """Where a table could be.

    Attributes:
        words: where that is.
        needs: bytes that must be free there.
        free: returns how many are.
        make: makes the table.
    """

    words: str
    needs: int
    free: Callable[[], int]
    make: Callable[[], Table]


class NoRoomError(KitError):
    """There is no room for a bank."""


def filled_table(rows: int, base: Tensor, fill: Callable[[Write], None]) -> Table:
    """Return the task vectors in the first place that holds them, on the device of the base if that is possible.

    What is free is asked before any expert is read. Should the memory run out nevertheless, the next place is tried.

    Args:
        rows: K, how many task vectors there are.
        base: (P,) base weights on the device, and in the dtype, that merges are computed in.
        fill: writes all of them with the function that it is called with; once for each place that is tried.

    Raises:
        KitError: no place holds them, or not the one that is asked for; or what is asked for is no place here.
    """
    tried = []
    for place in _places(rows, base):
        answer = _filled(place, fill)
        if isinstance(answer, Table):
            return answer
        tried.append(f"{place.words} {answer}")
        collect()  # what the failed attempt took
    other = f"unset {VARIABLE}, which allows no other place"
    if asked_for() is None:
        other = f"set {VARIABLE}=bfloat16, which halves what they take of the device's memory and rounds them"
    raise NoRoomError(
        f"The task vectors of {rows} models take {_gib(rows * base.nbytes)}, and nothing here holds them: "
        f"{'; '.join(tried)}. End other programs or free some space, put the cache on a larger disk "
        f"(MERGEKIT_LITE_CACHE), merge fewer models, or {other}."
    )


def asked_for() -> Name | None:
    """Return the place that the environment asks for, None if it asks for none.

    Raises:
        KitError: it asks for something else.
    """
    name = os.environ.get(VARIABLE)
    if name and name not in get_args(Name):
        raise KitError(
            f"{VARIABLE} is '{name}', which is no place for task vectors. Choose among {', '.join(get_args(Name))}, or "
            "unset it: then they lie in the fastest place that holds them."
        )
    return cast(Name, name) if name else None


def _places(rows: int, base: Tensor) -> list[Place]:
    """Return the places to try, in that order."""
    device, dtype, shape, folder = base.device, base.dtype, (rows, base.numel()), cache_dir("bank")
    size, besides = rows * base.nbytes, BESIDES * base.nbytes
    sharing = 1 if base.is_cuda else beside()  # workers that start together must not all count on the same memory

    def room() -> int:
        return available_memory(device) // sharing

    def rounded() -> Table:
        return _in_memory(shape, torch.bfloat16, device, "the device, rounded to bfloat16")

    places: dict[Name, Place] = {
        "device": Place(f"on '{device}'", size + besides, room, lambda: _in_memory(shape, dtype, device)),
        "pinned": Place(
            "in pinned memory",
            size + SPARE,
            lambda: available_memory(torch.device("cpu")),
            lambda: _pinned(shape, dtype, device),
        ),
        "mapped": Place(
            f"in a file in {folder}",
            size + SPARE,
            lambda: _on_disk(folder),
            lambda: _mapped(shape, dtype, folder),
        ),
        "bfloat16": Place(f"on '{device}' in bfloat16", size // 2 + besides, room, rounded),
    }
    name = asked_for()
    if name == "pinned" and not base.is_cuda:
        raise KitError(f"{VARIABLE} is 'pinned', but only a GPU reads from pinned memory. Unset it, or use 'mapped'.")
    if name == "bfloat16" and base.dtype == torch.float64:
        name = "device"  # whoever has a base in float64 wants no rounding
    if name:
        return [places[name]]
    return [places["device"], *([places["pinned"]] if base.is_cuda else []), places["mapped"]]


def _filled(place: Place, fill: Callable[[Write], None]) -> Table | str:
    """Return the table of a place, or in words why it has none; then nothing of it is left."""
    try:
        free = place.free()
        if free < place.needs:
            return f"{_gib(free)} are free of {_gib(place.needs)} that it takes with all else"
        table = place.make()
        fill(table.write)
        table.finish()
    except (torch.OutOfMemoryError, MemoryError):
        return f"the memory ran out, although {_gib(free)} seemed free"
    except NoRoomError as error:
        return str(error)
    return table


def into(vectors: Tensor) -> Write:
    """Return what writes into a table in memory."""

    def write(row: int, columns: slice, values: Tensor) -> None:
        vectors[row, columns] = values

    return write


def _in_memory(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, place: str = "") -> Table:
    try:
        vectors = torch.empty(shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # so says the processor's allocator that there is no memory
        raise MemoryError from error
    return Table(vectors, into(vectors), place)


def _pinned(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Table:
    """Return a table in host memory that a GPU reads by itself, without the processor copying it first.

    torch's own pinned memory comes in powers of two, 32 GiB where 22.6 are asked for, and is not given back when it is
    freed. So ordinary memory is registered with CUDA for as long as its tensor lives.
    """
    table = _in_memory(shape, dtype, torch.device("cpu"), "pinned memory of the host")
    where = table.vectors.data_ptr()
    if code := int(torch.cuda.cudart().cudaHostRegister(where, table.vectors.nbytes, 0)):
        with suppress(RuntimeError):
            torch.zeros(1, device=device)  # CUDA remembers its last error, and whoever comes next is told it
        raise NoRoomError(f"CUDA could not pin it (error {code})")
    weakref.finalize(table.vectors, _unpin, where, device).atexit = False  # the process takes it along when it ends
    return table


def _unpin(where: int, device: torch.device) -> None:
    torch.cuda.synchronize(device)  # copies may be under way
    torch.cuda.cudart().cudaHostUnregister(where)


def _on_disk(folder: Path) -> int:
    with _writing(folder):
        return shutil.disk_usage(existing(folder)).free


def _mapped(shape: tuple[int, int], dtype: torch.dtype, folder: Path) -> Table:
    """Return a table in a file without a name, which the system removes with its last user, however that ends.

    It is read through a map and written as a file: a disk that is full is an error then, and no end of the process.
    """
    _, width = shape
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it stays open as long as the table)
        file.truncate(prod(shape) * dtype.itemsize)
    vectors = torch.from_numpy(np.memmap(file, torch.empty(0, dtype=dtype).numpy().dtype, mode="r+", shape=shape))

    def write(row: int, columns: slice, values: Tensor) -> None:
        with _writing(folder):
            file.seek((row * width + columns.start) * dtype.itemsize)
            file.write(values.cpu().contiguous().numpy().data)
            file.flush()

    def finish() -> None:
        with _writing(folder):
            os.fsync(file.fileno())  # the disk of another machine says only now that it is full

    return Table(vectors, write, "a file that is mapped into memory", finish)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoRoomError(f"the task vectors cannot be written to {folder} ({error.strerror or error})") from error


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
