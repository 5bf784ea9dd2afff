"""The checkpoints that a suite file names: whether they are here, and their hashes, without fetching any of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from huggingface_hub import constants

from mergekit_lite.cache import Written, content_hash, file_digest, written
from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints import choosing
from mergekit_lite.suites.checkpoints.opening import HUB, REPOSITORY, Checkpoint
from mergekit_lite.suites.clip import hub, pins
from mergekit_lite.suites.words import spelt

SHA256 = 64  # digits


def is_here(place: str) -> bool:
    """Return whether a checkpoint is on this machine; nothing is asked of the hub, and no file is read."""
    if not place.startswith(HUB):
        return Path(place).exists()
    repo, revision, file = _parts(place)
    commit = revision or pins.pinned(repo)
    if file:
        return hub.cached(repo, file, commit) is not None
    states = pins.snapshots(repo, "model")
    here = [one for one in states if one.name == commit] or (states if len(states) == 1 or commit is None else [])
    return any(_has_weights([path.name for path in state.iterdir()]) for state in here)


def weights_hash(place: str, checkpoint: Callable[[], Checkpoint]) -> str:
    """Return a hash of the files with the weights of a checkpoint.

    Of one that is on the hub in a single file and not fetched, the hub says it; what is sharded is fetched.

    Args:
        place: where the checkpoint is.
        checkpoint: opens it.

    Raises:
        KitError: it is not there, or the hub cannot be asked.
    """
    if place.startswith(HUB) and not is_here(place) and (said := _announced(place)):
        return content_hash([said])
    if Path(place).is_file() and not place.endswith(choosing.INDEX):  # a pickle would be read whole to be opened
        return content_hash([digest(Path(place))])
    return content_hash([digest(path) for path in checkpoint().files])


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; each state of it is read once per process.

    Raises:
        KitError: it is not there, or cannot be read.
    """
    try:
        return _digest(path, written(path))
    except OSError as error:
        raise KitError(f"{spelt(path)} cannot be read ({error.strerror or error}). Check the path.") from error


@cache
def _digest(path: Path, _: Written) -> str:
    return file_digest(path)


@cache  # a study asks for the same files once per cell
def _announced(place: str) -> str | None:
    """Return the SHA-256 that the hub says of the file with the weights; None if there are several."""
    from mergekit_lite.suites.checkpoints.from_hub import names_of

    if constants.HF_HUB_OFFLINE:
        return None
    repo, revision, file = _parts(place)
    commit = revision or pins.pinned(repo)
    folder = file.rpartition("/")[0] if file else ""
    if not file:
        names = names_of(repo, commit, repo)
        file = choosing.chosen([name for name in names if name.rpartition("/")[0] == folder], repo)
    if file.endswith(choosing.INDEX):
        return None
    said = hub.source(repo, file, commit).sha256
    return said if len(said) == SHA256 else None


def _parts(place: str) -> tuple[str, str | None, str | None]:
    """Return repository, revision and file of hf:ORG/REPO[@REVISION][/FILE]."""
    match = REPOSITORY.fullmatch(place.removeprefix(HUB))
    if match is None:
        raise KitError(f"'{spelt(place)}' names no repository of the hub. Write hf:ORG/REPO.")
    return match["repo"], match["revision"], match["file"]


def _has_weights(names: list[str]) -> bool:
    return any(name.endswith((".safetensors", *choosing.PICKLED)) for name in names)
