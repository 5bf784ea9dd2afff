"""The command `evaluate`: accuracies as a study has them, with intervals, in tables, JSON and CSV."""

import csv
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from own_suite_files import write_suite
from rich.console import Console
from typer.testing import CliRunner, Result

from mergekit_lite import cli, study
from mergekit_lite.cache import VARIABLE
from mergekit_lite.errors import KitError
from mergekit_lite.evaluate import answers, confusing, measuring, models, printed, written
from mergekit_lite.methods.registry import get
from mergekit_lite.study import Record, engines
from mergekit_lite.suites import Suite, load_suite
from mergekit_lite.suites.clip.transformers_format import to_transformers
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.weight_files import write

CACHE = os.environ.get(VARIABLE)
RECORDS = Path(__file__).parents[1] / "book/records/miniature"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a suite file, two merged models in different formats, and a cache of its own; evaluated once."""
    folder = tmp_path_factory.mktemp("evaluate")
    suite_file = write_suite(folder, each=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "cache"))
        patch.setenv("COLUMNS", "100")
        patch.chdir(folder)
        for module in (answers, engines.here):
            patch.setattr(module, "cores", lambda: 1)  # no process is started for so little
        suite = load_suite(str(suite_file), "cpu")
        for scaling in (0.3, 0.6):
            merged = get("task_arithmetic").function(suite.base, suite.experts, scaling=scaling).weights
            (folder / f"merged-{scaling}").mkdir()
            write(folder / f"merged-{scaling}" / "model.safetensors", to_transformers(merged))
            write(folder / f"file-{scaling}.safetensors", merged)
        yield folder


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["evaluate", *words])


def told(*words: str) -> str:
    """Return the error that a user sees, on one line."""
    result = run(*words)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def report(here: Path) -> dict[str, Any]:
    result = run("merged-0.3/", "base", "expert", "--suite", "tiny.yaml", "-o", "r.json", "--confusion")
    assert result.exit_code == 0, result.output
    return json.loads((here / "r.json").read_text())


def test_accuracies_are_those_of_a_study_to_the_last_digit(here: Path, report: dict[str, Any]) -> None:
    suite = load_suite("tiny.yaml", "cpu")
    tasks = tuple(suite.tasks)
    cells = {
        "merged-0.3": study.Cell(method="task_arithmetic", parameters={"scaling": 0.3}, pool=tasks, evaluate=tasks),
        "base": study.Cell(method="pretrained", pool=tasks, evaluate=tasks),
        "expert": study.Cell(method="individual", pool=tasks, evaluate=tasks),
    }
    records = study.run(suite, cells, workers=1)
    found = {(one["model"], one["task"]): one["accuracy"] for one in report["results"]}
    assert found == {(name, task): records[name].accuracy[task] for name in cells for task in tasks}
    averages = {one["model"]: one["accuracy"] for one in report["averages"]}
    assert averages == {name: record.average for name, record in records.items()}


def test_normalised_is_relative_to_the_task_s_own_expert(here: Path, report: dict[str, Any]) -> None:
    rows = {(one["model"], one["task"]): one for one in report["results"]}
    for (_, task), one in rows.items():
        assert one["normalised"] == 100 * one["accuracy"] / rows["expert", task]["accuracy"]
        assert report["experts"][task] == rows["expert", task]["accuracy"]
    assert {one["model"]: one["normalised"] for one in report["averages"]}["expert"] == 100
    assert "difference" not in report["averages"][0]
    assert all(one["difference"]["to"] == "merged-0.3" for one in report["averages"][1:])


def test_a_result_says_what_it_came_from(here: Path, report: dict[str, Any]) -> None:
    first, base, expert = report["models"]
    assert first["place"] == "merged-0.3/"
    assert re.fullmatch(r"[0-9a-f]{64}", first["sha256"])
    assert "transformers" in first["layout"]
    suite = load_suite("tiny.yaml", "cpu")
    assert base["hash"] == suite.base_hash() == report["suite"]["base"]
    assert expert["hash"] == {task: suite.expert_hash(task) for task in suite.tasks} == report["suite"]["experts"]
    assert {"torch", "open_clip", "mergekit_lite", "device", "dtype", "made"} <= set(report)
    assert {one["task"]: one["images"] for one in report["results"]} == {"shades": 12, "sides": 18}
    assert str(here) not in json.dumps(report)


def test_every_format_gives_the_same_answers(here: Path, report: dict[str, Any]) -> None:
    assert run("again=file-0.3.safetensors", "--suite", "tiny.yaml", "-o", "again.json").exit_code == 0
    again = json.loads((here / "again.json").read_text())["results"]
    assert [one["accuracy"] for one in again] == [
        one["accuracy"] for one in report["results"] if one["model"] == "merged-0.3"
    ]


def test_what_was_answered_is_not_answered_again(
    here: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_answer", lambda *_: pytest.fail("it was there"))
    monkeypatch.setattr(measuring, "run", lambda *_: pytest.fail("the experts' answers were there"))
    assert run("merged-0.3", "base", "--suite", "tiny.yaml", "-o", "second.json").exit_code == 0
    second = json.loads((here / "second.json").read_text())
    assert second["results"] == [one for one in report["results"] if one["model"] != "expert"]


def test_what_the_experts_reach_is_taken_from_records(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    suite = load_suite("tiny.yaml", "cpu")
    (merged,) = models.opened_models({"merged": "merged-0.6"}, suite)
    found = measuring.evaluated(suite, [merged], ("sides",))
    (path,) = (tmp_path / "records" / "tiny").glob("*.json")
    record = Record.model_validate({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"})
    assert record.cell.method == "individual"
    assert record.accuracy == {"sides": found.scores["merged", "sides"].expert}
    assert found.scores["merged", "sides"].accuracy == accuracy(suite, merged.weights(suite, "sides"), "sides")
    assert len(list((tmp_path / "answers" / "tiny").glob("*.npy"))) == 1  # the experts were not asked once more


def test_other_weights_under_the_same_name_are_measured_anew(here: Path) -> None:
    def shown(scaling: float) -> list[float]:
        (here / "changing.safetensors").write_bytes((here / f"file-{scaling}.safetensors").read_bytes())
        result = run("changing.safetensors", f"file-{scaling}.safetensors", "--suite", "tiny.yaml", "-o", "c.json")
        assert result.exit_code == 0, result.output
        rows = json.loads((here / "c.json").read_text())["results"]
        assert [one["accuracy"] for one in rows[:2]] == [one["accuracy"] for one in rows[2:]]
        return [one["accuracy"] for one in rows[:2]]

    shown(0.3)
    before = sorted((here / "cache" / "answers" / "tiny").glob("*.npy"))
    shown(0.6)
    assert sorted((here / "cache" / "answers" / "tiny").glob("*.npy")) != before


def test_csv_has_a_row_for_each_model_and_task(here: Path, report: dict[str, Any]) -> None:
    assert run("merged-0.3", "base", "expert", "--suite", "tiny.yaml", "-o", "new/r.csv").exit_code == 0
    rows = list(csv.DictReader(StringIO((here / "new" / "r.csv").read_text())))
    assert [(one["model"], one["task"]) for one in rows] == [(one["model"], one["task"]) for one in report["results"]]
    assert [float(one["accuracy"]) for one in rows] == [one["accuracy"] for one in report["results"]]
    assert [float(one["normalised"]) for one in rows] == [one["normalised"] for one in report["results"]]


def test_sets_of_the_file_and_lists_of_tasks_are_known(here: Path) -> None:
    for tasks, count in (("both", 2), ("sides", 1), ("sides, shades", 2)):
        assert run("base", "--suite", "tiny.yaml", "--tasks", tasks, "-o", "sets.json").exit_code == 0
        assert len(json.loads((here / "sets.json").read_text())["results"]) == count


def test_the_whole_confusion_matrix_is_kept(here: Path, report: dict[str, Any]) -> None:
    kept = report["confusion"]
    first = [one for one in report["results"] if one["model"] == "merged-0.3"]
    worst = min(first, key=lambda one: one["accuracy"])
    assert (kept["model"], kept["task"]) == ("merged-0.3", worst["task"])
    matrix = np.array(kept["matrix"])
    assert matrix.sum(axis=1).tolist() == [6] * len(kept["classnames"])
    assert np.trace(matrix) == worst["correct"]


# ---------------------------------------------------------------------------------------------------------- numbers


def made(
    correct: dict[str, list[int]], images: int = 200, expert: float = 90.0, title: str = "Made up"
) -> measuring.Evaluation:
    """Return an evaluation of models with so many right answers on tasks called task-0, task-1, ..."""
    tasks = [f"task-{place}" for place in range(len(next(iter(correct.values()))))]
    labels = {task: np.arange(images) % 4 for task in tasks}
    found = {
        (name, task): np.where(np.arange(images) < count, labels[task], (labels[task] + 1) % 4).astype(np.int32)
        for name, counts in correct.items()
        for task, count in zip(tasks, counts, strict=True)
    }
    right = {key: one == labels[key[1]] for key, one in found.items()}
    scores = {key: measuring.score(int(one.sum()), images, expert) for key, one in right.items()}
    first = next(iter(correct))
    averages = {name: measuring.average(name, first, tasks, scores, right) for name in correct}
    suite = SimpleNamespace(title=title, tasks={one: SimpleNamespace(classnames=tuple("abcd")) for one in tasks})
    rows = tuple(models.Model(name, name) for name in correct)
    return measuring.Evaluation(cast(Suite, suite), rows, tuple(tasks), scores, averages, found, labels)


def test_wilson_s_interval_is_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert measuring.wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    assert measuring.wilson(29, 29) == pytest.approx((0.8830, 1), abs=5e-5)


def test_a_difference_is_decided_by_images_that_only_one_has_right() -> None:
    found = made({"first": [100, 100], "a bit": [101, 100], "more": [120, 115]})
    little, much = found.averages["a bit"].difference, found.averages["more"].difference
    assert little is not None
    assert much is not None
    assert little.points == pytest.approx(0.25)
    assert not little.decided
    assert much.points == pytest.approx(8.75)
    assert much.decided
    assert much.low < 8.75 < much.high
    # Paired: apart, the two averages are uncertain by much more than what lies between them.
    assert much.high - much.low < found.averages["more"].high - found.averages["more"].low


def test_an_expert_without_a_right_answer_normalises_nothing() -> None:
    found = made({"first": [10, 20]}, expert=0.0)
    assert found.averages["first"].normalised is None
    text = shown(found)
    assert "the expert of task-0, task-1 has no image right" in text
    assert "–" in text


def test_pairs_are_those_confused_most_often() -> None:
    matrix = np.array([[5, 0, 1], [4, 1, 0], [0, 2, 8]])
    found = confusing.pairs(confusing.Confusion("m", "t", ("a", "b", "c"), matrix), most=2)
    assert [(one.true, one.predicted, one.count) for one in found] == [("b", "a", 4), ("c", "b", 2)]
    assert [one.share for one in found] == [80, 20]


# ----------------------------------------------------------------------------------------------------------- tables


def shown(found: measuring.Evaluation, width: int = 100) -> str:
    console = Console(width=width, file=StringIO(), color_system=None)
    printed.show(found, console)
    return cast(StringIO, console.file).getvalue()


def test_eight_tasks_are_columns() -> None:
    found = made({"merged": [150] * 8, "base": [100] * 8, "expert": [190] * 8})
    lines = shown(found).splitlines()
    assert max(map(len, lines)) <= 100
    row = next(line for line in lines if line.startswith("base"))
    assert re.split(r" {1,}", row.strip()) == ["base", *["50.0"] * 9, "55.6", "-25.0"]


def test_twenty_tasks_are_rows() -> None:
    lines = shown(made({"merged": [150] * 20, "base": [151] * 20, "expert": [190] * 20})).splitlines()
    assert max(map(len, lines)) <= 100
    row = next(line for line in lines if line.startswith("task-7 "))
    assert row.split() == [
        "task-7",
        "75.0",
        "(68.6",
        "to",
        "80.5)",
        "75.5",
        "(69.1",
        "to",
        "80.9)",
        "95.0",
        "(91.0",
        "to",
        "97.3)",
    ]
    assert any(line.startswith("average") and "75.0 (" in line for line in lines)
    assert any(line.startswith("normalised") and "83.3" in line for line in lines)


def test_more_models_than_fit_come_in_several_tables() -> None:
    names = [f"model-{place}" for place in range(9)]
    text = shown(made({name: [150] * 20 for name in names}))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("task-19 ") == 3
    assert all(text.count(f"{name} ") + text.count(f"{name}\n") == 1 for name in names[1:])


@pytest.mark.parametrize("tasks", [2, 20])
def test_what_is_undecided_is_said(tasks: int) -> None:
    text = shown(made({"first": [100] * tasks, "same": [100] * (tasks - 1) + [101], "better": [180] * tasks}))
    assert text.count("undecided") == 2  # once in the table, once in the legend


def test_markup_and_commands_in_names_are_printed_as_they_are() -> None:
    text = shown(made({"[bold]x[/]": [1, 2], "\x1b[31mred": [1, 2]}))
    assert "[bold]x[/]" in text
    assert "\\x1b[31mred" in text


# -------------------------------------------------------------------------------------------------------- bad input


def test_places_get_short_names_that_differ() -> None:
    given = ["runs/a/model.safetensors", "runs/b/", "b.safetensors", "hf:org/repo@v1", "mine=x/y", "./base"]
    assert list(models.named(given)) == ["a", "runs/b", "b.safetensors", "repo@v1", "mine", "base"]
    assert models.named(["base", "expert"]) == {"base": "base", "expert": "expert"}


def test_an_equals_sign_in_a_path_is_no_name(here: Path) -> None:
    assert models.named(["runs/lr=0.1/last"]) == {"last": "runs/lr=0.1/last"}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (["expert", "expert"], "'expert' is given twice. Name it once"),
        (
            ["a=base", "a=expert"],
            "Two models are called 'a' (base and expert). Give each a name of its own",
        ),
        (["=base"], "has no name before the '='"),
        (["a="], "names no place. Write PLACE or NAME=PLACE"),
        (["nowhere"], "There is no checkpoint nowhere"),
        (
            ["expertt"],
            "There is no checkpoint expertt. Check the path; a model of the hub is named hf:ORG/REPO. "
            "Did you mean 'expert'?",
        ),
        (["other=other.safetensors"], "Model 'other' is not the image encoder that is wanted here: 'class_embedding' "),
        (["nan.safetensors"], "NaN or infinite values in model 'nan': 'conv1.weight'. Such a model answers nothing"),
        (["images"], "holds no weights"),
    ],
)
def test_models_that_cannot_be_measured_are_refused(here: Path, places: list[str], words: str) -> None:
    write(here / "other.safetensors", {"layer.weight": torch.zeros(3, 3)})
    suite = load_suite("tiny.yaml", "cpu")
    bad = {name: one.clone() for name, one in suite.base.items()}
    bad["conv1.weight"].view(-1)[5] = torch.nan
    write(here / "nan.safetensors", bad)
    assert words in told(*places, "--suite", "tiny.yaml")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--tasks", "shade"], "Suite 'tiny' has no task 'shade'. Did you mean 'shades'?"),
        (["--tasks", "sides,sides"], "--tasks names sides more than once. Name each task once."),
        (["-o", "result.txt"], "-o result.txt: a result is written as .json or .csv"),
        (["-o", "result"], "-o result: a result is written as .json or .csv"),
        (["-o", "folder.json"], "folder.json is a folder. Name a file in it"),
        (["-o", "notes.csv"], "notes.csv exists and is no evaluation in that format, so it is left as it is"),
        (["-o", "notes.json"], "notes.json exists and is no evaluation in that format"),
        (["-o", "tiny.yaml/r.json"], "tiny.yaml is a file, so that nothing can be written below it"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    here: Path, words: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "folder.json").mkdir(exist_ok=True)
    (here / "notes.csv").write_text("day,weight\n1,2\n")
    (here / "notes.json").write_text("[1, 2]")
    monkeypatch.setattr(measuring, "evaluated", lambda *_: pytest.fail("too late"))
    assert error in told("base", "--suite", "tiny.yaml", *words)
    assert (here / "notes.csv").read_text() == "day,weight\n1,2\n"


def test_an_unwritable_folder_is_noticed_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise KitError(f"{folder} cannot be written (Permission denied).")

    monkeypatch.setattr(written, "check_writable", refuse)
    monkeypatch.setattr(measuring, "evaluated", lambda *_: pytest.fail("too late"))
    assert "cannot be written (Permission denied)" in told("base", "--suite", "tiny.yaml", "-o", "deep/er/r.json")
    assert not (here / "deep").exists()


def test_a_result_of_before_is_replaced(here: Path) -> None:
    for name in ("twice.json", "twice.csv"):
        for place in ("base", "merged-0.6"):
            assert run(place, "--suite", "tiny.yaml", "-o", name).exit_code == 0
        assert "merged-0.6" in (here / name).read_text()


def test_without_places_or_suite_usage_is_told(here: Path) -> None:
    for words, missing in ((["--suite", "tiny.yaml"], "PLACE"), (["base"], "--suite")):
        result = run(*words)
        assert result.exit_code == 2
        assert "Missing" in result.stderr
        assert missing in result.stderr


def test_a_process_that_died_is_told_with_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(setup: object, work: object, items: list[object], workers: int) -> Iterator[tuple[object, object]]:
        def outcome() -> None:
            raise BrokenProcessPool

        yield items[0], outcome

    monkeypatch.setattr(answers, "side_by_side", died)
    monkeypatch.setenv(VARIABLE, str(here / "another"))
    error = told("merged-0.3", "expert", "--suite", "tiny.yaml")
    assert "ended abruptly while 'merged-0.3' was measured on 'sides', most often because the memory ran out" in error


def test_a_task_without_test_images_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite("tiny.yaml", "cpu")
    monkeypatch.setattr(type(suite), "sizes", {"shades": (12, 12), "sides": (12, 0)})
    with pytest.raises(KitError, match=r"Task 'sides' of suite 'tiny' has no test images\. Name the others: --tasks"):
        measuring.evaluated(suite, [models.Model("base", "base")], ("shades", "sides"))


# ---------------------------------------------------------------------------------------------------- the miniature


def recorded(pool: tuple[str, ...], task: str, method: str, **parameters: float) -> set[float]:
    """Return the accuracy on `task`, and no other, that the book's records of a method have on clean test images."""
    found = set()
    for path in RECORDS.glob("*.json"):
        record = json.loads(path.read_text())
        cell = study.Cell.model_validate(record["cell"])
        plain = cell.split == "test" and not (cell.corruption or cell.broken or cell.images or cell.expert_seed)
        if (cell.method, cell.pool, cell.parameters) == (method, pool, parameters) and plain and task in cell.evaluate:
            found.add(record["accuracy"][task])
    return found


