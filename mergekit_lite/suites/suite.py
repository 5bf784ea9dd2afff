"""The two nouns everything else uses: a task, and a suite of tasks with a base model, experts, heads and images."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, normalize, scaled_dot_product_attention

from mergekit_lite.cache import content_hash
from mergekit_lite.errors import KitError, shown, suggestion
from mergekit_lite.weights import Pool, Weights

if TYPE_CHECKING:  # open_clip takes seconds to import, and not every user of these two nouns needs it
    import open_clip

Which = Literal["train", "held-out", "test"]
"""What experts learn from and methods may be shown with labels, what constants are chosen on, and what is reported."""
Value = TypeVar("Value")

_PLAIN = re.compile(r"\w[\w.@-]*")

PREFIXES = {"eight": 8, "fourteen": 14, "twenty": 20}
"""Named task sets of the benchmark: each is a prefix of the next."""


@dataclass(frozen=True)
class Task:
    """A classification task; `counterpart` names the real data set it stands for, and the templates hold ``{}``."""

    name: str
    title: str
    counterpart: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8, most often memory-mapped, and their labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def checked_split(task: Task, side: int, images: NDArray[Any], labels: NDArray[Any]) -> Split:
    """Return the images and labels of `task` as a Split.

    Raises:
        KitError: images that are not (N, 3, side, side) uint8, or labels that are not (N,) int64 of the task's classes.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, side, side):
        raise KitError(
            f"Task '{task.name}': images must be (N, 3, {side}, {side}) uint8, but are {images.shape} {images.dtype}. "
            f"Resize them, put the channels first and scale them to 0 ... 255."
        )
    classes = len(task.classnames)
    fits = labels.dtype == np.int64 and labels.shape == images.shape[:1]
    if not fits or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise KitError(
            f"Task '{task.name}': labels must be one int64 from 0 to {classes - 1} for each of {len(images)} images, "
            f"but are {labels.shape} {labels.dtype}. Give each image the number of its class name."
        )
    return Split(images, labels)


def check_plain(what: str, name: str) -> None:
    """Check that the name of a suite or task can be that of a file or folder, and leads out of no other.

    Raises:
        KitError: it cannot.
    """
    if not _PLAIN.fullmatch(name) or len(name.encode()) > 100:
        raise KitError(
            f"A {what} cannot be called {shown(name)}, as files bear its name: begin with a letter or digit, go on "
            "with letters, digits, `_`, `-`, `.` and `@`, and take at most 100 of them."
        )


def check_tasks(tasks: Sequence[Task]) -> None:
    """Check that tasks can be told apart and learnt.

    Raises:
        KitError: two tasks of one name, a name that no file can have, a task with fewer than two classes, or two
            classes of one name.
    """
    names = [task.name for task in tasks]
    for task in tasks:
        check_plain("task", task.name)
        if names.count(task.name) > 1:
            raise KitError(f"There are {names.count(task.name)} tasks called '{task.name}'. Give each its own name.")
        if len(task.classnames) < 2:
            raise KitError(f"Task '{task.name}' has {len(task.classnames)} class. Give it two classes or more.")
        twice = sorted({name for name in task.classnames if task.classnames.count(name) > 1})
        if twice:
            raise KitError(f"Task '{task.name}' has the class '{twice[0]}' more than once. Rename one of them.")


