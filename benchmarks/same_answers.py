"""Does changed code give the same answers? Records of the book are computed anew and compared to the last bit.

    python -m benchmarks.same_answers BEFORE --why "..." [--minutes 20]

BEFORE is a clone of the project at the commit whose records are still right. All parts of a key (methods, encoder,
task data, evaluation) are compared with those of BEFORE. Of the records that now have another name, at least `EACH` of
every method are computed anew, the cheapest, and beyond them drawn ones as long as the minutes last. If all come out
the same, `mergekit_lite/reference/same_answers.json` is written: from then on the changed code counts as the earlier
one, and the records keep their names. If one does not, nothing is written, and it is named.

A method that a notebook defines is not tried: its records are computed anew when its notebook runs.
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
from mergekit_lite.errors import KitError
from mergekit_lite.methods import registry
from mergekit_lite.study import keys, run
from mergekit_lite.study.records import Record, read_record
from mergekit_lite.suites import load_suite

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "mergekit_lite/reference/same_answers.json"
RECORDS = ROOT / "book/records/miniature"
EACH = 2

PARTS = """
import json
from mergekit_lite.fingerprints import code_of
from mergekit_lite.methods import registry
from mergekit_lite.study import evaluation, keys, task_data
from mergekit_lite.suites import broken, load_suite

parts = [one.function for one in registry.all_methods()]
parts += [*load_suite("miniature").computing, evaluation.accuracies, task_data.shown, broken.Broken]
counts_as = keys.same_answers() if hasattr(keys, "same_answers") else {}
found = {one.__module__.partition(".")[2] + "." + one.__qualname__: code_of(one) for one in parts}
print(json.dumps({name: [code, counts_as.get(code, code)] for name, code in found.items()}))
"""


def codes(root: Path) -> dict[str, tuple[str, str]]:
    """Return for each part of a key in the clone at `root` the hash of its code, and what that counts as there."""
    done = subprocess.run(
        [sys.executable, "-c", PARTS], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE,
        check=True, text=True,
    )  # fmt: skip
    return {name: (code, counts) for name, (code, counts) in json.loads(done.stdout.splitlines()[-1]).items()}


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
    parts = changed(codes(before), codes(ROOT))
    print("\n".join(f"changed: {one['part']}" for one in parts) or "No part of a key has changed.", flush=True)
    read = [read_record(path, path.stem) for path in sorted(RECORDS.glob("*.json"))]
    known = {one.name for one in registry.all_methods()}
    records = [one for one in read if isinstance(one, Record) and one.cell.method in known]
    suite = load_suite("miniature")
    stale = [one for one in records if keys.key_of(suite, one.cell) != one.key]
    sample = chosen(stale, 60 * minutes)
    print(f"{len(stale)} of {len(records)} records have another name now; {len(sample)} of them are computed anew.")
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(suite, [one.cell for one in sample], folder=Path(folder))
        except KitError as error:
            print(error)
            return 1
        new = answers(Path(folder))
        lines = differences({question: one for question, one in answers(RECORDS).items() if question in new}, new)
    print("\n".join([*lines, f"{len(sample)} records computed anew, {len(lines)} differences"]))
    if lines:
        return 1
    facts = {"why": why, "parts": parts, "records": sorted(one.key for one in sample)}
    TARGET.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    keys.same_answers.cache_clear()
    keys._known_code_of.cache_clear()
    lost = [one for one in stale if keys.key_of(suite, one.cell) != one.key]
    print(f"{len(stale) - len(lost)} of {len(stale)} records keep their names.")
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--why", required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    given = parser.parse_args()
    sys.exit(main(given.before, given.why, given.minutes))
