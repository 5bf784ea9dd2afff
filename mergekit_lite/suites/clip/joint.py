"""The multi-task reference without days of training: FusionBench's own checkpoint, one encoder tuned on eight tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.benchmark import MODELS, ClipModel, HubTask, Key, hub_tasks
from mergekit_lite.suites.clip.clip_suite import ClipSuite
from mergekit_lite.suites.clip.printed import Row
from mergekit_lite.suites.suite import PREFIXES, Suite

FAMILY = "FB-multi-task"

REPOSITORIES: Mapping[Key, str] = {
    "b32": "tanganke/clip-vit-base-patch32_TA8_mtl",
    "l14": "tanganke/clip-vit-large-patch14_TA8_mtl",
}
"""Key of a model -> repository. There is none for ViT-B/16, and none of fourteen or twenty tasks."""


class JointSuite(ClipSuite):
    """The first eight tasks, and of each the same "expert": the one model that FusionBench tuned on all of them.

    Its row is the method `individual` on all eight, which is what this one model reaches; `analysis.accuracy.joint`
    gives the record its title. To merge copies of one model makes no sense, and is not what it is for.
    """

    printed: Row = "Traditional MTL"

    def __init__(self, model: ClipModel, family: str, device: torch.device) -> None:
        """Build the model with the base weights of `model`.

        Raises:
            KitError: there is no such checkpoint of it.
        """
        if model.key not in REPOSITORIES:
            there = " and ".join(one.title for one in MODELS.values() if one.key in REPOSITORIES)
            raise KitError(
                f"FusionBench published no multi-task checkpoint of {model.title}, only of {there}. Train one: method "
                "`multi_task_training`."
            )
        super().__init__(model, device)
        self.family = family
        self.name, self.title = f"{model.name}@{family}", f"{model.title} (FusionBench's multi-task checkpoint)"

    @staticmethod
    def _entries(model: ClipModel) -> Mapping[str, HubTask]:
        eight = list(hub_tasks().items())[: PREFIXES["eight"]]
        return {name: replace(entry, experts={model.key: REPOSITORIES[model.key]}) for name, entry in eight}

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(JointSuite, self.model, self.family, self.device)

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """As `ClipSuite.prepare`, for all eight tasks only.

        Raises:
            KitError: some of the eight are missing: the model was tuned on all of them, and is no reference for fewer.
        """
        missing = [task for task in self.tasks if task not in tasks]
        if missing:
            raise KitError(
                f"{self.title} was tuned on eight tasks, and is no reference for a pool without {', '.join(missing)}. "
                "Take all eight, or train on yours: method `multi_task_training`."
            )
        super().prepare(tasks, workers)
