"""Does changed code give the same answers? Records of the book are computed anew and compared to the last bit.

    python -m benchmarks.same_answers BEFORE --why "..." [--minutes 20]

BEFORE is a clone of the project at the commit whose records are still right. All parts of a key (methods, encoder,
task data, evaluation) are compared with those of BEFORE. Of the records that have another name now, at least `EACH` of
every method are computed anew, the cheapest, and beyond them drawn ones as long as the minutes last: on this machine,
by the code of BEFORE and by today's. If all answers are the same, `mergekit_lite/reference/same_answers.json` is
written: from then on the changed code counts as the earlier one, and the records keep their names. If one is not,
nothing is written, and it is named. It also says how many of the answers are those that are kept in the book, which may
have been computed by another processor.

A record of a suite or method that a notebook defines is not tried: it is computed anew when its notebook runs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.same_records import answers, differences
from mergekit_lite.study.records import Record, read_record

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "mergekit_lite/reference/same_answers.json"
RECORDS = ROOT / "book/records/miniature"
EACH = 2

NAMED = """
import json, sys
from pathlib import Path
from mergekit_lite.fingerprints import code_of
from mergekit_lite.methods import registry
from mergekit_lite.study import evaluation, keys, task_data
from mergekit_lite.study.records import read_record
from mergekit_lite.suites import broken, load_suite

suite = load_suite("miniature")
parts = [one.function for one in registry.all_methods()]
parts += [*suite.computing, evaluation.accuracies, task_data.shown, broken.Broken]
counts_as = keys.same_answers() if hasattr(keys, "same_answers") else {}
found = {one.__module__.partition(".")[2] + "." + one.__qualname__: code_of(one) for one in parts}
known = {one.name for one in registry.all_methods()}
records = [read_record(path, path.stem) for path in sorted(Path(sys.argv[1]).glob("*.json"))]
names = {one.key: keys.key_of(suite, one.cell) for one in records if one.cell.method in known}
print(json.dumps([{name: [code, counts_as.get(code, code)] for name, code in found.items()}, names]))
"""
COMPUTED = """
import sys
from pathlib import Path
from mergekit_lite.methods import registry
from mergekit_lite.study import run
from mergekit_lite.study.records import read_record
from mergekit_lite.suites import load_suite

records, folder, *names = sys.argv[1:]
cells = [read_record(Path(records) / f"{name}.json", name).cell for name in names]
for n, cell in enumerate(cells):
    if registry.get(cell.method).access_with(cell.parameters) is registry.Access.CALIBRATION:
        cells[n] = cell.model_copy(update={"adapt": ()})  # filled in as the pool, and refused if it is given
run(load_suite("miniature"), cells, folder=Path(folder))
"""


def asked(root: Path, script: str, *words: str) -> str:
    """Return what `script` prints that runs with the code of the clone at `root`."""
    command = [sys.executable, "-c", script, str(RECORDS), *words]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE, check=True, text=True
    )
    return done.stdout


def named(root: Path) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Return what the code at `root` says: each part of a key with its hash and what that counts as; key -> its key."""
    parts, names = json.loads(asked(root, NAMED).splitlines()[-1])
    return {name: (code, counts) for name, (code, counts) in parts.items()}, names


def changed(before: Mapping[str, tuple[str, str]], now: Mapping[str, tuple[str, str]]) -> list[dict[str, str]]:
    """Return the parts whose code is another one than before, and what it should count as."""
    return [
        {"part": name, "code": now[name][0], "counts_as": before[name][1]}
        for name in sorted(now)
        if name in before and now[name][0] != before[name][1]
    ]


def chosen(records: Sequence[Record], seconds: float) -> list[Record]:
    """Return which to compute anew: `EACH` of every method, the cheapest, then drawn ones for so many seconds."""
    methods = defaultdict(list)
    for record in sorted(records, key=cost):
        methods[record.cell.method].append(record)
    taken = {one.key: one for several in methods.values() for one in several[:EACH]}
    left = [one for one in records if one.key not in taken]
    random.Random(0).shuffle(left)
    spent = sum(map(cost, taken.values()))
    for one in left:
        if spent + cost(one) <= seconds:
            taken[one.key] = one
            spent += cost(one)
    return list(taken.values())


def cost(record: Record) -> float:
    """Return the seconds of one core that a record took."""
    return sum(record.seconds.values())


def main(before: Path, why: str, minutes: float) -> int:
    """Compare, compute, and write what counts as what; 1 if an answer is another one."""
    (old_parts, old_names), (new_parts, new_names) = named(before.resolve()), named(ROOT)
    parts = changed(old_parts, new_parts)
    print("\n".join(f"changed: {one['part']}" for one in parts) or "No part of a key has changed.", flush=True)
    stale = [key for key, name in old_names.items() if name == key and new_names.get(key) != key]
    read = [read_record(RECORDS / f"{key}.json", key) for key in stale]
    sample = [one.key for one in chosen([one for one in read if isinstance(one, Record)], 60 * minutes)]
    print(f"{len(stale)} records have another name now; {len(sample)} of them are computed twice.", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folders = Path(folder) / "before", Path(folder) / "now"
        for root, place in zip((before.resolve(), ROOT), folders, strict=True):
            asked(root, COMPUTED, str(place), *sample)
        then, now = map(answers, folders)
    lines = differences(then, now)
    kept = answers(RECORDS)
    same = sum(not differences({question: one}, {question: kept[question]}) for question, one in now.items())
    print("\n".join([*lines, f"{len(now)} answers, {len(lines)} differences; {same} are those of the book."]))
    if lines or len(now) != len(sample):
        return 1
    facts = {"why": why, "parts": parts, "records": sorted(sample), "as_in_the_book": same}
    TARGET.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    names = named(ROOT)[1]
    lost = [key for key in stale if names[key] != key]
    print(f"{len(stale) - len(lost)} of {len(stale)} records keep their names.")
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--why", required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    given = parser.parse_args()
    sys.exit(main(given.before, given.why, given.minutes))
