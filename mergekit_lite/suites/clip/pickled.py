"""Checkpoints of the task-vectors authors: pickles of whole image encoders, read without running what is in them.

They wrote ``torch.save(model)`` of an ``ImageEncoder`` around an open_clip 2.0 CLIP. `safe_pickle` turns such a file
into a tree of records; here the encoder's tensors are looked up in it, compared with what an encoder is made of, and
only then read.
"""

import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from mergekit_lite.cache import file_digest
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.benchmark import ClipModel
from mergekit_lite.suites.clip.encoder_layout import check_encoder
from mergekit_lite.suites.clip.safe_pickle import PARAMETERS, TENSORS, Record, Storage, loaded, storages
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import write
from mergekit_lite.weights import Weights, check_finite, check_floating, first_three, weights_hash

MAGIC = 0x1950A86A20F9469CFC6C  # first number in a file that torch wrote before its version 1.6
NAME_LENGTH = 300  # letters; the longest name in a CLIP has some sixty, one of modules without end has more


def convert(
    path: Path,
    output: Path | None = None,
    *,
    family: str = "OC-8",
    model: ClipModel | None = None,
    task: str | None = None,
    source: str | None = None,
) -> Path:
    """Write the image encoder in the pickled checkpoint `path` as safetensors and return where.

    The tensors have open_clip's names without ``visual.``. The projection ``proj`` is among them: these authors
    fine-tuned it too, unlike those of the experts on the hub, and the checkpoint needs it to reach its accuracy. The
    text encoder's leftovers are dropped; images never reach them. State dicts are read as well, bare or in a dictionary
    or list with other things; it is said then in which entry the encoder was.

    Args:
        path: written by ``torch.save``, of a module or of a state dict.
        output: by default `path` with the suffix ``.safetensors``.
        family: which authors fine-tuned it ("OC-8": the task-vectors authors). It is kept in the file's metadata, since
            a table must never mix families.
        model: which CLIP it must be.
        task: what it was fine-tuned on; kept in the file's metadata.
        source: where `path` comes from, for the metadata; by default its name.

    Raises:
        KitError: there is no such file, it is damaged or of another kind, it refers to anything but tensors, containers
            and known modules (then nothing in it was run), it holds no image encoder or several, or one of another
            model.
    """
    path = Path(path)
    output = Path(output) if output else path.with_suffix(".safetensors")
    try:
        _check_paths(path, output)
        if task is None and output.is_dir():  # in the cache, where experts of tasks go, `write` moves it aside
            raise KitError(f"--output {output} is a folder. Name the file to write in it.")
    except OSError as error:
        raise KitError(f"{spelt(path)} cannot be read ({error.strerror}). Check the path.") from error
    weights = _read_whole(path, _image_encoder, lambda shapes: check_encoder(shapes, model), "is not converted")
    check_floating(weights, name=f"the tensors in {path}")
    check_finite(weights, name=str(path))
    metadata = {
        "family": family,
        "source": source or spelt(path.name),
        "source_sha256": file_digest(path),
        "projection": "proj: fine-tuned with the encoder" if "proj" in weights else "none",
        "weights": weights_hash(weights),
        **({"task": task} if task else {}),
    }
    write(output, weights, metadata)
    return output


def state_dict(path: Path) -> Weights:
    """Return all tensors of a pickled state dict or module, under the names it has for them.

    If the tensors lie in one entry of a dictionary, such as ``state_dict``, the entry's name is taken off.

    Raises:
        KitError: it is damaged or of another kind, holds no tensors, or refers to anything but tensors, containers and
            known modules (then nothing in it was run).
    """
    return _read_whole(path, _all_tensors, lambda shapes: None, "is not read")


Tensors = Callable[[Any], dict[str, Record]]
"""What picks the tensors that are wanted out of a tree of records."""
Check = Callable[[Mapping[str, tuple[int, ...]]], None]
"""What refuses tensors by their names and shapes, before any of them is read."""


def _read_whole(path: Path, pick: Tensors, check: Check, refused: str) -> Weights:
    try:
        with path.open("rb") as stream:
            return _read(stream, pick, check)
    except KitError as error:
        raise KitError(f"{path} {refused}: {error}.") from error
    except PermissionError as error:
        raise KitError(f"{path} cannot be read ({error.strerror}). Ask its owner for the right to.") from error
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RecursionError, MemoryError) as error:
        raise _damaged(path, error) from error
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise _damaged(path, error) from error


