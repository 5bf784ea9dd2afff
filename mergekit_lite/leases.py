"""Locks for file systems that have none: a file that names its holder, who shows again and again that it lives.

The file is made by a hard link, which succeeds for one alone: exclusive creation, the other way, is not exclusive over
NFS 2 (open(2), O_EXCL). Its holder touches it every `HEARTBEAT` seconds; who waits takes it over once it saw no touch
for `EXPIRY` seconds **of its own clock**, so that the clocks of machines need not agree, or at once if the holder was a
process of this machine that is gone.

A holder that slept for longer than that (a laptop's lid, a stopped process) may find another at its work, and so may an
heir that slept while it inherited. Everything that is made under a lock is written whole and is the same whoever makes
it, so that costs time and nothing else.
"""

import errno
import hashlib
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

HEARTBEAT, EXPIRY = 10.0, 60.0
"""Seconds between two touches, and without a touch until a holder counts as dead: six were missed."""

PAUSE = 0.1  # seconds between two looks of who waits

_UNLINKABLE = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}  # such as FAT


class Holder(NamedTuple):
    """What a lease file says, a line each.

    Attributes:
        token: of this holding; nobody else has it, and nobody has it twice.
        host: the machine, and the container there.
        process: its id there.
        born: when that process began, since ids come again.
    """

    token: str
    host: str
    process: str
    born: str


class _State(NamedTuple):
    """A file as it was read: its lines (a damaged one has at least an empty one), and when it was touched."""

    lines: tuple[str, ...]
    touched: int

    @property
    def token(self) -> str:
        return self.lines[0].strip()


_seen: dict[Path, tuple[_State, float]] = {}  # what a file was when it changed last, and when by our clock


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lease of `path`: yield True while it is held, or False if another has it and `wait` is not set.

    Raises:
        OSError: the folder cannot be written to.
    """
    lease = path.with_name(f".{path.name}.lease")
    mine = Holder(secrets.token_hex(8), _host(), str(os.getpid()), _born(os.getpid()))
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(lease, mine.token, ended), daemon=True)
    try:
        while not (got := _taken(lease, mine)) and wait:
            time.sleep(PAUSE)
        if got:
            heart.start()
        yield got
    finally:
        if mine.process == str(os.getpid()):  # a forked child that gets here holds nothing
            ended.set()
            if heart.ident:
                heart.join()
            _let_go(lease, mine)


def _taken(lease: Path, mine: Holder) -> bool:
    """Try once to take the lease: a free one, or that of a dead holder."""
    if not lease.exists() and _put(lease, mine, instead=False):
        return True
    dead = _dead(lease)
    if dead is None:
        return False
    # Of those who wait one inherits: whoever holds this will. It is a lease too, so that an heir who dies has an heir.
    # Nothing is ever removed by a name alone: by then it may be another's.
    name = hashlib.sha256(dead.token.encode()).hexdigest()[:16]
    will = lease.with_name(f"{lease.name}.{name}.heir")
    try:
        # A lease that is another by now was inherited, and the will let go, since we looked; one touched by now lives.
        return _taken(will, mine) and _read(lease) == dead and _put(lease, mine, instead=True)
    finally:
        _let_go(will, mine)


def _put(path: Path, mine: Holder, *, instead: bool) -> bool:
    """Write who holds, whole, where nothing is yet, or `instead` of what is there; return whether it is there now."""
    text = "\n".join(mine)
    temporary = path.with_name(f"{path.name}.{mine.token}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        if instead:
            with suppress(FileNotFoundError):
                os.replace(temporary, path)
        else:
            _link(temporary, path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return _is(path, mine)  # of a link or a renaming over NFS the answer may be lost, and it is asked for again in vain


def _link(temporary: Path, path: Path, text: str) -> None:
    with suppress(FileExistsError):
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _UNLINKABLE:
                raise
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text)


def _let_go(path: Path, mine: Holder) -> None:
    """Remove what is ours; where the server is away, it expires."""
    with suppress(OSError):
        if _is(path, mine):
            path.unlink()
            _seen.pop(path, None)


def _is(path: Path, mine: Holder) -> bool:
    found = _read(path)
    return found is not None and found.token == mine.token


def _read(path: Path) -> _State | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:  # opening asks NFS anew, a glance at it need not
            return _State(tuple(stream.read().split("\n")), os.fstat(stream.fileno()).st_mtime_ns)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # ESTALE: over NFS it was removed since it was opened
            return None
        raise


def _dead(path: Path) -> _State | None:
    """Return the state of a file whose maker is gone, as far as this process can tell by now; else None."""
    state, now = _read(path), time.monotonic()
    if state is None:
        _seen.pop(path, None)
        return None
    known = _seen.get(path)
    if not known or known[0] != state:
        known = _seen[path] = state, now
    return state if now - known[1] >= EXPIRY or _is_gone(state.lines) else None


def _is_gone(lines: tuple[str, ...]) -> bool:
    """Return whether the process that a file names is one of this machine, and lives no more."""
    try:
        _, host, process, born = lines
        if host != _host():
            return False
        return _born(int(process)) != born or psutil.Process(int(process)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (ValueError, OSError, psutil.Error):  # half a file, or a process of another user's: time will tell
        return False


def _born(process: int) -> str:
    """Return when a process of this machine began.

    On Linux that is in clock ticks since the machine started (proc_pid_stat(5), field 22). `psutil` adds when that was,
    which changes whenever the clock is set: a living holder would be taken for another process with its id.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    there = psutil.Process(process)
    with suppress(FileNotFoundError, ProcessLookupError):
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return line.rpartition(")")[2].split()[19]  # behind the name, which may hold spaces, field 3 comes first
    return str(int(there.create_time()))


def _host() -> str:
    """Return what tells this machine from others of its name, and the container that numbers its processes.

    Outside Linux that is the address of its network card; where none is found `uuid` draws one for each process, so
    that a dead one's lease expires, as that of another machine.
    """
    name = socket.gethostname()
    with suppress(OSError):
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{name} {started} {os.readlink('/proc/self/ns/pid')}"
    return f"{name} {uuid.getnode():x}"


def _beat(lease: Path, token: str, ended: threading.Event) -> None:
    """Touch the lease until it ends, or is another's."""
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):  # a server that is away for a moment
            found = _read(lease)
            if found and found.token != token:
                return
            os.utime(lease)
