"""Lock files: which commits a fetch brought, and the hashes of the files, so that another machine brings the same."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from huggingface_hub.errors import RevisionNotFoundError
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from mergekit_lite.cache import cache_dir, written_whole
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import hub, pins, sources
from mergekit_lite.suites.clip.benchmark import ClipModel, HubTask, base_file, expert_file, hub_tasks
from mergekit_lite.suites.clip.pins import Pin
from mergekit_lite.suites.clip.trouble import chain
from mergekit_lite.suites.words import spelt

Digits = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]


class Locked(BaseModel):
    """One repository of the hub.

    Attributes:
        commit: its state, 40 digits.
        files: those that are used, each with its SHA-256 (64 digits) or, if it is small, git's own name of it (40).
        now: the repository's name on the hub if it was moved, else "".
    """

    model_config = ConfigDict(extra="forbid")
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    files: dict[str, Digits]
    now: str = ""


class Lock(BaseModel):
    """What a fetch brought: the suite's name, the tasks in their order, and the repositories by id."""

    model_config = ConfigDict(extra="forbid")
    suite: str
    tasks: list[Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]]
    models: dict[str, Locked]
    datasets: dict[str, Locked]


def fetched(model: ClipModel, tasks: Sequence[str]) -> Lock:
    """Return the lock of what `model` and `tasks` take on this machine, where all of it was fetched."""
    lock = Lock(suite=model.name, tasks=list(tasks), models={}, datasets={})
    for repo, filename in _weights(model, tasks):
        one = hub.source(repo, filename)
        lock.models[repo] = Locked(commit=one.commit, files={one.filename: one.sha256}, now=one.now)
    for entry in _entries(tasks):
        splits = [one for one in (sources.known_source(entry, which) for which in sources.WHICH) if one]
        lock.datasets[entry.dataset] = Locked(commit=splits[0].commit, files=_digests(splits), now=splits[0].now)
    return lock


def write(lock: Lock) -> Path:
    """Write `lock` into the cache, in the place of the suite's former one, and return where."""
    path = cache_dir("locks") / f"{lock.suite}.lock.json"
    with written_whole(path) as temporary:
        temporary.write_text(lock.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def read(path: Path, suite: str) -> Lock:
    """Return the lock in a file.

    Raises:
        KitError: it cannot be read, is no lock file, or is that of another suite.
    """
    again = "Name a file that `mergekit-lite fetch SUITE` wrote; it prints where."
    try:
        lock = Lock.model_validate_json(path.read_bytes())
    except OSError as error:
        raise KitError(f"The lock file {path} cannot be read ({error.strerror}). {again}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = spelt(".".join(map(str, first["loc"])) or "the whole")
        raise KitError(f"{path} is no lock file: {where}: {spelt(first['msg'])}. {again}") from error
    if lock.suite != suite:
        raise KitError(f"{path} is the lock file of {spelt(lock.suite)}, not of {suite}. {again}")
    return lock


def apply(lock: Lock, path: Path, model: ClipModel, tasks: Sequence[str]) -> None:
    """Pin what `model` and `tasks` need to the commits of `lock`; nothing is pinned unless all of them can be had.

    What is there already at its commit is not asked for. `path` is the lock's file, for messages.

    Raises:
        KitError: the lock lacks a repository; a repository no longer has the commit; a file of it has another hash than
            the lock says. All such are listed.
    """
    weights, entries = _weights(model, tasks), _entries(tasks)
    lacking = [repo for repo, _ in weights if repo not in lock.models]
    lacking += [entry.dataset for entry in entries if entry.dataset not in lock.datasets]
    if lacking:
        raise KitError(
            f"{path} does not name a commit of {', '.join(lacking)}. It is the lock of these tasks: "
            f"{spelt(','.join(lock.tasks))}. Fetch these alone, with --tasks, or the others without --lock."
        )
    found = [(entry, _at(entry, lock.datasets[entry.dataset])) for entry in entries]
    answers = [(repo, _file_at(repo, filename, lock.models[repo])) for repo, filename in weights]
    answers += [(entry.dataset, answer) for entry, answer in found if isinstance(answer, str)]
    problems = [f"  {repo}: {answer}" for repo, answer in answers if answer]
    if problems:
        raise KitError(
            "\n".join([f"Not all that {path} names can be had:", *problems])
            + "\nCopy HF_HOME from a machine where it was fetched, or fetch the present state: leave out --lock."
        )
    for repo, _ in weights:
        pins.keep(Pin(repo, lock.models[repo].commit, lock.models[repo].now))
    for entry, splits in found:
        if isinstance(splits, dict):
            sources.keep(entry, splits)


def _file_at(repo: str, filename: str, wanted: Locked) -> str | None:
    """Return what is wrong with a file of weights at the commit that is wanted; None if nothing is."""
    try:
        source = hub.source(repo, filename, wanted.commit)
    except KitError as error:
        return _gone(error, wanted)
    return _difference({source.filename: source.sha256}, wanted)


def _at(entry: HubTask, wanted: Locked) -> dict[str, sources.Source] | str:
    """Return where the splits of a data set lie at the commit that is wanted, or what is wrong with it."""
    try:
        splits = sources.at(entry, wanted.commit)
    except KitError as error:
        return _gone(error, wanted)
    return _difference(_digests(splits.values()), wanted) or splits


def _gone(error: KitError, wanted: Locked) -> str:
    """Return that the commit is gone, if that is the error; any other one goes on, since it is not about the lock."""
    if not any(isinstance(one, RevisionNotFoundError) for one in chain(error)):
        raise error
    return f"the repository no longer has the commit {wanted.commit}"


def _difference(found: Mapping[str, str], wanted: Locked) -> str | None:
    for name, digest in found.items():
        if wanted.files.get(name) != digest:
            listed = f"{wanted.files[name][:16]}... is locked" if name in wanted.files else "it is not in the lock"
            return f"the hash of {name} at commit {wanted.commit} is {digest[:16]}..., but {listed}"
    return None


def _digests(splits: Iterable[sources.Source]) -> dict[str, str]:
    return {file.path: file.digest for split in splits for file in split.files}


def _weights(model: ClipModel, tasks: Sequence[str]) -> list[tuple[str, str]]:
    return [base_file(model), *(expert_file(model, entry) for entry in _entries(tasks))]


def _entries(tasks: Sequence[str]) -> list[HubTask]:
    return [hub_tasks()[task] for task in tasks]
