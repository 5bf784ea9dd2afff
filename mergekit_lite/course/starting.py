"""`mergekit-lite course new`: the folder that a student begins with, a copy of `handout/`."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mergekit_lite.errors import KitError

HANDOUT = Path(__file__).parent / "handout"

FROM_A_COPY = """
Install the kit first, from a copy of it that you have or were given:

    pip install path/to/mergekit-lite
"""
"""What the README says where no repository is named. The kit is in no package index, so no requirement names it there:
whoever put something else under its name could have it installed."""


def start(folder: Path, repository: str = "") -> None:
    """Make `folder` with all that a student needs; on failure nothing is left of it.

    Args:
        folder: one that is empty or not there yet.
        repository: ``owner/name`` on GitHub: a copy of the kit, on whose branch main the new folder lies at the top.
            The kit is then installed from there, and a badge opens the notebook in Colab. Empty: there is no badge.

    Raises:
        KitError: `folder` is no empty folder, or the repository's name is none.
    """
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise KitError(f"'{repository}' is no repository on GitHub. Give it as owner/name.")
    folder = Path(os.path.abspath(folder.expanduser()))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KitError(f"{folder} is not empty. Name a folder that is not there yet: nothing is written over.")
    # Made whole beside it, then moved into its place.
    made = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    there = folder.exists()
    try:
        shutil.copytree(HANDOUT, made, ignore=shutil.ignore_patterns("__init__.py", "__pycache__"))
        if repository:
            _link(made, repository, folder.name)
        if not there:
            made.rename(folder)
        else:  # a folder that somebody stands in
            for one in sorted(made.iterdir()):
                one.rename(folder / one.name)
    except BaseException:
        if there:
            for one in folder.iterdir():
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _link(folder: Path, repository: str, name: str) -> None:
    """Let the files in `folder` refer to the repository on GitHub, where they lie in the folder `name`."""
    address = f"https://github.com/{repository}"
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/{quote(name)}/method.ipynb"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    _edit(folder / "requirements.txt", "", f"mergekit-lite @ git+{address}\n")
    _edit(folder / "README.md", FROM_A_COPY, "")
    _edit(folder / "README.md", "\n\n", f"\n\n{badge}\n\n")
    clone = repository.partition("/")[2]
    install = (
        "import os\nimport sys\n\n"
        'if "google.colab" in sys.modules:  # there, the kit and the files beside this one must be fetched\n'
        f"    !git clone --quiet --depth 1 {address}\n"
        f"    %pip install --quiet ./{clone}\n"
        f"    os.chdir({f'{clone}/{name}'!r})"
    )
    cell: dict[str, Any] = {"cell_type": "code", "execution_count": None, "id": "method-colab"}
    notebook = json.loads((folder / "method.ipynb").read_text(encoding="utf-8"))
    notebook["cells"].insert(1, {**cell, "metadata": {}, "outputs": [], "source": install.splitlines(True)})
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    (folder / "method.ipynb").write_text(text, encoding="utf-8")


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
