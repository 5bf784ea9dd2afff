"""A checkpoint, whatever it lies in: one file, a folder, several files with an index, or a repository of the hub."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_lite.cache import file_digest
from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints import choosing
from mergekit_lite.suites.clip.pickled import state_dict
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import first_three

Format = Literal["safetensors", "sharded", "pickle"]

HUB = "hf:"
"""Before the name of a repository: ``hf:ORG/REPO``, and behind it ``@REVISION`` and ``/FILE`` if wanted."""

REPOSITORY = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>refs/(pr|heads|tags|convert)/[\w.-]+|[\w.-]+))?"
    r"(/(?P<file>[\w./ -]+))?",
    flags=re.ASCII,
)

FLOAT8 = {
    kind
    for kind in vars(torch).values()
    if isinstance(kind, torch.dtype) and kind.is_floating_point and kind.itemsize < 2
}
"""Floating-point types of one byte or less: no sum can be rounded to them without their scales."""


class Checkpoint(LazyWeights):
    """The tensors of a checkpoint under the names they are stored by, each read when it is asked for.

    Pickles are the exception: they are read whole.

    Attributes:
        place: as it was named.
        files: those with the weights.
        beside: files that belong to them: configuration, tokenizer, preprocessing.
        format: how the weights are stored.
        shards: name of a tensor -> name of its file; empty unless there are several files.
        source: where it comes from: repository@commit, or the path as it was named.
    """

    def __init__(
        self,
        place: str,
        files: Sequence[Path],
        *,
        beside: Sequence[Path] = (),
        shards: Mapping[str, str] | None = None,
        source: str = "",
        device: str | torch.device = "cpu",
    ) -> None:
        """Open `files` (their headers only); see `opened`, which finds them."""
        self.place, self.files, self.beside, self.device = place, tuple(files), tuple(beside), device
        self.path, self.shards, self.source = self.files[0], dict(shards or {}), source or place
        self.metadata: dict[str, str] = {}
        self._held: dict[str, Tensor] = {}
        self._open: dict[str, LazyWeights] = {}
        pickled = self.path.suffix != ".safetensors"
        self.format: Format = "pickle" if pickled else "sharded" if self.shards else "safetensors"
        if pickled:
            self._held = {name: tensor.to(device) for name, tensor in state_dict(self.path).items()}
            self._names = tuple(self._held)
        elif self.shards:
            self._open = {file.name: LazyWeights(file, device) for file in self.files}
            self._names = tuple(self.shards)
            self._check_index()
        else:
            self._open = {self.path.name: LazyWeights(self.path, device)}
            self._names = tuple(self._open[self.path.name])
            self.metadata = self._open[self.path.name].metadata
        if not self._names:
            raise KitError(f"{place} holds no tensors. {_AGAIN}")

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name] if self._held else self._of(name)[name]

    def __reduce__(self) -> Any:
        """Let another process open the files anew."""
        return _anew, (self.place, self.files, self.beside, self.shards, self.source, self.device)

    def layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of one tensor without reading it."""
        if self._held:
            return tuple(self._held[name].shape), self._held[name].dtype
        return self._of(name).layout(name)

    def digest(self) -> str:
        """Return a SHA-256 (64 hexadecimal digits) of the files with the weights: of the file itself if it is one."""
        digests = [file_digest(file) for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _check_index(self) -> None:
        lost = [f"'{spelt(name)}' in {file}" for name, file in self.shards.items() if name not in self._open[file]]
        if lost:
            raise KitError(f"{self.place}: the index names tensors that its files lack: {first_three(lost)}. {_AGAIN}")
        more = [
            f"'{spelt(name)}' in {file}"
            for file, weights in self._open.items()
            for name in weights
            if self.shards.get(name) != file
        ]
        if more:
            raise KitError(
                f"{self.place}: its files hold tensors that the index does not name, or names in another file: "
                f"{first_three(more)}. Which of them count cannot be told: save the model again with its own library."
            )

    def _of(self, name: str) -> LazyWeights:
        if name not in self:
            raise KeyError(name)
        return self._open[self.shards.get(name, self.path.name)]


_AGAIN = "Fetch or save the model again."


def _anew(
    place: str, files: Sequence[Path], beside: Sequence[Path], shards: Mapping[str, str], source: str, device: Any
) -> Checkpoint:
    return Checkpoint(place, files, beside=beside, shards=shards, source=source, device=device)


def opened(place: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Return the checkpoint at `place`; of safetensors the headers are read, nothing else.

    Args:
        place: a file (safetensors; or a pickle of torch, which is read without running what is in it), a folder with
            weights as transformers, timm or open_clip write them, or a repository of the hub, which is fetched:
            ``hf:ORG/REPO``, ``hf:ORG/REPO@REVISION``, ``hf:ORG/REPO/FILE``. A plain ``ORG/REPO`` is the hub's if there
            is no such path.
        device: for the tensors.

    Raises:
        KitError: there is no such thing, no weights are in it or several, or they are damaged.
    """
    named = str(place)
    path = Path(named).expanduser()
    wanted = named.removeprefix(HUB)
    a_file = named.endswith((".safetensors", choosing.INDEX, *choosing.PICKLED))  # mistyped: the hub need not be asked
    like_a_repository = REPOSITORY.fullmatch(named) and named.count("/") == 1 and not a_file
    if named.startswith(HUB) or (like_a_repository and not path.exists()):
        match = REPOSITORY.fullmatch(wanted)
        if match is None or ".." in wanted:
            raise KitError(
                f"'{spelt(named)}' names no repository of the hub. Write hf:ORG/REPO, behind it @REVISION or /FILE "
                "if you want to."
            )
        try:
            return _checked(_from_hub(named, match, device))
        except KitError as error:
            if named.startswith(HUB):
                raise
            raise KitError(f"There is no path {spelt(named)} here, so it was looked for on the hub: {error}") from error
    if path.is_dir():
        return _checked(_from_folder(named, path, device))
    if not path.is_file():
        raise KitError(
            f"There is no checkpoint {spelt(named)}. Check the path; a model of the hub is named hf:ORG/REPO."
        )
    if path.name.endswith(choosing.INDEX):
        return _checked(_from_folder(named, path.parent, device, path.name))
    return _checked(Checkpoint(named, [path], beside=_companions(path.parent, path), device=device))


def _from_folder(
    place: str, folder: Path, device: str | torch.device, name: str | None = None, source: str = ""
) -> Checkpoint:
    try:
        names = sorted(one.name for one in folder.iterdir() if one.is_file() and not one.name.startswith("."))
    except OSError as error:
        raise KitError(f"{spelt(place)} cannot be read ({error.strerror}). Ask its owner for the right to.") from error
    name = name or choosing.chosen(names, spelt(place))
    beside = [folder / one for one in choosing.companions(names)]
    if not name.endswith(choosing.INDEX):
        return Checkpoint(place, [folder / name], beside=beside, source=source, device=device)
    shards = choosing.shards(folder / name)
    files = [folder / one for one in dict.fromkeys(shards.values())]
    return Checkpoint(place, files, beside=beside, shards=shards, source=source, device=device)


def _companions(folder: Path, file: Path) -> list[Path]:
    """Return what belongs to a file that was named by itself: what lies beside it if it has a name libraries give."""
    if file.name not in (*choosing.FIRST, *choosing.PICKLES):
        return []
    return [folder / one for one in choosing.companions([one.name for one in folder.iterdir() if one.is_file()])]


def _from_hub(place: str, match: re.Match[str], device: str | torch.device) -> Checkpoint:
    from mergekit_lite.suites.checkpoints.from_hub import fetched_folder  # the hub's library takes half a second

    folder, name, source = fetched_folder(match["repo"], match["revision"], match["file"])
    return _from_folder(place, folder, device, name, source)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Refuse tensors that cannot be summed."""
    small = [
        f"'{spelt(name)}' is {kind}" for name in checkpoint for kind in [checkpoint.layout(name)[1]] if kind in FLOAT8
    ]
    if small:
        raise KitError(
            f"{checkpoint.place} holds numbers of one byte: {first_three(small)}. A merge would have to undo their "
            "scaling first: save the model in bfloat16 or float32 with its own library."
        )
    return checkpoint
