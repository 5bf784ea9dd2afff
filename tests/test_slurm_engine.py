"""Cells as jobs of SLURM: with submitit's local executor, and through sbatch with commands that run the jobs here."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import fake_slurm
import fakes
import pytest
import torch
from projects import write_notebook, write_profile

from mergekit_lite import study
from mergekit_lite.cache import cache_dir
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell, engines

pytest.importorskip("submitit")
from submitit.core.utils import DelayedSubmission
from submitit.local.local import LocalExecutor

from mergekit_lite.study.engines import slurm, slurm_queues

TASKS = ("digits", "signs")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def workers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs import what these tests can, and keep their files in a cache of their own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of a SLURM whose jobs run here, two at a time, and whose files are looked at all the time."""
    folder = tmp_path / "slurm"
    commands = fake_slurm.install(folder)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_queues.Cluster, "between", 0.05)
    monkeypatch.setattr(slurm_queues.Cluster, "patience", lambda self, state: 0.5)
    yield folder
    for _, pid in map(fake_slurm.state_of, (folder / "states").glob("[0-9]*")):
        with suppress(ProcessLookupError):
            if pid:
                os.killpg(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def started_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("node")
    commands = fake_slurm.install(folder)
    place = folder / "node"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "FAKE_SLURM": str(folder), "FAKE_NODE": str(place)}
    command = [sys.executable, str(Path(fake_slurm.__file__)), "node"]
    with subprocess.Popen(command, env=os.environ | environment) as process:
        deadline = time.monotonic() + 60
        while not place.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield commands
        process.kill()


