"""The pico pool as a suite that studies and plans can name: ``mergekit_lite.course.pico_suite``."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from mergekit_lite.cache import content_hash
from mergekit_lite.course import pico
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites.suite import Split, Suite, Task, Which
from mergekit_lite.weights import weights_hash

NAME = __name__


def load(name: str, device: torch.device) -> "PicoSuite":
    """Return the suite on `device`; there is only one, whatever its `name`."""
    return PicoSuite(device)


class PicoSuite(Suite):
    """The pico pool in float32; each training run of its experts is a pool of its own base, heads and images."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self._seed, self._pool = seed, _made(seed)
        tasks = [
            Task(task, task.capitalize(), "", tuple(f"{task} {number}" for number in range(classes)), ("{}",))
            for task, classes in pico.CLASSES.items()
        ]
        model = nn.Module()
        model.visual = pico.Encoder()
        model.visual.load_state_dict(self._pool.base)
        super().__init__(NAME, "Pico", tasks, model, None, device)

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(PicoSuite, self.device, self._seed)

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return for each task how many training and test images it has."""
        return dict.fromkeys(self.tasks, (pico.IMAGES, pico.IMAGES))

    def with_expert_seed(self, seed: int) -> Suite:
        """Return the pool of another seed."""
        return PicoSuite(self.device, seed)

    def split(self, task: str, which: Which) -> Split:
        """Return the images and labels of one split; those held out are the test images."""
        part = "train" if which == "train" else "test"
        return Split(self._pool.images[part][task].numpy(), self._pool.labels[part][task].numpy())

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task`."""
        return {name: tensor.to(self.device) for name, tensor in self._pool.experts[task].items()}

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Do nothing: all is there."""

    def base_hash(self) -> str:
        """Return a hash of the base weights."""
        return weights_hash(self._pool.base)

    def expert_hash(self, task: str) -> str:
        """Return a hash of the expert of `task`."""
        return weights_hash(self._pool.experts[task])

    def data_hash(self, task: str, which: Which) -> str:
        """Return a hash of what draws the images."""
        return content_hash([code_of(pico.make), self._seed, task, which])

    def _head(self, task: str) -> Tensor:
        return self._pool.heads[task].to(self.device)


@cache
def _made(seed: int) -> pico.Pico:
    return pico.make(seed, torch.float32)
