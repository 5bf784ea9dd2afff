"""What refuses, inside the process of a submission, all that no merging method needs: the first of two walls.

It is a hook on Python's own audit events: files outside a list, the network, other programs, and the rooms of the kit
that hold images and labels are refused with words that a student understands, and the grader is told. It works on every
system. What it cannot see is a library in C that opens a file by itself; that is for the second wall, `landlock`, where
there is one. Code that attacks Python itself gets past the first wall: for such code there are containers, see
`grading.CONTAINER`.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]

ROOMS = ("cli", "course", "pipeline", "figures", "analysis", "study", "suites", "reference")
"""Parts of the kit that a method has no use for; those that hold or draw images are among them."""

_READS = {"os.listdir": 1, "os.scandir": 1, "os.walk": 1, "os.fwalk": 1, "os.listxattr": 1, "os.getxattr": 1}
_WRITES = {
    **dict.fromkeys(("os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.chown", "os.utime"), 1),
    **dict.fromkeys(("os.setxattr", "os.removexattr", "os.chflags", "os.lockf", "os.chdir", "sqlite3.connect"), 1),
    "os.rename": 2,
}
"""Event -> how many of its arguments are paths."""

_NEVER = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "os.startfile/2"}
    | {"os.kill", "os.killpg", "os.link", "os.symlink", "os.chroot", "os.fchdir", "sys.addaudithook"}
    | {"gc.get_objects", "gc.get_referrers", "gc.get_referents", "urllib.Request", "syslog.syslog"}
)
_FAMILIES = frozenset({"socket", "subprocess", "pty", "ftplib", "http", "smtplib", "poplib", "imaplib", "winreg"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TOLD = 20  # refusals that the grader hears of


def readable() -> list[Path]:
    """Return what the code of libraries may read once a submission runs: Python, its packages, and the system's."""
    folders = [Path(sys.prefix), Path(sys.base_prefix), PACKAGE]
    folders += [Path(one) for one in sys.path if one and Path(one).name in ("site-packages", "dist-packages")]
    system = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc/self", "/proc/cpuinfo"]
    system += ["/proc/meminfo", "/proc/stat", "/sys/devices/system", "/dev/urandom", "/dev/null", "/dev/zero"]
    system += ["/System", "/Library"] if sys.platform == "darwin" else []
    windows = [Path(os.environ["SYSTEMROOT"])] if "SYSTEMROOT" in os.environ else []
    return [*folders, *map(Path, system), *windows]


def close(
    reads: Iterable[Path],
    writes: Iterable[Path],
    denied: Iterable[Path],
    tell: Callable[[str], None],
    *,
    rooms: Iterable[str] = ROOMS,
    kernel: bool = False,
) -> None:
    """Refuse, from now on and for good, whatever is not listed; the process cannot take it back.

    Args:
        reads: files, and folders with all that is below, that may be read.
        writes: folders that may be written to, and read.
        denied: below which nothing is read, whatever `reads` says.
        tell: called with each of the first `TOLD` refusals, in words.
        rooms: of the kit that cannot be imported.
        kernel: whether the system refuses too, see `landlock`. Then ctypes may be used, which some libraries need:
            past this hook it leads nowhere.
    """
    rooms = frozenset(rooms)
    closed = (*_names(denied), *_names(PACKAGE / room for room in rooms))
    may_write = _names(writes)
    may_read = (*may_write, *_names(reads))
    modules = frozenset(f"{PACKAGE.name}.{room}" for room in rooms)
    families = _FAMILIES if kernel else _FAMILIES | {"ctypes"}
    # All that the hook uses is bound here: replacing a builtin, or a name in this module, does not change what it does.
    reading, writing, never, write_flags, told = _READS.get, _WRITES.get, _NEVER, _WRITING, [0]
    windows, separator, here, as_path = os.name == "nt", os.sep, os.getcwd, os.fspath
    kind, text, raw, number, nothing, count = isinstance, str, bytes, int, type(None), TOLD
    permission, no_import, either = PermissionError, ImportError, any

    def whole(path: Any) -> str:
        path = as_path(path)
        path = raw.decode(path, "utf-8", "surrogateescape") if kind(path, raw) else text(path)
        if windows:
            path = path.replace("/", separator).lower()
        absolute = path.startswith(separator) or (windows and path[1:2] == ":")
        parts: list[str] = []
        for part in (path if absolute else here() + separator + path).split(separator):
            if part == "..":
                parts = parts[:-1]
            elif part not in ("", "."):
                parts = [*parts, part]
        return ("" if windows else separator) + separator.join(parts)

    def below(path: str, roots: tuple[str, ...]) -> bool:
        return either(path == root or path.startswith(root + separator) for root in roots)

    def refuse(words: str, error: type[Exception]) -> None:
        told[0] += 1
        if told[0] <= count:
            tell(words)
        raise error(f"{words}: refused while a submission is graded")

    def check(path: Any, *, write: bool) -> None:
        if kind(path, (number, nothing)):  # a file that is open already; the current folder
            return
        place = whole(path)
        if below(place, may_write) or (write is False and below(place, may_read) and not below(place, closed)):
            return
        refuse(f"{'writing' if write else 'reading'} {place[:200]}", permission)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            check(arguments[0], write=arguments[2] & write_flags != 0)
        elif event == "import":
            parts = arguments[0].split(".")
            if ".".join(parts[:2]) in modules:
                refuse(f"importing {arguments[0]}", no_import)
        elif event in never or event.partition(".")[0] in families:
            refuse(f"calling {event}", permission)
        elif event == "object.__setattr__":
            if arguments[1] == "__code__":
                refuse("replacing a function's code", permission)
        else:
            for path in arguments[: reading(event) or 0]:
                check(path, write=False)
            for path in arguments[: writing(event) or 0]:
                check(path, write=True)

    sys.addaudithook(hook)


def _names(paths: Iterable[Path]) -> tuple[str, ...]:
    """Return each path as it is written and with its links resolved, as the hook compares them."""
    both = [name for path in paths for name in (os.path.abspath(path), os.path.realpath(path))]
    return tuple(dict.fromkeys(name.lower() if os.name == "nt" else name for name in both))
