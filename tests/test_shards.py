"""Shards of a study on machines that share no disk: each computes its part, and together they are a plain run."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fakes
import pytest
from projects import write_notebook, write_profile
from typer.testing import CliRunner

from mergekit_lite import study
from mergekit_lite.cache import SHARD, VARIABLE, content_hash
from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import execution, gathering, runner
from mergekit_lite.study import Cell, shards
from mergekit_lite.study.records import read_record

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

TESTS = Path(__file__).parent
TASKS = ("digits", "signs")
GRID = [
    Cell(method=method, parameters={"scaling": scaling}, pool=TASKS, evaluate=TASKS)
    for method in ("task_arithmetic", "ties_merging")
    for scaling in (0.1, 0.2, 0.3, 0.4)
]
STUDY = """
import sys
import fakes
from mergekit_lite import study
from mergekit_lite.study import Cell, shards

try:
    study.run(fakes.fake_suite(), [Cell.model_validate_json(line) for line in sys.argv[1:]], workers=1)
except shards.Elsewhere as others:
    print(others)
"""


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SHARD, raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    # A notebook's kernel finds the tests' modules; nobody waits for open_clip, or for hashes.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    monkeypatch.setattr(runner, "_check_suites", lambda profile, named: None)
    monkeypatch.setattr(runner, "library_hash", lambda: "today's")


# --- shares -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costly:
    key: str
    cost: tuple[bool, int, int]


def jobs(count: int, seed: int = 0) -> list[Costly]:
    draw = random.Random(seed)
    return [Costly(content_hash([seed, one]), (draw.random() < 0.3, draw.randrange(9), 8)) for one in range(count)]


@pytest.mark.parametrize(("count", "parts"), [(0, 3), (1, 1), (1, 3), (2, 3), (7, 3), (24, 8), (100, 7), (50, 1)])
def test_shares_are_disjoint_and_whole_and_of_one_size(count: int, parts: int) -> None:
    every = jobs(count)
    shares = [shards.share(every, f"{part}/{parts}") for part in range(1, parts + 1)]
    together = [job.key for share in shares for job in share]
    assert len(together) == count
    assert set(together) == {job.key for job in every}
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_depend_on_the_grid_and_not_on_its_order() -> None:
    every = jobs(40)
    shuffled = random.Random(1).sample(every, len(every))
    for part in range(1, 7):
        assert shards.share(every, f"{part}/6") == shards.share(shuffled, f"{part}/6")


def test_every_share_gets_some_of_the_long_ones() -> None:
    every = [Costly(content_hash(one), (one < 8, one, 8)) for one in range(80)]
    for part in range(1, 9):
        assert [job.cost[0] for job in shards.share(every, f"{part}/8")].count(True) == 1


def test_a_cell_of_two_grids_falls_to_one_shard_more_often_than_not() -> None:
    every = jobs(400)
    one, two = every[:300], every[100:]

    def shard_of(grid: Sequence[Costly]) -> dict[str, int]:
        return {job.key: part for part in range(1, 9) for job in shards.share(grid, f"{part}/8")}

    first, second = shard_of(one), shard_of(two)
    both = set(first) & set(second)
    assert len(both) == 200
    assert sum(first[key] == second[key] for key in both) > 80  # dealt out in turn it would be 25 of the 200


@pytest.mark.parametrize(
    "text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2", "1/²", "١/٢", "1/" + "9" * 5000]
)
def test_what_names_no_shard_is_refused_before_anything_runs(
    text: str, suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KitError, match=r"names no shard\. Write i/n, such as 1/8") as caught:
        shards.share([], text)
    assert len(str(caught.value)) < 300
    write_notebook(tmp_path, "one", "open('ran', 'w')")
    with pytest.raises(KitError, match="names no shard"):
        runner.run_profile(write_profile(tmp_path, one={}), tmp_path, shard=text)
    if text:  # an empty variable is none
        monkeypatch.setenv(SHARD, text)
        with pytest.raises(KitError, match="names no shard"):
            study.run(suite, GRID, workers=1)
        with pytest.raises(KitError, match="names no shard"):
            runner.run_profile(write_profile(tmp_path, one={}), tmp_path)
    assert not (tmp_path / "notebooks" / "ran").exists()
    assert not (tmp_path / "cache").exists()


# --- a study ----------------------------------------------------------------------------------------------------------


def answers(folder: Path) -> dict[str, Mapping[str, float]]:
    found = {path.stem: read_record(path, path.stem) for path in folder.glob("*.json")}
    return {key: record.accuracy for key, record in found.items() if isinstance(record, study.Record)}


def test_two_shards_with_a_cache_each_are_a_plain_run(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.run(suite, GRID, workers=1, folder=tmp_path / "plain")
    for part in (1, 2):
        monkeypatch.setenv(VARIABLE, str(tmp_path / f"node-{part}"))
        monkeypatch.setenv(SHARD, f"{part}/2")
        cells = GRID if part == 1 else GRID[::-1]
        with pytest.raises(shards.Elsewhere, match=r"^This shard's cells are recorded; 4 of all 8 are other shards'\."):
            study.run(suite, cells, workers=1)
        with pytest.raises(shards.Elsewhere):  # again: nothing is left to do, and the others' are still missing
            study.run(suite, cells, workers=1)
    parts = [answers(tmp_path / f"node-{part}" / "records" / "fake") for part in (1, 2)]
    assert not set(parts[0]) & set(parts[1])
    gathered = gathering.gather([tmp_path / "node-1"], tmp_path / "node-2" / "records")
    assert str(gathered) == "4 new, 0 the same, 0 refused, 0 damaged"
    merged = answers(tmp_path / "node-2" / "records" / "fake")
    assert merged == answers(tmp_path / "plain") == parts[0] | parts[1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "node-2" / "records" / "fake").glob("*.json")}
    assert len(study.run(suite, GRID, workers=1)) == len(GRID)  # in the second's cache, still a shard: all is there
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_two_machines_without_a_network_are_a_plain_run(suite: "Suite", tmp_path: Path) -> None:
    """Each in a network namespace and with a disk of its own."""
    if not (shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0):
        pytest.skip("this system gives no namespaces to its users")
    study.run(suite, GRID, workers=1, folder=tmp_path / "plain")
    nodes = [
        subprocess.Popen(
            ["unshare", "-rn", sys.executable, "-c", STUDY, *(cell.model_dump_json() for cell in GRID)],
            text=True,
            stdout=subprocess.PIPE,
            env={**os.environ, SHARD: f"{part}/2", VARIABLE: str(tmp_path / f"node-{part}")},
        )
        for part in (1, 2)
    ]
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert all("4 of all 8 are other shards'" in text for text in said)
    into = tmp_path / "together"
    done = CliRunner().invoke(
        app, ["records", "merge", *(f"{tmp_path}/node-{one}" for one in (1, 2)), "--into", str(into)]
    )
    assert (done.exit_code, done.output) == (0, f"{into}: 8 new, 0 the same, 0 refused, 0 damaged\n")
    assert answers(into / "fake") == answers(tmp_path / "plain")


# --- the runner -------------------------------------------------------------------------------------------------------

GRID_OF_THREE = [Cell(method="simple_average", pool=(one,), evaluate=(one,)) for one in ("digits", "signs", "scenes")]
ASK = f"""
import os
import fakes
from mergekit_lite import study
from mergekit_lite.study import Cell
print("shard", os.environ.get("{SHARD}"))
grid = [Cell(method="simple_average", pool=(one,), evaluate=(one,)) for one in ("digits", "signs", "scenes")]
found = study.run(fakes.fake_suite(), grid, workers=1)
"""


def test_a_notebook_that_needs_other_shards_cells_has_done_its_share(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook(tmp_path, "grid", ASK, "print(len(found))")
    profile = write_profile(tmp_path, grid={})
    assert runner.run_profile(profile, tmp_path, shard="1/2") == []
    assert len(answers(tmp_path / "cache" / "records" / "fake")) == 2
    said = capsys.readouterr().out
    assert "shard 1/2\n" in said
    assert "grid: its share is computed up to cell [3]\n" in said
    assert "Shard 1/2: 1 notebook waits for cells of the other shards (grid).\n" in said
    assert f"bring their records together on each machine (here: {tmp_path}/cache/records),\n" in said
    assert "  mergekit-lite records merge FOLDER ...\nand run the same shards again: " in said
    assert said.endswith("\n  mergekit-lite run short\n")
    assert list((tmp_path / "build" / "short").iterdir()) == []
    assert SHARD not in os.environ

    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    monkeypatch.setenv(SHARD, "2/2")
    with pytest.raises(shards.Elsewhere):
        study.run(suite, GRID_OF_THREE, workers=1)
    gathering.gather([tmp_path / "cache"], tmp_path / "other" / "records")
    capsys.readouterr()
    (executed,) = runner.run_profile(profile, tmp_path)  # still the second shard, but all is there
    said = capsys.readouterr().out
    assert "shard 2/2\n" in said
    assert "3\ngrid: done in" in said
    assert "share" not in said
    assert len(runner.run_of(executed)["records"]) == 3
    monkeypatch.delenv(SHARD)
    runner.run_profile(profile, tmp_path)  # what a shard executed is as good as any
    assert "grid: unchanged" in capsys.readouterr().out


def test_a_share_that_is_done_ends_well_and_a_failure_beside_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(template: Path, *_: object) -> float:
        assert os.environ[SHARD] == "1/2"
        if template.stem == "bad":
            raise execution.Failed("It is broken.", 4)
        raise execution.ShareDone(12)

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "bad"):
        write_notebook(tmp_path, name)
    write_profile(tmp_path, one={}, two={})
    done = CliRunner().invoke(app, ["run", "short", "--shard", "1/2"])
    assert done.exit_code == 0
    assert "one: its share is computed up to cell [12]\n" in done.output
    assert "2 notebooks wait for cells of the other shards (one, two)" in done.output
    write_profile(tmp_path, one={}, bad={})
    monkeypatch.setenv(SHARD, "1/2")  # as in a batch script
    done = CliRunner().invoke(app, ["run", "short"])
    assert done.exit_code == 1
    assert "1 notebook waits for cells of the other shards (one)" in done.output
    assert "Error: 1 of 2 notebooks failed; the other 1 are done.\nbad (cell [4]): It is broken." in done.output
    assert CliRunner().invoke(app, ["run", "short", "--shard", "9/2"]).exit_code == 1


def test_the_same_error_of_a_run_that_is_no_shard_is_a_failure(tmp_path: Path) -> None:
    assert shards.Elsewhere.__name__ == execution.ELSEWHERE
    write_notebook(tmp_path, "one", "class Elsewhere(Exception): ...\nraise Elsewhere('not here')")
    with pytest.raises(KitError, match=r"one \(cell \[3\]\): Elsewhere: not here"):
        runner.run_profile(write_profile(tmp_path, one={}), tmp_path)
    assert (tmp_path / "build" / "short" / "one.failed.ipynb").exists()
