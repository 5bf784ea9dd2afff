"""The benchmark with experts of another family, such as OC-8: converted checkpoints in a folder, not the hub's."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from mergekit_lite.cache import Written, cache_dir, written
from mergekit_lite.errors import KitError
from mergekit_lite.suites import check_name
from mergekit_lite.suites.clip import check
from mergekit_lite.suites.clip.benchmark import MODELS, ClipModel, hub_tasks
from mergekit_lite.suites.clip.clip_suite import ClipSuite
from mergekit_lite.suites.suite import Suite
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import check_same, weights_hash


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
        crop: the images are cut by open_clip, as they were where these experts were tuned.
    """

    crop = "open_clip"

    def __init__(self, model: ClipModel, family: str, device: torch.device) -> None:
        """Build the model with the base weights of `model`; the experts are looked up at first use."""
        super().__init__(model, device)
        self.family = family
        self.name, self.title = f"{model.name}@{family}", f"{model.title} ({family})"
        self.base = {name: value.detach() for name, value in self._model.visual.named_parameters()}

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(type(self), self.model, self.family, self.device)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task`, read from its file tensor by tensor.

        Raises:
            KitError: it was not converted yet, is of another family than its place says, or of another model.
        """
        expert = self._opened(task)
        check_same(self.base, expert, name=f"the {self.family} expert of '{task}'")
        return expert

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Check that the experts of `tasks` are there, fetch and decode their test images, and check the base.

        No accuracy of the experts is checked as for the hub's: none was published for these on just these images.
        """
        for task in tasks:
            self.expert(task)
        for task in tasks:
            self._bring_test_images(task, workers)
        if not check.skipped():
            check.check_base(self, tasks)

    def has_expert(self, task: str) -> bool:
        """Return whether the expert of `task` was converted already."""
        return self.expert_path(task).exists()

    def expert_path(self, task: str) -> Path:
        """Return where the converted expert of `task` is kept."""
        return place(self.model.name, self.family, task)

    def expert_hash(self, task: str) -> str:
        """Return the hash of the converted weights of the expert of `task`."""
        return self._opened(task).metadata["weights"]

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where the base comes from, and of the experts their family, the pickle's name and its SHA-256."""
        facts = {task: self._opened(task).metadata for task in tasks}
        told = {task: f"{one['family']}: {one['source']}, sha256 {one['source_sha256']}" for task, one in facts.items()}
        return super().sources(()) | told

    def _opened(self, task: str) -> LazyWeights:
        """Return the file of an expert, whole and with what `pickled.convert` wrote about the checkpoint.

        Raises:
            KitError: it is not there, damaged, or of another family or task than its place says.
        """
        path, again = self.expert_path(task), f"Delete it and {self._anew(task)}"
        if not path.exists():
            missing = f"There is no {self.family} expert of '{task}' for {self.model.title}"
            raise KitError(f"{missing}. Convert its checkpoint: {self._command(task)}")
        try:
            expert = LazyWeights(path, self.device)
        except KitError as error:
            raise KitError(f"{path} is not a whole safetensors file. {again}") from error
        facts = expert.metadata
        if not facts.keys() >= {"family", "source", "source_sha256", "weights"}:
            raise KitError(f"{path} does not say what `mergekit-lite convert` notes of a checkpoint. {again}")
        if (facts["family"], facts.get("task", task)) != (self.family, task):
            raise KitError(
                f"{path} says that it is the expert of '{spelt(facts.get('task', task))}' of the family "
                f"{spelt(facts['family'])}, not that of '{task}' of {self.family}. {again}"
            )
        if _hash_of(path, written(path)) != facts["weights"]:
            raise KitError(f"{path} is damaged: its numbers are not those that were converted. {again}")
        return expert

    def _command(self, task: str) -> str:
        return f"mergekit-lite convert FILE.pt --suite {self.model.name} --task {task} --family {self.family}"

    def _anew(self, task: str) -> str:
        """Return how to come by the expert of `task` once more, for errors."""
        return f"convert the checkpoint again: {self._command(task)}"


@cache
def _hash_of(path: Path, _: Written) -> str:
    """Return the hash of the weights in a file, which is read whole once per process and after it was written to."""
    return weights_hash(LazyWeights(path))
