"""Work side by side gives what it gives alone, also to a plain script."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
from mergekit_lite.workers import side_by_side

OFFSET = 10


def setup():
    return OFFSET


def work(offset, item):
    return __name__, offset + item


if __name__ == "__main__":
    outcomes = {item: outcome() for item, outcome in side_by_side(setup, work, [1, 2, 3], workers=2)}
    print(sorted({name for name, _ in outcomes.values()}), [outcomes[item][1] for item in (1, 2, 3)])
"""


def test_a_script_may_use_functions_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "my script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "['__mp_main__'] [11, 12, 13]\n"  # as Python calls a script in another process
