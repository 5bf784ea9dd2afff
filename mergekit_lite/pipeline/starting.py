"""A project of one's own: notebooks, profiles and an example of a suite file in a new folder."""

import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import mergekit_lite
from mergekit_lite.errors import KitError

SHARE = "share/mergekit-lite"
"""Where an installation keeps the notebooks and profiles, see `data-files` in pyproject.toml."""

LEFT_OUT = "smoke"  # what the project's own tests run, in values too small for any result

README = """\
# A project with mergekit-lite

* `notebooks/` holds the experiments. Open one in JupyterLab (`pip install 'mergekit-lite[lab]'`, then `jupyter lab`)
  and run all its cells: its values suit the miniature, which needs no GPU and no download.
* `profiles/` says which notebooks to run with which values: `mergekit-lite doctor miniature` tells what a run takes,
  and `mergekit-lite run miniature` runs them. Executed notebooks come to lie in `build/`.
* `birds.yaml` is an example of a suite of your own: your models, tasks and images. Write in it what you have, let
  `mergekit-lite doctor birds.yaml` say what does not fit, and write `suite: birds.yaml` into a profile.
* Without any notebook: `mergekit-lite merge METHOD --base ... --expert NAME=... -o merged/`, then
  `mergekit-lite evaluate merged/ --suite birds.yaml`.
"""


def begin(folder: Path) -> list[Path]:
    """Lay out a project in `folder`, which does not exist or is empty, and return what is in it.

    Raises:
        KitError: the folder is not empty or cannot be written, or the installation lacks its notebooks. Nothing is left
            half-written.
    """
    sources = dict(_templates())
    try:
        folder = folder.resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise KitError(f"{folder} is there already and is not empty. Name a new folder: nothing is overwritten.")
        # All in a folder beside the place, or inside it where it exists: a shell may stand in it.
        above = folder if folder.exists() else next(path for path in folder.parents if path.exists())
        with TemporaryDirectory(dir=above, prefix=".mergekit-lite.") as inside:
            place = Path(inside) / folder.relative_to(above)
            for name, source in sources.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place / name)
            (place / "README.md").write_text(README, encoding="utf-8")
            for path in Path(inside).iterdir():
                path.rename(above / path.name)
    except OSError as error:
        raise KitError(
            f"{folder} cannot be made ({error.strerror or error}). Free some space, or name one that you may write."
        ) from error
    return sorted(folder.iterdir())


def _templates() -> Iterator[tuple[str, Path]]:
    """Yield each file of a new project and where to copy it from: a clone, or what came with the installation."""
    package = Path(mergekit_lite.__file__).parent
    clone = package.parent
    in_clone = [*clone.glob("notebooks/*.ipynb"), *clone.glob("profiles/*.yaml")]
    found = {}
    for path in in_clone if (clone / "pyproject.toml").is_file() else _installed():
        if not path.name.startswith(LEFT_OUT):
            found[f"{path.parent.name}/{path.name}"] = path
    if not found:
        raise KitError(
            "This installation has no notebooks and profiles. Install it again: `pip install --force-reinstall "
            "mergekit-lite`."
        )
    yield from sorted(found.items())
    own = package / "suites" / "own"
    yield "birds.yaml", own / "example.yaml"
    yield "suite.schema.json", own / "suite.schema.json"


def _installed() -> list[Path]:
    """Return the notebooks and profiles that a wheel brought; none where the package is used from a clone."""
    try:
        files = distribution("mergekit-lite").files or []
    except PackageNotFoundError:
        return []
    return [Path(str(one.locate())).resolve() for one in files if SHARE in one.as_posix()]
