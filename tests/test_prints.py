"""Measured beside printed: of two prints of the same weights the nearer one counts."""

import math
from pathlib import Path

import fakes
import pytest

from mergekit_lite import study
from mergekit_lite.analysis.prints import beside_prints
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline.runner import notebook_parameters
from mergekit_lite.study import Cell, Record
from mergekit_lite.suites.clip.check import LIMITS

ROOT = Path(__file__).parents[1]


def record(tmp_path: Path, method: str, **accuracy: float) -> Record:
    cell = Cell(method="simple_average", pool=("digits",), evaluate=("digits",))
    (made,) = study.run(fakes.fake_suite(), [cell], workers=1, folder=tmp_path)
    changed = {"cell": made.cell.model_copy(update={"method": method}), "accuracy": accuracy}
    return made.model_copy(update=changed)


def test_the_nearer_of_two_prints_counts(tmp_path: Path) -> None:
    names = {"a": "EuroSAT", "b": "MNIST", "c": "Fashion-MNIST", "d": "nothing of the kind"}
    frame = beside_prints(record(tmp_path, "pretrained", a=45.9, b=48.26, c=60.0, d=1.0), names)
    rows = frame.to_dict("index")
    assert rows["a"] == {"measured": 45.9, "published": 46.0, "prints": "45.0 and 46.0", "difference": -0.1}
    assert (rows["b"]["published"], rows["b"]["difference"]) == (48.26, 0.0)
    assert rows["c"]["difference"] == pytest.approx(60 - float(rows["c"]["prints"]), abs=0.006)  # printed once
    assert rows["d"]["prints"] == ""
    assert math.isnan(rows["d"]["published"])
    assert math.isnan(rows["d"]["difference"])
    assert frame.attrs["label"] == "FusionBench, ViT-B/32 (FB)"


def test_experts_and_other_models_have_their_own(tmp_path: Path) -> None:
    experts = record(tmp_path, "individual", digits=99.7)
    assert beside_prints(experts, {"digits": "MNIST"}, "ViT-B-16").loc["digits", "published"] == 99.7
    with pytest.raises(KitError, match="Nothing published for paper 'FusionBench', model 'ViT-B'"):
        beside_prints(experts, {"digits": "MNIST"}, "ViT-B")


def test_the_pilot_allows_what_the_check_does_not_warn_of() -> None:
    known = notebook_parameters(ROOT / "notebooks" / "pilot.ipynb")
    assert known["expert_tolerance"].default == LIMITS["expert"].warn
    assert known["base_tolerance"].default == LIMITS["base"].warn
