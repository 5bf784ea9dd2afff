"""The checkpoints that a suite file names: whether they are here, and their hashes, without fetching any of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from huggingface_hub import constants

from mergekit_lite.cache import Written, content_hash, file_digest, written
from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints import choosing, from_hub
from mergekit_lite.suites.checkpoints.opening import HUB, REPOSITORY, Checkpoint
from mergekit_lite.suites.clip import hub, pins
from mergekit_lite.suites.words import spelt

SHA256 = 64  # digits


def is_here(place: str) -> bool:
    """Return whether a checkpoint is on this machine; nothing is asked of the hub, and no weight is read."""
    return from_hub.is_fetched(*_parts(place)) if place.startswith(HUB) else Path(place).exists()


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
    if constants.HF_HUB_OFFLINE:
        return None
    repo, revision, file = _parts(place)
    commit = revision or pins.pinned(repo)
    if not file:
        file = choosing.chosen([name for name in from_hub.names_of(repo, commit, repo) if "/" not in name], repo)
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
