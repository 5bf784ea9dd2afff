"""What a submission's process can no longer do: each try in one process, refused by Python, by the system, or both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.course import landlock

TRIES = {
    "reads the grader's file": "open(SECRET).read()",
    "reads it by its bytes' name": "open(os.fsencode(SECRET)).read()",
    "reads it by a detour": "open(OWN + '/x/../../grader/labels.txt').read()",
    "reads it through the system's call": "os.read(os.open(SECRET, os.O_RDONLY), 9)",
    "reads it after replacing builtins": "builtins.any = builtins.isinstance = lambda *a: True; open(SECRET).read()",
    "reads it after replacing the guard's names": "vars(guard).update(_READS={}, _names=None); open(SECRET).read()",
    "lists the grader's folder": "os.listdir(os.path.dirname(SECRET))",
    "writes elsewhere": "open(SECRET + '.new', 'w')",
    "appends elsewhere": "open(SECRET, 'a')",
    "moves a file away": "os.rename(SECRET, OWN + '/stolen')",
    "removes a file": "os.remove(SECRET)",
    "makes a folder elsewhere": "os.mkdir(SECRET + '.d')",
    "links a file": "os.symlink(SECRET, OWN + '/link')",
    "opens a socket": "__import__('socket').socket()",
    "starts a program": "__import__('subprocess').run([sys.executable, '-c', ''])",
    "starts a shell": "os.system('true')",
    "forks": "os.fork()",
    "kills": "os.kill(os.getppid(), 0)",
    "imports the suites": "__import__('mergekit_lite.suites')",
    "imports the suites another way": "importlib.import_module('mergekit_lite.suites')",
    "imports the study": "from mergekit_lite import study",
    "looks for objects": "__import__('gc').get_objects()",
    "replaces a function's code": "guard.close.__code__ = (lambda: 0).__code__",
    "loads the C library": "__import__('ctypes').CDLL(None)",
}
FINE = {
    "reads its own file": "open(OWN + '/x/mine.txt').read()",
    "writes its own file": "open(OWN + '/new.txt', 'w').write('x')",
    "imports a module of Python": "importlib.import_module('colorsys')",
    "imports a package": "importlib.import_module('yaml')",
}
SCRIPT = """
import builtins, ctypes, importlib, json, os, sys
from pathlib import Path
sys.path.append({home!r})
from mergekit_lite.course import guard, landlock
OWN, SECRET = {own!r}, {secret!r}
kernel = {kernel} and landlock.restrict([*guard.readable(), Path(OWN)], [Path(OWN)])
told = []
guard.close([*guard.readable(), Path(SECRET)], [Path(OWN)], [Path(SECRET).parent], told.append, kernel=kernel)
found = {{}}
for name, line in json.loads({tries!r}).items():
    kept = dict(vars(builtins))
    try:
        exec(line)
        found[name] = "done"
    except BaseException as error:
        found[name] = type(error).__name__
    vars(builtins).update(kept)
print(json.dumps({{"found": found, "told": told, "kernel": kernel}}))
"""


def tried(folder: Path, tries: dict[str, str], *, kernel: bool) -> dict[str, Any]:
    """Return what came of each try in a process of its own."""
    own, secret = folder / "own folder", folder / "grader" / "labels.txt"
    (own / "x").mkdir(parents=True)
    (own / "x/mine.txt").write_text("mine")
    secret.parent.mkdir()
    secret.write_text("labels")
    home = str(Path(landlock.__file__).parents[2])
    script = SCRIPT.format(home=home, own=str(own), secret=str(secret), kernel=kernel, tries=json.dumps(tries))
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", script], cwd=own, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert secret.read_text() == "labels"
    assert [one.name for one in secret.parent.iterdir()] == ["labels.txt"]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_python_refuses_what_no_method_needs(tmp_path: Path) -> None:
    answer = tried(tmp_path, TRIES, kernel=False)
    errors = {name: error for name, error in answer["found"].items() if error not in ("PermissionError", "ImportError")}
    assert not errors
    assert any("labels.txt" in one for one in answer["told"])
    assert len(answer["told"]) == 20


def test_what_methods_need_is_allowed(tmp_path: Path) -> None:
    answer = tried(tmp_path, FINE, kernel=bool(landlock.version()))
    assert answer["found"] == dict.fromkeys(FINE, "done")
    assert not answer["told"]


@pytest.mark.skipif(not landlock.version(), reason="this system has no Landlock")
def test_the_system_refuses_what_python_does_not_see(tmp_path: Path) -> None:
    beyond = {
        "reads by a library in C": "import safetensors; safetensors.safe_open(SECRET, 'np')",
        "reads by the C library": "libc = ctypes.CDLL(None, use_errno=True); "
        "assert libc.open(SECRET.encode(), 0) >= 0, 'refused'",
    }
    answer = tried(tmp_path, beyond, kernel=True)
    assert answer["kernel"] is True
    assert answer["found"]["reads by the C library"] == "AssertionError"
    assert answer["found"]["reads by a library in C"] != "done"
    assert not answer["told"]
