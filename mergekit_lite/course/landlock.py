"""Landlock, by which a process of Linux gives up files and network for good: the kernel refuses, whatever the code is.

An ordinary user can do it, nothing undoes it, and processes started later inherit it. It needs Linux 5.13; from 6.7 on
it closes TCP too, from 6.12 on signals to other processes. See https://docs.kernel.org/userspace-api/landlock.html.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # numbers of the system calls, the same on all common processors
_NO_NEW_PRIVILEGES, _PATH_BENEATH = 38, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
_REFER, _TRUNCATE, _DEVICE = 1 << 13, 1 << 14, 1 << 15
_ALL = {1: _REFER - 1, 2: _TRUNCATE - 1, 3: _DEVICE - 1, 4: _DEVICE - 1, 5: 2 * _DEVICE - 1}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Return the version of Landlock that this system has, 0 if none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, _call(_CREATE, None, 0, 1))


def restrict(reads: Iterable[Path], writes: Iterable[Path]) -> bool:
    """Let this thread, and all that it starts, read below `reads` and write below `writes`, and run no program.

    Returns:
        whether the system does that.
    """
    known = version()
    if not known:
        return False
    files = _ALL[min(known, 5)]
    rules = _Ruleset(files, 3 if known >= 4 else 0, 3 if known >= 6 else 0)
    ruleset = _call(_CREATE, ctypes.byref(rules), 24 if known >= 6 else 16 if known >= 4 else 8, 0)
    if ruleset < 0:
        return False
    try:
        for paths, access in ((reads, _READ_FILE | _READ_FOLDER), (writes, files & ~_EXECUTE)):
            for path in paths:
                _allow(ruleset, path, access)
        libc = ctypes.CDLL(None)
        return libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and _call(_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not every system has every folder
        return
    try:
        beneath = _Beneath(access if path.is_dir() else access & _OF_FILES, place)
        _call(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(beneath), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(number, *arguments))
