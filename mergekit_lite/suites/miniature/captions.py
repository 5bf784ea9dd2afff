"""Everyday captions: what people write under pictures, which is seldom what a benchmark calls them."""

import numpy as np
from torch import Tensor

from mergekit_lite.suites.miniature.drawing import DrawnTask

TEMPLATES = ("{}", "my {}", "picture of {}", "{kind} with {}")
VAGUE = ("{kind} picture", "untitled {kind}")
VAGUE_SHARE = 0.15  # captions that name the domain and nothing else


def everyday(task: DrawnTask, labels: Tensor, rng: np.random.Generator) -> list[str]:
    """Return a caption for a picture of each label: what people call it, or just the domain."""
    captions = []
    for label in labels.tolist():
        choice = VAGUE if rng.random() < VAGUE_SHARE else TEMPLATES
        template = choice[rng.integers(len(choice))]
        captions.append(template.format(task.classes[label].caption, kind=task.kind))
    return captions
