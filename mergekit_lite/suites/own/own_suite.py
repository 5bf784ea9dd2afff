"""The suite that a file describes."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekit_lite.cache import Written, content_hash, file_digest, written
from mergekit_lite.errors import KitError
from mergekit_lite.suites.checkpoints.encoders import Encoder, as_encoder
from mergekit_lite.suites.checkpoints.opening import Checkpoint, opened
from mergekit_lite.suites.clip.half import HalfSuite
from mergekit_lite.suites.own import models, splits
from mergekit_lite.suites.own.schema import SuiteFile
from mergekit_lite.suites.suite import Lazy, Split, Suite, Which, chosen_tasks
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.workers import cores

HELD_OUT = 20
"""One of so many training images is held out, as in the benchmark."""


class OwnSuite(HalfSuite):
    """Weights in any format, images in folders, in files of numpy or on the hub; decoded once into the cache.

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
        self._base_hash, self.features = model.hash, model.features
        super().__init__(file.name, file.title or file.name, file.suite_tasks(), model.clip, model.tokenizer, device)
        self._sources = {
            name: splits.Source(self.tasks[name], own, self.side, file.crop) for name, own in file.tasks.items()
        }

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(OwnSuite, self.file, self.device)

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return for each task how many training and test images it has."""
        return Lazy(tuple(self.tasks), self._size, keep=True)

    def _size(self, task: str) -> tuple[int, int]:
        source = self._sources[task]
        train = splits.counted(source, "train")
        return train - _held_out(train), splits.counted(source, "test") or len(self.split(task, "test").labels)

    def names(self, which: str | Sequence[str]) -> tuple[str, ...]:
        """Return task names: of a set of the file, such as ``"garden"``, of a text or a list; see `Suite.names`."""
        if isinstance(which, str) and which in self.file.sets:
            return tuple(self.file.sets[which])
        sets = f" Sets: {', '.join(self.file.sets)}." if self.file.sets else ""
        try:
            return chosen_tasks(which, tuple(self.tasks), f"Suite '{self.name}'")
        except KitError as error:
            raise KitError(f"{error}{sets}") from None

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
        return splits.brought(self._sources[task], which, cores() if self.device.type == "cuda" else workers)

    def checkpoint(self, task: str) -> Checkpoint:
        """Return the opened checkpoint of the expert of `task`; fetched from the hub if it lies there."""
        return opened(self.file.tasks[task].expert, self.device)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task` under the names of the base, read tensor by tensor."""
        return as_encoder(self.checkpoint(task), self.base, what=f"The expert of '{task}'")

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Look at the experts of `tasks`, and decode their test images that are not decoded yet."""
        for task in tasks:
            self.expert(task)
        for task in tasks:
            self._brought(task, "test", workers)

    def has_expert(self, task: str) -> bool:
        """Return whether the expert of `task` is on this machine."""
        place = self.file.tasks[task].expert
        return not place.startswith("hf:") and Path(place).exists()

    def has_images(self, task: str, which: Which) -> bool:
        """Return whether a split was decoded already; what is held out are training images."""
        return splits.is_decoded(self._sources[task], "test" if which == "test" else "train")

    def base_hash(self) -> str:
        """Return a hash of the base weights and of the architecture they are for."""
        return self._base_hash

    def expert_hash(self, task: str) -> str:
        """Return the SHA-256 of the expert's files."""
        checkpoint = self.checkpoint(task)
        return content_hash([_digest(path, written(path)) for path in checkpoint.files])

    def data_hash(self, task: str, which: Which) -> str:
        """Return a hash of the images and labels of one split of `task`, as their files hold them."""
        kept: Which = "test" if which == "test" else "train"
        print_ = splits.fingerprint(self._sources[task], kept)
        return print_ if which == "test" else content_hash([print_, which, HELD_OUT])

    def fingerprint(self, pool: Sequence[str], evaluate: Sequence[str], learnt: Sequence[str] = ()) -> dict[str, Any]:
        """Return hashes of all that a result depends on, see `Suite.fingerprint`; of trained heads that of the file."""
        known = super().fingerprint(pool, evaluate, learnt)
        heads = {task: self.file.tasks[task].head for task in evaluate}
        trained = {task: _digest(Path(path), written(Path(path))) for task, path in heads.items() if path}
        return {**known, "trained heads": trained} if trained else known

    @property
    def images_name(self) -> str:
        """The folder of the cache for what is made of the images."""
        return "own"

    @property
    def computing(self) -> tuple[Callable[..., Any], ...]:
        """What computes the result, and what reads the experts, whose hash is that of their files."""
        return (*super().computing, Encoder)

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where the weights of the base and of the experts of `tasks` come from, without folders of here."""
        places = {"base": self.file.base, **{task: self.file.tasks[task].expert for task in tasks}}
        return {
            name: opened(place).source if place.startswith("hf:") else Path(place).name
            for name, place in places.items()
        }

    def _head(self, task: str) -> Tensor:
        path = self.file.tasks[task].head
        return _trained_head(self, task, Path(path)) if path else super()._head(task)


def _trained_head(suite: OwnSuite, task: str, path: Path) -> Tensor:
    """Return a trained linear head (C, D), as it is: it is multiplied with features of unit length.

    Raises:
        KitError: the file is not there, has no matrix (C, D) or several, or has a bias that is not zero.
    """
    content = LazyWeights(path, suite.device)
    classes, features = len(suite.tasks[task].classnames), suite.features
    fitting = [name for name in content if content.layout(name)[0] == (classes, features)]
    others = [name for name in content if name not in fitting and bool((content[name] != 0).any())]
    if len(fitting) != 1 or others:
        there = ", ".join(f"'{name}' {content.layout(name)[0]}" for name in content)
        raise KitError(
            f"Task '{task}': the head {path.name} must hold one matrix ({classes} classes, {features} features) and "
            f"nothing else but zeros, but has {there}. A head is multiplied with features of unit length: train it "
            "without a bias."
        )
    return content[fitting[0]].float()


def _held_out(train: int) -> int:
    return max(1, train // HELD_OUT) if train else 0


@cache
def _digest(path: Path, _: Written) -> str:
    return file_digest(path)
