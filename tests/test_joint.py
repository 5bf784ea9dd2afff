"""FusionBench's multi-task checkpoint as a reference row: one model for eight tasks, checked and labelled as theirs."""

import pickle
from pathlib import Path

import pytest
import torch
from tiny_clip import TASKS, TINY

from mergekit_lite import study
from mergekit_lite.analysis.accuracy import accuracy_frame, joint
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell
from mergekit_lite.suites.clip import ClipSuite, JointSuite, check, hub, load
from mergekit_lite.suites.clip.benchmark import MODELS, hub_tasks
from mergekit_lite.suites.clip.joint import FAMILY, REPOSITORIES
from mergekit_lite.suites.scoring import accuracy

EIGHT = tuple(hub_tasks())[:8]


@pytest.fixture
def theirs(suite: ClipSuite, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> JointSuite:
    """The suite, whose one checkpoint is the expert of mnist."""
    monkeypatch.setitem(files, REPOSITORIES["b32"], files[hub_tasks()["mnist"].experts["b32"]])
    return JointSuite(TINY, FAMILY, torch.device("cpu"))


def promise(patch: pytest.MonkeyPatch, suite: ClipSuite, off: float = 0.0) -> None:
    reached = {
        "Pre-trained": {task: accuracy(suite, suite.base, task) for task in EIGHT},
        "Traditional MTL": {task: accuracy(suite, suite.experts[task], task) + off for task in EIGHT},
    }
    patch.setattr(
        check, "prints", lambda model, row: {task: {"eight tasks": f"{one:.1f}"} for task, one in reached[row].items()}
    )


def test_the_row_is_what_one_model_reaches_and_says_whose_it_is(
    suite: ClipSuite, theirs: JointSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    promise(monkeypatch, theirs)
    cell = Cell(method="individual", pool=EIGHT, evaluate=EIGHT)
    (record,) = study.run(theirs, [cell], workers=1, folder=tmp_path / "records")
    assert record.suite == "clip-tiny@FB-multi-task"
    assert record.accuracy == {task: accuracy(suite, suite.experts["mnist"], task) for task in EIGHT}
    assert record.provenance.sources["dtd"].startswith("tanganke/clip-vit-base-patch32_TA8_mtl@")
    row = joint(record)
    assert row.accuracy == record.accuracy
    frame = accuracy_frame([row])
    assert frame.index.tolist() == ["multi_task_training"]
    assert frame["method"].tolist() == ["Multi-task training (FusionBench's checkpoint)"]
    assert row.access == "labelled train, by FusionBench"
    again = pickle.loads(pickle.dumps(theirs.loader))()
    assert (type(again), again.name, study.cell_key(again, cell)) == (JointSuite, theirs.name, record.key)
    with pytest.raises(KitError, match="is not that of a multi-task checkpoint"):
        joint(record.model_copy(update={"suite": "clip-tiny"}))


def test_another_set_of_tasks_is_refused(theirs: JointSuite) -> None:
    with pytest.raises(
        KitError, match=r"tuned on eight tasks, and is no reference for a pool without sun397, .* Take all"
    ):
        theirs.prepare(TASKS, 1)
    assert theirs.names("eight") == EIGHT
    with pytest.raises(KitError, match="has 8 tasks, too few for the set 'twenty'"):
        theirs.names("twenty")
    with pytest.raises(KitError, match="has no task 'kmnist'"):
        theirs.names(["kmnist"])


def test_the_checkpoint_is_checked_against_its_own_row(theirs: JointSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    promise(monkeypatch, theirs, off=2.0)
    with pytest.raises(KitError, match=r"8 of 8 experts of CLIP tiny \(Fus.* are more than 1.5 points away.*") as told:
        theirs.prepare(EIGHT, 1)
    assert "(tanganke/clip-vit-base-patch32_TA8_mtl on tanganke/dtd, split test)" in str(told.value)


def test_a_model_without_such_a_checkpoint_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "downloaded", lambda *file: pytest.fail(f"{file} was fetched"))
    words = r"no multi-task checkpoint of CLIP ViT-B/16, only of CLIP ViT-B/32 and CLIP ViT-L/14\. Train one"
    with pytest.raises(KitError, match=words):
        load(f"clip-vit-b-16@{FAMILY}", torch.device("cpu"))
    assert {model.key for model in MODELS.values()} - set(REPOSITORIES) == {"b16"}
