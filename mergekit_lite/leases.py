"""Locks for file systems that have none: a file that names its holder, who shows again and again that it lives.

The file is made by a hard link, which succeeds for one alone, also over NFS. Its holder touches it every `HEARTBEAT`
seconds; who waits takes it over once it saw no touch for `EXPIRY` seconds **of its own clock**, so that the clocks of
machines need not agree, or at once if the holder was a process of this machine that is gone.

A holder that slept for longer than that (a laptop's lid, a stopped process) may find another at its work. Everything
that is made under a lock is written whole and is the same whoever makes it, so that costs time and nothing else.
"""

import errno
import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

HEARTBEAT, EXPIRY = 10.0, 60.0
"""Seconds between two touches, and without a touch until a holder counts as dead: six were missed."""

PAUSE = 0.1  # seconds between two looks of who waits

_UNLINKABLE = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}  # such as FAT

_seen: dict[Path, tuple[tuple[str, int], float]] = {}  # what a file was when it changed last, and when by our clock


class Holder(NamedTuple):
    """What a lease file says.

    Attributes:
        token: of this holding; nobody else has it, and nobody has it twice.
        host: the machine, and the container there.
        process: its id there.
        born: when that process began, since ids come again.
    """

    token: str
    host: str
    process: int
    born: float


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lease of `path`: yield True while it is held, or False if another has it and `wait` is not set.

    Raises:
        OSError: the folder cannot be written to.
    """
    lease = path.with_name(f".{path.name}.lease")
    mine = Holder(secrets.token_hex(8), _host(), os.getpid(), psutil.Process().create_time())
    while not (got := _taken(lease, mine)) and wait:
        time.sleep(PAUSE)
    if not got:
        yield False
        return
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(lease, mine.token, ended), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        if _token(lease) == mine.token:
            lease.unlink(missing_ok=True)


def _taken(lease: Path, mine: Holder) -> bool:
    """Try once to take the lease: a free one, or that of a dead holder."""
    if _made(lease, mine):
        return True
    token = _dead(lease)
    if token is None:
        return False
    # Of those who wait one inherits: whoever makes this file, which no other holding shares.
    will = lease.with_name(f"{lease.name}.{hashlib.sha256(token.encode()).hexdigest()[:16]}.heir")
    if not _made(will, mine):
        if _dead(will) is not None:  # the heir died too
            will.unlink(missing_ok=True)
        return False
    try:
        # Else somebody inherited, and let go of the will, since we looked.
        return _token(lease) == token and _put(lease, mine, instead=True)
    finally:
        will.unlink(missing_ok=True)


def _made(path: Path, mine: Holder) -> bool:
    return not path.exists() and _put(path, mine, instead=False)


def _put(path: Path, mine: Holder, *, instead: bool) -> bool:
    """Write who holds, whole, where nothing is yet, or `instead` of what is there; return whether it is there now."""
    text = "\n".join(str(one) for one in mine)
    temporary = path.with_name(f"{path.name}.{mine.token}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        if instead:
            os.replace(temporary, path)
            return True
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _UNLINKABLE:
                raise
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as stream:
                stream.write(text)
    finally:
        temporary.unlink(missing_ok=True)
    return _token(path) == mine.token  # of a link over NFS the answer may be lost, not the link


def _dead(path: Path) -> str | None:
    """Return the token of a file whose maker is gone, as far as this process can tell by now; else None."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:  # opening asks NFS anew, a glance at it need not
            lines, touched = stream.read().split("\n"), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        _seen.pop(path, None)
        return None
    now, state = time.monotonic(), (lines[0], touched)
    known = _seen.get(path)
    if not known or known[0] != state:
        known = _seen[path] = state, now
    if now - known[1] < EXPIRY and not _is_gone(lines):
        return None
    _seen.pop(path, None)
    return lines[0].strip()


def _is_gone(lines: list[str]) -> bool:
    """Return whether the process that a file names is one of this machine, and lives no more."""
    try:
        _, host, process, born = lines
        if host != _host():
            return False
        there = psutil.Process(int(process))
        return there.status() == psutil.STATUS_ZOMBIE or abs(there.create_time() - float(born)) > 1
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):  # half a file, or a process of another user's: time will tell
        return False


def _host() -> str:
    """Return the name of this machine and, where the system tells, of the container that numbers its processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _token(path: Path) -> str:
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as stream:
        return stream.readline().strip()
    return ""


def _beat(lease: Path, token: str, ended: threading.Event) -> None:
    """Touch the lease until it ends, or is another's."""
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):  # a server that is away for a moment
            if _token(lease) not in (token, ""):
                return
            os.utime(lease)
