"""A suite of real models: a CLIP, with data sets and experts that lie on the Hugging Face hub."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.cache import content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import check, decoded, hub
from mergekit_lite.suites.clip.benchmark import ClipModel, HubTask, base_file, expert_file, hub_tasks
from mergekit_lite.suites.clip.half import HalfSuite
from mergekit_lite.suites.clip.pixels import Crop
from mergekit_lite.suites.clip.printed import Row
from mergekit_lite.suites.clip.transformers_format import TransformersWeights
from mergekit_lite.suites.suite import Lazy, Split, Suite, Task, Which
from mergekit_lite.workers import cores

HELD_OUT = 20
"""One of so many training images that are kept is held out: 250 of 5,000."""


class ClipSuite(HalfSuite):
    """Weights come from the hub and stay in the hub's own cache; images are decoded once into this library's cache.

    Attributes:
        model: which CLIP it is.
        entries: task -> where its images and experts lie on the hub.
        crop: whose cut of the images' middle it is: that of whoever tuned the experts, here FusionBench with
            transformers.
        printed: which row of FusionBench's tables the experts are checked against.
    """

    crop: Crop = "transformers"
    printed: Row = "Fine-tuned"

    def __init__(self, model: ClipModel, device: torch.device) -> None:
        """Build the model with the base weights of `model`, which are fetched if they are not there."""
        import open_clip  # takes seconds, which who only converts or asks for sizes need not wait for

        self.model, self.entries = model, self._entries(model)
        tasks = [Task(one.name, one.title, one.title, one.classnames, one.templates) for one in self.entries.values()]
        path = self.base_path()
        try:  # a pickle, if it is one, is read with `weights_only`
            clip = open_clip.create_model(model.architecture, pretrained=str(path))
        except Exception as error:  # of any kind: the file's content is taken at its word
            raise KitError(
                f"{path} does not hold the weights of {model.architecture}, tensors under open_clip's names and "
                f"nothing else ({type(error).__name__}). It came so from the hub: if HF_ENDPOINT names a mirror, "
                "unset it."
            ) from error
        super().__init__(model.name, model.title, tasks, clip, open_clip.get_tokenizer(model.architecture), device)
        self._side = int(clip.visual.image_size[0])
        self._said: dict[str, int] = {}  # how many test images `sizes` said that a task has

    @staticmethod
    def _entries(model: ClipModel) -> Mapping[str, HubTask]:
        return hub_tasks()

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(ClipSuite, self.model, self.device)

    @cached_property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return for each task how many training and test images it has: as published until they are decoded."""
        return Lazy(tuple(self.tasks), self._size, keep=False)

    def _size(self, task: str) -> tuple[int, int]:
        train, self._said[task] = decoded.counted(self.entries[task], self._side, self.crop)
        return train, self._said[task]

    def split(self, task: str, which: Which) -> Split:
        """Return images (N, 3, H, W) and labels (N,) of a split: fetched and decoded at first use, then mapped.

        The benchmark has no third split. What is held out are the last of the training images that are kept (see
        `HELD_OUT`): no method is shown them, but the experts, which others fine-tuned on all of them, have seen them.
        """
        if which != "test":
            kept = self._split(task, "train", workers=cores() if self.device.type == "cuda" else 1)
            first = len(kept.labels) - max(1, len(kept.labels) // HELD_OUT)
            rows = slice(first, None) if which == "held-out" else slice(first)
            return Split(kept.images[rows], kept.labels[rows])
        # On a GPU this is the only process, and all cores would wait for it; on a CPU there is one process per core.
        return self._split(task, which, workers=cores() if self.device.type == "cuda" else 1)

    def _split(self, task: str, which: Which, workers: int) -> Split:
        return decoded.decoded_split(self.entries[task], which, self._side, crop=self.crop, workers=workers)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task`, read from the hub's file tensor by tensor; fetched at first use."""
        return TransformersWeights(self.expert_path(task), self.device)

    def base_path(self) -> Path:
        """Return the file with the base weights, fetched if it is not there."""
        return hub.downloaded(*base_file(self.model))

    def expert_path(self, task: str) -> Path:
        """Return the file with the expert of `task`, fetched if it is not there."""
        return hub.downloaded(*expert_file(self.model, self.entries[task]))

    def has_expert(self, task: str) -> bool:
        """Return whether the expert of `task` was fetched already."""
        return hub.cached(*expert_file(self.model, self.entries[task])) is not None

    def has_images(self, task: str, which: Which) -> bool:
        """Return whether a split was fetched and decoded already; what is held out are training images."""
        kept: Which = "test" if which == "test" else "train"
        return decoded.known(self.entries[task], kept, self._side, self.crop) is not None

    @property
    def images_name(self) -> str:
        """All models have the same images, and those of other crops lie beside them."""
        return "clip"

    @property
    def computing(self) -> tuple[Callable[..., Any], ...]:
        """What computes the result, and what reads the experts, whose hash is that of transformers' file."""
        return (*super().computing, TransformersWeights)

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Fetch the experts of `tasks`, fetch and decode their test images, and check the base and the experts.

        Files come one after another, since the network and not the processor is what takes long; `workers` decode.

        Raises:
            KitError: something cannot be fetched, or base or experts are not what they should be (see `check`).
        """
        for task in tasks:
            self.expert_path(task)
            self._bring_test_images(task, workers)
        if not check.skipped():
            check.check_base(self, tasks)
            check.check_experts(self, tasks)

    def _bring_test_images(self, task: str, workers: int) -> None:
        """Fetch and decode the test images of `task`, and see that it has as many as `sizes` said.

        Raises:
            KitError: they cannot be fetched, or whoever asked for their number before was told the published one, and
                the data set has another by now: an interval would be too narrow or too wide.
        """
        found = len(self._split(task, "test", workers=cores() if self.device.type == "cuda" else workers).labels)
        said = self._said.pop(task, found)
        if found != said:
            raise KitError(
                f"Task '{task}' has {found} test images, not {said} as published, and what was counted before they "
                "were decoded would be wrong. Run the same again: from now on the true number is known."
            )

    def base_hash(self) -> str:
        """Return the SHA-256 of the file with the base weights, which the hub is asked for if it is not fetched."""
        return hub.source(*base_file(self.model)).sha256

    def expert_hash(self, task: str) -> str:
        """Return the SHA-256 of the expert's file, which the hub is asked for if it is not fetched.

        Commits are left out, since a new line in a repository's README changes no result; `sources` names them.
        """
        return hub.source(*expert_file(self.model, self.entries[task])).sha256

    def data_hash(self, task: str, which: Which) -> str:
        """Return a hash of the files with the images, by what the hub lists, and of how they are decoded."""
        if which == "test":
            return decoded.fingerprint(self.entries[task], which, self._side, self.crop)
        return content_hash([decoded.fingerprint(self.entries[task], "train", self._side, self.crop), which, HELD_OUT])

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where the weights of the base and of the experts of `tasks` come from: repository@commit/file."""
        files = {"base": base_file(self.model), **{task: expert_file(self.model, self.entries[task]) for task in tasks}}
        return {name: str(hub.source(*file)) for name, file in files.items()}
