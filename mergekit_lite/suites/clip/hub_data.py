"""The real data sets: downloaded, checked, and brought to two columns, `image` and `label`.

The `datasets` library reads id, configuration and split; the files come through huggingface_hub, of the wanted split
alone (the library would download all splits, the corrupted copies too), checked against the hashes the hub announces.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

from mergekit_lite.cache import cache_dir, check_room
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.benchmark import HubTask
from mergekit_lite.suites.clip.hub import bars_in_a_terminal_only, discard, fetched, has_digest, remove
from mergekit_lite.suites.clip.labels import check_labels, label_numbers, two_columns
from mergekit_lite.suites.clip.sources import HubFile, Source, asked, located, quiet, the_library
from mergekit_lite.suites.suite import Which
from mergekit_lite.suites.words import spelt

if TYPE_CHECKING:  # optional, and takes seconds to import
    import datasets


def downloaded(task: HubTask, source: Source) -> list[Path]:
    """Return the split's files on this machine, downloaded if need be; what was begun earlier resumes.

    What is there is compared with the hashes that the hub announced, once per process, and fetched anew if it differs.

    Raises:
        KitError: no room, no connection, or a file that came with another content than the hub announced (it is removed
            then), or has another one while the hub may not be asked.
    """
    missing = sum(file.bytes for file in source.files if not is_downloaded(source, file))
    if missing:
        check_room(Path(constants.HF_HUB_CACHE), missing, f"downloading {task.dataset}, split {source.split}")
        print(f"{task.name}, {source.split}: downloading {missing / 1e9:.2f} GB of {source.dataset}.", flush=True)
    return [_one(task, source, file) for file in source.files]


def _one(task: HubTask, source: Source, file: HubFile) -> Path:
    """Return a file on this machine whose content is what the hub announced when it was asked."""
    what = f"{file.path} of the data set {source.dataset}"
    found = _found(source, file)
    if found is not None and not has_digest(found, file.digest):
        discard(found, what)

    def download() -> str:
        with bars_in_a_terminal_only():
            return hf_hub_download(source.dataset, file.path, repo_type="dataset", revision=source.commit)

    path = asked(what, lambda: fetched(download))
    if not has_digest(path, file.digest):
        remove(path)
        raise KitError(
            f"Task '{task.name}': {spelt(what)} came with another content than the hub announces "
            f"({file.digest[:16]}...). It was removed: run the same again to download it anew."
        )
    return path


def _found(source: Source, file: HubFile) -> Path | None:
    found = try_to_load_from_cache(source.dataset, file.path, revision=source.commit, repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def is_downloaded(source: Source, file: HubFile) -> bool:
    """Return whether a file is there, without asking the hub and without looking into it."""
    return _found(source, file) is not None


def labelled(task: HubTask, which: Which, *, folder: Path | None = None) -> "datasets.Dataset":
    """Return a split with the columns `image` (decoded when looked at) and `label`, checked against the class names.

    Args:
        task: of the benchmark.
        which: "train" or "test".
        folder: where the library may write its own copy of the data, as large as the download; by default in the cache.

    Raises:
        KitError: `datasets` is not installed; the hub cannot be reached; columns, number of classes or the order of
            labels are not what the suite file says.
    """
    library = the_library()
    source = located(task, which)
    paths = downloaded(task, source)
    folder = folder or cache_dir("arrow", "clip")
    check_room(folder, source.bytes, f"reading {task.dataset}, split {source.split}")
    where = f"the data set {source.dataset}, split {source.split}, commit {source.commit[:12]}"
    try:
        with quiet():
            dataset = library.load_dataset(
                source.kind,
                data_files={source.split: [str(path) for path in paths]},
                split=source.split,
                features=_features(source, paths[0]),
                cache_dir=str(folder),
            )
    except (library.exceptions.DatasetsError, ValueError, OSError) as error:  # pyarrow's errors are among these
        raise KitError(
            f"Task '{task.name}': {where} cannot be read: {spelt(error.__cause__ or error)}. {task.remedy}"
        ) from error
    dataset = two_columns(dataset, task, where)
    recognised = check_labels(task, where, dataset.features["label"], label_numbers(dataset, task, where))
    names = getattr(dataset.features["label"], "names", None)
    if names and not recognised and not task.test_images:  # of the benchmark it is known which are called otherwise
        print(
            f"{task.name}: {where} calls its labels otherwise: '{spelt(names[0])}' is taken for "
            f"'{task.classnames[0]}', '{spelt(names[-1])}' for '{task.classnames[-1]}'.",
            flush=True,
        )
    if not isinstance(dataset.features["image"], library.Image):  # bytes and path without the note that says so
        dataset = dataset.cast_column("image", library.Image())
    return dataset


def _features(source: Source, first: Path) -> "datasets.Features | None":
    """Return the column types of the data set's card, unless the card is of another version than the files."""
    from pyarrow.parquet import read_schema

    if source.features is None or (source.kind == "parquet" and set(read_schema(first).names) != set(source.features)):
        return None
    return the_library().Features.from_dict(source.features)
