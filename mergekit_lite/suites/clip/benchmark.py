"""The real benchmark: which models and data sets of the Hugging Face hub it is made of, read from its suite files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from mergekit_lite.suites.own.reading import SHIPPED, read_suite_file
from mergekit_lite.suites.own.schema import SuiteFile

Key = Literal["b32", "b16", "l14"]

CHANGED = (
    "The data set may have been changed on the hub: delete the folder sources/clip of the cache and run the same again "
    "to take it as it is now."
)
"""What to do about data that are not as expected; the end of several errors."""

EXPERT = "model.safetensors"  # transformers' name of the file in every expert's repository


@dataclass(frozen=True)
class ClipModel:
    """One CLIP of the papers.

    Attributes:
        name: of the suite.
        title: for tables and figures.
        key: of this model in `reference/tasks.json`.
        architecture: open_clip's name. OpenAI trained with QuickGELU; plain GELU changes every accuracy in silence.
        pretrained: open_clip's tag of the weights.
    """

    name: str
    title: str
    key: Key
    architecture: str
    pretrained: str


KEYS: Mapping[str, Key] = {"clip-vit-b-32": "b32", "clip-vit-b-16": "b16", "clip-vit-l-14": "l14"}
"""Name of the suite -> key of its model in `reference/tasks.json`."""


@cache
def suite_files() -> Mapping[str, SuiteFile]:
    """Return the suite files that ship with the package, by the suites' names."""
    return {name: read_suite_file(SHIPPED / f"{name}.yaml") for name in KEYS}


MODELS: dict[str, ClipModel] = {
    name: ClipModel(name, file.title or name, KEYS[name], file.model, file.base) for name, file in suite_files().items()
}
"""Name of the suite -> model."""


@dataclass(frozen=True)
class HubTask:
    """One data set of the hub with its class names, prompts and experts, and what others measured with them.

    Attributes:
        dataset, config: id on the hub and configuration, if it has several.
        train_split, test_split: names of the splits.
        image_column, label_column: names of the columns.
        test_images: size of the test split; 0 if nobody published it.
        experts: key of a model -> repository of the encoder fine-tuned on this task.
        accuracy: key of a model -> "pretrained" and "finetuned" top-1 accuracy in percent, as FusionBench printed it.
        revision: commit of the data set; None is the present one, or what `reference/tasks.json` knows to be right.
        remedy: what to do if the data set is not as it is said here.
    """

    name: str
    title: str
    dataset: str
    config: str | None
    train_split: str
    test_split: str
    image_column: str
    label_column: str
    test_images: int
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    experts: Mapping[str, str]
    accuracy: Mapping[str, Mapping[str, float]]
    revision: str | None = None
    remedy: str = CHANGED


@cache
def _stored() -> Any:
    return json.loads(files("mergekit_lite").joinpath("reference/tasks.json").read_text(encoding="utf-8"))


def revisions() -> Mapping[str, str]:
    """Return for each repository whose right state is known the first digits of that commit; see `pins.completed`."""
    stored: dict[str, str] = _stored()["revisions"]
    return stored


@cache
def hub_tasks() -> Mapping[str, HubTask]:
    """Return the twenty tasks by name, in the benchmark's order: what the suite files say, and what was published."""
    published = {one["name"]: one for one in _stored()["tasks"]}
    suites = suite_files()
    return {
        name: HubTask(
            name=name,
            title=task.title or name,
            dataset=task.images.dataset or "",
            config=task.images.config,
            train_split=task.images.train or "train",
            test_split=task.images.test or "test",
            image_column=task.images.image,
            label_column=task.images.label,
            test_images=published[name]["n_test"],
            classnames=tuple(task.classnames),
            templates=tuple(task.templates),
            experts={KEYS[suite]: file.tasks[name].expert.removeprefix("hf:") for suite, file in suites.items()},
            accuracy=published[name]["accuracy"],
        )
        for name, task in next(iter(suites.values())).tasks.items()
    }


def base_file(model: ClipModel) -> tuple[str, str]:
    """Return repository and name of the file with the weights of `model` before any fine-tuning, in open_clip's format.

    Where open_clip itself would get them from; the URL in the same table is only its second choice.
    """
    import open_clip  # takes seconds, which who only reads these tables need not wait for
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    listed: str = open_clip.get_pretrained_cfg(model.architecture, model.pretrained)["hf_hub"]
    return listed.rstrip("/"), HF_SAFE_WEIGHTS_NAME


def expert_file(model: ClipModel, task: HubTask) -> tuple[str, str]:
    """Return repository and name of the file with the expert of `task`, in transformers' format."""
    return task.experts[model.key], EXPERT
