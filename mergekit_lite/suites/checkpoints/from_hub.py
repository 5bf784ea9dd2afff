"""A model's repository of the hub: its weights and what belongs to them, fetched once."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, constants

from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints import choosing
from mergekit_lite.suites.clip import hub, pins
from mergekit_lite.suites.clip.trouble import explained, retried


def fetched_folder(repo: str, revision: str | None, file: str | None) -> tuple[Path, str, str]:
    """Fetch what makes up a model, and return its folder, the file in it to open, and repository@commit.

    Args:
        repo: on the hub.
        revision: commit, tag or branch; by default the commit that is pinned (see `pins`), or else ``main``, which is
            pinned by this.
        file: the one with the weights, if it is not to be chosen.

    Raises:
        KitError: the repository, revision or file does not exist or cannot be fetched, or holds no weights.
    """
    commit = revision or pins.pinned(repo)
    what = f"{repo}{f'@{commit}' if commit else ''}"
    names = names_of(repo, commit, what)
    folder, _, wanted = (file or "").rpartition("/")
    here = [name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder]
    if wanted and wanted not in here:
        raise KitError(f"{what} has no file {file}. It has {', '.join(names[:20])}. Name one of them.")
    name = wanted or choosing.chosen(here, f"{what} on the hub")
    place = f"{folder}/" if folder else ""
    patterns = [f"{place}{one}" for one in (name, *choosing.companions(here))]
    root = _snapshot(repo, commit, what, patterns)
    if name.endswith(choosing.INDEX):
        # The index is fetched first: it says which of the files there are its shards.
        listed = _index_names(root / folder / name)
        root = _snapshot(repo, commit, what, [*patterns, *(f"{place}{one}" for one in listed)])
    taken = root.name
    if revision is None and pins.kept(repo) is None:
        pins.keep(pins.Pin(repo, taken, pins.name_now(repo)))
    return root / folder, name, f"{repo}@{taken}"


def names_of(repo: str, commit: str | None, what: str) -> list[str]:
    """Return the files of a repository: as the hub lists them, or offline those that were fetched."""
    if constants.HF_HUB_OFFLINE:
        states = [one for one in pins.snapshots(repo, "model") if commit in (None, one.name)] or pins.snapshots(
            repo, "model"
        )
        return [path.relative_to(state).as_posix() for state in states for path in state.rglob("*") if path.is_file()]
    try:
        return sorted(retried(lambda: HfApi().list_repo_files(repo, revision=commit)))
    except Exception as error:  # of several libraries
        raise explained(error, what) from error


def _index_names(index: Path) -> list[str]:
    """Return the shards an index names; whether they are all there is seen when it is opened."""
    import json

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
