"""Profiles: which notebooks to run, on which suite and with which parameters."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mergekit_lite.errors import KitError, shown, suggestion
from mergekit_lite.yaml_files import read_yaml

# A name that becomes a file's: letters, digits, underscores and hyphens, so that no path climbs out of its folder. Of
# fifty letters, as each can take four bytes, and names of files end at 255.
_PlainName = Annotated[str, StringConstraints(pattern=r"^\w[\w-]{0,49}$")]


def _engine(text: str) -> str:
    from mergekit_lite.study.engines import check_named  # brings torch

    check_named(text)
    return text


class Budget(BaseModel):
    """What a run takes, in words and with where the number is from: measured, computed, or not measured yet.

    Attributes:
        download, disk: of the hub's files, and of what is written.
        memory, ram: on the GPU, and of the machine; of the miniature, which needs no GPU, `memory` is the machine's.
        time: of the whole profile.
        images: how many are encoded to measure accuracies (computed), by which `doctor` knows the time of that part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    download: str
    disk: str
    memory: str
    ram: str | None = None
    time: str
    images: int | None = None

    def __str__(self) -> str:
        """Return one line for each that is in words."""
        told = self.model_dump(exclude={"images"}, exclude_none=True)
        return "\n".join(f"  {name}: {words}" for name, words in told.items())


class Profile(BaseModel):
    """One file of `profiles/`; its name is the file's name.

    Attributes:
        name: what the command line calls it.
        suite: handed to every notebook that has a parameter `suite`.
        description: what this profile is for and what it leaves out.
        budget: what it takes; printed before a run.
        engine: what computes the cells, such as ``slurm partition=gpu``, see `study.engines`; by default processes of
            this machine. It need not be installed for what only reads the profile.
        notebooks: name of a notebook -> values of its parameters; parameters left out keep the notebook's own values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _PlainName
    suite: str
    description: str = ""
    budget: Budget | None = None
    engine: Annotated[str, AfterValidator(_engine)] | None = None
    notebooks: dict[_PlainName, dict[str, Any]] = Field(min_length=1)


def find_root(start: Path | None = None) -> Path:
    """Return the folder at or above `start` (default: the current one) that holds `profiles/` and `notebooks/`.

    Raises:
        KitError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "profiles").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise KitError(
        f"Neither {start} nor a folder above it holds `profiles/` and `notebooks/`. "
        "Change into a clone of the project, or into what `mergekit-lite init FOLDER` lays out, and try again."
    )


def load(name: str, root: Path) -> Profile:
    """Return the profile `name` of the project at `root`.

    Raises:
        KitError: there is no such profile (those there are get listed), or its file is not a valid one.
    """
    path = root / "profiles" / f"{name}.yaml"
    names = sorted(one.stem for one in path.parent.glob("*.yaml"))
    if name not in names:
        hint = suggestion(name, names)
        raise KitError(f"There is no profile '{name}'.{hint} Profiles: {', '.join(names) or 'none'}.")
    content = read_yaml(path, f"profiles/{path.name}")
    if not isinstance(content, dict):
        raise KitError(f"profiles/{path.name} must hold `suite:` and `notebooks:`; it holds {type(content).__name__}.")
    # `eight_tasks:` with nothing behind it means: all parameters as the notebook has them.
    if isinstance(content.get("notebooks"), dict):
        content["notebooks"] = {key: {} if value is None else value for key, value in content["notebooks"].items()}
    if content.get("name", name) != name:
        raise KitError(
            f"profiles/{path.name} calls itself {shown(content['name'])}. Rename the file, or leave `name:` out."
        )
    try:
        return Profile.model_validate({**content, "name": name})
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        known = ", ".join(Profile.model_fields)
        raise KitError(
            f"profiles/{path.name} is not a valid profile (it may hold {known}):\n" + "\n".join(problems)
        ) from error
