"""Projects of one's own for the tests: a folder with profiles and notebooks."""

from pathlib import Path

import nbformat
import yaml

from mergekit_lite.pipeline.profiles import Profile

PARAMETERS = (
    'steps: int = 3  # how many\nrate: float = 1e-3\nname: str = "a"\nquick: bool = False\nsuite: str = "miniature"'
)


def write_notebook(root: Path, name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """Write a template with a `parameters` cell, then `cells`; those that start with # are prose."""
    made = []
    if parameters is not None:
        made.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for source in cells:
        new = nbformat.v4.new_markdown_cell if source.startswith("#") else nbformat.v4.new_code_cell
        made.append(new(source))
    for number, cell in enumerate(made):
        cell["id"] = f"cell-{number}"
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def write_profile(root: Path, name: str = "short", suite: str = "miniature", **notebooks: dict[str, object]) -> Profile:
    path = root / "profiles" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"suite": suite, "notebooks": notebooks}))
    return Profile(name=name, suite=suite, notebooks=notebooks)
