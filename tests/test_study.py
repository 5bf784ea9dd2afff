"""A study checks first, computes each cell once, loses nothing when interrupted, and words what went wrong."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakes
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mergekit_lite import study
from mergekit_lite.cache import content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged, registry
from mergekit_lite.study import Cell, Record, computing, evaluation, task_data
from mergekit_lite.study.checks import adapted_to
from mergekit_lite.suites.corruptions import corrupted
from mergekit_lite.weights import weights_hash

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

TASKS = ("digits", "signs")


def cell(method: str = "simple_average", curve_every: int = 0, seed: int = 0, **parameters: Any) -> Cell:
    return Cell(method=method, parameters=parameters, pool=TASKS, evaluate=TASKS, curve_every=curve_every, seed=seed)


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


def prepared(suite: Any) -> list[tuple[str, ...]]:
    return suite.prepared


def results(records: Sequence[Record]) -> list[tuple[str, Mapping[str, float]]]:
    return [(record.key, record.accuracy) for record in records]


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_images_whose_class_scores_highest(suite: "Suite") -> None:
    split, head = suite.split("digits", "test"), suite.heads["digits"]
    right = 0
    for image, label in zip(split.images, split.labels, strict=True):
        scores = head @ suite.encode(suite.base, torch.from_numpy(image[None]))[0]
        right += int(scores.argmax() == label)
    expected = 100 * right / 40
    assert evaluation.accuracy(suite, suite.base, "digits") == expected
    assert evaluation.accuracy(suite, suite.base, "digits", batch_size=7) == expected
    assert 0 < expected < 100


def test_a_task_with_weights_of_its_own_is_measured_with_them(suite: "Suite") -> None:
    merged = Merged(dict(suite.base), own={"digits": suite.experts["digits"]})
    expected = {
        "digits": evaluation.accuracy(suite, suite.experts["digits"], "digits"),
        "signs": evaluation.accuracy(suite, suite.base, "signs"),
    }
    assert evaluation.accuracies(suite, merged, TASKS) == expected


def test_accuracy_on_a_part_is_that_of_the_first_images(suite: "Suite") -> None:
    split = suite.split("digits", "test")
    features = suite.encode(suite.base, torch.from_numpy(split.images[:30]))
    answers = (features @ suite.heads["digits"].T).argmax(dim=1).numpy() == split.labels[:30]
    assert evaluation.accuracy(suite, suite.base, "digits", images=30) == pytest.approx(100 * answers.mean())
    assert evaluation.accuracy(suite, suite.base, "digits", images=30, batch_size=7) == pytest.approx(
        100 * answers.mean()
    )
    whole = evaluation.accuracy(suite, suite.base, "digits")
    assert evaluation.accuracy(suite, suite.base, "digits", images=999) == whole


def test_a_cell_can_be_measured_on_held_out_images_under_a_key_of_its_own(suite: "Suite", tmp_path: Path) -> None:
    asked = {"test": cell(), "held-out": cell().model_copy(update={"split": "held-out"})}
    records = study.run(suite, asked, workers=1, folder=tmp_path)
    expected = evaluation.accuracies(suite, Merged(dict(mean_of(suite))), TASKS, which="held-out")
    assert records["held-out"].accuracy == expected != records["test"].accuracy
    assert records["held-out"].key != records["test"].key
    assert records["held-out"].provenance.suite["held-out data"].keys() == set(TASKS)


def mean_of(suite: "Suite") -> Mapping[str, Tensor]:
    return {name: torch.stack([suite.experts[task][name] for task in TASKS]).mean(dim=0) for name in suite.base}


def test_a_curve_on_a_part_of_the_images_says_what_was_seen_until_then(suite: "Suite", tmp_path: Path) -> None:
    asked = cell("layer_wise_adamerging", curve_every=2, steps=4, images_per_task=4).model_copy(
        update={"curve_images": 10}
    )
    (record,) = study.run(suite, [asked], workers=1, folder=tmp_path)
    assert [point.images for point in record.curve] == [0, 16, 32]
    assert record.images == 32
    assert all(value % 10 == 0 for point in record.curve for value in point.accuracy.values())
    assert record.travel == pytest.approx(0.004)
    assert record.converged is None


@pytest.mark.parametrize(("part", "measured"), [(0, 3), (10, 4)])
def test_the_last_point_is_the_answer_where_both_are_measured_on_the_same_images(
    part: int, measured: int, suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere there is nothing to find again, and the weights are spared their way from a GPU to be hashed."""
    asked = cell("layer_wise_adamerging", curve_every=2, steps=4, images_per_task=4).model_copy(
        update={"curve_images": part}
    )
    counts, hashes, accuracies = list[int](), list[str](), evaluation.accuracies

    def counted(*args: Any, **options: Any) -> dict[str, float]:
        counts.append(options["images"])
        return accuracies(*args, **options)

    def hashed(weights: Mapping[str, Tensor]) -> str:
        hashes.append(weights_hash(weights))
        return hashes[-1]

    monkeypatch.setattr(evaluation, "accuracies", counted)
    monkeypatch.setattr(computing, "weights_hash", hashed)
    (record,) = study.run(suite, [asked], workers=1, folder=tmp_path)
    assert counts == [part] * 3 + [0] * (measured - 3)
    assert len(hashes) == (0 if part else 4)
    assert (record.curve[-1].accuracy == record.accuracy) or part


