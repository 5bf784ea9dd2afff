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
    """Return for every prompt the unit vector (D,) that the text tower is to give it.

    Tasks that have a prompt in common, as house numbers and digits do, share their names' vectors and one strength.
    """
    taught: dict[str, Tensor] = {}
    for keys in _sharing(tasks):
        taught |= _disturbed([tasks[key] for key in keys], [known[key] for key in keys], rng)
    return taught


def _disturbed(
    tasks: Sequence[DrawnTask], known: Sequence[tuple[Tensor, Tensor]], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Return the prompts' vectors of one group of tasks, disturbed until its zero-shot accuracy is as low as CLIP's."""
    means: dict[str, list[Tensor]] = {}
    for task, (features, labels) in zip(tasks, known, strict=True):
        for label, entry in enumerate(task.classes):
            means.setdefault(entry.name, []).append(normalize(features[labels == label].mean(0), dim=0))
    row = {name: number for number, name in enumerate(means)}
    right = normalize(torch.stack([torch.stack(several).mean(0) for several in means.values()]), dim=1)
    random = torch.from_numpy(rng.standard_normal(right.shape).astype(np.float32)).to(right) / right.shape[1] ** 0.5

    def vectors(strength: float) -> Tensor:
        return normalize(right + strength * random, dim=1)

    def too_good(strength: float) -> float:
        """Return by how many points the group's zero-shot accuracies, summed, are above what they should be."""
        points = 0.0
        for task, (features, labels) in zip(tasks, known, strict=True):
            head = vectors(strength)[[row[entry.name] for entry in task.classes]]
            points += 100 * float(((features @ head.T).argmax(1) == labels).float().mean()) - task.zero_shot
        return points

    final = vectors(min(STRENGTHS, key=lambda strength: abs(too_good(strength))))
    return {
        prompt: final[row[entry.name]]
        for task in tasks
        for entry in task.classes
        for prompt in _prompts(task, entry.name)
    }


def _prompts(task: DrawnTask, name: str) -> list[str]:
    return [template.format(name) for template in task.templates]


def _sharing(tasks: Mapping[str, DrawnTask]) -> list[list[str]]:
    """Return the tasks in groups; two tasks with a prompt in common are in one group."""
    groups: list[tuple[set[str], list[str]]] = []
    for key, task in tasks.items():
        prompts = {prompt for entry in task.classes for prompt in _prompts(task, entry.name)}
        touching = [group for group in groups if group[0] & prompts]
        groups = [group for group in groups if not group[0] & prompts]
        joined = prompts.union(*(group[0] for group in touching)), [*(k for group in touching for k in group[1]), key]
        groups.append(joined)
    return [keys for _, keys in groups]


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
