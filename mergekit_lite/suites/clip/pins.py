"""Which commit of a model's repository is taken: the first answer pins it, as `sources` does for the data sets.

In this order: what an earlier fetch or a lock file noted; what `reference/tasks.json` knows to be right; else whatever
the branch `main` is when it is first fetched.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

from mergekit_lite.cache import cache_dir, intact, locked, sealed
from mergekit_lite.suites.clip.benchmark import revisions
from mergekit_lite.suites.clip.trouble import explained

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Pin:
    """The commit of a repository that is taken, and the name that the hub has for it now if it was moved, else ""."""

    repo: str
    commit: str
    now: str = ""


def pinned(repo: str) -> str | None:
    """Return the commit of the model `repo` that is to be taken; None stands for the present state of `main`."""
    pin = kept(repo)
    return pin.commit if pin else completed(repo, "model")


def kept(repo: str) -> Pin | None:
    """Return what was noted of the model `repo` when it was fetched; None if it was not. Nobody is asked."""
    path = place(repo)
    return Pin(**json.loads(path.read_text(encoding="utf-8"))) if intact(path) else None


def keep(pin: Pin) -> None:
    """Note that from now on this commit of the repository is taken, in every process that shares the cache.

    Raises:
        KitError: the cache cannot be written to.
    """
    if kept(pin.repo) != pin:
        with locked(place(pin.repo)), sealed(place(pin.repo)) as temporary:
            temporary.write_text(json.dumps(asdict(pin), indent=1), encoding="utf-8")


@cache  # one line, and one question, per process
def completed(repo: str, kind: Kind) -> str | None:
    """Return the commit whose first digits `reference/tasks.json` names, all 40 digits; None if it names none.

    The hub takes whole numbers only. They are read from the names of the folders in the hub's cache, or else from the
    list of the repository's commits. A hint must not make the first run fail: where the list lacks the commit or cannot
    be had, that is said, and the answer is None.
    """
    short = revisions().get(repo)
    if short is None:
        return None
    here = [folder.name for folder in snapshots(repo, kind) if folder.name.startswith(short)]
    if len(here) == 1:
        return here[0]
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        listed = [one.commit_id for one in HfApi().list_repo_commits(repo, repo_type=kind)]
        why = "the hub does not list it"
    except Exception as error:
        listed, why = [], str(explained(error, "the list of commits"))
    found = next((commit for commit in listed if commit.startswith(short)), None)
    if found is None:
        print(f"{repo}: commit {short} is not to be had, so the present state is taken ({why}).", flush=True)
    return found


def snapshots(repo: str, kind: Kind) -> list[Path]:
    """Return the folders of the hub's own cache that hold a state of the repository each, named after its commit."""
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type=kind), "snapshots")
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


def name_now(repo: str) -> str:
    """Return the name that the hub has for the model `repo` if it was moved, else ""; if it cannot be asked, ""."""
    try:
        now = HfApi().model_info(repo).id
    except Exception:  # the file came all the same: this is for the records only
        return ""
    return now if now != repo else ""


def place(repo: str) -> Path:
    """Return the file that notes the commit of the model `repo`; without it the commit is chosen anew."""
    return cache_dir("sources", "clip") / f"{repo_folder_name(repo_id=repo, repo_type='model')}.json"
