"""The miniature: drawn tasks and a tiny CLIP, which live in the same regime as the papers' and need no download."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from copy import copy
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import open_clip
import torch
from torch import Tensor

from mergekit_lite.cache import cache_dir, content_hash, ensure, file_digest, intact, sealed
from mergekit_lite.errors import KitError
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites.miniature.canvas import SIDE
from mergekit_lite.suites.miniature.drawing import drawing_hash, pictures
from mergekit_lite.suites.miniature.experts import Recipe, fine_tune
from mergekit_lite.suites.miniature.tasks import TASKS
from mergekit_lite.suites.suite import Lazy, Split, Suite, Task, Which, checked_split
from mergekit_lite.weight_files import LazyWeights, write
from mergekit_lite.workers import side_by_side

HERE = Path(__file__).parent
ARCHITECTURE = "mergekit-lite-miniature"  # the name under which open_clip knows the next file
CONFIG = HERE / f"{ARCHITECTURE}.json"
BASE = HERE / "base.safetensors"
SIZES: dict[Literal["pretrain", "train", "held-out", "test"], int] = {"train": 3000, "held-out": 250, "test": 1000}
RECIPE = Recipe(steps=140, learning_rate=1e-3, batch_size=64)

open_clip.add_model_config(CONFIG)


def load(name: str, device: torch.device) -> "Miniature":
    """Return the miniature suite on `device`; there is only one, whatever its `name`."""
    if not BASE.exists():
        raise KitError(f"The miniature's base weights {BASE.name} are missing. Run `mergekit-lite pretrain miniature`.")
    return Miniature(device)


class Miniature(Suite):
    """Images are drawn, experts fine-tuned, at first use; both are kept in the cache under a hash of what made them."""

    def __init__(self, device: torch.device) -> None:
        self.recipe = RECIPE
        tasks = [
            Task(task.name, task.title, task.counterpart, tuple(c.name for c in task.classes), task.templates)
            for task in TASKS.values()
        ]
        model = open_clip.create_model(ARCHITECTURE, pretrained=str(BASE))
        super().__init__("miniature", "Miniature", tasks, model, open_clip.get_tokenizer(ARCHITECTURE), device)

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(load, self.name, self.device)

    def with_expert_seed(self, seed: int) -> Suite:
        """Return this suite with experts that saw their images in another order."""
        other = copy(self)
        other.recipe = replace(RECIPE, seed=seed)
        other.experts = Lazy(tuple(other.tasks), other.expert, keep=False)
        return other

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return for each task how many training and test images it has."""
        return {
            name: (SIZES["train"], SIZES["test"])
            if TASKS[name].real is None
            else (len(self.split(name, "train").labels), len(self.split(name, "test").labels))
            for name in self.tasks
        }

    def split(self, task: str, which: Which) -> Split:
        """Return images (N, 3, 32, 32) and labels (N,) of a split, drawn at first use, then memory-mapped."""
        name = f"{task}-{which}-{self.data_hash(task, which)}"
        images, labels = (cache_dir("images", "miniature") / f"{name}.{part}.npy" for part in ("images", "labels"))

        def make() -> None:
            made = [one.numpy() for one in pictures(TASKS[task], which, SIZES)]
            checked_split(self.tasks[task], SIDE, *made)
            for path, array in zip((images, labels), made, strict=True):
                with sealed(path) as temporary, temporary.open("wb") as stream:
                    np.save(stream, array)

        ensure(make, images, labels)
        return Split(np.load(images, mmap_mode="r"), np.load(labels))

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task`, read from its file tensor by tensor; fine-tuned at first use."""
        path = self.expert_file(task)

        def make() -> None:
            split = self.split(task, "train")
            with torch.enable_grad():
                weights = fine_tune(self.encode, self.base, self.heads[task], split, self.recipe)
            write(path, weights, {"task": task, "recipe": json.dumps(asdict(self.recipe))}, seal=True)

        ensure(make, path)
        return LazyWeights(path, self.device)

    def has_expert(self, task: str) -> bool:
        """Return whether the expert of `task` was fine-tuned already."""
        return self.expert_file(task).exists()

    def has_images(self, task: str, which: Which) -> bool:
        """Return whether a split was drawn already."""
        name = f"{task}-{which}-{self.data_hash(task, which)}"
        return (cache_dir("images", "miniature") / f"{name}.images.npy").exists()

    def expert_file(self, task: str) -> Path:
        """Return where the expert of `task` is kept."""
        return cache_dir("experts", "miniature") / f"{task}-{self.expert_hash(task)}.safetensors"

    def base_hash(self) -> str:
        """Return the hash of the base weights that ship with the package, and of the architecture they are for."""
        return _base_hash()

    def expert_hash(self, task: str) -> str:
        """Return a hash of all that makes the expert of `task` what it is."""
        head = [self.tasks[task].classnames, self.tasks[task].templates]
        place = [torch.__version__.partition("+")[0], self.device.type]
        made = [asdict(self.recipe), _training_hash(), place]
        return content_hash([self.base_hash(), made, self.data_hash(task, "train"), head])

    def data_hash(self, task: str, which: Which) -> str:
        """Return a hash of what draws `task`, and of the size of the split."""
        sizes = SIZES[which] if TASKS[task].real is None else SIZES  # real pictures are dealt out to both
        return content_hash([drawing_hash(TASKS[task]), which, sizes])

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Fine-tune the experts of `tasks` that are not there yet, or damaged, side by side, and say so."""
        missing = [task for task in tasks if not intact(self.expert_file(task), say=False)]
        if missing:
            print(f"Fine-tuning {len(missing)} experts: {', '.join(missing)}.", flush=True)
        begun, make = time.perf_counter(), partial(_make_expert, seed=self.recipe.seed)
        for done, (task, outcome) in enumerate(side_by_side(self.loader, make, missing, workers), start=1):
            try:
                outcome()
            except BrokenProcessPool as error:
                raise KitError(
                    f"A worker process that made the expert of '{task}' ended abruptly, most often because the memory "
                    "ran out. Finished experts are kept: run the same again, with fewer workers if it comes back."
                ) from error
            print(f"[{done}/{len(missing)}] expert {task}, {time.perf_counter() - begun:.0f} s", flush=True)


def _make_expert(suite: Suite, task: str, seed: int) -> None:
    suite.with_expert_seed(seed).expert(task)


@cache
def _base_hash() -> str:
    return content_hash([file_digest(BASE), json.loads(CONFIG.read_text(encoding="utf-8"))])


@cache
def _training_hash() -> str:
    return code_of(fine_tune, Miniature.encode, Miniature._normalised, Miniature._head)
