"""Broken experts: as long as what they replace, the same each time, and of no use to anybody."""

from typing import TYPE_CHECKING, Any

import fakes
import pytest
import torch
from conftest import Pico

from mergekit_lite import study
from mergekit_lite.errors import KitError
from mergekit_lite.study.records import Cell
from mergekit_lite.suites import broken
from mergekit_lite.suites.broken import Broken

if TYPE_CHECKING:
    from pathlib import Path

TASKS = ("digits", "signs", "scenes")


def cell(**given: Any) -> Cell:
    return Cell(**{"method": "task_arithmetic", "pool": TASKS, "evaluate": TASKS} | given)


@pytest.mark.parametrize("how", ["noise", "shuffled"])
def test_a_broken_expert_is_as_long_as_the_sound_one_and_another(pico: Pico, how: Any) -> None:
    expert = pico.experts["digits"]
    broken = Broken(pico.base, expert, how, "digits")
    assert list(broken) == list(pico.base)
    for name, start in pico.base.items():
        sound, changed = expert[name] - start, broken[name] - start
        torch.testing.assert_close(changed.norm(), sound.norm())
        assert not torch.allclose(changed, sound)
        assert broken[name].dtype == start.dtype


def test_shuffling_keeps_every_entry(pico: Pico) -> None:
    broken = Broken(pico.base, pico.experts["digits"], "shuffled", "digits")
    for name, start in pico.base.items():
        ours, theirs = (one[name] - start for one in (broken, pico.experts["digits"]))
        torch.testing.assert_close(ours.flatten().sort().values, theirs.flatten().sort().values)


def test_an_expert_that_is_the_base_stays_the_base(pico: Pico) -> None:
    for how in ("noise", "shuffled"):
        broken = Broken(pico.base, pico.base, how, "digits")
        torch.testing.assert_close(dict(broken), pico.base)


def test_the_draw_depends_on_tensor_task_and_seed_alone(pico: Pico) -> None:
    def entries(task: str, seed: int, name: str = "proj") -> list[float]:
        return Broken(pico.base, pico.experts["digits"], "noise", task, seed)[name].flatten().tolist()

    assert entries("digits", 0) == entries("digits", 0)
    assert entries("digits", 0) != entries("digits", 1)
    assert entries("digits", 0) != entries("signs", 0)


def test_a_study_merges_what_is_broken_and_leaves_the_suite_alone(tmp_path: "Path") -> None:
    suite = fakes.fake_suite()
    before = {task: {name: one.clone() for name, one in expert.items()} for task, expert in suite.experts.items()}
    broken: dict[str, Any] = {"digits": "noise", "signs": "shuffled"}
    sound, other = study.run(suite, [cell(), cell(broken=broken)], workers=1, folder=tmp_path)
    assert sound.accuracy != other.accuracy
    assert other.cell.broken == broken
    torch.testing.assert_close({task: dict(expert) for task, expert in suite.experts.items()}, before)


def test_a_broken_expert_changes_the_key_and_a_sound_pool_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = fakes.fake_suite()
    keys = [
        study.cell_key(suite, one)
        for one in (cell(), cell(broken={"digits": "noise"}), cell(broken={"digits": "shuffled"}))
    ]
    assert len(set(keys)) == 3

    class Louder(Broken):
        def __getitem__(self, name: str) -> torch.Tensor:
            return 2 * super().__getitem__(name)

    monkeypatch.setattr(broken, "Broken", Louder)
    assert study.cell_key(suite, cell()) == keys[0]
    assert study.cell_key(suite, cell(broken={"digits": "noise"})) != keys[1]


def test_breaking_an_expert_that_is_not_in_the_pool_is_refused(tmp_path: "Path") -> None:
    bad = cell(pool=("digits",), broken={"signs": "noise"})
    with pytest.raises(KitError, match="`broken` names signs, which the pool does not"):
        study.run(fakes.fake_suite(), [bad], workers=1, folder=tmp_path)
    with pytest.raises(ValueError, match="noise"):
        cell(broken={"signs": "loud"})
