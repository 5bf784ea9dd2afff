"""What names a record: a key holds all that may change the answer, and nothing else."""

import json
import linecache
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakes
import pytest
import torch

from mergekit_lite import fingerprints, machine, methods, study
from mergekit_lite.methods import registry
from mergekit_lite.study import Cell, evaluation, keys, task_data
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.broken import Broken

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

TASKS = ("digits", "signs")

OWN = """
from mergekit_lite.methods import Access, Merged, method
import helper_of_own

@method(title="Own", cite="", access=Access.NONE)
def own_average(base, experts, *, scaling: float = 1.0):
    \"\"\"Average in a way of its own.\"\"\"
    merged = {}
    for name, start in base.items():
        mean = sum(expert[name] for expert in experts.values()) / len(experts)
        merged[name] = start + helper_of_own.factor() * scaling * (mean - start)
    return Merged(merged)
"""
HELPER = "FACTOR = 1.0\n\ndef factor():\n    return FACTOR\n\ndef unused():\n    return 1\n"


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


@pytest.fixture(autouse=True)
def own_methods_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def cell(method: str = "simple_average", **parameters: Any) -> Cell:
    return Cell(method=method, parameters=parameters, pool=TASKS, evaluate=TASKS)


def parts(suite: "Suite", one: Cell, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def note(part: Any) -> str:
        seen.append(part)
        return ""

    monkeypatch.setattr(keys, "_code_of", note)
    study.cell_key(suite, one)
    return seen


def test_a_key_holds_the_code_of_method_encoder_and_evaluation(suite: "Suite", monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(suite, cell(), monkeypatch)
    assert registry.get("simple_average").function in found
    assert suite.encode in found
    assert evaluation.accuracies in found
    assert task_data.shown not in found


def test_a_key_holds_what_shows_data_only_if_the_method_looks_at_data(
    suite: "Suite", monkeypatch: pytest.MonkeyPatch
) -> None:
    assert task_data.shown in parts(suite, cell("layer_wise_adamerging"), monkeypatch)


def test_a_key_holds_what_breaks_experts_only_if_some_are_broken(
    suite: "Suite", monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Broken not in parts(suite, cell(), monkeypatch)
    assert Broken in parts(suite, cell().model_copy(update={"broken": {"signs": "noise"}}), monkeypatch)


def test_a_key_holds_the_code_of_the_method_it_starts_from(suite: "Suite", monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(suite, cell("hard_frank_wolfe", start="ties_merging"), monkeypatch)
    assert registry.get("ties_merging").function in found
    assert registry.get("task_arithmetic").function not in found


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("torch", "9.9.9", False),
        ("open_clip", "9.9.9", False),
        ("python", "9.9.9", True),
        ("mergekit_lite", "9.9.9", True),
    ],
)
def test_a_key_changes_with_the_versions_that_compute(
    suite: "Suite", monkeypatch: pytest.MonkeyPatch, name: str, value: str, same: bool
) -> None:
    before, known = study.cell_key(suite, cell()), machine.versions()
    monkeypatch.setattr(keys, "versions", lambda: {**known, name: value})
    assert (study.cell_key(suite, cell()) == before) == same


def test_a_build_of_the_same_version_changes_no_key(suite: "Suite", monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine.versions()
    plain = {**known, "torch": known["torch"].partition("+")[0]}
    monkeypatch.setattr(keys, "versions", lambda: {**plain, "torch": plain["torch"] + "+cu999"})
    before = study.cell_key(suite, cell())
    monkeypatch.setattr(keys, "versions", lambda: plain)
    assert study.cell_key(suite, cell()) == before


def test_a_record_of_a_cpu_does_not_answer_a_gpu_in_bfloat16(suite: "Suite", monkeypatch: pytest.MonkeyPatch) -> None:
    found = [study.cell_key(suite, cell())]
    suite.device = torch.device("cuda")
    found.append(study.cell_key(suite, cell()))
    monkeypatch.setattr(fakes.FakeSuite, "working_dtype", torch.bfloat16)
    found.append(study.cell_key(suite, cell()))
    assert len(set(found)) == 3


def own(folder: Path, source: str = OWN, helper: str = HELPER, name: str = "own.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "helper_of_own.py").write_text(helper)
    (folder / name).write_text(source)
    linecache.clearcache()
    return folder / name


def loaded_key(suite: "Suite", path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_METHODS", dict(registry._METHODS))
        methods.load_method(path)
        return study.cell_key(suite, cell("own_average"))


def test_the_key_of_a_method_of_ones_own_follows_its_lines_and_its_helpers(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded_key(suite, own(tmp_path / "a"), monkeypatch)
    words = OWN.replace("Average in a way of its own.", "Average.") + "\n# the end\n"
    same = [
        own(tmp_path / "b"),  # another folder
        own(tmp_path / "c", name="renamed.py"),
        own(tmp_path / "d", source=words),
        own(tmp_path / "e", helper=HELPER.replace("return 1\n", "return 2\n")),  # is not used
    ]
    other = [
        own(tmp_path / "f", source=OWN.replace("- start)", "- 2 * start)")),
        own(tmp_path / "g", helper=HELPER.replace("FACTOR = 1.0", "FACTOR = 2.0")),
        own(tmp_path / "h", helper=HELPER.replace("return FACTOR", "return FACTOR / 2")),
    ]
    assert {loaded_key(suite, path, monkeypatch) for path in same} == {first}
    assert len({first, *(loaded_key(suite, path, monkeypatch) for path in other)}) == 4


def test_a_changed_helper_does_not_answer_with_the_old_record(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []
    for number, factor in enumerate(("1.0", "0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(registry, "_METHODS", dict(registry._METHODS))
            methods.load_method(own(tmp_path / str(number), helper=HELPER.replace("1.0", factor)))
            records += study.run(suite, [cell("own_average")], workers=1, folder=tmp_path / "records")
    (truth,) = study.run(suite, [cell("pretrained")], workers=1, folder=tmp_path / "records")
    assert records[1].accuracy == truth.accuracy != records[0].accuracy


def test_a_method_of_a_file_runs_on_several_workers(suite: "Suite", tmp_path: Path) -> None:
    methods.load_method(own(tmp_path / "a"))
    cells = {scaling: cell("own_average", scaling=scaling) for scaling in (0.5, 1.0, 2.0)}
    together = study.run(suite, cells, workers=2, folder=tmp_path / "together")
    alone = study.run(suite, cells, workers=1, folder=tmp_path / "alone")
    assert {name: one.accuracy for name, one in together.items()} == {name: one.accuracy for name, one in alone.items()}


SCRIPT = """
import os, sys
from pathlib import Path
import fakes
from mergekit_lite import study
from mergekit_lite.methods import Access, Merged, method

@method(title="Own", cite="", access=Access.NONE)
def own_average(base, experts, *, scaling: float = 1.0):
    Path(sys.argv[1], f"{os.getpid()}.pid").touch()
    return Merged({name: start * scaling for name, start in base.items()})

if __name__ == "__main__":
    cells = {
        scaling: study.Cell(
            method="own_average", parameters={"scaling": scaling}, pool=("digits",), evaluate=("signs",)
        )
        for scaling in (0.5, 1.0, 2.0, 3.0)
    }
    records = study.run(fakes.fake_suite(), cells, workers=2, folder=Path(sys.argv[1]))
    print(os.getpid(), len(records))
"""


def test_a_method_of_a_script_runs_on_several_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    parent, count = done.stdout.splitlines()[-1].split()
    assert count == "4"
    workers = {path.stem for path in tmp_path.glob("*.pid")}
    assert workers
    assert parent not in workers


def test_code_that_gives_the_same_answers_counts_as_the_code_of_the_records(
    suite: "Suite", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "same_answers", dict)
    before = keys.cell_key(suite, cell())
    code = keys._code_of(evaluation.accuracies)
    monkeypatch.setattr(keys, "same_answers", lambda: {code: "another"})
    assert keys.cell_key(suite, cell()) != before
    monkeypatch.setattr(keys, "same_answers", lambda: {"another": code})
    assert keys.cell_key(suite, cell()) == before


def test_what_counts_as_earlier_code_is_code_of_today_and_was_tried() -> None:
    kept = json.loads((Path(methods.__file__).parents[1] / "reference/same_answers.json").read_text(encoding="utf-8"))
    functions = [one.function for one in registry.all_methods()]
    parts = [*functions, *load_suite("miniature", "cpu").computing, evaluation.accuracies, task_data.shown, Broken]
    today = {fingerprints.code_of(part) for part in parts}
    assert [one["part"] for one in kept["parts"] if one["code"] not in today] == [], (
        "this code was changed again: compute records anew with `python -m benchmarks.same_answers`"
    )
    assert bool(kept["parts"]) == bool(kept["records"]) == bool(kept["why"])
