"""Where the real data sets lie on the hub: asked once, then kept, so that the data stay what they are."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

from mergekit_lite.cache import VARIABLE, cache_dir, content_hash, ensure, intact, locked, sealed
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import pins
from mergekit_lite.suites.clip.benchmark import HubTask
from mergekit_lite.suites.clip.looking import user_is_offline
from mergekit_lite.suites.clip.trouble import explained, retried
from mergekit_lite.suites.suite import Which
from mergekit_lite.suites.words import spelt

WHICH: tuple[Which, ...] = ("train", "test")
Result = TypeVar("Result")


@dataclass(frozen=True)
class HubFile:
    """A file of a data set; `digest` is a SHA-256 (64 digits) if the hub keeps it apart, else git's name of it (40)."""

    path: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Source:
    """Where one split lies on the hub.

    Attributes:
        commit: of the repository. Once found it is kept, so that the data stay the same when the hub moves on.
        kind: of the files, as the `datasets` library calls it: "parquet" or "webdataset".
        features: column types as the data set's card has them, if it has them.
        rows: number of images, if the card says so.
        now: the repository's name on the hub if it was moved, else "".
    """

    dataset: str
    split: str
    commit: str
    kind: str
    files: tuple[HubFile, ...]
    features: dict[str, Any] | None
    rows: int | None
    now: str = ""

    @property
    def bytes(self) -> int:
        """Size of the download."""
        return sum(file.bytes for file in self.files)


def split_name(task: HubTask, which: Which) -> str:
    """Return the data set's own name of a split."""
    return task.train_split if which == "train" else task.test_split


def located(task: HubTask, which: Which) -> Source:
    """Return where a split lies. The hub is asked once; its answer is kept and pins the commit from then on.

    Raises:
        KitError: the hub cannot be reached, or has no such data set, configuration or split.
    """

    def ask() -> None:
        # Both splits are asked for, so that they are of one commit whenever each of them is wanted. If one of them is
        # known, the other one is looked up in the same commit.
        commits = [one.commit for one in (known_source(task, each) for each in WHICH) if one]
        _write(task, _ask(task, which, commits[0] if commits else None))

    path = place(task, split_name(task, which))
    ensure(ask, path)
    return _read(path)


def at(task: HubTask, commit: str) -> dict[str, Source]:
    """Return where both splits lie at `commit`, by the splits' own names. The hub is asked unless that is known.

    Raises:
        KitError: the hub cannot be reached, or does not have them at that commit.
    """
    found = [known_source(task, which) for which in WHICH]
    if all(one and one.commit == commit for one in found):
        return {one.split: one for one in found if one}
    return _ask(task, "test", commit)


def keep(task: HubTask, splits: Mapping[str, Source]) -> None:
    """Note where the splits of a data set lie, which pins their commit from then on.

    Raises:
        KitError: the cache cannot be written to.
    """
    with locked(*(place(task, split) for split in splits)):
        _write(task, splits)


def _write(task: HubTask, splits: Mapping[str, Source]) -> None:
    for split, source in splits.items():
        with sealed(place(task, split)) as temporary:
            temporary.write_text(json.dumps(asdict(source), indent=1), encoding="utf-8")


def known_source(task: HubTask, which: Which) -> Source | None:
    """Return what `located` found earlier, or None if there is nothing whole; nothing is asked of the hub."""
    path = place(task, split_name(task, which))
    return _read(path) if intact(path) else None


def _read(path: Path) -> Source:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Source(**{**stored, "files": tuple(HubFile(**file) for file in stored["files"])})


def place(task: HubTask, split: str) -> Path:
    """Return the file that says where a split lies; without it the hub is asked."""
    key = content_hash([task.dataset, task.config, split, *([task.revision] if task.revision else [])])
    return cache_dir("sources", "clip") / f"{task.name}-{split}-{key}.json"


