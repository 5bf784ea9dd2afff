"""Contrastive pre-training of the miniature CLIP on drawn pictures and captions: how the base weights were made."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mergekit_lite.suites.miniature import ARCHITECTURE, BASE
from mergekit_lite.suites.miniature.captions import everyday
from mergekit_lite.suites.miniature.drawing import draw
from mergekit_lite.suites.miniature.naming import teach
from mergekit_lite.suites.miniature.tasks import TASKS
from mergekit_lite.weight_files import write

Batch = tuple[Tensor, list[str]]  # pictures (n, 3, 32, 32) uint8 and their captions


@dataclass(frozen=True)
class PretrainingRecipe:
    """Two stages: both towers on everyday captions, then the text tower alone on the benchmark's class names.

    Attributes:
        images: pictures of the first stage, each seen once.
        batch_size: pictures per step.
        learning_rate: peak of the one-cycle schedule of the first stage; AdamW.
        weight_decay: on weight matrices only.
        warm_up: share of the steps.
        shard: pictures per task that are drawn and shuffled together.
        naming_images: pictures per task that the second stage looks at.
        naming_steps: steps of the second stage.
        naming_rate: first learning rate of the second stage, falling to zero along a cosine.
        seed: of the model's first weights, the captions and the order of pictures.
    """

    images: int = 2_000_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warm_up: float = 0.1
    shard: int = 500
    naming_images: int = 2000
    naming_steps: int = 2000
    naming_rate: float = 2e-3
    seed: int = 0


RECIPE = PretrainingRecipe()
NAMING = 1_000_000  # seed of the second stage's pictures, far from those of the first stage's shards


def pretrain(output: Path | None = None, recipe: PretrainingRecipe = RECIPE, device: str | None = None) -> Path:
    """Pre-train the miniature CLIP and write it as float16 safetensors, its recipe and time in the metadata.

    Returns:
        the file written: `output`, or the package's own base weights.
    """
    begun = time.perf_counter()
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(recipe.seed)
    model = open_clip.create_model(ARCHITECTURE, device=place).train()
    see(model, recipe)
    name(model, recipe)
    weights = {key: value.detach().half().cpu().contiguous() for key, value in model.state_dict().items()}
    seconds, machine = str(round(time.perf_counter() - begun)), f"{place.type}, {torch.get_num_threads()} threads"
    facts = {"recipe": json.dumps(asdict(recipe)), "seconds": seconds, "machine": machine, "torch": torch.__version__}
    target = output or BASE
    write(target, weights, facts)
    return target


def see(model: open_clip.CLIP, recipe: PretrainingRecipe) -> None:
    """First stage: train both towers on pictures with everyday captions."""
    shards = recipe.images // (recipe.shard * len(TASKS))
    steps = shards * (recipe.shard * len(TASKS) // recipe.batch_size)
    matrices = {key: value for key, value in model.named_parameters() if value.ndim >= 2 and "embedding" not in key}
    others = [value for key, value in model.named_parameters() if key not in matrices]
    groups = [
        {"params": [*matrices.values()], "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps + 1, pct_start=recipe.warm_up
    )
    rng = np.random.default_rng(recipe.seed)
    pictures = (batch for shard in range(shards) for batch in _batches(shard, recipe, rng))
    _learn(model, pictures, optimiser, schedule, steps)


def name(model: open_clip.CLIP, recipe: PretrainingRecipe) -> None:
    """Second stage: teach the text tower the benchmark's names, see `naming`."""
    place = model.logit_scale.device
    mean, std = _statistics(model)
    known = {}
    with torch.no_grad():
        for key, task in TASKS.items():
            images, labels = draw(task, "pretrain", recipe.naming_images, seed=NAMING)
            batches = ((part.to(place).float() / 255 - mean) / std for part in images.split(recipe.batch_size))
            known[key] = torch.cat([model.encode_image(batch, normalize=True) for batch in batches]), labels
    teach(
        model,
        open_clip.get_tokenizer(ARCHITECTURE),
        TASKS,
        known,
        steps=recipe.naming_steps,
        learning_rate=recipe.naming_rate,
        rng=np.random.default_rng([recipe.seed, NAMING]),
    )


def _statistics(model: open_clip.CLIP) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (3, 1, 1) that images are normalised with."""
    place = model.logit_scale.device
    mean, std = (
        torch.tensor(v, device=place)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std)
    )
    return mean, std


def _batches(shard: int, recipe: PretrainingRecipe, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield one shard of every task, mixed, in batches with everyday captions."""
    shown = {key: draw(task, "pretrain", recipe.shard, seed=shard) for key, task in TASKS.items()}
    images = torch.cat([pictures for pictures, _ in shown.values()])
    captions = [text for key, (_, labels) in shown.items() for text in everyday(TASKS[key], labels, rng)]
    order = rng.permutation(len(captions))
    for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
        rows = order[start : start + recipe.batch_size]
        yield images[rows], [captions[row] for row in rows]


def _learn(
    model: open_clip.CLIP,
    batches: Iterator[Batch],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    steps: int,
) -> None:
    """Classify each picture among the distinct captions of its batch.

    That is CLIP's image-to-text loss (Radford et al. 2021, section 2.3) with captions that stand under several pictures
    counted once.
    """
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    place = model.logit_scale.device
    mean, std = _statistics(model)
    begun, average = time.perf_counter(), 0.0
    for step, (images, captions) in enumerate(batches, start=1):
        distinct = sorted(set(captions))
        rows = {caption: row for row, caption in enumerate(distinct)}
        features = model.encode_image((images.to(place).float() / 255 - mean) / std, normalize=True)
        texts = model.encode_text(tokenizer(distinct).to(place), normalize=True)
        target = torch.tensor([rows[caption] for caption in captions], device=place)
        loss = cross_entropy(model.logit_scale.exp() * features @ texts.T, target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # CLIP's own bound
        average += (loss.item() - average) * max(0.02, 1 / step)
        if step % 100 == 0 or step == steps:
            rate = step * len(captions) / (time.perf_counter() - begun)
            print(f"step {step} of {steps}, loss {average:.3f}, {rate:.0f} images/s", flush=True)
