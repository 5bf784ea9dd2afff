"""What a merge is made of: a method with its parameters, the models it sees, and the files that it will fill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.cache import file_digest
from mergekit_lite.errors import KitError
from mergekit_lite.merge.material import Material, excluded
from mergekit_lite.merge.target import Target, like_base
from mergekit_lite.merge.ways import WAYS, Merge, Way
from mergekit_lite.methods.parameters import check_seed, filled_in
from mergekit_lite.methods.registry import Access, MethodInfo
from mergekit_lite.suites.checkpoints.layouts import Names
from mergekit_lite.suites.checkpoints.opening import Checkpoint
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import Pool


@dataclass(frozen=True)
class Model:
    """One of the models that are merged, as the card names it.

    Attributes:
        name: of the expert; empty for the base.
        place: where it was: as the user named it, without this machine's paths, or a repository@commit.
        digest: returns a hash of its weights, and says of what; may read them all.
        hub: its repository on the hub, if it has one.
        layout: whose names its tensors are stored by.
    """

    name: str
    place: str
    digest: Callable[[], str]
    hub: str = ""
    layout: str = ""


@dataclass(frozen=True)
class Asked:
    """A method and what it is given.

    Attributes:
        title: for people.
        name: for the machine.
        parameters: all of them.
        merge: does it.
        way: what it needs to see at a time.
        words: more about it for the card, name -> text.
        steps: how often it tells a `watch` of how far it is; 0 if it takes none.
    """

    title: str
    name: str
    parameters: Mapping[str, Any]
    merge: Merge
    way: Way = "whole"
    words: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True)
class Job:
    """A merge that can begin.

    Attributes:
        asked: the method.
        base, experts: what it sees.
        kinds: name -> the dtype that all are seen in.
        target: the files to fill.
        models: base and experts for the card, the base first.
        names: how queries, keys and values are seen.
        notes: what the user should know, in sentences.
        files: what each model is called in messages -> its files.
    """

    asked: Asked
    base: Mapping[str, Tensor]
    experts: Pool
    kinds: Mapping[str, torch.dtype]
    target: Target
    models: tuple[Model, ...]
    names: Names = "fused"
    notes: tuple[str, ...] = ()
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


def of_places(material: Material, asked: Asked) -> Job:
    """Return the job of merging checkpoints by a method that sees nothing else."""
    return Job(
        asked,
        material.base,
        material.experts,
        material.kinds,
        _target(material),
        (
            model_of("", material.base.checkpoint, material.base.layout_title),
            *(model_of(name, view.checkpoint, view.layout_title) for name, view in material.experts.items()),
        ),
        material.base.names,
        material.notes,
        {what: checkpoint.files for what, checkpoint in material.checkpoints.items()},
    )


def _target(material: Material) -> Target:
    """Return the target, with the pattern that excludes a tensor as the reason why it is copied."""
    target, checkpoint = like_base(material.base), material.base.checkpoint
    by = {name: f"--exclude '{one}'" for name, one in excluded(checkpoint, material.excluded).items()}
    return replace(target, copied={name: by.get(name, why) for name, why in target.copied.items()})


def asked_of(info: MethodInfo, parameters: Mapping[str, Any], seed: int | None, **resources: Any) -> Asked:
    """Return a registered method with its parameters filled in.

    Args:
        info: the method.
        parameters: those that are given.
        seed: of its random draws, 0 unless it is given.
        resources: more of what it takes, see `registry.RESOURCES`.

    Raises:
        KitError: a parameter is unknown or ill-typed, or there is a seed for a method that draws nothing.
    """
    filled = filled_in(info.parameters, parameters)
    given = dict(resources)
    words: dict[str, str] = {}
    if "seed" in info.resources:
        check_seed(seed or 0)
        given["seed"] = seed or 0
        words["seed"] = str(seed or 0)
    elif seed is not None:
        raise KitError(f"'{info.name}' draws nothing at random. Leave --seed out.")
    if info.source:
        words["defined in"] = f"{info.source.name} (SHA-256 {file_digest(info.source)})"
    way = "whole" if info.source else WAYS.get(info.name, "whole")
    return Asked(info.title, info.name, filled, partial(info.function, **given, **filled), way, words)


SEES = {
    Access.NONE: "no images",
    Access.CALIBRATION: "training images without labels",
    Access.UNLABELLED: "test images without labels",
    Access.LABELLED: "training images with labels",
}


def check_no_data(info: MethodInfo, parameters: Mapping[str, Any]) -> None:
    """Check that a method can do without a suite.

    Raises:
        KitError: it looks at images.
    """
    access = info.access_with(filled_in(info.parameters, parameters))
    if access is not Access.NONE or "data" in info.resources:
        what = "the heads of tasks" if access is Access.NONE else SEES[access]
        raise KitError(
            f"'{info.name}' looks at {what}. Add --suite with the name of a suite, or with a file that "
            "describes your tasks and their images; methods that look at nothing, such as task_arithmetic, need none."
        )


def model_of(name: str, checkpoint: Checkpoint, layout: str) -> Model:
    """Return what the card says of a checkpoint."""
    hub = checkpoint.source.partition("@")[0] if checkpoint.source != checkpoint.place else ""
    return Model(name, checkpoint.source if hub else shown_place(checkpoint.place), checkpoint.digest, hub, layout)


def shown_place(place: str) -> str:
    """Return a place as it can be published: of a path that is not relative, its last name alone."""
    path = Path(place).expanduser()
    return spelt(path.name if path.is_absolute() else place)
