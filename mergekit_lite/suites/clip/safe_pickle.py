"""Pickles of torch, read without running what is in them.

Unpickling in the usual way imports and calls whatever a file names. Here every class and function that it may name (a
list) is replaced by a `Record`, which stores what it is given and does nothing else; any other name is refused. What
comes out is a tree of records and plain values.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import torch

from mergekit_lite.errors import KitError
from mergekit_lite.suites.words import spelt

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2")
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
NAMES = {
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("torch", "device"),
    ("torch", "Size"),
    ("src.modeling", "ImageEncoder"),  # the task-vectors authors' class
    ("src.models.modeling", "ImageEncoder"),  # and that of the TALL-masks authors
    *(("torch", name) for name in STORAGES),
    *(("torch._utils", name) for name in (*TENSORS, *PARAMETERS)),
}
"""Module and name of all that a file may refer to, besides the classes and functions of `MODULES`."""
MODULES = ("torch.nn.modules.", "torchvision.transforms.", "open_clip.")
TUPLE_SIZE = 10_000
"""Values in a tuple and in the tuples in it: Python hashes all of them, and on a million levels its stack ends."""
TUPLES = {code[0] for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)}
REFUSED = {code[0] for code in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4)}
"""What torch never writes, and Python reads by believing a length or through a table that all of a process share."""


class Record(dict[Any, Any]):
    """Stands in for any class or function of the file: keeps the arguments of a call, the items and the state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "Record":
        """Keep the arguments."""
        record = super().__new__(cls)
        record.arguments, record.state = arguments, {}
        return record

    def __init__(self, *arguments: Any) -> None:
        """Do nothing with the arguments."""
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


@dataclass(frozen=True)
class Storage:
    """A stretch of numbers in the file that tensors are views of."""

    kind: str
    key: str
    count: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers."""
        return STORAGES[self.kind]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize


def loaded(stream: IO[bytes]) -> Any:
    """Return the next pickle of `stream` as a tree of records, storages and plain values.

    Raises:
        KitError: it refers to anything that no image encoder needs; nothing was imported or called.
    """
    return _Unpickler(stream).load()


def _measuring(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a tuple with `load`, and measure it."""

    def measured(unpickler: "_Unpickler") -> None:
        load(unpickler)
        unpickler.measure(unpickler.stack[-1])

    return measured


class _Unpickler(pickle._Unpickler):
    """The one that is written in Python: the other one ends the interpreter on some files, where this one raises."""

    dispatch: ClassVar[Any] = {
        code: _measuring(load) if code in TUPLES else load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in REFUSED
    }
    stack: list[Any]

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        module = {"__builtin__": "builtins"}.get(module, module)  # as Python 2 called it, and protocol 2 still does
        if (module, name) not in NAMES and not module.startswith(MODULES):
            raise KitError(
                f"it refers to `{spelt(f'{module}.{name}')}`, which no image encoder needs. Reading it could run what "
                "somebody put there, so nothing was read. Get the file from its authors again, or ask them for "
                "safetensors"
            )
        return type(name, (Record,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        kind, *what = pid
        if kind == "module":  # a class together with its source text, as torch stored it before 1.6
            return what[0]
        storage, key, _, count = what[:4]
        name = storage.__name__
        known = kind == "storage" and name in STORAGES and isinstance(key, str | int) and isinstance(count, int)
        if not known or count < 0 or any(what[4:]):
            raise KitError(f"it holds numbers of an unknown kind ({spelt(name)}). Store them as float32")
        return Storage(name, str(key), count)

    def measure(self, made: tuple[Any, ...]) -> None:
        """Refuse a tuple that is made of too many."""
        self._sizes[id(made)] = size = 1 + sum(self._sizes.get(id(part), 1) for part in made)
        if size > TUPLE_SIZE:
            raise KitError("it nests tuples as no model does. Get the file from its authors again")


def storages(tree: Any) -> Iterator[Storage]:
    """Yield each storage that a tree of records refers to, wherever it is."""
    waiting, met = [tree], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Storage):
            yield one
        elif id(one) not in met and isinstance(one, dict | list | tuple):
            met.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one
            if isinstance(one, Record):
                waiting += [one.arguments, one.state]