def _check_paths(path: Path, output: Path) -> None:
    if path.suffix == ".safetensors":
        raise KitError(f"{path} is called safetensors already. Name a pickled checkpoint, such as finetuned.pt.")
    if path.is_dir():
        inside = first_three(sorted(spelt(one.name) for one in path.glob("*.pt")))
        raise KitError(f"{path} is a folder. Name the checkpoint in it{f': {inside}' if inside else ''}.")
    if not path.exists():
        raise KitError(f"There is no checkpoint {path}. Check the path.")
    if not path.is_file():
        raise KitError(f"{path} is a device or a pipe. Name a checkpoint that is a file.")
    if os.path.realpath(path) == os.path.realpath(output) or (output.exists() and output.samefile(path)):
        raise KitError(f"--output {output} is the checkpoint itself, which stays as it is. Name another file.")


def _damaged(path: Path, error: Exception) -> KitError:
    return KitError(
        f"{path} is not a whole checkpoint of torch.save ({type(error).__name__}: {spelt(error)}). "
        "Delete it and fetch it again; a file of another kind cannot be converted."
    )


def _read(stream: IO[bytes], pick: Tensors, check: Check) -> Weights:
    """Return the tensors of a checkpoint that are wanted."""
    beginning = stream.read(2)
    stream.seek(0)
    if beginning == b"PK":
        with zipfile.ZipFile(stream) as archive:
            return _read_archive(archive, pick, check)
    if beginning[:1] != b"\x80":  # the first byte of every pickle that torch writes
        raise KitError("it is neither an archive nor a pickle of torch.save. Give the file as its authors published it")
    if loaded(stream) != MAGIC:
        raise KitError("it is a pickle, but not one of torch.save. Load it where it was made and save its state dict")
    return _read_old(stream, pick, check)


def _read_archive(archive: zipfile.ZipFile, pick: Tensors, check: Check) -> Weights:
    """Read what torch has written since 1.6: an archive of one pickle and of one file per storage, not compressed."""
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if len(pickles) != 1 or packed or any(name.endswith("constants.pkl") for name in names):
        raise KitError("it is an archive, but not one of torch.save (TorchScript perhaps). Save the model's state dict")
    folder = pickles[0].removesuffix("data.pkl")
    tree = loaded(io.BytesIO(archive.read(pickles[0])))
    return _weights(pick(tree), lambda storage: archive.read(f"{folder}data/{storage.key}"), check)


def _read_old(stream: IO[bytes], pick: Tensors, check: Check) -> Weights:
    """Read what torch wrote before 1.6: pickles one after another, then the numbers of each storage."""
    loaded(stream)  # version of the format
    loaded(stream)  # the machine's byte order and word sizes
    tree = loaded(stream)
    keys = list(loaded(stream))
    places, end = {}, stream.tell()
    sizes = {storage.key: storage.size for storage in storages(tree)}
    for key in keys:
        places[key] = end + 8  # after the number of elements
        end = places[key] + sizes[key]
    if end > os.fstat(stream.fileno()).st_size:
        raise EOFError("the numbers end before they should")

    def read(storage: Storage) -> bytes:
        stream.seek(places[storage.key])
        return stream.read(storage.size)

    return _weights(pick(tree), read, check)


def _image_encoder(tree: Any) -> dict[str, Record]:
    """Return the records of the one image encoder that is somewhere in the tree, by open_clip's names."""
    tensors = dict(_tensors(tree, "", set()))
    ends = [name.removesuffix("class_embedding") for name in tensors if name.endswith("class_embedding")]
    found = [end for end in ends if f"{end}conv1.weight" in tensors and end[-1:] in ("", ".")]
    if len(found) > 1:
        named = " and ".join(f"'{spelt(one)}'" for one in found)
        raise KitError(
            f"it holds {len(found)} image encoders, {named}. Save the one that is wanted in a file of its own"
        )
    if not found:
        there = _content(tree, tensors)
        raise KitError(f"it holds no open_clip image encoder, but {there}. Give the file of an encoder, not of a head")
    (prefix,) = found
    entries = dict(_items(tree))
    if (entry := prefix.partition(".")[0]) in entries:
        others = first_three([f"'{spelt(name)}'" for name in entries if name != entry])
        left = f" What else there is, {others}, is left out." if others else ""
        print(f"The image encoder is in the entry '{spelt(entry)}'.{left}", flush=True)
    return {name.removeprefix(prefix): record for name, record in tensors.items() if name.startswith(prefix)}


