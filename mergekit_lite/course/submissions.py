"""What students handed in: the entries of one folder, each named after its student."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from mergekit_lite.errors import KitError

_PLAIN = re.compile(r"\w[\w .,@+-]{0,99}")


@dataclass(frozen=True)
class Submission:
    """One student's file or folder.

    Attributes:
        student: its name, without a suffix.
        path: where it lies.
        digest: a hash of all its files.
    """

    student: str
    path: Path
    digest: str


def submissions_in(folder: Path) -> list[Submission]:
    """Return the submissions in `folder`, by name: each .py file, notebook and folder; hidden ones are left out.

    Raises:
        KitError: there is no such folder, it holds none, or two are called alike.
    """
    if not folder.is_dir():
        raise KitError(f"There is no folder {folder}. Name the folder that holds a file or a folder for each student.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        taken = path.is_dir() or path.suffix in (".py", ".ipynb")
        if not taken or path.name.startswith((".", "__")):
            continue
        student = path.name if path.is_dir() else path.stem
        if not _PLAIN.fullmatch(student):
            raise KitError(f"{path} has a name that no page can have. Rename it: letters, digits, spaces and -_.,@+.")
        if student.casefold() in found:
            raise KitError(f"There are two submissions of '{student}': {found[student.casefold()].name}, {path.name}.")
        found[student.casefold()] = path
    if not found:
        raise KitError(f"{folder} holds no submission: no .py file, no notebook and no folder.")
    return [Submission(one.name if one.is_dir() else one.stem, one, _digest(one)) for one in found.values()]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    for file in files:
        if file.suffix not in (".pyc", ".npy", ".safetensors"):  # what a method is, is in its text
            content = b"a link" if file.is_symlink() else file.read_bytes()
            name = file.relative_to(path.parent).as_posix()
            digest.update(repr((name, hashlib.sha256(content).hexdigest())).encode())
    return digest.hexdigest()[:16]
