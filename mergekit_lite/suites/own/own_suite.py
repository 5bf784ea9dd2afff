"""The suite that a file describes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import Tensor

from mergekit_lite.cache import content_hash
from mergekit_lite.suites.checkpoints.encoders import as_encoder
from mergekit_lite.suites.checkpoints.opening import HUB, Checkpoint, opened
from mergekit_lite.suites.clip.half import HalfSuite
from mergekit_lite.suites.own import models, places, splits
from mergekit_lite.suites.own.heads import trained_head
from mergekit_lite.suites.own.schema import SuiteFile
from mergekit_lite.suites.suite import Lazy, Split, Suite, Which
from mergekit_lite.workers import cores

HELD_OUT = 20
"""One of so many training images is held out, as in the benchmark."""


class OwnSuite(HalfSuite):
    """Weights in any format, images in folders, in files of numpy or on the hub; decoded once into the cache.

    Folders and files of images are looked at once: who changes them loads the suite again.

    Attributes:
        file: what the suite file says.
        features: their number D.
    """

    def __init__(self, file: SuiteFile, device: torch.device) -> None:
        """Build the model with its base weights; experts and images are looked up at first use.

        Raises:
            KitError: the model is not known, or its base weights are not there or are another model's.
        """
        self.file = file
        model = models.built(file)
        self._base_hash, self._base_source, self.features = model.hash, model.source, model.features
        super().__init__(file.name, file.title or file.name, file.suite_tasks(), model.clip, model.tokenizer, device)
        self._sources = {
            name: splits.Source(self.tasks[name], own, self.side, file.crop) for name, own in file.tasks.items()
        }
        self._prints: dict[tuple[str, Which], str] = {}
        self._of_hub: dict[str, Checkpoint] = {}

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(OwnSuite, self.file, self.device)

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return for each task how many training and test images it has; what is held out counts as training images.

        A data set of the hub whose card does not say is fetched to count its test images; offline that is 0.
        """
        return Lazy(tuple(self.tasks), self._size, keep=False)

    def _size(self, task: str) -> tuple[int, int]:
        test = self.count(task, "test")
        if test == 0 and not constants.HF_HUB_OFFLINE:
            test = len(self.split(task, "test").labels)
        return self.count(task, "train"), test

    def names(self, which: str | Sequence[str]) -> tuple[str, ...]:
        """Return task names: of a set of the file, such as ``"garden"``, of a text or a list; see `Suite.names`."""
        return self.file.names(which)

    def split(self, task: str, which: Which) -> Split:
        """Return images (N, 3, H, W) and labels (N,) of a split, decoded at first use, then mapped.

        What is held out are the last of the training images (see `HELD_OUT`), which are shuffled.
        """
        if which == "test":
            return self._brought(task, "test", 1)
        kept = self._brought(task, "train", 1)
        first = len(kept.labels) - _held_out(len(kept.labels))
        rows = slice(first, None) if which == "held-out" else slice(first)
        return Split(kept.images[rows], kept.labels[rows])

    def _brought(self, task: str, which: Which, workers: int) -> Split:
        # On a GPU this is the only process, and all cores would wait for it; on a CPU there is one process per core.
        workers = cores() if self.device.type == "cuda" else workers
        return splits.brought(self._sources[task], which, self._print(task, which), workers)

    def _print(self, task: str, which: Which) -> str:
        """Return the fingerprint of a split; its files are looked at once, as a study asks for it in every cell."""
        kept: Which = "test" if which == "test" else "train"
        if (task, kept) not in self._prints:
            self._prints[task, kept] = splits.fingerprint(self._sources[task], kept)
        return self._prints[task, kept]

    def has_split(self, task: str, which: Which) -> bool:
        """Return whether the suite has a place for a split: it may do without training images."""
        return splits.has_split(self._sources[task], which)

    def bring(self, task: str, which: Which, workers: int) -> int:
        """Decode a split that is not decoded yet, and return how many images it has."""
        return len(self._brought(task, which, workers).labels)

    def checkpoint(self, task: str) -> Checkpoint:
        """Return the opened checkpoint of the expert of `task`; fetched from the hub if it lies there."""
        place = self.file.tasks[task].expert
        if place in self._of_hub:
            return self._of_hub[place]
        checkpoint = opened(place, self.device)
        if place.startswith(HUB) and checkpoint.format != "pickle":  # which would stay in memory
            self._of_hub[place] = checkpoint  # the hub is asked each time that it is opened
        return checkpoint

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task` under the names of the base, read tensor by tensor."""
        return as_encoder(self.checkpoint(task), self.base, what=f"The expert of '{task}'")

    def count(self, task: str, which: Which) -> int:
        """Return how many images a split has; 0 if there are none, or if nobody has brought them yet."""
        return splits.counted(self._sources[task], which)

    def describe_expert(self, task: str) -> str:
        """Return by whose names the expert of `task` is stored.

        Raises:
            KitError: it is not there, or does not fit the base.
        """
        return as_encoder(self.checkpoint(task), self.base, what=f"The expert of '{task}'").view.layout_title

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Look at the experts of `tasks`, and decode their test images that are not decoded yet."""
        for task in tasks:
            self.expert(task)
        for task in tasks:
            self._brought(task, "test", workers)

    def has_expert(self, task: str) -> bool:
        """Return whether the expert of `task` is on this machine."""
        return places.is_here(self.file.tasks[task].expert)

    def has_images(self, task: str, which: Which) -> bool:
        """Return whether a split was decoded already; what is held out are training images."""
        kept: Which = "test" if which == "test" else "train"
        if not self.has_split(task, kept):
            return False
        print_ = "" if self.file.tasks[task].images.kind == "dataset" else self._print(task, kept)
        return splits.is_decoded(self._sources[task], kept, print_)

    def base_hash(self) -> str:
        """Return a hash of the base weights and of the architecture they are for."""
        return self._base_hash

    def expert_hash(self, task: str) -> str:
        """Return a hash of the expert's files; the hub is asked for it if it is not fetched."""
        return places.weights_hash(self.file.tasks[task].expert, partial(self.checkpoint, task))

    def data_hash(self, task: str, which: Which) -> str:
        """Return a hash of the images and labels of one split of `task`, as their files hold them."""
        print_ = self._print(task, which)
        return print_ if which == "test" else content_hash([print_, which, HELD_OUT])

    def fingerprint(self, pool: Sequence[str], evaluate: Sequence[str], learnt: Sequence[str] = ()) -> dict[str, Any]:
        """Return hashes of all that a result depends on, see `Suite.fingerprint`; of trained heads that of the file."""
        known = super().fingerprint(pool, evaluate, learnt)
        heads = {task: self.file.tasks[task].head for task in evaluate}
        trained = {task: places.digest(Path(path)) for task, path in heads.items() if path}
        return {**known, "trained heads": trained} if trained else known

    @property
    def images_name(self) -> str:
        """The folder of the cache for what is made of the images."""
        return "own"

    @property
    def computing(self) -> tuple[Callable[..., Any], ...]:
        """What computes the result, and what reads the experts, whose hash is that of their files."""
        return (*super().computing, Suite._head, as_encoder)

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where the weights of the base and of the experts of `tasks` come from, without folders of here."""
        experts = {task: self.file.tasks[task].expert for task in tasks}
        return {"base": self._base_source} | {
            task: self.checkpoint(task).source if place.startswith(HUB) else Path(place).name
            for task, place in experts.items()
        }

    def _head(self, task: str) -> Tensor:
        path = self.file.tasks[task].head
        if path is None:
            return super()._head(task)
        return trained_head(task, Path(path), len(self.tasks[task].classnames), self.features, self.device)


def _held_out(train: int) -> int:
    return max(1, train // HELD_OUT) if train else 0
