"""A data set that changed on the hub: what is counted are its images, not those of a paper, also in an interval."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
from loopback_data import CONFIG, connect, put_data, put_models
from loopback_hub import LoopbackHub, loopback_hub

from mergekit_lite import study
from mergekit_lite.analysis.uncertainty import image_spread
from mergekit_lite.analysis.verdicts import difference
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.clip import check
from mergekit_lite.suites.clip.benchmark import MODELS

pytest.importorskip("datasets")
SUITE, TASKS = "clip-vit-b-32", ("mnist", "eurosat")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub whose splits have two test images of each class: 20 of either task, where thousands are published."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODELS[SUITE].architecture, CONFIG)
    monkeypatch.setenv(check.VARIABLE, "1")
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        put_data(served, *TASKS)
        put_models(served, *TASKS)
        yield served


def counts() -> dict[str, int]:
    """Return what every notebook asks for first."""
    return {task: load_suite(SUITE, "cpu").sizes[task][1] for task in TASKS}


@pytest.mark.usefixtures("hub")
def test_intervals_are_of_the_images_that_are_there() -> None:
    suite = load_suite(SUITE, "cpu")
    assert counts() == {"mnist": 10000, "eurosat": 2700}
    cells = [Cell(method=name, pool=TASKS, evaluate=TASKS) for name in ("pretrained", "simple_average")]
    one, other = study.run(suite, cells, workers=1)  # nobody asked this suite before
    sizes = counts()
    assert sizes == {task: suite.sizes[task][1] for task in TASKS} == {"mnist": 20, "eurosat": 20}
    for share in one.accuracy.values():
        assert share / 100 * 20 == pytest.approx(round(share / 100 * 20))
    drawn = image_spread(one, sizes, draws=200)
    assert np.allclose(drawn * 0.4, np.round(drawn * 0.4))  # means of two accuracies of 20 images: steps of 2.5 points
    few, many = (difference("", [one], [other], counted) for counted in (sizes, dict.fromkeys(TASKS, 10000)))
    assert few.high - few.low > 10 * (many.high - many.low) > 0


@pytest.mark.usefixtures("hub")
def test_whoever_counted_too_early_is_told_and_may_run_it_again() -> None:
    suite = load_suite(SUITE, "cpu")
    cell = Cell(method="pretrained", pool=TASKS, evaluate=("mnist",))
    assert suite.sizes["mnist"][1] == 10000
    with pytest.raises(KitError, match=r"Task 'mnist' has 20 test images, not 10000 as published, .* Run the same aga"):
        study.run(suite, [cell], workers=1)
    assert suite.sizes["mnist"][1] == 20
    assert list(study.run(suite, [cell], workers=1)[0].accuracy) == ["mnist"]