def chosen_tasks(which: str | Sequence[str], known: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names of tasks that `which` stands for.

    Args:
        which: a set, such as "eight"; names with commas between; or a list of names, which is returned as it is.
        known: all names, in the benchmark's order.
        where: whose tasks they are, for the error.

    Raises:
        KitError: a name that is not known, none at all, or a set of more tasks than there are.
    """
    if isinstance(which, str) and which in PREFIXES:
        if PREFIXES[which] > len(known):
            raise KitError(f"{where} has {len(known)} tasks, too few for the set '{which}'.")
        return tuple(known)[: PREFIXES[which]]
    chosen = tuple(filter(None, map(str.strip, which.split(",")))) if isinstance(which, str) else tuple(which)
    if isinstance(which, str) and not chosen:
        raise KitError(f"No task is named. Tasks: {', '.join(known)}.")
    for name in chosen:
        if name not in known:
            hint = suggestion(name, [*PREFIXES, *known])
            raise KitError(f"{where} has no task '{name}'.{hint} Tasks: {', '.join(known)}.")
    return chosen


class Lazy(Mapping[str, Value]):
    """A mapping with known keys whose values are made at first use and kept if asked to."""

    def __init__(self, keys: Sequence[str], make: Callable[[str], Value], *, keep: bool) -> None:
        self._keys, self._make, self._keep = tuple(keys), make, keep
        self._made: dict[str, Value] = {}

    def __getitem__(self, key: str) -> Value:
        if key in self._made:
            return self._made[key]
        if key not in self._keys:
            raise KeyError(key)
        value = self._make(key)
        if self._keep:
            self._made[key] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys


class Suite(ABC):
    """An open_clip model, its tasks in the benchmark's order, an expert per task, and their images.

    Attributes:
        name: what `load_suite` is called with.
        title: for tables and figures.
        tasks: name -> Task, in order.
        base: the image encoder's pre-trained parameters. The projection to the joint space is not among them: like
            the text tower and the logit scale it stays as it is and is never merged.
        experts: task -> fine-tuned parameters, read tensor by tensor; made or fetched at first use.
        heads: task -> zero-shot head (C, D): rows normalised, then multiplied by the logit scale.
        device: where the model lives.
        loader: makes the same suite again, in another process for instance.
    """

    def __init__(
        self,
        name: str,
        title: str,
        tasks: Sequence[Task],
        model: "open_clip.CLIP",
        tokenizer: Any,
        device: torch.device,
    ) -> None:
        check_plain("suite", name)
        check_tasks(tasks)
        self.name, self.title, self.device = name, title, device
        self.tasks: Mapping[str, Task] = {task.name: task for task in tasks}
        self._tokenizer = tokenizer
        self._model = model.to(device).eval().requires_grad_(False)
        visual = self._model.visual
        self.base: Weights = {key: value.detach() for key, value in visual.named_parameters() if key != "proj"}
        self.heads: Mapping[str, Tensor] = Lazy(tuple(self.tasks), self._head, keep=True)
        self.experts: Pool = Lazy(tuple(self.tasks), self.expert, keep=False)
        self._mean = torch.tensor(visual.image_mean, device=device)[:, None, None]
        self._std = torch.tensor(visual.image_std, device=device)[:, None, None]

    @property
    @abstractmethod
    def loader(self) -> "Callable[[], Suite]":
        """Return a picklable function that makes this suite again."""

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return for each task how many training and test images it has."""

    @abstractmethod
    def split(self, task: str, which: Which) -> Split:
        """Return the images and labels of one split of `task`."""

    @abstractmethod
    def expert(self, task: str) -> Mapping[str, Tensor]:
        """Return the expert of `task`, made or fetched if it is not there yet."""

    @abstractmethod
    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Make or fetch all images and experts of `tasks` that are not there yet, `workers` at a time."""

    @abstractmethod
    def base_hash(self) -> str:
        """Return a hash of the base weights, those of the text encoder among them."""

    @abstractmethod
    def expert_hash(self, task: str) -> str:
        """Return a hash of the expert of `task`, without making or fetching it."""

    @abstractmethod
    def data_hash(self, task: str, which: Which) -> str:
        """Return a hash of the images and labels of one split of `task`, without making or fetching them."""

    def fingerprint(self, pool: Sequence[str], evaluate: Sequence[str], learnt: Sequence[str] = ()) -> dict[str, Any]:
        """Return hashes of all weights, images and class names that a result depends on, without making any of it.

        They are of the base, the experts of `pool`, the heads of `evaluate`, the test images of both, and the training
        images of `learnt`. What code does is not among them, see `computing`.
        """
        known = {
            "suite": self.name,
            "base": self.base_hash(),
            "experts": {task: self.expert_hash(task) for task in pool},
            "heads": {
                task: content_hash([self.tasks[task].classnames, self.tasks[task].templates]) for task in evaluate
            },
            "data": {task: self.data_hash(task, "test") for task in dict.fromkeys([*pool, *evaluate])},
        }
        training = {task: self.data_hash(task, "train") for task in learnt}
        return {**known, "training data": training} if learnt else known

    @property
    def side(self) -> int:
        """Height and width of the images in pixels."""
        return int(self._model.visual.image_size[0])

    def has_expert(self, task: str) -> bool:
        """Return whether the expert of `task` is there, without making, fetching or reading it."""
        return True

    def has_images(self, task: str, which: Which) -> bool:
        """Return whether the images of a split are there, without making, fetching or reading them."""
        return True

    @property
    def images_name(self) -> str:
        """The folder of the cache for what is made of the images: suites that have the same images name the same."""
        return self.name

    @property
    def computing(self) -> tuple[Callable[..., Any], ...]:
        """What turns images and class names into features and heads: its code is part of every record's key."""
        return self.encode, self.layer_inputs, self._normalised, self._head

    @property
    def working_dtype(self) -> torch.dtype:
        """The precision that `encode` works in."""
        return next(iter(self.base.values())).dtype

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where downloaded weights come from, of the base and the experts of `tasks`; nothing if none were."""
        return {}

    def with_expert_seed(self, seed: int) -> "Suite":
        """Return this suite with experts of another training run, for error bars; seed 0 is the suite itself.

        Raises:
            KitError: the suite has one set of experts.
        """
        if seed == 0:
            return self
        raise KitError(f"Suite '{self.name}' has one set of experts. Leave expert_seed at 0.")

    def names(self, which: str | Sequence[str]) -> tuple[str, ...]:
        """Return task names: of a set such as ``"eight"``, of a text such as ``"digits, signs"``, or of a list.

        Raises:
            KitError: a name that this suite does not have, or no name.
        """
        return chosen_tasks(which, tuple(self.tasks), f"Suite '{self.name}'")

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the features (N, D) of unit length that the encoder with `weights` gives for `images` (N, 3, H, W).

        uint8 images are normalised here, on the device; floating-point images are taken as normalised already.
        """
        return normalize(functional_call(self._model.visual, dict(weights), (self._normalised(images),)), dim=-1)

    def layer_inputs(self, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Return name of a linear layer's weight (out, in) -> what goes into it for `images`, (N * tokens, in).

        An attention block has two: the fused projection to queries, keys and values, and the output projection.
        """
        found: dict[str, Tensor] = {}

        def watch(name: str) -> Callable[..., None]:
            def linear(module: nn.Linear, args: tuple[Tensor, ...]) -> None:
                found[f"{name}.weight"] = args[0].flatten(0, -2)

            def attention(module: nn.MultiheadAttention, args: tuple[Tensor, ...]) -> None:
                found[f"{name}.in_proj_weight"] = args[0].flatten(0, -2)
                found[f"{name}.out_proj.weight"] = _attended(module, args[0]).flatten(0, -2)

            return attention if isinstance(self._model.visual.get_submodule(name), nn.MultiheadAttention) else linear

        watched = [
            (name, module)
            for name, module in self._model.visual.named_modules()
            # the output projection of an attention is a Linear that is never called: see `_attended`
            if isinstance(module, nn.Linear | nn.MultiheadAttention) and not name.endswith(".out_proj")
        ]
        hooks = [module.register_forward_pre_hook(watch(name)) for name, module in watched]
        try:
            with torch.no_grad():
                self.encode(weights, images)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        return (images.to(self.device).float() / 255 - self._mean) / self._std

    def _head(self, task: str) -> Tensor:
        from open_clip import build_zero_shot_classifier

        entry = self.tasks[task]
        prompts = [(name, template) for name in entry.classnames for template in entry.templates]
        tokens = self._tokenizer([template.format(name) for name, template in prompts])
        for (name, template), last in zip(prompts, tokens[:, -1].tolist(), strict=True):
            if last != 0:  # no padding is left
                raise KitError(
                    f"Task '{task}': the prompt for class '{name}' fills all places of the tokenizer, so its "
                    f"end is cut off. Shorten the class name or the template '{template}'."
                )
        columns = build_zero_shot_classifier(
            self._model, self._tokenizer, entry.classnames, entry.templates, device=self.device
        )
        return columns.T.contiguous() * self._model.logit_scale.exp()


def _attended(module: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Return what the output projection of a self-attention is multiplied with, in the shape of `tokens`.

    torch applies that projection inside one fused function, where no hook sees its input.
    """
    tokens = tokens if module.batch_first else tokens.transpose(0, 1)
    parts = linear(tokens, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in parts)
    mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return mixed if module.batch_first else mixed.transpose(0, 1)