def _all_tensors(tree: Any) -> dict[str, Record]:
    """Return the records of all tensors; if they all lie in one entry of a dictionary, by their names in there."""
    tensors = dict(_tensors(tree, "", set()))
    if not tensors:
        raise KitError(f"it holds {_content(tree, tensors)}. Give the file of a model's state dict")
    entries = {name.partition(".")[0] for name in tensors}
    modules = isinstance(tree, Record) and "_modules" in (tree.state or {})
    if len(entries) == 1 and not modules and (entry := entries.pop()) in ("state_dict", "model_state_dict", "model"):
        return {name.removeprefix(f"{entry}."): record for name, record in tensors.items()}
    return tensors


def _content(tree: Any, tensors: Mapping[str, Record]) -> str:
    """Return what there is instead of an encoder: the first tensors, or else the first entries."""
    if tensors:
        return first_three([f"'{spelt(name)}'" for name in tensors])
    entries = first_three([f"'{spelt(name)}'" for name, _ in _items(tree)])
    return f"no tensors at all{f', only the entries {entries}' if entries else ''}"


def _tensors(tree: Any, prefix: str, met: set[int]) -> Iterator[tuple[str, Record]]:
    """Yield name and record of each tensor of a state dict, or of each parameter of a module, and of what is in them.

    Modules that occur twice are gone through once, as torch does it. The tree must stay: `met` holds its parts' ids.
    """
    if id(tree) in met or len(prefix) > NAME_LENGTH:
        return
    met.add(id(tree))
    state = tree.state if isinstance(tree, Record) and isinstance(tree.state, dict) else {}
    for name, part in _items(state.get("_modules")):
        yield from _tensors(part, f"{prefix}{name}.", met)
    for name, value in _items(state.get("_parameters") if "_modules" in state else tree):
        while isinstance(value, Record) and type(value).__name__ in PARAMETERS:
            value = value.arguments[0]
        if isinstance(value, Record) and type(value).__name__ in TENSORS:
            yield f"{prefix}{name}", value
        elif isinstance(value, dict | list | tuple):
            yield from _tensors(value, f"{prefix}{name}.", met)


def _items(record: Any) -> Iterator[tuple[str, Any]]:
    """Yield the named items of a dictionary (an OrderedDict may be a list of pairs), and those of a list by number."""
    if isinstance(record, list | tuple):
        yield from ((str(number), value) for number, value in enumerate(record))
    if isinstance(record, dict):
        yield from ((name, value) for name, value in record.items() if _is_name(name))
    if isinstance(record, Record) and type(record).__name__ == "OrderedDict":
        for pairs in record.arguments[:1]:
            yield from ((name, value) for name, value in pairs if _is_name(name))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= NAME_LENGTH


def _weights(records: Mapping[str, Record], read: Callable[[Storage], bytes], check: Check) -> Weights:
    """Return the tensors that the records stand for, each in memory of its own; each storage is read once."""
    views = {name: _view(record) for name, record in records.items()}
    check({name: shape for name, (_, _, shape, _) in views.items()})
    by_storage: dict[Storage, list[str]] = {}
    for name, (storage, *_) in views.items():
        by_storage.setdefault(storage, []).append(name)
    weights = {}
    for storage, names in by_storage.items():
        if sum(math.prod(views[name][2]) for name in names) > storage.count:
            named = first_three([f"'{name}'" for name in names])
            raise KitError(f"more numbers are wanted than are there: {named} overlap. Save the model's state dict anew")
        content = read(storage)
        if len(content) != storage.size:
            raise EOFError(f"storage {storage.key} has {len(content)} bytes, not {storage.size}")
        numbers = torch.frombuffer(bytearray(content), dtype=storage.dtype)
        for name in names:
            _, offset, shape, stride = views[name]
            weights[name] = numbers.as_strided(shape, stride, offset).clone(memory_format=torch.contiguous_format)
    return {name: weights[name] for name in records}


def _view(record: Record) -> tuple[Storage, int, tuple[int, ...], tuple[int, ...]]:
    """Return storage, offset, shape and stride of a tensor."""
    storage, offset, shape, stride = record.arguments[:4]
    shape, stride = tuple(shape), tuple(stride)
    if not isinstance(storage, Storage) or not all(isinstance(one, int) for one in (offset, *shape, *stride)):
        raise TypeError("a tensor without a storage, or whose shape is not made of numbers")
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or (0 not in shape and last >= storage.count):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    return storage, offset, shape, stride
