"""The papers' benchmark: OpenAI's CLIP ViTs, twenty data sets, and the expert that was fine-tuned on each of them."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import normalize

from mergekit_lite.cache import code_hash, content_hash
from mergekit_lite.suites.clip import check, decoded, hub
from mergekit_lite.suites.clip.benchmark import MODELS, ClipModel, HubTask, hub_tasks
from mergekit_lite.suites.clip.transformers_format import TransformersWeights
from mergekit_lite.suites.suite import Lazy, Split, Suite, Task, Which
from mergekit_lite.workers import cores

HERE = Path(__file__).parent
EXPERT = "model.safetensors"  # transformers' name of the file in every expert's repository


def load(name: str, device: torch.device) -> "ClipSuite":
    """Return the suite of the CLIP called `name` on `device`; its base weights are fetched if they are not there.

    After an @ comes the family of converted experts: ``clip-vit-b-32@OC-8``. Without it they are the hub's.

    Raises:
        KitError: the base weights cannot be fetched.
    """
    model, _, family = name.partition("@")
    if not family:
        return ClipSuite(MODELS[model], device)
    from mergekit_lite.suites.clip.converted import ConvertedSuite

    return ConvertedSuite(MODELS[model], family, device)


def base_file(model: ClipModel) -> tuple[str, str]:
    """Return repository and name of the file with the weights of `model` before any fine-tuning, in open_clip's format.

    Where open_clip itself would get them from; the URL in the same table is only its second choice.
    """
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    listed: str = open_clip.get_pretrained_cfg(model.architecture, model.pretrained)["hf_hub"]
    return listed.rstrip("/"), HF_SAFE_WEIGHTS_NAME


def expert_file(model: ClipModel, task: HubTask) -> tuple[str, str]:
    """Return repository and name of the file with the expert of `task`, in transformers' format."""
    return task.experts[model.key], EXPERT


class ClipSuite(Suite):
    """Weights come from the hub and stay in the hub's own cache; images are decoded once into this library's cache.

    Attributes:
        model: which CLIP it is.
        entries: task -> where its images and experts lie on the hub.
    """

    def __init__(self, model: ClipModel, device: torch.device) -> None:
        """Build the model with the base weights of `model`, which are fetched if they are not there."""
        import open_clip

        self.model, self.entries = model, hub_tasks()
        path = hub.downloaded(*base_file(model))
        tasks = [Task(one.name, one.title, one.title, one.classnames, one.templates) for one in self.entries.values()]
        clip = open_clip.create_model(model.architecture, pretrained=str(path))
        super().__init__(model.name, model.title, tasks, clip, open_clip.get_tokenizer(model.architecture), device)
        self._side = int(clip.visual.image_size[0])
        self._half = device.type == "cuda"

    @property
    def loader(self) -> Callable[[], Suite]:
        """Return a picklable function that makes this suite again."""
        return partial(ClipSuite, self.model, self.device)

    @cached_property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return for each task how many training and test images it has, as the hub lists them."""
        return Lazy(tuple(self.tasks), lambda task: decoded.sizes(self.entries[task]), keep=True)

    def split(self, task: str, which: Which) -> Split:
        """Return images (N, 3, H, W) and labels (N,) of a split: fetched and decoded at first use, then mapped."""
        # On a GPU this is the only process, and all cores would wait for it; on a CPU there is one process per core.
        return self._split(task, which, workers=cores() if self.device.type == "cuda" else 1)

    def _split(self, task: str, which: Which, workers: int) -> Split:
        return decoded.decoded_split(self.entries[task], which, self._side, workers=workers)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task`, read from the hub's file tensor by tensor; fetched at first use."""
        return TransformersWeights(hub.downloaded(*expert_file(self.model, self.entries[task])), self.device)

    @property
    def working_dtype(self) -> torch.dtype:
        """The precision that `encode` works in."""
        return torch.bfloat16 if self._half else torch.float32

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the features (N, D) of unit length that the encoder with `weights` gives for `images` (N, 3, H, W).

        On a GPU the encoder works in bfloat16 (autocast: weights and their gradients stay float32), the features are
        float32 again. On a CPU all of it is float32.
        """
        images = self._normalised(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            features = functional_call(self._model.visual, dict(weights), (images,))
        return normalize(features.float() if self._half else features, dim=-1)

    def layer_inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Return what goes into each linear layer, see `Suite.layer_inputs`; float32 on a GPU too.

        RegMean inverts the sums of their products, and bfloat16 keeps less than three digits.
        """
        exact = copy(self)
        exact._half = False
        return Suite.layer_inputs(exact, weights, images)

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Fetch the experts of `tasks`, fetch and decode their test images, and check each expert on its own task.

        Files come one after another, since the network and not the processor is what takes long; `workers` decode.

        Raises:
            KitError: something cannot be fetched, or an expert is not what it should be (see `check.check_experts`).
        """
        for task in tasks:
            hub.downloaded(*expert_file(self.model, self.entries[task]))
            self._split(task, "test", workers=cores() if self.device.type == "cuda" else workers)
        if not check.skipped():
            check.check_experts(self, tasks)

    def fingerprint(self, pool: Sequence[str], evaluate: Sequence[str], learnt: Sequence[str] = ()) -> dict[str, Any]:
        """Return hashes of the base, the experts, the class names and prompts, and the images.

        Nothing is fetched for it: what is not in the cache yet is named by the hash that the hub lists. Commits are
        left out, since a new line in a repository's README changes no result; `sources` names them.
        """
        training = {task: decoded.fingerprint(self.entries[task], "train", self._side) for task in learnt}
        return {
            "suite": self.name,
            "code": code_hash(HERE / "__init__.py", HERE / "transformers_format.py", HERE.parent / "suite.py"),
            "base": hub.source(*base_file(self.model)).sha256,
            "experts": {task: hub.source(*expert_file(self.model, self.entries[task])).sha256 for task in pool},
            "heads": {
                task: content_hash([self.tasks[task].classnames, self.tasks[task].templates]) for task in evaluate
            },
            "data": {
                task: decoded.fingerprint(self.entries[task], "test", self._side)
                for task in dict.fromkeys([*pool, *evaluate])
            },
            **({"training data": training} if learnt else {}),
        }

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where the weights of the base and of the experts of `tasks` come from: repository@commit/file."""
        files = {"base": base_file(self.model), **{task: expert_file(self.model, self.entries[task]) for task in tasks}}
        return {name: str(hub.source(*file)) for name, file in files.items()}
