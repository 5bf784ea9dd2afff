"""What a suite file may say, as types that pydantic checks and editors know through a JSON schema."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.suites.suite import PREFIXES, Task, check_plain, check_tasks, chosen_tasks


def _plain(name: str) -> str:
    check_plain("suite, task or set", name)
    return name


Name = Annotated[str, AfterValidator(_plain)]


class Part(BaseModel):
    """A part of a suite file: unknown keys are errors, and nothing is converted in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Images(Part):
    """Where the images and labels of a task lie: in folders, in one .npz file, or in a data set of the hub."""

    folder: str | None = None
    """Holds `train/CLASS/` and `test/CLASS/`; the folders are called as the classes."""
    npz: str | None = None
    """A file of numpy with test_images, test_labels, train_images and train_labels: uint8 (N, H, W), (N, H, W, 3) or
    (N, 3, H, W), and whole numbers (N,)."""
    dataset: str | None = None
    """A data set of the Hugging Face hub: ORG/NAME."""
    config: str | None = None
    """Which configuration of the data set, if it has several."""
    revision: str | None = None
    """Which commit of the data set; by default the present one, which is then kept."""
    train: str | None = None
    """The training split: of a data set its name (by default train), in a folder that of the subfolder."""
    test: str | None = None
    """The test split: of a data set its name (by default test), in a folder that of the subfolder."""
    image: str = "image"
    """The column of a data set that holds the images."""
    label: str = "label"
    """The column of a data set that holds the labels."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in ("folder", "npz", "dataset") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"name one of folder, npz and dataset, not {' and '.join(given) or 'none of them'}")
        if given != ["dataset"]:
            fields = {"config", "revision", "image", "label"} | ({"train", "test"} if given == ["npz"] else set())
            strange = sorted(fields & self.model_fields_set)
            if strange:
                raise ValueError(f"`{strange[0]}` says nothing of a {given[0]}: leave it out")
        return self

    @property
    def kind(self) -> Literal["folder", "npz", "dataset"]:
        """Which of the three it is."""
        return "folder" if self.folder is not None else "npz" if self.npz is not None else "dataset"


class OwnTask(Part):
    """A classification task with its images and its expert."""

    title: str | None = None
    """For tables and figures; by default the task's name."""
    classnames: list[str] | str
    """The classes in the order of their labels: a list, or a text file with one in each line."""
    templates: list[str] = Field(default=["a photo of a {}."], min_length=1)
    """Prompts with {} in the place of the class name; their text features are averaged."""
    images: Images
    """Where images and labels lie."""
    expert: str
    """The encoder that was fine-tuned on this task: a file, a folder, or hf:ORG/REPO[@REVISION][/FILE]."""
    head: str | None = None
    """A safetensors file with one matrix (classes, features), a trained linear head, in the place of the prompts."""

    @field_validator("classnames")
    @classmethod
    def _can_be_told_apart(cls, names: list[str] | str) -> list[str] | str:
        if isinstance(names, list):
            if len(names) < 2:
                raise ValueError(f"a task needs two classes or more, and here is {len(names) or 'none'}")
            for place, name in enumerate(names):
                if not name.strip():
                    raise ValueError(f"the class name {place + 1} of {len(names)} is empty")
                if name in names[:place]:
                    raise ValueError(f"the class '{name}' is there more than once: rename one of them")
        return names

    @field_validator("templates")
    @classmethod
    def _hold_a_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            try:
                filled = template.format("\0")
            except (IndexError, KeyError, ValueError, AttributeError):
                filled = ""
            if "\0" not in filled:
                raise ValueError(f"the template '{template}' has no {{}} for the class name, or other braces")
        return templates


