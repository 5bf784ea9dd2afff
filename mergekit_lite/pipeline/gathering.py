"""Brings together records that were computed in several places: what contradicts another or is damaged stays out."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.cache import check_writable, written_whole
from mergekit_lite.errors import KitError, shown
from mergekit_lite.pipeline.promotion import OF_ONE_RUN

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record

NAME = re.compile(r"[0-9a-f]{16}\.json")
SUITE = re.compile(r"\w[\w.@-]*")  # no path that climbs out of its folder
OF_ONE_MACHINE = OF_ONE_RUN | {"bank", "sources"}  # where task vectors found room, and which mirror weights came from


@dataclass
class Gathered:
    """How many cells' records were new, or the same as those there, and how many were left out."""

    new: int = 0
    same: int = 0
    refused: int = 0
    damaged: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return not (self.refused or self.damaged)

    def __str__(self) -> str:
        """Return the numbers in a line."""
        return f"{self.new} new, {self.same} the same, {self.refused} refused, {self.damaged} damaged"


def gather(folders: Sequence[Path], target: Path) -> Gathered:
    """Bring the records of `folders` into ``target/suite/key.json``, each whole or not at all; print what stays out.

    Of records that say the same, but for time, memory and machine, the one that was computed first is kept, so that
    the outcome does not depend on the order of the folders. Where one says something else than another, neither is
    brought, and what `target` holds stays.

    Args:
        folders: each a cache, its `records`, or the folder of one suite in it.
        target: as the cache's `records`.

    Raises:
        KitError: a folder is missing or holds no records (nothing was brought), or `target` cannot be written to.
    """
    from mergekit_lite.study.records import read_record  # brings torch

    files = [path for folder in dict.fromkeys(one.absolute() for one in folders) for path in _files(folder)]
    gathered = Gathered()
    found: dict[tuple[str, str], list[tuple[Path, Record]]] = {}
    for path in files:
        record = read_record(path, path.stem)
        if record is None:  # it was there a moment ago
            continue
        if isinstance(record, str) or not SUITE.fullmatch(record.suite):
            words = record if isinstance(record, str) else f"{shown(record.suite)} names no suite"
            gathered.damaged += 1
            print(f"{path} is damaged and left out ({words}).", flush=True)
        else:
            found.setdefault((record.suite, record.key), []).append((path, record))
    if found:
        check_writable(target)
    for (suite, key), there in sorted(found.items()):
        _bring(there, target.absolute() / suite / f"{key}.json", gathered)
    return gathered


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of records in a cache, in its `records`, or in the folder of one suite."""
    if not folder.is_dir():
        raise KitError(f"{folder} is no folder. Name the cache of another machine, or the folder `records` in it.")
    inside = folder / "records" if (folder / "records").is_dir() else folder
    files = [path for path in (*inside.glob("*.json"), *inside.glob("*/*.json")) if NAME.fullmatch(path.name)]
    if not files:
        raise KitError(
            f"{folder} holds no records. They lie in SUITE/KEY.json below the folder `records` of a cache: name that."
        )
    yield from sorted(files)


def _bring(found: "list[tuple[Path, Record]]", place: Path, gathered: Gathered) -> None:
    """Put the record that was computed first in its place, unless two contradict each other."""
    from mergekit_lite.study.records import Record, read_record

    here = read_record(place, place.stem)
    every = [(place, here), *found] if isinstance(here, Record) else found
    for path, record in every[1:]:
        differs = _difference(every[0][1], record)
        if differs:
            gathered.refused += 1
            print(
                f"Two records of one cell contradict each other: {differs}\n  {every[0][0]}\n  {path}\n"
                "  Neither was brought. Find out which one is right, delete the other, and merge again.",
                flush=True,
            )
            return
    first = min(every, key=lambda one: (one[1].provenance.started, one[1].model_dump_json()))[0]
    if first != place:  # no lock: a run that has this cell under way writes the same over it
        with written_whole(place) as temporary:
            shutil.copyfile(first, temporary)
    if isinstance(here, str):
        print(f"{place} was damaged ({here}) and is replaced.", flush=True)
    gathered.same += isinstance(here, Record)
    gathered.new += not isinstance(here, Record)


def _difference(one: "Record", other: "Record") -> str:
    """Return what two records say that cannot both be true, in words; nothing if they say the same."""
    first, second = _said(one), _said(other)
    names = [name for name in first if first[name] != second[name]]
    if not names:
        return ""
    tasks = [task for task in one.accuracy if one.accuracy[task] != other.accuracy.get(task)]
    words = f"{', '.join(names)} differ"
    if tasks and tasks[0] in other.accuracy:
        words += f" (on {tasks[0]} {one.accuracy[tasks[0]]:.4g} and {other.accuracy[tasks[0]]:.4g} percent)"
    machines = [record.provenance.device for record in (one, other)]
    return f"{words}; computed on {' and '.join(machines)}." if len(set(machines)) > 1 else f"{words}."


def _said(record: "Record") -> dict[str, str]:
    """Return the entries of a record as text, in which NaN equals NaN, without what belongs to one run or machine."""

    def kept(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: one for name, one in entries.items() if name not in OF_ONE_MACHINE}

    content = json.loads(record.model_dump_json(), object_hook=kept)
    return {name: json.dumps(one, sort_keys=True) for name, one in content.items()}
