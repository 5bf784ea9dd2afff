"""Checkpoints of the task-vectors authors: pickles of whole image encoders, read without running what is in them.

They wrote ``torch.save(model)`` of an ``ImageEncoder`` around an open_clip 2.0 CLIP. Unpickling such a file in the
usual way imports and calls whatever it names. Here every class and function that it may name (a list) is replaced by a
`_Record`, which stores what it is given and does nothing else; any other name is refused. What comes out is a tree of
records, in which the encoder's tensors are looked up.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mergekit_lite.cache import file_digest
from mergekit_lite.errors import KitError
from mergekit_lite.weight_files import write
from mergekit_lite.weights import Weights, check_finite, check_floating, first_three, weights_hash

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
MAGIC = 0x1950A86A20F9469CFC6C  # first number in a file that torch wrote before its version 1.6


class _Record(dict[Any, Any]):
    """Stands in for any class or function of the file: keeps the arguments of a call, the items and the state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "_Record":
        record = super().__new__(cls)
        record.arguments, record.state = arguments, {}
        return record

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(frozen=True)
class _Storage:
    """A stretch of numbers in the file that tensors are views of."""

    kind: str
    key: str
    count: int

    @property
    def dtype(self) -> torch.dtype:
        return STORAGES[self.kind]

    @property
    def size(self) -> int:
        return self.count * self.dtype.itemsize


class _Unpickler(pickle.Unpickler):
    """Builds a tree of records and plain values; nothing that the file names is imported or called."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        module = {"__builtin__": "builtins"}.get(module, module)  # as Python 2 called it, and protocol 2 still does
        if (module, name) not in NAMES and not module.startswith(MODULES):
            raise KitError(
                f"it refers to `{module}.{name}`, which no image encoder needs. Reading it could run what somebody put "
                "there, so nothing was read. Get the file from its authors again, or ask them for safetensors"
            )
        return type(name, (_Record,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        kind, *what = pid
        if kind == "module":  # a class together with its source text, as torch stored it before 1.6
            return what[0]
        storage, key, _, count = what[:4]
        found = _Storage(storage.__name__, str(key), int(count))
        if kind != "storage" or found.kind not in STORAGES or found.count < 0 or any(what[4:]):
            raise KitError(f"it holds numbers of an unknown kind ({found.kind}). Store them as float32")
        return found


def convert(path: Path, output: Path | None = None, *, family: str = "OC-8") -> Path:
    """Write the image encoder in the pickled checkpoint `path` as safetensors and return where.

    The tensors have open_clip's names without ``visual.``. The projection ``proj`` is among them: these authors
    fine-tuned it too, unlike those of the experts on the hub, and the checkpoint needs it to reach its accuracy. The
    text encoder's leftovers are dropped; images never reach them. Plain state dicts are read as well.

    Args:
        path: written by ``torch.save``, of a module or of a state dict.
        output: by default `path` with the suffix ``.safetensors``.
        family: which authors fine-tuned it ("OC-8": the task-vectors authors). It is kept in the file's metadata, since
            a table must never mix families.

    Raises:
        KitError: there is no such file, it is damaged or of another kind, it refers to anything but tensors, containers
            and known modules (then nothing in it was run), or it holds no image encoder.
    """
    path = Path(path)
    output = Path(output) if output else path.with_suffix(".safetensors")
    if path == output or path.suffix == ".safetensors":
        raise KitError(f"{path} is called safetensors already. Name a pickled checkpoint, such as finetuned.pt.")
    try:
        with path.open("rb") as stream:
            weights = _read(stream)
    except FileNotFoundError as error:
        raise KitError(f"There is no checkpoint {path}. Check the path.") from error
    except KitError as error:
        raise KitError(f"{path} is not converted: {error}.") from error
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RecursionError, MemoryError) as error:
        raise _damaged(path, error) from error
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise _damaged(path, error) from error
    check_floating(weights, name=f"the tensors in {path}")
    check_finite(weights, name=str(path))
    metadata = {
        "family": family,
        "source": path.name,
        "source_sha256": file_digest(path),
        "projection": "proj: fine-tuned with the encoder" if "proj" in weights else "none",
        "weights": weights_hash(weights),
    }
    write(output, weights, metadata)
    return output


def _damaged(path: Path, error: Exception) -> KitError:
    return KitError(
        f"{path} is not a whole checkpoint of torch.save ({type(error).__name__}: {error}). "
        "Delete it and fetch it again; a file of another kind cannot be converted."
    )


def _read(stream: IO[bytes]) -> Weights:
    """Return the image encoder's tensors of a checkpoint."""
    beginning = stream.read(2)
    stream.seek(0)
    if beginning == b"PK":
        with zipfile.ZipFile(stream) as archive:
            return _read_archive(archive)
    if beginning[:1] != b"\x80":  # the first byte of every pickle that torch writes
        raise KitError("it is neither an archive nor a pickle of torch.save. Give the file as its authors published it")
    if _Unpickler(stream).load() != MAGIC:
        raise KitError("it is a pickle, but not one of torch.save. Load it where it was made and save its state dict")
    return _read_old(stream)