class SuiteFile(Part):
    """A suite: one model, its tasks, and for each of them images and an expert that was fine-tuned from the model."""

    name: Name
    """By which records know the suite; by default the file's name without its end."""
    title: str | None = None
    """For tables and figures; by default the name."""
    description: str = ""
    """What it is for."""
    like: str | None = None
    """A shipped suite, such as clip-vit-b-32, or another suite file: all that is not given is taken from there. If
    tasks are given, these are all; each begins as the task of that name there."""
    model: str
    """An architecture of open_clip, such as ViT-B-32-quickgelu; a .json file that describes one as open_clip does; or
    timm:NAME, which needs a `head` for each task."""
    base: str
    """Weights before fine-tuning: a tag of open_clip, such as openai; a file or folder; or hf:ORG/REPO[@REVISION]."""
    crop: Literal["open_clip", "transformers"] = "open_clip"
    """Whose cut of the middle of an image it is: take that of whoever tuned the experts."""
    sets: dict[Name, Annotated[list[str], Field(min_length=1)]] = {}
    """Names for several tasks, to be used where tasks are asked for."""
    tasks: dict[Name, OwnTask] = Field(min_length=1)
    """The tasks by name, in order."""

    folder: Path = Field(default=Path(), exclude=True, json_schema_extra={"hidden": True})
    """Where the file lies: relative paths begin there. Not a field of the file."""

    @field_validator("model")
    @classmethod
    def _is_known(cls, model: str) -> str:
        if model.startswith("transformers:"):
            raise ValueError(
                "open_clip has no vision encoders of transformers. Checkpoints that transformers wrote are read all "
                "the same: name open_clip's architecture, such as ViT-B-32-quickgelu"
            )
        return model

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, members in self.sets.items():
            if name in self.tasks:
                raise ValueError(f"'{name}' is a task and a set: call one of them otherwise")
            for member in members:
                if member not in self.tasks:
                    raise ValueError(f"the set '{name}' has a task '{member}' that there is not")
        if self.model.startswith("timm:"):
            headless = [name for name, task in self.tasks.items() if task.head is None]
            if headless:
                raise ValueError(
                    f"a model of timm has no text tower to make heads from prompts: give task '{headless[0]}' a `head`"
                )
        for word in PREFIXES:
            if word in self.tasks:
                raise ValueError(f"'{word}' is the name of a set: call the task otherwise")
        return self

    def suite_tasks(self) -> list[Task]:
        """Return the tasks as a suite has them."""
        tasks = [
            Task(name, one.title or name, one.title or name, tuple(one.classnames), tuple(one.templates))
            for name, one in self.tasks.items()
        ]
        check_tasks(tasks)
        return tasks

    def names(self, which: str | Sequence[str]) -> tuple[str, ...]:
        """Return task names: of a set of the file, such as ``"garden"``, of a text or a list; see `Suite.names`.

        Raises:
            KitError: there is no such task or set.
        """
        if isinstance(which, str) and which in self.sets:
            return tuple(self.sets[which])
        sets = f" Sets: {', '.join(self.sets)}." if self.sets else ""
        try:
            return chosen_tasks(which, tuple(self.tasks), f"Suite '{self.name}'")
        except KitError as error:
            raise KitError(f"{error}{sets}") from None


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a suite file, by which editors complete and check it."""
    schema = SuiteFile.model_json_schema()
    schema["properties"] = {name: one for name, one in schema["properties"].items() if not one.pop("hidden", False)}
    # The name of the file stands in for the name; `like` for all else.
    schema["required"] = []
    schema["$defs"]["OwnTask"]["required"] = []
    schema["title"] = "A suite of mergekit-lite"
    return schema


def hint(key: str, where: tuple[Any, ...]) -> str:
    """Return a proposal for a key that is not known, by the keys that its part of the file has."""
    part: type[Part] = Images if "images" in where else OwnTask if "tasks" in where else SuiteFile
    return suggestion(key, [name for name in part.model_fields if name != "folder" or part is Images])


if __name__ == "__main__":
    Path(__file__).with_name("suite.schema.json").write_text(
        json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8"
    )
