"""Do two runs of the book agree? Records are compared by their questions, whatever their keys.

    python -m benchmarks.same_records ONE OTHER

ONE and OTHER are folders of records, such as ``book/records/miniature`` of two clones. Accuracies, curves and traces
must be the same to the last bit; seconds, memory, dates and versions may differ. Ends with 1 if they do not agree.
"""

import json
import sys
from pathlib import Path
from typing import Any

ANSWER = ("accuracy", "curve", "trace")


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the question of each record of `folder`, as JSON, and its answer."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[json.dumps(record["cell"], sort_keys=True)] = {name: record[name] for name in ANSWER}
    return found


def differences(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each question that only one of the two knows, or that they answer differently."""
    lines = [f"only in the first: {question}" for question in one.keys() - other.keys()]
    lines += [f"only in the second: {question}" for question in other.keys() - one.keys()]
    for question in one.keys() & other.keys():
        # as text, so that a NaN equals a NaN
        parts = [name for name in ANSWER if json.dumps(one[question][name]) != json.dumps(other[question][name])]
        if parts:
            lines.append(f"other {' and '.join(parts)}: {question}")
    return sorted(lines)


def main(first: Path, second: Path) -> int:
    """Print what differs, and how many records agree."""
    one, other = answers(first), answers(second)
    lines = differences(one, other)
    print("\n".join([*lines, f"{len(one)} and {len(other)} records, {len(lines)} differences"]))
    return 1 if lines or not one else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