def _ask(task: HubTask, which: Which, commit: str | None) -> dict[str, Source]:
    """Return where the two splits lie at a commit; None is that of `reference/tasks.json`, or else the present one."""
    what = f"the data set {task.dataset}"
    if constants.HF_HUB_OFFLINE:
        why = ", and HF_HUB_OFFLINE forbids to ask for it" if user_is_offline() else ""
        raise KitError(
            f"Task '{task.name}': {what} was not fetched{why}. "
            f"Run `mergekit-lite fetch SUITE --tasks {task.name}` where there is a network, with the same {VARIABLE}."
        )
    api = HfApi()
    # The commit first: given `main`, the library would also ask another server for facts that it does not need.
    commit = commit or task.revision or pins.completed(task.dataset, "dataset")
    facts = asked(what, lambda: api.dataset_info(task.dataset, revision=commit))
    # What a suite file names may be a branch or a tag: they move, and the commit that they are now does not.
    commit = facts.sha or commit or ""
    wanted = [split_name(task, one) for one in WHICH]
    builder = _builder(task, commit, what, None)
    if _kind(builder) == "text":
        # WebDataset folders hold a text file beside the archives. With one archive each there are as many of either,
        # and the library takes the texts for the data.
        builder = _builder(task, commit, what, {split: f"{split}/*.tar" for split in wanted})
    paths = {
        str(split): [str(url).partition(f"@{commit}/")[2] for url in urls]
        for split, urls in builder.config.data_files.items()
    }
    if split_name(task, which) not in paths:
        raise KitError(
            f"Task '{task.name}': the data set {task.dataset} at commit {commit[:12]} has no split "
            f"'{split_name(task, which)}', but {spelt(', '.join(paths))}. {task.remedy}"
        )
    splits = [split for split in wanted if split in paths]
    listed = [path for split in splits for path in paths[split]]
    infos = asked(what, lambda: api.get_paths_info(task.dataset, listed, revision=commit, repo_type="dataset"))
    files = {
        info.path: HubFile(info.path, info.size, info.lfs.sha256 if info.lfs else info.blob_id)
        for info in infos
        if isinstance(info, RepoFile)
    }
    rows = builder.info.splits or {}
    return {
        split: Source(
            dataset=task.dataset,
            split=split,
            commit=commit,
            kind=_kind(builder),
            files=tuple(files[path] for path in paths[split]),
            features=builder.info.features.to_dict() if builder.info.features else None,
            rows=rows[split].num_examples if split in rows else None,
            now=facts.id if facts.id != task.dataset else "",
        )
        for split in splits
    }


def _builder(task: HubTask, commit: str, what: str, files: dict[str, str] | None) -> Any:
    library = the_library()
    arrow = cache_dir("arrow", "clip")
    arrow.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arrow) as folder, quiet():

        def load(config: str | None) -> Any:
            return library.load_dataset_builder(
                task.dataset, config, data_files=files, revision=commit, cache_dir=folder
            )

        def find() -> Any:
            try:
                return load(task.config)
            except ValueError:  # no such configuration
                with suppress(ValueError):
                    if task.config and (only := load(None)).config.name == "default":  # there are none to choose from
                        print(f"{task.dataset} has no configuration '{task.config}', but one only: it is taken.")
                        return only
                raise

        return asked(what, find)


def _kind(builder: Any) -> str:
    return type(builder).__module__.rpartition(".")[2]


def asked(what: str, call: Callable[[], Result]) -> Result:
    """Return what `call` gets from the hub; in trouble it is repeated, and then explained as about `what`.

    Raises:
        KitError: the call failed.
    """
    try:
        return retried(call)
    except Exception as error:  # of three libraries, each with its own kinds
        raise explained(error, what) from error


def the_library() -> Any:
    """Return the `datasets` library, which is optional and takes seconds to import.

    Raises:
        KitError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise KitError(
            "The real data sets need the `datasets` library. Install it: `pip install 'mergekit-lite[real]'`."
        ) from error
    return datasets


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the library's progress bars, of which there would be several per split."""
    library = the_library()
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bars()
