"""What adaptive methods minimise: the entropy of predictions on images, or the cross-entropy where labels are known."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Examples, TaskData
from mergekit_lite.weights import Weights


def mean_entropy(features: Tensor, head: Tensor) -> Tensor:
    """Return the mean Shannon entropy, in nats, of the predictions for features (N, D) under a head (C, D)."""
    logs = torch.log_softmax(features @ head.to(features).T, dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def mean_cross_entropy(features: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of the predictions for features (N, D) with labels (N,)."""
    return cross_entropy(features @ head.to(features).T, labels.to(features.device))


def loss_and_gradient(
    data: TaskData, weights: Mapping[str, Tensor], batch: Mapping[str, Examples], tasks: Iterable[str] | None = None
) -> tuple[float, Weights]:
    """Return the sum over tasks of the mean loss, and its gradient by tensor name.

    The loss of a task is the entropy where `batch` has images only, the cross-entropy where it has labels too. The
    encoder is shared, so the images of all tasks go through it as one batch; only the heads are separate. Tensors that
    the loss does not depend on are left out.

    Args:
        data: heads and encoder.
        weights: of the encoder.
        batch: task -> images (N, 3, H, W), or a pair of images and labels (N,).
        tasks: those to sum over; by default all that have a head.

    Raises:
        KitError: the tasks of the batch are not those of the heads, or a task has no images.
    """
    tasks = tuple(data.heads) if tasks is None else tuple(tasks)
    images = {task: _images(examples) for task, examples in batch.items()}
    empty = [task for task in tasks if task not in images or len(images[task]) == 0]
    extra = [task for task in images if task not in data.heads]
    if empty or extra or not tasks:
        raise KitError(
            f"Each step needs images of every task that has a head. Without images: {', '.join(empty) or 'none'}; "
            f"without head: {', '.join(extra) or 'none'}; heads: {', '.join(tasks) or 'none'}."
        )
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    with torch.enable_grad():
        features = data.encode(leaves, torch.cat([images[task] for task in tasks]))
        parts = features.split([len(images[task]) for task in tasks])
        losses = [_loss(part, data.heads[task], batch[task]) for task, part in zip(tasks, parts, strict=True)]
        loss = torch.stack(losses).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = zip(leaves, gradients, strict=True)
    return loss.item(), {name: gradient for name, gradient in found if gradient is not None}


def _images(examples: Examples) -> Tensor:
    return examples if isinstance(examples, Tensor) else examples[0]


def _loss(features: Tensor, head: Tensor, examples: Examples) -> Tensor:
    if isinstance(examples, Tensor):
        return mean_entropy(features, head)
    return mean_cross_entropy(features, head, examples[1])
