"""Records of several folders come together whole; what contradicts another or is damaged is named and stays out."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakes
import pytest
from typer.testing import CliRunner

from mergekit_lite import study
from mergekit_lite.cache import VARIABLE, locked
from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline.gathering import gather
from mergekit_lite.study import Cell, Record
from mergekit_lite.study.records import read_record, write_record

if TYPE_CHECKING:
    pass

TASKS = ("digits", "signs")
GRID = [Cell(method="task_arithmetic", parameters={"scaling": one}, pool=TASKS, evaluate=TASKS) for one in (0.1, 0.2)]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return study.run(fakes.fake_suite(), GRID, workers=1, folder=tmp_path / "computed")


def lay(cache: Path, *records: Record, suite: str = "") -> Path:
    for record in records:
        write_record(record, cache / "records" / (suite or record.suite) / f"{record.key}.json")
    return cache


def laid(records: Path) -> dict[str, str]:
    return {path.relative_to(records).as_posix(): path.read_text() for path in records.rglob("*") if path.is_file()}


def changed(record: Record, **more: Any) -> Record:
    parts = {name: more.pop(name) for name in list(more) if name not in Record.model_fields}
    return record.model_copy(update={**more, "provenance": record.provenance.model_copy(update=parts)})


def merged(*folders: Path, into: Path | None = None) -> tuple[int, str]:
    options = ["--into", str(into)] if into else []
    done = CliRunner().invoke(app, ["records", "merge", *map(str, folders), *options])
    return done.exit_code, done.output


def test_records_come_together_suite_by_suite_and_only_once(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = records
    other = changed(two, suite="other")
    node_1, node_2 = lay(tmp_path / "node-1", one), lay(tmp_path / "node-2", one, two, other)
    (node_2 / "records" / "fake" / "notes.json").write_text("{}")  # a file of somebody's
    (node_2 / "records" / "fake" / f".{two.key}.json.99.tmp").write_text("half")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    into = tmp_path / "cache" / "records"
    assert merged(node_1, node_2) == (0, f"{into}: 3 new, 0 the same, 0 refused, 0 damaged\n")
    names = {f"fake/{one.key}.json", f"fake/{two.key}.json", f"other/{two.key}.json"}
    assert set(laid(into)) == names
    before = {path: path.stat().st_mtime_ns for path in into.rglob("*.json")}
    assert merged(node_1, node_2) == (0, f"{into}: 0 new, 3 the same, 0 refused, 0 damaged\n")
    assert merged(tmp_path / "cache")[0] == 0  # into itself
    assert before == {path: path.stat().st_mtime_ns for path in into.rglob("*.json")}
    for form in (node_2 / "records", node_2 / "records" / "fake"):
        assert merged(form, into=tmp_path / "elsewhere")[0] == 0
    assert set(laid(tmp_path / "elsewhere")) == names
    assert study.run(fakes.fake_suite(), GRID, folder=into / "fake") == records


@pytest.mark.parametrize("turn", [False, True], ids=["as named", "in reverse"])
def test_of_records_that_say_the_same_the_first_computed_is_kept(
    records: list[Record], tmp_path: Path, turn: bool
) -> None:
    record = changed(records[0], trace={"loss": [1.0, float("nan")]})
    later = changed(
        record,
        seconds={"merge": 9.0, "evaluate": 9.0},
        peak_memory_mib=1.0,
        title="Another title",
        cite="another",
        trace={**record.trace, "bank": "pinned"},
        started=record.provenance.started + timedelta(days=1),
        device="another card",
        python="3.99",
        mergekit_lite="9",
        commit="abc+",
        sources={"digits": "a mirror"},
    )
    folders = [lay(tmp_path / "early", record), lay(tmp_path / "late", later)]
    gathered = gather(folders[::-1] if turn else folders, tmp_path / "into")
    assert (gathered.new, gathered.same, gathered.whole) == (1, 0, True)
    early = laid(tmp_path / "early" / "records")
    assert laid(tmp_path / "into") == early
    # What lies in place gives way to an earlier one too, so that all machines end with the same files.
    gathered = gather([tmp_path / "early"], tmp_path / "late" / "records")
    assert (gathered.new, gathered.same, gathered.whole) == (0, 1, True)
    assert laid(tmp_path / "late" / "records") == early


CONTRADICTIONS: dict[str, Callable[[Record], Record]] = {
    r"accuracy differ \(on signs \S+ and 50 percent\)": lambda it: changed(it, accuracy={**it.accuracy, "signs": 50.0}),
    "cell differ": lambda it: changed(it, cell=it.cell.model_copy(update={"seed": 7})),
    "trace differ": lambda it: changed(it, trace={"loss": [0.1 + 0.2]}),
    "images differ": lambda it: changed(it, images=3),
    r"accuracy, provenance differ .*; computed on .* and a card": lambda it: changed(
        it, accuracy={"digits": 1.0}, torch="9.9", device="a card"
    ),
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_records_that_contradict_each_other_are_refused_and_both_files_named(
    words: str, records: list[Record], tmp_path: Path
) -> None:
    one, two = changed(records[0], trace={"loss": [0.3]}), records[1]
    node_1, node_2 = lay(tmp_path / "node-1", one, two), lay(tmp_path / "node-2", CONTRADICTIONS[words](one))
    into = tmp_path / "into"
    files = [node / "records" / "fake" / f"{one.key}.json" for node in (node_1, node_2)]
    for _ in range(2):  # the second time changes nothing
        status, said = merged(node_1, node_2, into=into)
        assert status == 1
        first, *named = said.splitlines()[:3]
        assert first.startswith("Two records of one cell contradict each other: ")
        assert re.search(words, first)
        assert named == [f"  {file}" for file in files]
        assert "Neither was brought. Find out which one is right, delete the other, and merge again." in said
        assert set(laid(into)) == {f"fake/{two.key}.json"}
    assert "0 new, 1 the same, 1 refused" in said
    # What lies in place already stays.
    lay(tmp_path / "mine", one)
    before = laid(tmp_path / "mine" / "records")
    status, said = merged(node_2, into=tmp_path / "mine" / "records")
    assert status == 1
    assert f"  {tmp_path}/mine/records/fake/{one.key}.json\n  {files[1]}\n" in said
    assert laid(tmp_path / "mine" / "records") == before
    files[1].unlink()  # as the message says
    status, said = merged(node_1, into=into)
    assert (status, "1 new, 1 the same, 0 refused" in said) == (0, True)


DAMAGES: dict[str, Callable[[str], bytes]] = {
    "invalid JSON": lambda text: text[: len(text) // 2].encode(),
    "it is not as it was written": lambda text: text.replace('"seed": 0', '"seed": 1').encode(),
    "it says it is": lambda text: text.encode(),  # under another name
    "invalid JSON: ": lambda text: b"\xff\x00" * 9,
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damaged_files_are_named_and_left_out(words: str, records: list[Record], tmp_path: Path) -> None:
    one, two = records
    node = lay(tmp_path / "node", one, two)
    file = node / "records" / "fake" / f"{one.key}.json"
    content = DAMAGES[words](file.read_text())
    if words == "it says it is":
        file = file.rename(file.with_name("0" * 16 + ".json"))
    file.write_bytes(content)
    status, said = merged(node, into=tmp_path / "into")
    assert status == 1
    assert f"{file} is damaged and left out ({words}" in said
    assert said.endswith("1 new, 0 the same, 0 refused, 1 damaged\n")
    assert set(laid(tmp_path / "into")) == {f"fake/{two.key}.json"}


def test_a_suite_whose_name_climbs_out_of_its_folder_is_left_out(records: list[Record], tmp_path: Path) -> None:
    node = lay(tmp_path / "node", changed(records[0], suite="../../mine"), suite="fake")
    status, said = merged(node, into=tmp_path / "into")
    assert status == 1
    assert "'../../mine' names no suite" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["computed", "node"]


def test_a_damaged_file_in_place_is_replaced_by_a_whole_one(records: list[Record], tmp_path: Path) -> None:
    node, mine = lay(tmp_path / "node", records[0]), lay(tmp_path / "mine", records[0])
    place = mine / "records" / "fake" / f"{records[0].key}.json"
    place.write_text("{")
    status, said = merged(node, into=mine / "records")
    assert status == 0
    assert f"{place} was damaged (invalid JSON" in said
    assert "1 new" in said
    assert isinstance(read_record(place, records[0].key), Record)


def test_folders_without_records_are_refused_before_anything_is_brought(records: list[Record], tmp_path: Path) -> None:
    node, empty, file = lay(tmp_path / "node", records[0]), tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    (empty / "package.json").write_text("{}")
    file.touch()
    for wrong, words in ((empty, "holds no records"), (file, "is no folder"), (tmp_path / "no", "is no folder")):
        status, said = merged(node, wrong, into=tmp_path / "into")
        assert status == 1
        assert said.startswith(f"Error: {wrong} {words}.")
        assert not (tmp_path / "into").exists()
    with pytest.raises(KitError, match="cannot be written"):
        gather([node], file / "below")


def test_a_cell_that_another_run_has_under_way_is_brought_too(records: list[Record], tmp_path: Path) -> None:
    node, into = lay(tmp_path / "node", *records), tmp_path / "into"
    with locked(into / "fake" / f"{records[0].key}.json"):
        assert gather([node], into).new == 2


def test_nothing_half_written_is_left_where_the_disk_is_full(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mergekit_lite.pipeline.gathering.shutil.copyfile", full)
    status, said = merged(lay(tmp_path / "node", *records), into=tmp_path / "into")
    assert status == 1
    assert "cannot be written (No space left on device)" in said
    assert laid(tmp_path / "into") == {}