def pixels(examples: Any) -> Any:
    return (examples if isinstance(examples, torch.Tensor) else examples[0]).numpy()


def batches(suite: "Suite", tasks: Sequence[str], seed: int = 0, steps: int = 6) -> list[dict[str, Any]]:
    data = task_data.shown(suite, tasks, Access.UNLABELLED)
    drawn = data.batches(images_per_task=15, steps=steps, seed=seed)
    return [{task: pixels(examples) for task, examples in batch.items()} for batch in drawn]


def test_unlabelled_images_come_in_shuffled_epochs(suite: "Suite") -> None:
    drawn = np.concatenate([batch["digits"] for batch in batches(suite, TASKS, steps=8)])  # three epochs of 40
    images = suite.split("digits", "test").images
    for start in (0, 40, 80):
        epoch = drawn[start : start + 40]
        assert sorted(image.tobytes() for image in epoch) == sorted(image.tobytes() for image in images)
        assert not np.array_equal(epoch, images)
    assert not np.array_equal(drawn[:40], drawn[40:80])


def test_unlabelled_images_depend_on_seed_and_task_alone(suite: "Suite") -> None:
    first, again, other = batches(suite, TASKS), batches(suite, ("digits",)), batches(suite, TASKS, seed=1)
    assert all(np.array_equal(one["digits"], two["digits"]) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0]["digits"], other[0]["digits"])


def test_labelled_images_come_from_the_training_split_with_their_labels(suite: "Suite") -> None:
    data = task_data.shown(suite, ("digits",), Access.LABELLED)
    (batch,) = data.batches(images_per_task=40, steps=1, seed=0)
    images, labels = batch["digits"]
    split = suite.split("digits", "train")
    known = {image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)}
    assert [known[image.numpy().tobytes()] for image in images] == labels.tolist()
    assert len({image.numpy().tobytes() for image in images}) == 40


def asked(suite: "Suite", **given: Any) -> list[list[bytes]]:
    data = task_data.shown(suite, ("digits",), Access.UNLABELLED)
    drawn = data.batches(**{"images_per_task": 15, "steps": 6, "seed": 3, **given})
    return [[image.tobytes() for image in pixels(batch["digits"])] for batch in drawn]


def test_of_some_kept_images_only_those_are_seen_again_and_again(suite: "Suite") -> None:
    drawn = asked(suite, images_per_task=5, steps=4, keep=10)
    assert drawn[:2] == drawn[2:]
    assert len({image for batch in drawn for image in batch}) == 10
    assert asked(suite, images_per_task=5, steps=1) == drawn[:1]


