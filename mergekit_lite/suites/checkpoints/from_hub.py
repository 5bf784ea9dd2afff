"""A model's repository of the hub: its weights and what belongs to them, fetched once."""

import json
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled

from mergekit_lite.cache import cache_dir, content_hash, intact, sealed
from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints import choosing
from mergekit_lite.suites.clip import hub, pins
from mergekit_lite.suites.clip.trouble import explained, retried


def fetched_folder(repo: str, revision: str | None, file: str | None) -> tuple[Path, str, str]:
    """Fetch what makes up a model, and return its folder, the file in it to open, and repository@commit.

    What was fetched is taken without asking the hub again, so that it stays what it is and no network is needed.

    Args:
        repo: on the hub.
        revision: commit, tag or branch; by default the commit that is pinned (see `pins`), or else ``main``, which is
            pinned by this.
        file: the one with the weights, if it is not to be chosen.

    Raises:
        KitError: the repository, revision or file does not exist or cannot be fetched, or holds no weights.
    """
    commit = revision or pins.pinned(repo)
    noted = _noted(repo, revision, file)
    if noted and (revision or noted.commit == commit):
        return noted.root / noted.folder, noted.name, f"{repo}@{noted.commit}"
    what = f"{repo}{f'@{commit}' if commit else ''}"
    names = names_of(repo, commit, what)
    folder, _, wanted = (file or "").rpartition("/")
    here = [name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder]
    if wanted and wanted not in here:
        raise KitError(f"{what} has no file {file}. It has {', '.join(names[:20])}. Name one of them.")
    name = wanted or choosing.chosen(here, f"{what} on the hub")
    place = f"{folder}/" if folder else ""
    wanted_files = [f"{place}{one}" for one in (name, *choosing.companions(here))]
    root = _snapshot(repo, commit, what, wanted_files)
    if name.endswith(choosing.INDEX):
        # The index is fetched first: it says which of the files there are its shards.
        listed = _index_names(root / folder / name)
        wanted_files += [f"{place}{one}" for one in listed]
        root = _snapshot(repo, commit, what, wanted_files)
    taken = root.name
    if revision is None and pins.kept(repo) is None:
        pins.keep(pins.Pin(repo, taken, pins.name_now(repo)))
    with sealed(_note_path(repo, revision, file)) as temporary:
        note = {"commit": taken, "folder": folder, "name": name, "files": wanted_files}
        temporary.write_text(json.dumps(note, indent=1), encoding="utf-8")
    return root / folder, name, f"{repo}@{taken}"


class _Note(NamedTuple):
    """What was fetched of a repository: into which folder, of which commit, and which file is to be opened."""

    root: Path
    folder: str
    name: str
    commit: str


def _note_path(repo: str, revision: str | None, file: str | None) -> Path:
    return cache_dir("sources", "models") / f"{repo.replace('/', '--')}-{content_hash([repo, revision, file])}.json"


def _noted(repo: str, revision: str | None, file: str | None) -> _Note | None:
    """Return what was fetched earlier, if all of it is still there."""
    path = _note_path(repo, revision, file)
    if not intact(path):
        return None
    note = json.loads(path.read_text(encoding="utf-8"))
    root = next((one for one in pins.snapshots(repo, "model") if one.name == note["commit"]), None)
    if root is None or not all((root / one).is_file() for one in note["files"]):
        return None
    return _Note(root, note["folder"], note["name"], note["commit"])


def is_fetched(repo: str, revision: str | None, file: str | None) -> bool:
    """Return whether all that makes up a model was fetched; nothing is asked of the hub."""
    noted = _noted(repo, revision, file)
    return noted is not None and (revision is not None or noted.commit == pins.pinned(repo))


def names_of(repo: str, commit: str | None, what: str) -> list[str]:
    """Return the files of a repository: as the hub lists them, or offline those that were fetched."""
    if constants.HF_HUB_OFFLINE:
        states = [one for one in pins.snapshots(repo, "model") if commit in (None, one.name)] or pins.snapshots(
            repo, "model"
        )
        if not states:
            raise explained(OfflineModeIsEnabled(), what)
        return [path.relative_to(state).as_posix() for state in states for path in state.rglob("*") if path.is_file()]
    try:
        return sorted(retried(lambda: HfApi().list_repo_files(repo, revision=commit)))
    except Exception as error:  # of several libraries
        raise explained(error, what) from error


def _index_names(index: Path) -> list[str]:
    """Return the shards an index names; whether they are all there is seen when it is opened."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(one) for one in listed if "/" not in str(one)})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _snapshot(repo: str, commit: str | None, what: str, patterns: list[str]) -> Path:
    def fetch() -> str:
        return huggingface_hub.snapshot_download(repo, revision=commit, allow_patterns=patterns)

    try:
        with hub.bars_in_a_terminal_only():
            return Path(retried(fetch))
    except Exception as error:
        raise explained(error, what) from error
