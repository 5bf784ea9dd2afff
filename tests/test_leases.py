"""Locks where the file system has none: of two only one holds, the dead are inherited from, the living are not."""

import errno
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
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


def will_of(lease: Path, content: str) -> Path:
    """Return the file that says who inherits from the holder that `content` names."""
    return lease.with_name(f"{lease.name}.{hashlib.sha256(content.split(chr(10))[0].encode()).hexdigest()[:16]}.heir")


def me() -> leases.Holder:
    return leases.Holder(os.urandom(8).hex(), leases._host(), str(os.getpid()), leases._born(os.getpid()))


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


def test_processes_hold_one_at_a_time_also_while_they_inherit(lease: Path, tmp_path: Path) -> None:
    lease.write_text(ELSEWHERE)
    code = (
        "import time\nfrom pathlib import Path\nfrom mergekit_lite import leases\n"
        "from mergekit_lite.cache import locked\n"
        f"leases.EXPIRY, leases.PAUSE, counter = 0.3, 0.001, Path({str(tmp_path / 'counter')!r})\n"
        "for _ in range(15):\n"
        f"    with locked(Path({str(tmp_path / 'a')!r})):\n"
        "        count = int(counter.read_text())\n        time.sleep(0.002)\n"
        "        counter.write_text(str(count + 1))\n"
    )
    (tmp_path / "counter").write_text("0")
    runs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [one.wait(60) for one in runs] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "45"
    (tmp_path / "counter").unlink()
    assert is_gone(tmp_path)


def test_a_stopped_process_is_inherited_from_and_then_leaves_the_heirs_lease_alone(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.4)
    one = holder(tmp_path / "a", 0.5)
    one.send_signal(signal.SIGSTOP)
    with locked(tmp_path / "a"):
        mine = lease.read_text()
        one.send_signal(signal.SIGCONT)
        assert one.wait(20) == 0
        assert lease.read_text() == mine
    assert is_gone(tmp_path)


def test_a_child_that_was_forked_lets_go_of_nothing(lease: Path, tmp_path: Path) -> None:
    # In a process of its own: this one has threads, with which forking is no good.
    code = (
        "import os\nfrom pathlib import Path\nfrom mergekit_lite.cache import free, locked\n"
        f"path = Path({str(tmp_path / 'a')!r})\nchild = None\n"
        "try:\n    with locked(path):\n        child = os.fork()\n        if not child:\n"
        "            raise InterruptedError\n        os.waitpid(child, 0)\n        assert not free(path)\n"
        "except InterruptedError:\n    os._exit(0)\n"
        "assert child and free(path)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert is_gone(tmp_path)


def test_setting_the_clock_makes_no_living_holder_another_process(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path / "a"):
        begun = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: begun(self) + 3600)
        assert not free(tmp_path / "a")


def test_another_machine_of_the_same_name_is_another(lease: Path, tmp_path: Path) -> None:
    name, started, container = leases._host().split()
    other = f"{name} {started[::-1]} {container}"
    lease.write_text(f"{'0' * 16}\n{other}\n{2**22 + 1}\n1")
    assert not free(tmp_path / "a")
    lease.write_text(lease.read_text().replace(other, leases._host()))
    assert free(tmp_path / "a")


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
    will_of(lease, ELSEWHERE).write_text("fedcba9876543210" + ELSEWHERE[16:])
    with locked(tmp_path / "a"):
        pass
    assert is_gone(tmp_path)


def test_who_finds_an_heir_dead_too_late_takes_nothing_from_the_next_heir(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.write_text(ELSEWHERE)
    will = will_of(lease, ELSEWHERE)
    will.write_text("fedcba9876543210" + ELSEWHERE[16:])
    monkeypatch.setattr(leases, "EXPIRY", 0.2)
    judged, decided, goes_on, won = threading.Event(), threading.Event(), threading.Event(), list[str]()
    dead, put = leases._dead, leases._put

    def late(path: Path) -> Any:
        found = dead(path)
        if path == will and found is not None and threading.current_thread().name == "late":
            judged.set()
            decided.wait(10)
        return found

    def slow(path: Path, mine: leases.Holder, *, instead: bool) -> bool:
        if path == lease and instead and threading.current_thread().name == "first":
            decided.set()
            goes_on.wait(10)
        return put(path, mine, instead=instead)

    def wait(mine: leases.Holder) -> None:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            if leases._taken(lease, mine):
                won.append(threading.current_thread().name)
                return
            time.sleep(0.01)

    monkeypatch.setattr(leases, "_dead", late)
    monkeypatch.setattr(leases, "_put", slow)
    threads = [threading.Thread(target=wait, args=(me(),), name=name) for name in ("late", "first")]
    threads[0].start()
    assert judged.wait(10)
    monkeypatch.setattr(leases, "EXPIRY", 60)  # nobody of these may be taken for dead
    for path in (lease, will):
        state = leases._read(path)
        assert state
        leases._seen[path] = state, -100.0
    threads[1].start()
    assert decided.wait(10)
    time.sleep(0.5)
    goes_on.set()
    for thread in threads:
        thread.join(20)
    assert won == ["first"]


def test_a_lease_that_was_inherited_and_let_go_is_not_inherited_again(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.0)
    lease.write_text("")  # damaged: it has no token by which to know it
    put = leases._put

    def let_go(path: Path, mine: leases.Holder, *, instead: bool) -> bool:
        if path == will_of(lease, ""):
            lease.unlink()
        return put(path, mine, instead=instead)

    monkeypatch.setattr(leases, "_put", let_go)
    assert not leases._taken(lease, me())
    assert is_gone(tmp_path)


def test_an_interrupt_on_the_way_in_leaves_nothing_behind(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupt)
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a"):
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


def test_a_renaming_whose_answer_was_lost_counts(lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace: Callable[..., None] = os.replace

    def twice(source: Any, target: Any) -> None:
        replace(source, target)
        replace(source, target)

    lease.write_text(f"{'0' * 16}\n{leases._host()}\n{2**22 + 1}\n1")
    monkeypatch.setattr(os, "replace", twice)
    with locked(tmp_path / "a", wait=False):
        assert lease.exists()
    assert is_gone(tmp_path)


def test_a_lease_that_was_removed_while_it_is_read_is_free(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.write_text(ELSEWHERE)
    fstat, removed = os.fstat, list[int]()

    def stale(number: int) -> os.stat_result:
        if not removed and lease.exists() and os.path.samestat(fstat(number), lease.stat()):
            removed.append(number)
            lease.unlink()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fstat(number)

    monkeypatch.setattr(os, "fstat", stale)
    with locked(tmp_path / "a"):
        assert removed
    assert is_gone(tmp_path)


def test_a_file_system_that_can_only_be_read_is_worded(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(KitError, match=r"a cannot be written \(Read-only file system\)\. Free some space"):
        free(tmp_path / "a")
    assert is_gone(tmp_path)


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