def _read_archive(archive: zipfile.ZipFile) -> Weights:
    """Read what torch has written since 1.6: an archive of one pickle and of one file per storage, not compressed."""
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if len(pickles) != 1 or packed or any(name.endswith("constants.pkl") for name in names):
        raise KitError("it is an archive, but not one of torch.save (TorchScript perhaps). Save the model's state dict")
    folder = pickles[0].removesuffix("data.pkl")
    tree = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()

    def read(storage: _Storage) -> bytes:
        return archive.read(f"{folder}data/{storage.key}")

    return {name: _tensor(record, read) for name, record in _image_encoder(dict(_tensors(tree))).items()}


def _read_old(stream: IO[bytes]) -> Weights:
    """Read what torch wrote before 1.6: pickles one after another, then the numbers of each storage."""
    _Unpickler(stream).load()  # version of the format
    _Unpickler(stream).load()  # the machine's byte order and word sizes
    tree = _Unpickler(stream).load()
    keys = [str(key) for key in _Unpickler(stream).load()]
    places, end = {}, stream.tell()
    sizes = {storage.key: storage.size for storage in _storages(tree)}
    for key in keys:
        places[key] = end + 8  # after the number of elements
        end = places[key] + sizes[key]

    def read(storage: _Storage) -> bytes:
        stream.seek(places[storage.key])
        return stream.read(storage.size)

    return {name: _tensor(record, read) for name, record in _image_encoder(dict(_tensors(tree))).items()}


def _storages(tree: Any) -> Iterator[_Storage]:
    """Yield each storage that a tree of records refers to, wherever it is."""
    waiting, met = [tree], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Storage):
            yield one
        elif id(one) not in met and isinstance(one, dict | list | tuple):
            met.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one
            if isinstance(one, _Record):
                waiting += [one.arguments, one.state]


def _tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, _Record]]:
    """Yield name and record of each tensor of a state dict, or of each parameter of a module and of its parts."""
    state = tree.state if isinstance(tree, _Record) and isinstance(tree.state, dict) else {}
    for name, part in _items(state.get("_modules")):
        yield from _tensors(part, f"{prefix}{name}.")
    for name, value in _items(state.get("_parameters") if "_modules" in state else tree):
        while isinstance(value, _Record) and type(value).__name__ in PARAMETERS:
            value = value.arguments[0]
        if isinstance(value, _Record) and type(value).__name__ in TENSORS:
            yield f"{prefix}{name}", value


def _items(record: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a dictionary, or of an OrderedDict that was stored as a list of pairs."""
    if isinstance(record, dict):
        yield from record.items()
    if isinstance(record, _Record) and type(record).__name__ == "OrderedDict":
        for pairs in record.arguments[:1]:
            yield from ((name, value) for name, value in pairs)


def _image_encoder(tensors: Mapping[str, _Record]) -> dict[str, _Record]:
    """Return what is below ``visual.``, or everything if it is an image encoder already."""
    below = {name.split("visual.", 1)[1]: record for name, record in tensors.items() if "visual." in name}
    found = below or dict(tensors)
    if "conv1.weight" not in found:
        named = first_three([f"'{name}'" for name in tensors]) or "no tensors at all"
        raise KitError(f"it holds no open_clip image encoder, but {named}. Give the file of an encoder, not of a head")
    return found


def _tensor(record: _Record, read: Callable[[_Storage], bytes]) -> Tensor:
    """Return the tensor that a record stands for, in memory of its own."""
    storage, offset, shape, stride = record.arguments[:4]
    content = read(storage)
    if len(content) != storage.size:
        raise EOFError(f"storage {storage.key} has {len(content)} bytes, not {storage.size}")
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or (0 not in shape and last >= storage.count):
        raise ValueError(f"a tensor of shape {tuple(shape)} reaches beyond its storage")
    numbers = torch.frombuffer(bytearray(content), dtype=storage.dtype) if content else torch.empty(0)
    return numbers.as_strided(tuple(shape), tuple(stride), offset).to(storage.dtype).contiguous()
