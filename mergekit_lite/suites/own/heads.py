"""A trained linear head in the place of prompts."""

from pathlib import Path

import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.suites.words import spelt
from mergekit_lite.weight_files import LazyWeights
from mergekit_lite.weights import first_three


def trained_head(task: str, path: Path, classes: int, features: int, device: torch.device) -> Tensor:
    """Return a trained linear head (C, D) as its file has it, float32.

    It is multiplied with features of unit length, since all encoders here return those. A layer that was trained on
    features as they are predicts the same classes; but its logits, and with them the entropy that AdaMerging lowers,
    are smaller by the features' length. Multiply the matrix with their mean length to have its logits back.

    Args:
        task: whose it is.
        path: a safetensors file.
        classes: C.
        features: D.
        device: for the matrix.

    Raises:
        KitError: the file is not there or damaged, has not one matrix (C, D), or has a bias that is not zero.
    """
    content = LazyWeights(path, device)
    where = f"Task '{task}': the head {spelt(path.name)}"
    fitting = [name for name in content if content.layout(name)[0] == (classes, features)]
    there = first_three([f"'{spelt(name)}' {content.layout(name)[0]}" for name in content]) or "nothing"
    if len(fitting) != 1:
        turned = any(content.layout(name)[0] == (features, classes) for name in content)
        raise KitError(
            f"{where} must hold one matrix ({classes}, {features}), of classes and features, but holds {there}. "
            f"{'Transpose it.' if turned else 'Check that it is of this task, model and list of classes.'}"
        )
    others = [name for name in content if name not in fitting and bool((content[name] != 0).any())]
    if others:
        raise KitError(
            f"{where} has '{spelt(others[0])}' {content.layout(others[0])[0]} beside its matrix, which is not zero: a "
            "bias cannot be added here, as features have unit length. Train the head without a bias on features of "
            "unit length."
        )
    matrix = content[fitting[0]]
    if not matrix.is_floating_point() or not bool(matrix.isfinite().all()):
        raise KitError(f"{where} holds numbers that are not finite, or whole ones ({matrix.dtype}). Train it anew.")
    return matrix.float()
