"""A study is computed by any engine with `submit`, and gives what it gives in this process."""

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakes
import pytest
import torch

from mergekit_lite import study
from mergekit_lite.cache import locked
from mergekit_lite.errors import KitError
from mergekit_lite.methods import registry
from mergekit_lite.study import Cell, engines
from mergekit_lite.study.engines import dispatch, elsewhere, here
from mergekit_lite.study.engines.elsewhere import Outcome, Parcel, Place

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

TASKS = ("digits", "signs")


def cells(**more: Any) -> dict[str, Cell]:
    found = {
        f"{method} {scaling}": Cell(method=method, parameters={"scaling": scaling}, pool=TASKS, evaluate=TASKS)
        for method in ("task_arithmetic", "ties_merging")
        for scaling in (0.2, 0.4)
    }
    found["slow"] = Cell(method="slow_average", parameters=more, pool=TASKS, evaluate=TASKS)
    return found


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


class Threads:
    """The least that an engine can be: `submit`, and handles with `done` and `result`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)
        self.submitted: list[tuple[Any, ...]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> "Asked":
        self.submitted.append((function, *arguments))
        return Asked(self._pool.submit(function, *arguments))


class Asked:
    def __init__(self, future: "Future[Any]") -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        return self._future.result()


def answers(records: Mapping[str, study.Record]) -> dict[str, tuple[str, Mapping[str, float]]]:
    return {name: (record.key, record.accuracy) for name, record in records.items()}


def test_any_object_with_submit_gives_the_same_records(suite: "Suite", tmp_path: Path) -> None:
    plain = study.run(suite, cells(), workers=1, folder=tmp_path / "plain")
    engine = Threads()
    found = study.run(suite, cells(), folder=tmp_path / "there", engine=engine)
    assert answers(found) == answers(plain)
    assert list(found) == list(cells())
    assert len(engine.submitted) == len(TASKS) + len(cells())
    before = len(engine.submitted)
    study.run(suite, cells(), folder=tmp_path / "there", engine=engine)
    assert len(engine.submitted) == before


def test_processes_of_an_executor_are_an_engine_and_write_in_place(suite: "Suite", tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = study.run(suite, cells(), folder=tmp_path, engine=pool)
    assert answers(found) == answers(study.run(suite, cells(), workers=1, folder=tmp_path))
    assert {one.name for one in tmp_path.iterdir() if not one.name.endswith(".lock")} == {
        f"{record.key}.json" for record in found.values()
    }


def test_what_is_not_known_by_name_is_no_engine(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KitError, match="There is no engine 'rya'"):
        study.run(suite, cells(), folder=tmp_path, engine="rya")
    with pytest.raises(KitError, match="3 is no engine"):
        study.run(suite, cells(), folder=tmp_path, engine=3)  # type: ignore[call-overload]
    with pytest.raises(KitError, match="has no options"):
        study.run(suite, cells(), folder=tmp_path, engine="processes gpus=1")
    monkeypatch.setenv(engines.VARIABLE, "ray address")
    with pytest.raises(KitError, match="'address' is no option"):
        study.run(suite, cells(), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KitError, match=r'pip install "mergekit-lite\[ray\]"'):
        engines.check_engine("ray")


# --- what comes back ------------------------------------------------------------------------------------------------


def test_where_the_folder_of_records_is_not_seen_the_driver_writes_them(
    suite: "Suite", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = study.run(suite, cells(), workers=1, folder=tmp_path / "plain")

    class Far(Threads):
        def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Asked:
            sent = pickle.loads(pickle.dumps(arguments))
            if isinstance(sent[0], Parcel):
                away = tmp_path / "not here"
                sent = (replace(sent[0], marker=away / "marker", job=replace(sent[0].job, folder=away)),)
            return super().submit(function, *sent)

    found = study.run(suite, cells(), folder=tmp_path / "mine", engine=Far())
    assert answers(found) == answers(plain)
    assert len(list((tmp_path / "mine").glob("*.json"))) == len(found)
    assert not (tmp_path / "not here").exists()


def test_what_goes_wrong_there_is_told_with_the_machine_and_costs_the_others_nothing(
    suite: "Suite", tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=r"1 of 5 cells failed.*\n.*ZeroDivisionError: nothing to divide by \(on "):
        study.run(suite, cells(fail="raise"), folder=tmp_path, engine=Threads())
    assert len(list(tmp_path.glob("*.json"))) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"environment": {"torch": "1.0"}}, "This worker has torch .*, not 1.0: its answers are others"),
        ({"environment": {"device": "cuda"}}, "This worker has device cpu, not cuda"),
        ({"code": "0" * 16}, "another version of mergekit_lite"),
        ({"suite": {}}, "another suite of 'fake'. Give it the same weights and images"),
    ],
)
def test_a_worker_that_would_answer_otherwise_refuses(
    change: dict[str, Any], words: str, suite: "Suite", tmp_path: Path
) -> None:
    class Changed(Threads):
        def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Asked:
            if isinstance(arguments[0], Parcel):
                parts = dict(arguments[0].job.parts)
                for name, value in change.items():
                    parts[name] = {**parts[name], **value} if value and isinstance(value, dict) else value
                arguments = (replace(arguments[0], job=replace(arguments[0].job, parts=parts)),)
            return super().submit(function, *arguments)

    with pytest.raises(KitError, match=words):
        study.run(suite, {"one": cells()["slow"]}, folder=tmp_path, engine=Changed())
    assert not list(tmp_path.glob("*.json"))


def test_a_worker_with_another_kit_refuses_a_method_that_travels_by_value(suite: "Suite", tmp_path: Path) -> None:
    job = elsewhere_job(suite, tmp_path)
    methods = {"slow_average": elsewhere._pickled(registry.get("slow_average"))}
    place = Place(pickle.dumps(suite.loader), tmp_path)
    parcel = Parcel(place, job, methods, tmp_path / "marker", kit="another")
    assert "another version of mergekit_lite" in elsewhere.compute_there(parcel).error


def elsewhere_job(suite: "Suite", folder: Path) -> Any:
    found: list[Any] = []

    class Seen(Threads):
        def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Asked:
            found.append(arguments[0])
            return super().submit(function, *arguments)

    study.run(suite, {"one": cells()["slow"]}, folder=folder / "seen", engine=Seen())
    return found[-1].job


# --- the order of things --------------------------------------------------------------------------------------------


def test_cells_that_another_run_has_under_way_come_last_or_not_at_all(
    suite: "Suite", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = study.run(suite, cells(), workers=1, folder=tmp_path / "plain")
    taken = tmp_path / f"{plain['ties_merging 0.4'].key}.json"
    let_go = threading.Event()

    def other() -> None:
        with locked(taken):
            let_go.wait(20)

    holder = threading.Thread(target=other)
    holder.start()
    try:
        time.sleep(0.1)
        some = study.run(suite, cells(), workers=1, folder=tmp_path, wait_for_locked=False)
        assert set(some) == set(cells()) - {"ties_merging 0.4"}
        assert not taken.exists()
        threading.Timer(0.5, let_go.set).start()
        capsys.readouterr()
        every = study.run(suite, cells(), workers=1, folder=tmp_path)
    finally:
        let_go.set()
        holder.join()
    assert answers(every) == answers(plain)
    assert "4 of 5 cells are recorded already." in capsys.readouterr().out


def test_what_another_run_recorded_in_the_meantime_is_taken(suite: "Suite", tmp_path: Path) -> None:
    plain = study.run(suite, cells(), workers=1, folder=tmp_path / "plain")
    key = plain["slow"].key
    taken, log = tmp_path / f"{key}.json", tmp_path / "log"
    started = threading.Event()

    def other() -> None:
        with locked(taken):
            started.set()
            time.sleep(0.5)
            taken.write_bytes((tmp_path / "plain" / taken.name).read_bytes())

    holder = threading.Thread(target=other)
    holder.start()
    started.wait(5)
    found = study.run(suite, cells(), workers=1, folder=tmp_path)
    holder.join()
    assert found["slow"] == plain["slow"]
    assert not log.exists()


def test_outcomes_come_as_they_end_and_what_is_left_is_cancelled() -> None:
    with ThreadPoolExecutor(1) as pool:
        gate = threading.Event()
        ended = dispatch.outcomes(pool, _waits, [("first", (None,)), ("second", (gate,)), ("third", (None,))])
        item, result = next(ended)
        assert (item, result()) == ("first", 1)
        ended.close()
        gate.set()
    slow = Delayed()
    with closing(dispatch.outcomes(slow, _waits, [(name, (None,)) for name in "abc"])) as found:
        assert [name for name, _ in found] == ["c", "b", "a"]
    assert slow.batches == 1


def _waits(gate: threading.Event | None) -> int:
    if gate:
        gate.wait(10)
    return 1


class Delayed:
    """Handles that end in reverse order, and that must be asked; all of them are submitted in one batch."""

    def __init__(self) -> None:
        self.batches, self._inside, self._count = 0, False, 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        self.batches += 1
        self._inside = True
        yield
        self._inside = False

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        assert self._inside
        self._count += 1
        return After(time.monotonic() + 0.5 - 0.15 * self._count)


class After:
    def __init__(self, when: float) -> None:
        self._when = when

    def done(self) -> bool:
        return time.monotonic() >= self._when

    def result(self) -> int:
        return 1


# --- several GPUs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "seen", "processes"), [("cuda", 8, 8), ("cuda:1", 8, 1), ("cuda", 1, 1)])
def test_there_is_one_process_a_gpu_unless_the_suite_names_one(
    device: str, seen: int, processes: int, suite: "Suite", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    suite.device = torch.device(device)
    assert here.processes(suite) == processes


def test_an_outcome_says_where_it_is_from() -> None:
    outcome = elsewhere.prepare_there(Place(b"no pickle", Path("nowhere")), 0, "digits")
    assert outcome == Outcome(None, outcome.error, os.uname().nodename)
    assert outcome.error.startswith("UnpicklingError: ")
