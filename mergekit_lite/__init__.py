"""mergekit-lite: a reproducible research kit for model merging.

Data walks one way: profile -> papermill -> notebook -> `study.run` -> suite -> method -> evaluation -> record -> table
and figure.
"""

import tomllib
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# open_clip imports tqdm's notebook bar, which warns in a kernel without widgets; no widget bar is ever shown here.
warnings.filterwarnings("ignore", message="IProgress not found")


def _version() -> str:
    """Return the version that is installed, or of a copy of the source that was never installed what it says itself."""
    try:
        return version("mergekit-lite")
    except PackageNotFoundError:
        with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as stream:
            return str(tomllib.load(stream)["project"]["version"])


__version__ = _version()
