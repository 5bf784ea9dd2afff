"""A failed cell leaves its words behind, and none of its memory."""

import gc
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from torch import Tensor

from mergekit_lite import machine, study, workers
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged, method, registry
from mergekit_lite.study import Cell

TASKS = ("digits", "signs")

made: list["weakref.ref[Any]"] = []  # what failed cells had in memory
alive: list[int] = []  # how many of these there were while each cell was computed


def something() -> Tensor:
    """Return a tensor that is looked for later."""
    tensor = torch.zeros(3)
    made.append(weakref.ref(tensor))
    return tensor


class Ring:
    """It refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.ring, self.tensor = self, something()


def out_of_memory() -> None:
    tensor, ring = something(), Ring()
    raise torch.OutOfMemoryError(f"CUDA out of memory after {len(tensor)} and {len(ring.tensor)}")


def fail(how: str) -> None:
    tensor = something()
    if how == "plainly":
        out_of_memory()
    try:
        out_of_memory()
    except torch.OutOfMemoryError as error:
        own = something()
        if how == "from":
            raise KitError(f"It does not fit: {error}") from error
        if how == "while":
            raise ZeroDivisionError(f"{len(own)} / {len(tensor)}") from None
        raise ExceptionGroup("both", [error, ValueError("nor this")])  # noqa: B904


@pytest.fixture(autouse=True)
def own_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    made.clear()
    alive.clear()

    @method(title="Failing", cite="", access=Access.NONE)
    def failing(base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]], *, how: str = "") -> Merged:
        """Fail if it is told how."""
        alive.append(sum(one() is not None for one in made))
        bank = something()
        if how:
            fail(how)
        return Merged({name: tensor + 0 * bank[0] for name, tensor in base.items()})


def cells(*hows: str) -> dict[str, Cell]:
    return {how: Cell(method="failing", parameters={"how": how}, pool=TASKS, evaluate=TASKS) for how in hows}


@pytest.fixture
def no_collector() -> Any:
    """Have the collector run only when it is called."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_nothing_of_a_failed_cell_is_in_memory_while_the_next_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KitError) as caught:
        study.run(fakes.fake_suite(), cells("plainly", "from", "while", "group", ""), workers=1, folder=tmp_path)
    assert alive == [0, 0, 0, 0, 0]
    assert len(made) > 12
    assert str(caught.value) == (
        "4 of 5 cells failed; the other 1 are recorded and will not be computed again.\n"
        "failing(how='plainly'), merging digits, signs: OutOfMemoryError: CUDA out of memory after 3 and 3\n"
        "failing(how='from'), merging digits, signs: It does not fit: CUDA out of memory after 3 and 3\n"
        "failing(how='while'), merging digits, signs: ZeroDivisionError: 3 / 3\n"
        "failing(how='group'), merging digits, signs: ExceptionGroup: both (2 sub-exceptions)"
    )
    assert capsys.readouterr().out.count(": failed") == 4


@pytest.mark.usefixtures("no_collector")
def test_the_error_of_a_study_says_where_it_failed_and_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(KitError) as caught:
        study.run(fakes.fake_suite(), cells("plainly"), workers=1, folder=tmp_path)
    cause = caught.value.__cause__
    assert isinstance(cause, torch.OutOfMemoryError)
    sys.last_value = caught.value  # as a notebook keeps it
    try:
        assert [one() for one in made] == [None] * len(made)
        assert [entry.name for entry in caught.traceback][-1] == "_compute_all"
        assert pytest.ExceptionInfo.from_exception(cause).traceback[-1].name == "out_of_memory"
    finally:
        del sys.last_value


@pytest.mark.usefixtures("no_collector")
def test_an_interrupted_cell_holds_nothing_either() -> None:
    def interrupted(_: None, item: int) -> None:
        tensor = something()
        raise KeyboardInterrupt(len(tensor))

    ((_, outcome),) = workers.side_by_side(lambda: None, interrupted, [1], 1)
    with pytest.raises(KeyboardInterrupt) as caught:
        outcome()
    assert [one() for one in made] == [None]
    assert caught.value.args == (3,)


@pytest.mark.usefixtures("no_collector")
def test_an_error_in_a_worker_process_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_prepared", lambda: "from")
    with pytest.raises(KitError) as caught:
        workers._work(lambda how, item: fail(how), 1)
    assert [one() for one in made] == [None] * 4
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.usefixtures("no_collector")
def test_a_batch_that_did_not_fit_is_gone_before_half_of_it_is_tried() -> None:
    sizes: list[int] = []

    def attempt(size: int) -> int:
        alive.append(sum(one() is not None for one in made))
        sizes.append(size)
        tensor = something()
        if size > 2:
            raise torch.OutOfMemoryError(f"not {len(tensor)}")
        return size

    assert machine.in_memory(attempt, 8, torch.device("cpu"), what="a test of what is freed") == 2
    assert (sizes, alive) == ([8, 4, 2], [0, 0, 0])


def test_the_cache_of_a_gpu_is_emptied_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    machine.let_go(ValueError())
    assert not emptied  # to empty it would start CUDA
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    machine.let_go(ValueError())
    assert emptied == [1]


# --- how much memory there is -----------------------------------------------------------------------------------------


def test_free_on_a_gpu_is_also_what_torch_keeps_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert machine.available_memory(torch.device("cuda:0")) == 140


def test_a_job_of_a_cluster_has_what_its_groups_leave(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("1:name=old:/\n0::/job/step\n", encoding="ascii")
    groups = tmp_path / "groups"

    def group(name: str, most: str, current: int, files: int) -> None:
        folder = groups / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n", encoding="ascii")
        (folder / "memory.current").write_text(f"{current}\n", encoding="ascii")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n", encoding="ascii")

    assert machine._allowances(groups, own) == []
    group("job/step", "max", 10, 0)
    assert machine._allowances(groups, own) == []
    group("job", "1000", 300, 50)
    assert machine._allowances(groups, own) == [750]
    group("job/step", "400", 300, 0)
    assert machine._allowances(groups, own) == [100, 750]
    own.write_text("4:memory:/older\n", encoding="ascii")
    assert machine._allowances(groups, own) == []
    assert machine._allowances(groups, tmp_path / "of another system") == []
    assert machine.available_memory(torch.device("cpu")) > 0