def test_the_miniature_s_accuracies_are_those_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if CACHE:
        monkeypatch.setenv(VARIABLE, CACHE)
    else:
        monkeypatch.delenv(VARIABLE, raising=False)
    suite = load_suite("miniature", "cpu")
    tasks = suite.names("eight")
    if not all(suite.has_expert(task) and suite.has_images(task, "test") for task in tasks):
        pytest.skip("the miniature's experts are not in the cache")
    monkeypatch.setattr(answers, "cache_dir", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr(answers, "cores", lambda: 1)
    experts = {task: suite.experts[task] for task in tasks}
    merged = get("task_arithmetic").function(suite.base, experts, scaling=0.3).weights
    write(tmp_path / "merged.safetensors", merged)
    places = {"merged": str(tmp_path / "merged.safetensors"), "base": "base", "expert": "expert"}
    found = measuring.evaluated(suite, models.opened_models(places, suite), ("digits",))
    methods = {
        "merged": ("task_arithmetic", {"scaling": 0.3}),
        "base": ("pretrained", {}),
        "expert": ("individual", {}),
    }
    for name, (method, parameters) in methods.items():
        cell = study.Cell(method=method, parameters=parameters, pool=tasks, evaluate=("digits",))
        (record,) = study.run(suite, [cell], workers=1, folder=tmp_path)
        assert found.scores[name, "digits"].accuracy == record.accuracy["digits"]
        # The book's are of another machine, on which a last digit may have been rounded otherwise.
        (known,) = recorded(tasks, "digits", method, **parameters)
        assert found.scores[name, "digits"].accuracy == pytest.approx(known, abs=1)
