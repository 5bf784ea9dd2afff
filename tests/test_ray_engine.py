"""Cells on a Ray cluster of two nodes: workers and nodes are lost, disks are not shared, answers are the same."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakes
import pytest
import torch

from mergekit_lite import study
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell, engines
from mergekit_lite.study.engines import elsewhere
from mergekit_lite.study.records import write_record

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 (only where Ray is there)

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

TASKS = ("digits", "signs")
CPU = torch.device("cpu")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a cluster of two nodes with a CPU each, whose workers can import what these tests can."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    found: Any = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    found.second = found.add_node(**node)
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()


def cells(count: int, **more: Any) -> dict[int, Cell]:
    return {
        number: Cell(
            method="slow_average", parameters={"seconds": 0.2 + number / 10**4, **more}, pool=TASKS, evaluate=TASKS
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
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_lost_workers_and_nodes_cost_nothing_but_what_they_had_under_way(cluster: Any, tmp_path: Path) -> None:
    log, suite = tmp_path / "log", fakes.fake_suite()
    asked = cells(24, log=str(log))
    lost = [
        when(log, 5, lambda: os.kill(int(lines(log)[-1][0]), signal.SIGKILL)),
        when(log, 14, lambda: cluster.remove_node(cluster.second, allow_graceful=False)),
    ]
    found = study.run(suite, asked, folder=tmp_path / "there", engine=f"ray address={cluster.address}")
    for one in lost:
        one.join(1)
        assert not one.is_alive()
    times = Counter(seconds for _, seconds in lines(log))
    plain = study.run(suite, asked, folder=tmp_path / "plain")
    assert answers(found) == answers(plain)
    assert len(times) == 24
    again = sum(times.values()) - 24
    assert 1 <= again <= 2


def test_workers_that_do_not_see_the_folder_of_records_send_them_back(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers: the path of the driver's folder leads elsewhere in a worker."""
    suite, written = fakes.fake_suite(), list[Path]()
    monkeypatch.chdir(tmp_path)

    def write(record: study.Record, path: Path) -> study.Record:
        written.append(path)
        return write_record(record, path)

    monkeypatch.setattr(elsewhere, "write_record", write)
    found = study.run(suite, cells(3), folder=Path("/proc/self/cwd/there"), engine=f"ray address={cluster.address}")
    assert len(written) == len(list((tmp_path / "there").glob("*.json"))) == 3
    assert answers(found) == answers(study.run(suite, cells(3), folder=tmp_path / "plain"))


def test_methods_of_a_script_and_of_a_file_travel(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD.format(name="doubled", factor=2.0))
    script = tmp_path / "script.py"
    script.write_text(
        METHOD.format(name="tripled", factor=3.0) + "\nif __name__ == '__main__':\n"
        "    import sys\n    from pathlib import Path\n    import fakes\n    from mergekit_lite import study\n"
        "    from mergekit_lite.methods import load_method\n"
        f"    load_method(Path({str(tmp_path / 'mine.py')!r}))\n"
        "    tasks = ('digits', 'signs')\n"
        "    cells = {name: study.Cell(method=name, pool=tasks, evaluate=tasks) for name in ('doubled', 'tripled')}\n"
        "    for place, engine in (('plain', 'processes'), ('ray', 'ray')):\n"
        f"        found = study.run(fakes.fake_suite(), cells, folder=Path({str(tmp_path)!r}, place), engine=engine)\n"
        "        print({name: (one.key, one.accuracy) for name, one in found.items()})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    plain, there = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert plain == there


METHOD = """
import torch
from mergekit_lite.methods import Access, Merged, method


@method(title="{name}", cite="", access=Access.NONE)
def {name}(base, experts) -> Merged:
    return Merged({{key: {factor} * torch.stack([one[key] for one in experts.values()]).mean(dim=0) for key in base}})
"""


def test_an_interrupt_cancels_what_is_under_way_and_ends_the_cluster_it_started(tmp_path: Path) -> None:
    code = (
        "import fakes\nfrom pathlib import Path\nfrom mergekit_lite import study\nimport test_ray_engine as this\n"
        f"this.study.run(fakes.fake_suite(), this.cells(40, log={str(tmp_path / 'log')!r}), "
        f"folder=Path({str(tmp_path / 'records')!r}), engine='ray')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with interrupts ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(lines(tmp_path / "log")) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, words = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in words
    started = len(lines(tmp_path / "log"))
    assert 3 <= started < 40
    time.sleep(1)
    assert len(lines(tmp_path / "log")) == started


def test_an_address_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]  # nobody listens
        with pytest.raises(KitError, match=rf"The Ray cluster at 127.0.0.1:{port} does not answer .* up to 2 s"):
            study.run(fakes.fake_suite(), cells(1), folder=tmp_path, engine=f"ray address=127.0.0.1:{port} patience=2")
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(KitError, match=r"at nowhere does not answer \(it is no HOST:PORT\)"):
        study.run(fakes.fake_suite(), cells(1), folder=tmp_path, engine="ray")
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus": "1"}, "asked for GPUs, but this process, which names the cells, has none"),
        ({"cpus": "many"}, "option cpus=many is no number"),
        ({"retries": "-1"}, "option retries=-1 is no number"),
    ],
)
def test_options_that_cannot_be_are_said_before_anything_starts(options: dict[str, str], words: str) -> None:
    text = " ".join(["ray", *(f"{name}={value}" for name, value in options.items())])
    with pytest.raises(KitError, match=words), engines.engine_called(text, CPU):
        pass
    assert not ray.is_initialized()


def test_a_cell_that_no_node_has_room_for_is_said_at_once(cluster: Any) -> None:
    text = f"ray address={cluster.address} cpus=64"
    with (
        pytest.raises(KitError, match="No node of the Ray cluster has 64 CPUs and 0 GPUs"),
        engines.engine_called(text, CPU),
    ):
        pass


def test_a_full_disk_on_a_worker_is_told_with_its_machine(cluster: Any, tmp_path: Path) -> None:
    suite: Suite = fakes.fake_suite()
    asked = cells(2, log="/dev/full")
    with pytest.raises(KitError, match=r"OSError: \[Errno 28\] No space left on device.* \(on "):
        study.run(suite, asked, folder=tmp_path, engine=f"ray address={cluster.address}")