def test_of_a_kept_share_only_that_part_of_the_images_is_seen(suite: "Suite") -> None:
    few, many = asked(suite, keep=0.1), asked(suite, keep=0.5)  # of 40 images
    assert [len(set(batch)) for batch in few] == [len(batch) for batch in few] == [4] * 6  # none twice in a batch
    assert len({image for batch in few for image in batch}) == 4
    assert [len(batch) for batch in many] == [15] * 6
    assert len({image for batch in many for image in batch}) == 20
    assert {image for batch in few for image in batch} < {image for batch in many for image in batch}
    assert [len(batch) for batch in asked(suite, keep=0.001)] == [1] * 6  # never none
    assert asked(suite, keep=1.0, steps=2)[0][:4] == few[0]


def test_a_number_and_a_share_keep_the_same_images_and_one_is_not_all(suite: "Suite") -> None:
    assert asked(suite, keep=4) == asked(suite, keep=0.1)
    assert asked(suite, keep=1.0) == asked(suite)
    assert len({image for batch in asked(suite, keep=1) for image in batch}) == 1


@pytest.mark.parametrize(("keep", "count"), [(7, 7), (0.25, 10), (None, 40), (1.0, 40), (100, 40)])
def test_a_batch_larger_than_what_is_kept_holds_all_of_it_once(suite: "Suite", keep: Any, count: int) -> None:
    drawn = asked(suite, images_per_task=60, steps=3, keep=keep)
    assert [len(batch) for batch in drawn] == [count] * 3
    assert [len(set(batch)) for batch in drawn] == [count] * 3


def test_what_was_handed_out_is_counted_and_nothing_that_was_not(suite: "Suite") -> None:
    for access, labels in ((Access.LABELLED, 24), (Access.UNLABELLED, 0), (Access.CALIBRATION, 0)):
        data = task_data.shown(suite, TASKS, access)
        drawn = data.batches(images_per_task=4, steps=10, seed=0, keep=8)
        assert (data.images, data.labels) == (0, 0)
        for _ in range(3):
            next(iter(drawn))
        assert (data.images, data.labels) == (24, labels)  # of two tasks


@pytest.mark.parametrize("access", [Access.UNLABELLED, Access.CALIBRATION])
def test_labels_are_for_labelled_access_only(suite: "Suite", access: Access) -> None:
    (batch,) = task_data.shown(suite, TASKS, access).batches(images_per_task=4, steps=1, seed=0)
    assert all(isinstance(examples, torch.Tensor) for examples in batch.values())


def test_a_method_without_data_access_gets_no_images(suite: "Suite") -> None:
    with pytest.raises(KitError, match=r"data access 'none' asked for images\."):
        next(task_data.shown(suite, TASKS, Access.NONE).batches(images_per_task=4, steps=1, seed=0))


def test_no_attribute_of_the_data_leads_to_the_suite(suite: "Suite") -> None:
    data = task_data.shown(suite, TASKS, Access.UNLABELLED)
    public = {name for name in dir(data) if not name.startswith("_")}
    assert public == {"heads", "encode", "inputs", "batches", "images", "labels"}
    held = [*vars(data).values(), *vars(type(data)).values()]
    assert not any(isinstance(one, type(suite)) or getattr(one, "__self__", None) is suite for one in held)
    data.heads["digits"].zero_()  # a copy
    assert suite.heads["digits"].any()


