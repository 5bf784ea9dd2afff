"""Locks where the file system has none: of two only one holds, the dead are inherited from, the living are not."""

import errno
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite import leases
from mergekit_lite.cache import Held, free, locked
from mergekit_lite.errors import KitError

ELSEWHERE = "0123456789abcdef\nanother machine\n4711\n1700000000.0"


@pytest.fixture
def lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the lease file of `tmp_path / "a"`, where locks are leases."""
    monkeypatch.setenv("MERGEKIT_LITE_LOCKS", "lease")
    return tmp_path / ".a.lease"


def holder(path: Path, seconds: float = 60) -> subprocess.Popen[str]:
    """Start a process that holds the lock of `path`, and return it when it does."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mergekit_lite.cache import locked\n"
        f"with locked(Path({str(path)!r})):\n    print('held', flush=True)\n    time.sleep({seconds})\n"
    )
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert started.stdout
    assert started.stdout.readline() == "held\n"
    return started


def is_gone(folder: Path) -> bool:
    return not [one for one in folder.iterdir() if one.name != "a" and not one.name.endswith(".lock")]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with locked(tmp_path / "a"):
        assert (tmp_path / ".a.lease").read_text().split("\n")[2] == str(os.getpid())
        assert not free(tmp_path / "a")
        with pytest.raises(Held, match="a is being made by another process"), locked(tmp_path / "a", wait=False):
            pass
    assert free(tmp_path / "a")
    assert is_gone(tmp_path)


def test_an_error_within_lets_go(lease: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), locked(tmp_path / "a"):
        raise ValueError("mine")
    assert is_gone(tmp_path)


def test_a_living_process_is_waited_for_and_a_killed_one_is_inherited_from_at_once(lease: Path, tmp_path: Path) -> None:
    one = holder(tmp_path / "a")
    assert not free(tmp_path / "a")
    one.kill()
    while not free(tmp_path / "a"):  # also while nobody asked how it ended
        time.sleep(0.01)
    one.wait()
    assert is_gone(tmp_path)


def test_a_process_that_bears_a_dead_ones_number_is_not_taken_for_it(lease: Path, tmp_path: Path) -> None:
    lease.write_text(f"{'0' * 16}\n{leases._host()}\n{os.getpid()}\n1000000000.0")
    assert free(tmp_path / "a")


def test_another_machines_holder_is_inherited_from_once_it_shows_no_sign_of_life(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.5)
    lease.write_text(ELSEWHERE)
    os.utime(lease, (time.time() - 10**6,) * 2)  # a clock far behind ours is no sign of death
    begun = time.monotonic()
    assert not free(tmp_path / "a")
    time.sleep(0.2)
    assert not free(tmp_path / "a")
    with locked(tmp_path / "a"):
        assert time.monotonic() - begun >= 0.5
    assert is_gone(tmp_path)


def test_another_machines_holder_that_shows_life_keeps_its_lease(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.4)
    lease.write_text(ELSEWHERE)
    for beat in range(8):
        assert not free(tmp_path / "a")
        os.utime(lease, (10**9 + beat,) * 2)  # by a clock that is years behind
        time.sleep(0.1)
    assert lease.read_text() == ELSEWHERE


def test_who_holds_shows_life_and_stops_when_it_lets_go(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT", 0.05)
    with locked(tmp_path / "a"):
        first = lease.stat().st_mtime_ns
        time.sleep(0.3)
        assert lease.stat().st_mtime_ns > first
    assert is_gone(tmp_path)
    assert not [one for one in threading.enumerate() if one.name.endswith("(_beat)")]


def test_a_holder_that_was_inherited_from_leaves_the_heirs_lease_alone(lease: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        lease.write_text(ELSEWHERE)
    assert lease.read_text() == ELSEWHERE


def test_of_many_that_wait_for_a_dead_holder_one_at_a_time_inherits(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.3)
    monkeypatch.setattr(leases, "PAUSE", 0.001)
    lease.write_text(ELSEWHERE)
    inside, most, done = [0], [0], list[int]()

    def work(number: int) -> None:
        with locked(tmp_path / "a"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1
            done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(done) == list(range(8))
    assert most == [1]
    assert is_gone(tmp_path)


def test_an_heir_that_died_is_inherited_from_too(lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.3)
    lease.write_text(ELSEWHERE)
    will = hashlib.sha256(ELSEWHERE.split("\n")[0].encode()).hexdigest()[:16]
    lease.with_name(f"{lease.name}.{will}.heir").write_text(ELSEWHERE.replace("4711", "4712"))
    with locked(tmp_path / "a"):
        pass
    assert is_gone(tmp_path)


@pytest.mark.parametrize("content", ["", "half a tok", "\x00" * 40, "a\nb\nc\nd\ne"])
def test_a_damaged_lease_expires_as_others_do(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.3)
    lease.write_text(content)
    assert not free(tmp_path / "a")
    with locked(tmp_path / "a"):
        pass
    assert is_gone(tmp_path)


def test_where_there_are_no_hard_links_files_are_made_exclusively(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)
    with locked(tmp_path / "a"):
        assert lease.read_text().split("\n")[2] == str(os.getpid())
        assert not free(tmp_path / "a")
    assert is_gone(tmp_path)


def test_a_link_whose_answer_was_lost_counts(lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link: Callable[..., None] = os.link

    def twice(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)  # as NFS does when the first answer got lost

    monkeypatch.setattr(os, "link", twice)
    with locked(tmp_path / "a", wait=False):
        assert lease.exists()


def test_a_folder_that_cannot_be_written_to_and_an_unknown_kind_are_worded(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match=r"cannot be written \(File exists"), locked(tmp_path / "file" / "a"):
        pass
    monkeypatch.setenv("MERGEKIT_LITE_LOCKS", "dotlock")
    with pytest.raises(KitError, match=r"MERGEKIT_LITE_LOCKS is .?dotlock.?\. Set it to lease"), locked(tmp_path / "a"):
        pass


def test_processes_of_another_container_are_not_looked_for_here(lease: Path, tmp_path: Path) -> None:
    lease.write_text(f"{'0' * 16}\n{socket.gethostname()} pid:[1]\n{2**22 + 1}\n1700000000.0")
    assert not free(tmp_path / "a")
