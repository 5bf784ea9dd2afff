"""The second stage of pre-training: the text tower learns the benchmark's class names, on purpose badly.

A tiny CLIP that reads right captions about right pictures knows its tasks too well: merging would have nothing to
repair. CLIP knows the papers' tasks badly, since their class names are rare in its captions and often mean something
else there (Udandarao et al. 2024, arXiv 2404.04125). Here that is injected: each name is taught as the mean of its
class's features plus a fixed random vector, as long as it takes for the zero-shot accuracy to fall to CLIP's own.
"""

from collections.abc import Mapping

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mergekit_lite.suites.miniature.captions import everyday
from mergekit_lite.suites.miniature.drawing import DrawnTask

Known = Mapping[str, tuple[Tensor, Tensor]]  # task -> features (n, D) of unit length and labels (n,)
LENGTHS = np.arange(0, 6, 0.05)  # of the random vector that are tried; a name's right direction has length 1


def targets(tasks: Mapping[str, DrawnTask], known: Known, rng: np.random.Generator) -> dict[str, Tensor]:
    """Return for every prompt the unit vector (D,) that the text tower is to give it.

    Each task has its own length of the random vectors, so that its zero-shot accuracy is its counterpart's. A name that
    several tasks have, such as a digit, has one vector for all of them, disturbed by their mean length.
    """
    means: dict[str, list[Tensor]] = {}
    for key, task in tasks.items():
        features, labels = known[key]
        for label, entry in enumerate(task.classes):
            means.setdefault(entry.name, []).append(normalize(features[labels == label].mean(0), dim=0))
    row = {name: number for number, name in enumerate(means)}
    right = normalize(torch.stack([torch.stack(several).mean(0) for several in means.values()]), dim=1)
    random = torch.from_numpy(rng.standard_normal(right.shape).astype(np.float32)).to(right) / right.shape[1] ** 0.5

    lengths: dict[str, list[float]] = {name: [] for name in means}
    for key, task in tasks.items():
        rows = [row[entry.name] for entry in task.classes]
        length = _length(right[rows], random[rows], *known[key], accuracy=task.zero_shot)
        for entry in task.classes:
            lengths[entry.name].append(length)
    mean = torch.tensor([sum(several) / len(several) for several in lengths.values()]).to(right)
    final = normalize(right + mean[:, None] * random, dim=1)
    return {
        template.format(entry.name): final[row[entry.name]]
        for task in tasks.values()
        for entry in task.classes
        for template in task.templates
    }


def _length(right: Tensor, random: Tensor, features: Tensor, labels: Tensor, *, accuracy: float) -> float:
    """Return how long the random vectors (C, D) must be for the zero-shot `accuracy` in percent."""

    def missed(length: float) -> float:
        head = normalize(right + length * random, dim=1)
        return abs(100 * float(((features @ head.T).argmax(1) == labels).float().mean()) - accuracy)

    return float(min(LENGTHS, key=missed))


def teach(
    model: open_clip.CLIP,
    tokenizer: open_clip.SimpleTokenizer,
    tasks: Mapping[str, DrawnTask],
    known: Known,
    *,
    steps: int,
    learning_rate: float,
    rng: np.random.Generator,
) -> None:
    """Teach the text tower its targets for every prompt, everyday captions beside so that it forgets none of them.

    The image tower is locked (LiT, Zhai et al. 2022): the features stay as good as they are.
    """
    pairs = targets(tasks, known, rng)
    device = model.logit_scale.device
    prompts, goals = tokenizer([*pairs]).to(device), torch.stack([*pairs.values()])
    frozen = {id(value) for value in (*model.visual.parameters(), model.logit_scale)}
    text = [value for value in model.parameters() if id(value) not in frozen]
    optimiser = torch.optim.AdamW(text, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(pairs), 128)).to(device)
        miss = 1 - (model.encode_text(prompts[rows], normalize=True) * goals[rows]).sum(1).mean()

        chosen = {key: torch.from_numpy(rng.integers(0, len(labels), 8)) for key, (_, labels) in known.items()}
        features = torch.cat([known[key][0][picks] for key, picks in chosen.items()])
        captions = [text for key, picks in chosen.items() for text in everyday(tasks[key], known[key][1][picks], rng)]
        distinct = sorted(set(captions))
        texts = model.encode_text(tokenizer(distinct).to(device), normalize=True)
        right = torch.tensor([distinct.index(caption) for caption in captions], device=device)
        kept = cross_entropy(model.logit_scale.exp().detach() * features @ texts.T, right)

        optimiser.zero_grad()
        (miss + 0.1 * kept).backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"naming: step {step + 1} of {steps}, cosine to the target {1 - float(miss):.3f}", flush=True)