@pytest.mark.parametrize(
    ("pool", "evaluate", "adapt", "expected"),
    [
        (("digits", "signs"), ("digits", "signs"), (), ("digits", "signs")),
        (("digits", "signs"), ("signs", "scenes"), (), ("signs",)),  # irrelevant experts, and unseen tasks
        (("digits",), ("signs",), (), ("digits",)),
        (("digits", "signs"), ("digits", "signs"), ("scenes",), ("scenes",)),
    ],
)
def test_a_method_adapts_to_the_tasks_of_pool_and_evaluation_both_unless_told(
    pool: tuple[str, ...], evaluate: tuple[str, ...], adapt: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    one = Cell(method="layer_wise_adamerging", pool=pool, evaluate=evaluate, adapt=adapt)
    assert adapted_to(one, {"objective": "entropy"}) == expected


def test_the_objective_decides_which_data_access_a_record_states(suite: "Suite", tmp_path: Path) -> None:
    cells = [
        cell("task_wise_adamerging", steps=1, images_per_task=2, objective=objective)
        for objective in ("entropy", "cross-entropy")
    ]
    records = study.run(suite, cells, folder=tmp_path)
    assert [record.access for record in records] == ["unlabelled test", "labelled train"]
    assert records[0].cell.adapt == TASKS
    assert records[0].trace["loss"] != records[1].trace["loss"]


# --- checks before any work -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"method": "simple_averag"}, "simple_average"),
        ({"parameters": {"scalling": 0.3}}, "scaling"),
        ({"parameters": {"scaling": "0.3"}}, "float"),
        ({"pool": ("digits", "sings")}, "There is no task 'sings'. Tasks: digits, signs, scenes."),
        ({"evaluate": ("birds",)}, "There is no task 'birds'"),
        ({"evaluate": ()}, "`evaluate` names no task. Name one or more of: digits, signs, scenes."),
        ({"pool": ("digits", "digits")}, "`pool` names digits more than once"),
        ({"curve_every": 5}, "this method takes no steps"),
        ({"adapt": ("digits",)}, "`adapt` names tasks, but this method looks at no data"),
        ({"seed": -1}, "A seed must be a whole number from 0 to 4294967295, not -1."),
        ({"expert_seed": 2**32}, "A seed must be a whole number from 0 to 4294967295, not 4294967296."),
        ({"parameters": {"scaling": 10**5000}}, "cannot be a number of 16610 bits (int)"),
        ({"method": "hard_frank_wolfe", "parameters": {"start": "nope"}}, "There is no method 'nope'."),
        (
            {"method": "soft_frank_wolfe", "parameters": {"start": "regmean"}},
            "The start 'regmean' needs data of the kind 'calibration inputs', but with the objective 'cross-entropy' ",
        ),
    ],
)
def test_one_bad_cell_stops_everything_before_any_work(
    suite: "Suite", tmp_path: Path, bad: dict[str, Any], words: str
) -> None:
    good: dict[str, Any] = {"method": "task_arithmetic", "pool": TASKS, "evaluate": TASKS}
    with pytest.raises(KitError, match=re.escape(words)):
        study.run(suite, [Cell(**good), Cell(**good | bad)], workers=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert not prepared(suite)


def test_a_cell_takes_no_unknown_field() -> None:
    with pytest.raises(ValidationError, match="sed"):
        Cell(method="simple_average", pool=TASKS, evaluate=TASKS, sed=1)  # type: ignore[call-arg]


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_come_in_the_order_of_the_cells_and_say_what_was_measured(
    suite: "Suite", cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell(), cell("layer_wise_adamerging", steps=2, images_per_task=4), cell("individual")]
    records = study.run(suite, [*cells, cells[0]], workers=1)
    assert [record.cell.method for record in records] == [
        "simple_average", "layer_wise_adamerging", "individual", "simple_average",
    ]  # fmt: skip
    for record in records:
        info = registry.get(record.cell.method)
        assert (record.title, record.access, record.cite) == (info.title, str(info.access), info.cite)
        assert record.average == pytest.approx(sum(record.accuracy.values()) / 2)
        assert set(record.seconds) == {"merge", "evaluate"}
        assert record.peak_memory_mib > 10
        assert record.key == study.cell_key(suite, record.cell)
        assert json.loads((cache / "records" / "fake" / f"{record.key}.json").read_text())["key"] == record.key
    expected = {task: evaluation.accuracy(suite, suite.experts[task], task) for task in TASKS}
    assert records[2].accuracy == expected
    assert records[1].cell.parameters["learning_rate"] == 1e-3  # defaults are written out
    assert records[1].trace
    provenance = records[0].provenance
    assert (provenance.torch, provenance.device, provenance.dtype) == (torch.__version__, "cpu", "float32")
    assert set(provenance.suite["experts"]) == set(TASKS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [  # long cells first, the doubled cell once
        "[1/3] layer_wise_adamerging(steps=2, images_per_task=4)", "[2/3] simple_average", "[3/3] individual",
    ]  # fmt: skip
    assert f"{records[0].average:.1f} % in " in lines[1]


def test_a_recorded_cell_is_not_computed_again(
    suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(tmp_path / "log")
    first = study.run(suite, [cell("slow_average", log=log)], workers=1, folder=tmp_path / "records")
    capsys.readouterr()
    again = study.run(suite, [cell("slow_average", log=log)], workers=1, folder=tmp_path / "records")
    assert again == first
    assert len(Path(log).read_text().splitlines()) == 1
    assert prepared(suite) == [TASKS]  # nothing was prepared the second time
    assert capsys.readouterr().out == ""


def test_a_key_changes_with_everything_that_is_asked(suite: "Suite") -> None:
    one = cell("layer_wise_adamerging", steps=2)
    variants = [
        cell("task_wise_adamerging", steps=2), cell("layer_wise_adamerging", steps=3),
        cell("layer_wise_adamerging", steps=2, seed=1), cell("layer_wise_adamerging", steps=2, curve_every=1),
        one.model_copy(update={"pool": TASKS[::-1]}), one.model_copy(update={"evaluate": ("digits",)}),
    ]  # fmt: skip
    keys = [study.cell_key(suite, variant) for variant in [one, *variants]]
    keys.append(study.cell_key(fakes.fake_suite(seed=1), one))
    assert len(set(keys)) == len(keys)
    assert study.cell_key(suite, cell("layer_wise_adamerging", steps=2, learning_rate=1e-3)) == keys[0]


@pytest.mark.parametrize(
    ("method", "looks"),
    [("soft_frank_wolfe", True), ("regmean", True), ("layer_wise_adamerging", False), ("simple_average", False)],
)
def test_a_key_changes_with_the_training_images_only_if_the_method_looks_at_them(
    suite: "Suite", method: str, looks: bool
) -> None:
    before = study.cell_key(suite, cell(method))
    suite.training_images = 20  # type: ignore[attr-defined]
    assert (study.cell_key(suite, cell(method)) != before) is looks


def written(text: str, **changes: Any) -> str:
    """Return a record's file with changes that its digest knows of."""
    content = {**json.loads(text), **changes}
    del content["digest"]
    return json.dumps({**content, "digest": content_hash(json.dumps(content, sort_keys=True))})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "invalid JSON: EOF while parsing"),
        (lambda text: "", "invalid JSON: EOF while parsing"),
        (lambda text: "[" * 5000, "invalid JSON: recursion limit"),
        (lambda text: '{"seed": ' + "9" * 5000 + "}", "invalid JSON: number out of range"),
        (lambda text: '{"hello": 1}', "it is not as it was written"),
        (lambda text: re.sub(r'"digits": (?=\d)', '"digits": 1', text), "it is not as it was written"),
        (lambda text: re.sub(r'"merge": ', '"merge": 1', text), "it is not as it was written"),
        (lambda text: re.sub(r',\n "digest": ".*"', "", text), "it is not as it was written"),
        (lambda text: written(text, key="0" * 16), "it says it is 0000"),
        (lambda text: written(text, accuracy={"digits": 1000}), "less than or equal to 100"),
        (lambda text: written(text, accuracy=None), "accuracy: Input should be a valid dictionary"),
        (lambda text: written(text, cell=cell("task_arithmetic").model_dump()), "it answers task_arithmetic"),
    ],
)
def test_a_damaged_record_is_computed_again_and_said_so(
    suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, words: str
) -> None:
    (first,) = study.run(suite, [cell()], workers=1, folder=tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(damage(path.read_text()))
    (again,) = study.run(suite, [cell()], workers=1, folder=tmp_path)
    assert again.accuracy == first.accuracy
    said = capsys.readouterr().out
    assert f"The record {path.name} of simple_average is damaged" in said
    assert words in said
    assert "it is computed again." in said
    capsys.readouterr()
    assert study.run(suite, [cell()], workers=1, folder=tmp_path) == [again]
    assert capsys.readouterr().out == ""


def test_a_curve_is_measured_every_so_many_steps_and_not_billed_to_the_merge(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = 0
    real = evaluation.accuracies

    def slow(*args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal measured
        measured += 1
        time.sleep(0.2)
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluation, "accuracies", slow)
    adapt = cell("layer_wise_adamerging", curve_every=2, steps=4, images_per_task=4, learning_rate=0.1)
    (record,) = study.run(suite, [adapt], workers=1, folder=tmp_path)
    assert [point.step for point in record.curve] == [0, 2, 4]
    assert record.curve[-1].accuracy == record.accuracy
    assert measured == 3  # the last point is the final answer: measured once
    assert record.seconds["merge"] < 0.2
    assert record.seconds["evaluate"] > 0.6
    (start,) = study.run(suite, [cell("task_arithmetic", scaling=0.3)], workers=1, folder=tmp_path)
    assert record.curve[0].accuracy == start.accuracy


def test_a_trace_survives_the_file_even_with_a_value_that_is_no_number(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.get("slow_average")

    def traced(base: Any, experts: Any, **parameters: Any) -> Merged:
        return Merged(dict(base), trace={"loss": [1.5, math.nan], "shape": (2, 3)})

    changed = registry.MethodInfo(**{**vars(real), "function": traced})
    traced.__module__ = "fakes"
    monkeypatch.setattr(registry, "get", lambda name: changed)
    (first,) = study.run(suite, [cell("slow_average")], workers=1, folder=tmp_path)
    (again,) = study.run(suite, [cell("slow_average")], workers=1, folder=tmp_path)
    for record in (first, again):
        assert record.trace["loss"][0] == 1.5
        assert math.isnan(record.trace["loss"][1])
        assert record.trace["shape"] == [2, 3]


def test_a_seed_reaches_the_method(suite: "Suite", tmp_path: Path) -> None:
    adapt: dict[str, Any] = {"method": "layer_wise_adamerging", "steps": 3, "images_per_task": 4, "learning_rate": 0.1}
    records = study.run(suite, [cell(**adapt, seed=seed) for seed in (0, 1)], workers=1, folder=tmp_path)
    assert records[0].trace["loss"] != records[1].trace["loss"]


# --- corruptions ------------------------------------------------------------------------------------------------------


def under(corruption: str, method: str = "simple_average", **parameters: Any) -> Cell:
    return cell(method, **parameters).model_copy(update={"corruption": corruption})


def test_a_cell_is_measured_on_corrupted_test_images(suite: "Suite", tmp_path: Path, cache: Path) -> None:
    clean, noisy = study.run(suite, [cell(), under("motion_blur")], workers=1, folder=tmp_path)
    assert clean.key != noisy.key
    differing = {name for name, one in noisy.provenance.suite.items() if clean.provenance.suite.get(name) != one}
    assert differing == {"data", "corruption"}
    assert noisy.provenance.suite["corruption"]["name"] == "motion_blur"
    weights = registry.get("simple_average").function(suite.base, {task: suite.experts[task] for task in TASKS}).weights
    expected = {task: evaluation.accuracy(corrupted(suite, "motion_blur"), weights, task) for task in TASKS}
    assert noisy.accuracy == expected != clean.accuracy
    assert study.run(suite, [under("motion_blur")], workers=1, folder=tmp_path) == [noisy]


def test_a_method_adapts_to_the_corrupted_images_too(
    suite: "Suite", tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []
    real = task_data.shown

    def watched(looked_at: Any, tasks: Any, access: Any) -> Any:
        shown.append(looked_at.split("digits", "test").images)
        return real(looked_at, tasks, access)

    monkeypatch.setattr(task_data, "shown", watched)
    adapt: dict[str, Any] = {"steps": 2, "images_per_task": 4, "learning_rate": 0.1}
    study.run(suite, [under("pixelate", "layer_wise_adamerging", **adapt)], workers=1, folder=tmp_path)
    assert np.array_equal(shown[0], corrupted(suite, "pixelate").split("digits", "test").images)


def test_corruptions_reach_worker_processes_and_the_lines_that_are_said(
    suite: "Suite", tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [under("contrast"), under("jpeg_compression"), cell()]
    together = study.run(suite, cells, workers=2, folder=tmp_path / "together")
    said = capsys.readouterr().out
    assert "simple_average under contrast: " in said
    assert "simple_average: " in said
    assert results(together) == results(study.run(suite, cells, workers=1, folder=tmp_path / "alone"))


def test_an_unknown_corruption_is_said_before_anything_is_computed(suite: "Suite", tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"There is no corruption 'fog'\. Corruptions: motion_blur, impulse_noise, "):
        study.run(suite, [cell(), under("fog")], workers=1, folder=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_key_can_be_formed_again_from_what_the_record_says(suite: "Suite", tmp_path: Path) -> None:
    (record,) = study.run(suite, [cell()], workers=1, folder=tmp_path)
    stored = json.loads(next(tmp_path.glob("*.json")).read_text())
    question, provenance = stored["cell"], stored["provenance"]
    assert question.pop("corruption") == ""  # what is not used is left out
    assert question.pop("broken") == {}
    assert (question.pop("split"), question.pop("images"), question.pop("curve_images")) == ("test", 0, 0)
    environment = {name: provenance[name].partition("+")[0] for name in ("torch", "open_clip", "device", "dtype")}
    parts = {"cell": question, "access": stored["access"], "suite": provenance["suite"], "code": provenance["code"]}
    assert content_hash({**parts, "environment": environment}) == record.key


# --- the shape of the answer ------------------------------------------------------------------------------------------


def test_records_come_back_under_the_names_of_their_cells(suite: "Suite", tmp_path: Path) -> None:
    cells: dict[Any, Cell] = {"plain": cell(), ("scaled", 0.5): cell("task_arithmetic", scaling=0.5), "again": cell()}
    records = study.run(suite, cells, workers=1, folder=tmp_path)
    assert list(records) == list(cells)
    assert records["plain"] == records["again"]
    assert records[("scaled", 0.5)].cell.parameters["scaling"] == 0.5


def test_a_new_title_of_a_method_is_shown_without_computing_anew(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = study.run(suite, [cell()], workers=1, folder=tmp_path)
    renamed = dataclasses.replace(registry.get("simple_average"), title="The mean")
    monkeypatch.setitem(registry._METHODS, "simple_average", renamed)
    (after,) = study.run(suite, [cell()], workers=1, folder=tmp_path)
    assert (after.title, after.key) == ("The mean", before.key)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_a_record_counts_what_the_method_was_shown(suite: "Suite", tmp_path: Path) -> None:
    adapt: dict[str, Any] = {"steps": 3, "images_per_task": 4}
    cells = {
        "blind": cell(),
        "unlabelled": cell("layer_wise_adamerging", **adapt),
        "labelled": cell("layer_wise_adamerging", **adapt, objective="cross-entropy"),
    }
    records = study.run(suite, cells, workers=1, folder=tmp_path)
    assert {name: (one.images, one.labels) for name, one in records.items()} == {
        "blind": (0, 0), "unlabelled": (24, 0), "labelled": (24, 24),
    }  # fmt: skip


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_named_and_costs_the_others_nothing(
    suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell(), cell("slow_average", fail="raise"), cell("task_arithmetic")]
    with pytest.raises(KitError) as caught:
        study.run(suite, cells, workers=1, folder=tmp_path)
    assert str(caught.value) == (
        "1 of 3 cells failed; the other 2 are recorded and will not be computed again.\n"
        "slow_average(fail='raise'), merging digits, signs: ZeroDivisionError: nothing to divide by"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert "slow_average(fail='raise'): failed" in capsys.readouterr().out
    assert len(study.run(suite, [cells[0], cells[2]], workers=1, folder=tmp_path)) == 2


def test_experts_of_each_seed_are_prepared_and_merged_apart(suite: "Suite", tmp_path: Path) -> None:
    cells = [cell().model_copy(update={"expert_seed": seed}) for seed in (0, 2, 2)]
    first, second, again = study.run(suite, cells, workers=1, folder=tmp_path)
    assert second == again
    assert first.key != second.key
    assert first.provenance.suite["experts"] != second.provenance.suite["experts"]
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert prepared(suite) == [TASKS] * 2


def test_workers_give_the_same_as_one_process_and_a_dying_one_is_worded(suite: "Suite", tmp_path: Path) -> None:
    log = tmp_path / "log"
    good = [
        cell(),
        cell("layer_wise_adamerging", steps=2, images_per_task=4, curve_every=1),
        cell("slow_average", log=str(log)),
    ]
    # The dying one takes its neighbours along, so it waits until they are recorded, and a little for the failing one.
    folder = tmp_path / "together"
    bad = [cell("slow_average", fail="raise"), cell("slow_average", seconds=2.0, fail="exit", after=str(folder))]
    with pytest.raises(KitError) as caught:
        study.run(suite, [*good, *bad], workers=2, folder=folder)
    first, *others = str(caught.value).splitlines()
    assert first == "2 of 5 cells failed; the other 3 are recorded and will not be computed again."
    assert others[0] == "slow_average(fail='raise'), merging digits, signs: ZeroDivisionError: nothing to divide by"
    assert others[1].startswith("slow_average(seconds=2.0, fail='exit', after=")
    assert "a worker process ended abruptly." in others[1]
    assert "pass workers=1" in others[1]
    assert str(os.getpid()) not in log.read_text()

    together = study.run(suite, good, workers=1, folder=folder)
    alone = study.run(suite, good[:2], workers=1, folder=tmp_path / "alone")
    assert len(log.read_text().splitlines()) == 1
    assert results(together[:2]) == results(alone)
    assert together[1].trace == alone[1].trace
    assert together[1].curve == alone[1].curve


SCRIPT = """
import sys, fakes
from pathlib import Path
from mergekit_lite import study
from mergekit_lite.study import Cell

if __name__ == "__main__":
    folder, log, workers, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    parameters = {"log": log, "seconds": 0.3}
    cells = [
        Cell(method="slow_average", parameters=parameters, pool=("digits",), evaluate=("signs",), seed=seed)
        for seed in range(count)
    ]
    study.run(fakes.fake_suite(), cells, workers=workers, folder=folder)
"""


def start(script: Path, folder: Path, log: Path, workers: int, count: int) -> subprocess.Popen[str]:
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(folder), str(log), str(workers), str(count)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Any, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for left-over processes in /proc")
def test_a_killed_run_leaves_no_process_and_the_next_one_continues(suite: "Suite", tmp_path: Path) -> None:
    folder, log = tmp_path / "records", tmp_path / "log"
    killed = start(tmp_path / "script.py", folder, log, workers=2, count=40)

    def workers() -> set[int]:
        return {int(line.split()[0]) for line in log.read_text().splitlines()} if log.exists() else set()

    # on a busy machine the second may begin when the first has made more than three
    wait_for(lambda: len(list(folder.glob("*.json"))) >= 3 and len(workers()) == 2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    pids = workers()
    assert len(pids) == 2
    wait_for(lambda: not any(running(pid) for pid in pids))
    before = {path.name: path.read_text() for path in folder.glob("*.json")}
    assert 3 <= len(before) < 40

    parameters = {"log": str(log), "seconds": 0.3}
    cells = [
        Cell(method="slow_average", parameters=parameters, pool=("digits",), evaluate=("signs",), seed=seed)
        for seed in range(40)
    ]
    kept = {study.cell_key(suite, one): one for one in cells}
    unfinished = [one for key, one in kept.items() if f"{key}.json" not in before][:1]
    finished = [one for key, one in kept.items() if f"{key}.json" in before]
    records = study.run(suite, finished + unfinished, workers=1, folder=folder)
    assert {record.accuracy["signs"] for record in records} == {records[0].accuracy["signs"]}
    assert {name: (folder / name).read_text() for name in before} == before  # none was computed again


def test_two_runs_at_once_compute_each_record_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "records", tmp_path / "log"
    runs = [start(tmp_path / f"script{number}.py", folder, log, workers=1, count=6) for number in range(2)]
    said = [process.communicate(timeout=60)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], said
    lines = log.read_text().splitlines()
    assert len(lines) == 6
    assert len(list(folder.glob("*.json"))) == 6
    assert len({line.split()[0] for line in lines}) >= 1
