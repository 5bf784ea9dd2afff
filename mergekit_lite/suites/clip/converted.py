"""The benchmark with experts of another family, such as OC-8: converted checkpoints in a folder, not the hub's."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mergekit_lite.cache import cache_dir, code_hash, content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.suites import check_name
from mergekit_lite.suites.clip import ClipSuite
from mergekit_lite.suites.clip.benchmark import MODELS, ClipModel, hub_tasks
from mergekit_lite.suites.suite import Suite
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import check_same


def place(model: str | None, family: str, task: str | None) -> Path:
    """Return where the expert of `task` is kept for the suite ``model@family``.

    Raises:
        KitError: one of the three is missing or cannot be.
    """
    if model not in MODELS:
        raise KitError(f"Suite '{model}' takes no converted experts. Name one of: {', '.join(MODELS)}.")
    if task not in hub_tasks():
        raise KitError(f"The benchmark has no task '{task}'. Tasks: {', '.join(hub_tasks())}.")
    check_name(f"{model}@{family}")
    return cache_dir("experts", f"{model}@{family}") / f"{task}.safetensors"


class ConvertedSuite(ClipSuite):
    """Images, heads and base are the hub's; the experts are converted files, and the suite bears their family's name.

    The task-vectors authors fine-tuned the projection into the joint space too, and AdaMerging merges it. So here it is
    among the merged parameters, unlike in `ClipSuite`.

    Attributes:
        family: whose experts these are; after an @ in the suite's name, and so in every record.
    """

    def __init__(self, model: ClipModel, family: str, device: torch.device) -> None:
        """Build the model with the base weights of `model`; the experts are looked up at first use."""
        super().__init__(model, device)
        self.family, self._known = family, dict[str, dict[str, str]]()
        self.name, self.title = f"{model.name}@{family}", f"{model.title} ({family})"
        self.base = {name: value.detach() for name, value in self._model.visual.named_parameters()}

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(ConvertedSuite, self.model, self.family, self.device)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task`, read from its file tensor by tensor.

        Raises:
            KitError: it was not converted yet, is of another family than its place says, or of another model.
        """
        self._facts(task)
        expert = LazyWeights(self._path(task), self.device)
        check_same(self.base, expert, name=f"the {self.family} expert of '{task}'")
        return expert

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Check that the experts of `tasks` are there, then fetch and decode their test images.

        No accuracy is checked as for the hub's experts: none was published for these on just these images.
        """
        for task in tasks:
            self.expert(task)
        for task in tasks:
            self._split(task, "test", workers=workers)

    def fingerprint(self, pool: Sequence[str], evaluate: Sequence[str], learnt: Sequence[str] = ()) -> dict[str, Any]:
        """Return the hashes of `ClipSuite.fingerprint`, those of the experts from the converted files."""
        known = super().fingerprint((), tuple(dict.fromkeys([*pool, *evaluate])), learnt)
        return {
            **known,
            "code": content_hash([known["code"], code_hash(Path(__file__))]),
            "experts": {task: self._facts(task)["weights"] for task in pool},
        }

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where the base comes from, and of the experts their family, the pickle's name and its SHA-256."""
        facts = {task: self._facts(task) for task in tasks}
        told = {task: f"{one['family']}: {one['source']}, sha256 {one['source_sha256']}" for task, one in facts.items()}
        return super().sources(()) | told

    def _path(self, task: str) -> Path:
        return place(self.model.name, self.family, task)

    def _facts(self, task: str) -> dict[str, str]:
        """Return what `legacy.convert` wrote about a checkpoint beside its tensors."""
        path = self._path(task)
        if not path.exists():
            raise KitError(
                f"There is no {self.family} expert of '{task}' for {self.model.title}. Convert its checkpoint: "
                f"mergekit-lite convert FILE.pt --suite {self.model.name} --task {task} --family {self.family}"
            )
        if task not in self._known:
            LazyWeights(path)  # says it in words if the file is damaged
            with safe_open(path, framework="pt") as file:
                self._known[task] = file.metadata() or {}
        facts = self._known[task]
        if facts.get("family") != self.family:
            raise KitError(
                f"{path} says that it is of the family {facts.get('family', 'unknown')}, not {self.family}. "
                f"Convert the checkpoint again with --family {self.family}."
            )
        return facts