@pytest.fixture
def node(started_node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs begin at once, on a node where torch is loaded: a job takes seconds for that, which is not tested."""
    monkeypatch.setenv("FAKE_NODE", str(started_node.parent / "node"))
    monkeypatch.setenv("FAKE_PYTHON", str(started_node / "python"))
    monkeypatch.setattr(slurm_queues, "LocalExecutor", partial(LocalExecutor, python=str(started_node / "python")))
    if "FAKE_SLURM" not in os.environ:
        monkeypatch.setenv("FAKE_SLURM", str(started_node.parent))


def cells(count: int, **more: Any) -> dict[int, Cell]:
    return {
        number: Cell(
            method="slow_average", parameters={"seconds": 0.1 + number / 10**4, **more}, pool=TASKS, evaluate=TASKS
        )
        for number in range(count)
    }


def answers(records: Mapping[Any, study.Record]) -> dict[Any, tuple[str, Mapping[str, float]]]:
    return {name: (record.key, record.accuracy) for name, record in records.items()}


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def when(log: Path, count: int, action: Callable[[], Any]) -> threading.Thread:
    """Call `action` as soon as the log has so many lines."""

    def wait() -> None:
        while len(lines(log)) < count:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_last(log: Path, how: signal.Signals = signal.SIGKILL) -> None:
    os.kill(int(lines(log)[-1][0]), how)


def job_folders() -> list[Path]:
    place = cache_dir("jobs")
    return list(place.iterdir()) if place.exists() else []


# --- processes of this machine -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("node")
def test_a_killed_job_costs_nothing_but_what_it_had_under_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, suite = tmp_path / "log", fakes.fake_suite()
    asked = cells(12, log=str(log))
    killer = when(log, 4, lambda: kill_last(log))
    found = study.run(suite, asked, folder=tmp_path / "there", engine="slurm local=yes")
    killer.join(1)
    assert not killer.is_alive()
    times = Counter(seconds for _, seconds in lines(log))
    assert answers(found) == answers(study.run(suite, asked, folder=tmp_path / "plain", workers=1))
    assert sorted(times.values()) == [1] * 11 + [2]
    assert re.search(r"Job \d+ was lost \(FAILED\): its cell is submitted once more\.", capsys.readouterr().out)
    assert not job_folders()


@pytest.mark.usefixtures("node")
def test_a_job_that_is_lost_twice_is_told_with_its_log_which_is_kept(tmp_path: Path) -> None:
    asked = [*cells(2).values(), *cells(1, fail="exit").values()]
    with pytest.raises(KitError) as caught:
        study.run(fakes.fake_suite(), asked, folder=tmp_path, engine="slurm local=yes")
    (kept,) = job_folders()
    words = str(caught.value)
    assert words.startswith("1 of 3 cells failed; the other 2 are recorded")
    found = re.search(
        r"merging digits, signs: Its job was lost twice, the second time as (\d+) \(FAILED\)\. Most often the memory "
        r"ran out: write memory_gb=\. Else look into its log\. Its log, (\S+), ends with: .+\. What is recorded",
        words,
    )
    assert found
    assert Path(found[2]) == kept / f"{found[1]}_0_log.err"
    assert Path(found[2]).is_file()
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.usefixtures("node")
def test_what_a_cell_did_wrong_is_not_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(KitError, match=r"ZeroDivisionError: nothing to divide by \(on "):
        study.run(fakes.fake_suite(), cells(1, fail="raise", log=str(log)), folder=tmp_path, engine="slurm local=yes")
    assert len(lines(log)) == 1
    assert not job_folders()


@pytest.mark.usefixtures("node")
def test_no_more_jobs_run_at_once_than_asked(tmp_path: Path) -> None:
    running = list[int]()
    with engines.engine_called("slurm local=yes at_once=1", CPU) as engine:
        handles = [engine.submit(os.getpid) for _ in range(3)]
        while not all([handle.done() for handle in handles]):
            running.append(sum(handle.job is not None and not handle.job.done() for handle in handles))  # type: ignore[attr-defined]
            time.sleep(0.02)
        assert len({handle.result() for handle in handles}) == 3
    assert max(running) == 1


def listening() -> None:
    """Hear Ctrl-C, which what is started in the background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.usefixtures("node")
def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    code = (
        "import test_slurm_engine as this\nfrom pathlib import Path\nfrom functools import partial\n"
        f"this.slurm_queues.LocalExecutor = partial(this.LocalExecutor, python={os.environ['FAKE_PYTHON']!r})\n"
        f"this.study.run(this.fakes.fake_suite(), this.cells(40, log={str(tmp_path / 'log')!r}), "
        f"folder=Path({str(tmp_path / 'records')!r}), engine='slurm local=yes')\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    deadline = time.monotonic() + 60
    while len(lines(tmp_path / "log")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, words = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in words
    started = len(lines(tmp_path / "log"))
    time.sleep(1)
    assert len(lines(tmp_path / "log")) == started
    assert not job_folders()
    assert 3 <= started < 40


# --- through sbatch ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("node")
def test_missing_cells_become_one_array_with_what_was_asked_for(scheduler: Path, tmp_path: Path) -> None:
    log, suite = tmp_path / "log", fakes.fake_suite()
    asked = cells(12, log=str(log))
    before = study.run(suite, {number: asked[number] for number in (0, 1)}, folder=tmp_path / "there", workers=1)
    text = "slurm partition=long minutes=240 account=vision memory_gb=12 cpus=2 at_once=6"
    found = study.run(suite, asked, folder=tmp_path / "there", engine=text)
    assert answers(found) == answers(study.run(suite, asked, folder=tmp_path / "plain", workers=1))
    assert found[0] == before[0]
    assert sorted(Counter(seconds for _, seconds in lines(log)).values()) == [2] * 12  # here, and plain
    prepared, computed = sorted((scheduler / "scripts").iterdir())
    assert "#SBATCH --array=0-1%2" in prepared.read_text()
    script = computed.read_text()
    for line in (
        "--array=0-9%6",
        "--partition=long",
        "--account=vision",
        "--time=240",
        "--mem=12GB",
        "--cpus-per-task=2",
        "--job-name=mergekit-lite",
        "--signal=USR2@90",
        "--requeue",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "gpus" not in script
    assert "wckey" not in script
    assert "srun --unbuffered --output" in script
    assert "--cpus-per-task=2" in script.partition("srun")[2]
    calls = Counter(line.partition(" ")[0] for line in (scheduler / "calls").read_text().splitlines())
    assert calls["sbatch"] == 2
    assert calls["sacct"] <= 12
    assert not job_folders()


@pytest.mark.usefixtures("node")
def test_jobs_that_are_killed_preempted_or_refused_by_accounting_come_back(
    scheduler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, suite = tmp_path / "log", fakes.fake_suite()
    asked = cells(12, log=str(log))
    losses = [
        when(log, 3, lambda: kill_last(log)),
        when(log, 7, lambda: kill_last(log, signal.SIGUSR2)),
    ]
    found = study.run(suite, asked, folder=tmp_path / "there", engine="slurm partition=long")
    for one in losses:
        one.join(1)
        assert not one.is_alive()
    assert answers(found) == answers(study.run(suite, asked, folder=tmp_path / "plain", workers=1))
    times = Counter(seconds for _, seconds in lines(log))
    assert sorted(times.values()) == [2] * 10 + [3, 3]  # the plain run is one of them
    assert "scontrol requeue" in (scheduler / "calls").read_text()
    assert capsys.readouterr().out.count("was lost (FAILED)") == 1


@pytest.mark.usefixtures("node")
def test_an_interrupt_of_a_run_cancels_what_its_notebook_submitted(scheduler: Path, tmp_path: Path) -> None:
    root, log = tmp_path / "project", tmp_path / "log"
    study_of_many = (
        "import test_slurm_engine as this\nfrom pathlib import Path\n"
        f"this.study.run(this.fakes.fake_suite(), this.cells(40, log={str(log)!r}))"
    )
    write_notebook(root, "one", study_of_many, parameters=None)
    write_profile(root, one={})
    command = [sys.executable, "-c", "from mergekit_lite.cli import app; app()", "run", "short", "--engine", "slurm"]
    run = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listening
    )
    deadline = time.monotonic() + 60
    while len(lines(log)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does; the kernel is in a group of its own, and is told by Jupyter
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130, said
    time.sleep(1)
    calls = (scheduler / "calls").read_text().splitlines()
    assert [line for line in calls if line.startswith("scancel")] == ["scancel 101"]
    assert not job_folders()


@pytest.mark.usefixtures("node")
def test_gpus_are_asked_for_where_the_suite_is_on_one(scheduler: Path) -> None:
    with engines.engine_called("slurm partition=gpu", torch.device("cuda")) as engine:
        engine.submit(os.getpid).result()
    (script,) = (scheduler / "scripts").iterdir()
    assert "#SBATCH --gpus-per-node=1\n" in script.read_text()


@pytest.mark.usefixtures("node")
def test_more_jobs_than_an_array_may_have_become_several(scheduler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_queues, "ARRAY", 2)
    with slurm.engine(CPU, at_once="4") as engine:
        with engine.batch():
            handles = [engine.submit(abs, number) for number in range(-5, 0)]
        assert [handle.result() for handle in handles] == [5, 4, 3, 2, 1]
    arrays = [re.findall("--array=.*", path.read_text()) for path in sorted((scheduler / "scripts").iterdir())]
    assert arrays == [["--array=0-1%1"], ["--array=0-1%1"], []]


def test_what_sbatch_refuses_is_told(scheduler: Path, tmp_path: Path) -> None:
    (scheduler / "refuse").write_text("sbatch: error: invalid partition specified: gup")
    with pytest.raises(KitError, match=r"SLURM refused 2 jobs: sbatch: error: invalid partition .*: gup\. Look at"):
        study.run(fakes.fake_suite(), cells(2), folder=tmp_path / "there", engine="slurm partition=gup")
    assert not job_folders()


@pytest.mark.usefixtures("node")
def test_preempted_jobs_are_submitted_again_and_again_and_suspended_ones_are_waited_for(scheduler: Path) -> None:
    def set_state(job: str, state: str) -> None:
        while not lines(scheduler / "states" / job) or lines(scheduler / "states" / job)[0][0] != "RUNNING":
            time.sleep(0.02)
        _, pid = fake_slurm.state_of(scheduler / "states" / job)
        fake_slurm.note(scheduler / "states" / job, state, pid)
        if state == "PREEMPTED":
            os.killpg(pid, signal.SIGKILL)

    with slurm.engine(CPU) as engine:
        handle = engine.submit(time.sleep, 60)
        for job in ("100", "101"):
            set_state(job, "PREEMPTED")
            while handle.job.job_id == job:
                assert not handle.done()
                time.sleep(0.02)
        set_state("102", "SUSPENDED")
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert not handle.done()
            time.sleep(0.02)
        assert handle.job.job_id == "102"
        fake_slurm.note(scheduler / "states" / "102", "NODE_FAIL", fake_slurm.state_of(scheduler / "states" / "102")[1])
        until = time.monotonic() + 15
        while handle.job.job_id == "102" and time.monotonic() < until:
            assert not handle.done()
            time.sleep(0.02)
        assert handle.job.job_id == "103"


@pytest.mark.parametrize("accounts", [True, False])
@pytest.mark.usefixtures("node")
def test_a_job_that_somebody_cancelled_is_told_and_not_submitted_again(
    accounts: bool, scheduler: Path, tmp_path: Path
) -> None:
    if not accounts:
        (scheduler / "bin" / "sacct").write_text("#!/bin/sh\necho accounting storage is disabled >&2\nexit 1\n")
    with slurm.engine(CPU) as engine:
        handle = engine.submit(time.sleep, 60)
        while not lines(scheduler / "states" / "100") or lines(scheduler / "states" / "100")[0][0] != "RUNNING":
            time.sleep(0.02)
        subprocess.run(["scancel", "100"], check=True)
        if accounts:
            with pytest.raises(KitError, match=r"Its job 100 was lost \(CANCELLED\)\. Somebody cancelled it"):
                handle.result()
        else:  # nobody can tell why, so it is tried once more
            while handle.job.job_id == "100":
                handle.done()
                time.sleep(0.02)
    assert len(list((scheduler / "scripts").iterdir())) == (1 if accounts else 2)


def test_a_node_that_lacks_what_jobs_import_is_told(scheduler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slurm.engine(CPU) as engine:
        monkeypatch.setenv("PYTHONPATH", "")
        handle = engine.submit(fakes.fake_suite)
        with pytest.raises(KitError, match=r"Job 100 could not begin \(ModuleNotFoundError: No module named 'fakes'\)"):
            handle.result()
    assert len(job_folders()) == 1


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "There is no SLURM here: the command sbatch is not found. .* login node .* local=yes"),
        ({"gpus": "1"}, "asked for GPUs, but this process, which names the cells, has none.* srun --gpus=1"),
        ({"gpus": "-1"}, r"option gpus='-1' is no whole number from 0 on. Write gpus=1"),
        ({"minutes": "4h"}, r"option minutes='4h' is no whole number from 1 on. Write minutes=1"),
        ({"local": "true"}, r"option local='true' is neither yes nor no. Write local=yes"),
        ({"partition": "a\n#SBATCH --nodes=9"}, "is no name that SLURM takes"),
    ],
)
def test_options_that_cannot_be_are_said_before_anything_is_submitted(
    options: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KitError, match=words), slurm.engine(CPU, **options):
        pass
    assert not job_folders()


def test_no_gpus_for_a_suite_on_one_are_refused() -> None:
    refused = pytest.raises(KitError, match="asked for gpus=0, but the suite is on a GPU")
    with refused, slurm.engine(torch.device("cuda"), gpus="0", local="yes"):
        pass


def test_a_signal_starts_a_cell_again_unless_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    again = slurm.Again(60)
    assert again(abs, (-3,)) == 3
    assert isinstance(again.checkpoint(abs, (-3,)), DelayedSubmission)
    later = time.monotonic() + 57 * 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(
        KitError, match=r"takes longer than the 60 minutes that a job has. Write more, such as minutes=120"
    ):
        again.checkpoint(abs, (-3,))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("OUT_OF_MEMORY", r"Its job 7 was lost \(OUT_OF_MEMORY\). Give it more memory: write memory_gb="),
        ("TIMEOUT", "It needs more time: write minutes="),
        ("CANCELLED", "Somebody cancelled it. Run this again"),
        ("NODE_FAIL", "Most often the memory ran out"),
    ],
)
def test_the_words_for_a_lost_job_depend_on_how_it_ended(state: str, words: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    blind = slurm._lost(state, "7", log, retried=False)
    assert "It left no log." in blind
    assert (f"Do the nodes see {tmp_path}? If not, put the cache on a disk that they share" in blind) == (
        state == "NODE_FAIL"
    )
    log.write_text("first\nslurmstepd: error\n")
    told = slurm._lost(state, "7", log, retried=False)
    assert re.search(words, told)
    assert f"Its log, {log}, ends with: slurmstepd: error." in told
