"""The second stage of pre-training: the text tower learns the benchmark's class names, on purpose badly.

A tiny CLIP that reads right captions about right pictures knows its tasks too well: merging would have nothing to
repair. CLIP knows the papers' tasks badly, since their class names are rare in its captions and often mean something
else there (Udandarao et al. 2024, arXiv 2404.04125). Here that is injected: each name is taught as the mean of its
class's features plus a fixed random vector, as long as it takes for the zero-shot accuracy to fall to CLIP's own.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mergekit_lite.suites.miniature.captions import everyday
from mergekit_lite.suites.miniature.drawing import DrawnTask

Known = Mapping[str, tuple[Tensor, Tensor]]  # task -> features (n, D) of unit length and labels (n,)
STRENGTHS = np.arange(0, 6, 0.05)  # lengths of the random vector that are tried; a name's right direction has length 1


def targets(tasks: Mapping[str, DrawnTask], known: Known, rng: np.random.Generator) -> dict[str, Tensor]:
    """Return for every class name the unit vector (D,) that the text tower is to give it.

    Tasks that share names, as house numbers and digits do, share their vectors and with them the strength.
    """
    right: dict[str, list[Tensor]] = {}
    for key, task in tasks.items():
        features, labels = known[key]
        for label, entry in enumerate(task.classes):
            right.setdefault(entry.name, []).append(normalize(features[labels == label].mean(0), dim=0))
    place = {name: normalize(torch.stack(means).mean(0), dim=0) for name, means in right.items()}
    width = len(next(iter(place.values())))
    random = {
        name: torch.from_numpy(rng.standard_normal(width).astype(np.float32)).to(place[name]) / width**0.5
        for name in place
    }

    def head(task: DrawnTask, strength: float) -> Tensor:
        names = [entry.name for entry in task.classes]
        return torch.stack([normalize(place[name] + strength * random[name], dim=0) for name in names])

    def too_good(group: Sequence[str], strength: float) -> float:
        """Return by how many points the group's zero-shot accuracy is above what it should be."""
        points = 0.0
        for key in group:
            features, labels = known[key]
            guesses = (features @ head(tasks[key], strength).T).argmax(1)
            points += 100 * float((guesses == labels).float().mean()) - tasks[key].zero_shot
        return points

    taught: dict[str, Tensor] = {}
    for group in _sharing(tasks):
        strength = min(STRENGTHS, key=lambda one: abs(too_good(group, one)))
        for key in group:
            taught |= dict(zip((entry.name for entry in tasks[key].classes), head(tasks[key], strength), strict=True))
    return taught


def _sharing(tasks: Mapping[str, DrawnTask]) -> list[list[str]]:
    """Return the tasks in groups that have class names in common."""
    groups: dict[frozenset[str], list[str]] = {}
    for key, task in tasks.items():
        groups.setdefault(frozenset(entry.name for entry in task.classes), []).append(key)
    return list(groups.values())


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
    taught = targets(tasks, known, rng)
    pairs = {
        template.format(entry.name): taught[entry.name]
        for task in tasks.values()
        for entry in task.classes
        for template in task.templates
    }
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
