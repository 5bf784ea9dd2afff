"""What adaptive methods minimise: the entropy of predictions on images, or the cross-entropy where labels are known."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mergekit_lite.errors import KitError
from mergekit_lite.machine import in_memory
from mergekit_lite.methods.registry import OBJECTIVES, Examples, Objective, TaskData
from mergekit_lite.weights import Weights


def mean_entropy(features: Tensor, head: Tensor) -> Tensor:
    """Return the mean Shannon entropy, in nats, of the predictions for features (N, D) under a head (C, D)."""
    logs = torch.log_softmax(features @ head.to(features).T, dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def mean_cross_entropy(features: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of the predictions for features (N, D) with labels (N,)."""
    return cross_entropy(features @ head.to(features).T, labels.to(features.device))


def loss_and_gradient(
    data: TaskData,
    weights: Mapping[str, Tensor],
    batch: Mapping[str, Examples],
    objective: Objective,
    *,
    tasks: Iterable[str] | None = None,
    together: int | None = None,
) -> tuple[float, Weights]:
    """Return the sum over tasks of the mean loss, and its gradient by tensor name.

    The encoder is shared and only the heads are separate, so images of several tasks go through it together: as many as
    keep a processor busy, or as fit into a GPU's memory. Their number changes nothing but time, memory and rounding,
    since the gradient of a sum is the sum of gradients. Tensors that the loss does not depend on are left out.

    Args:
        data: heads and encoder.
        weights: of the encoder.
        batch: task -> images (N, 3, H, W), or a pair of images and labels (N,).
        objective: "entropy" of the predictions for images, or "cross-entropy" where there are labels too.
        tasks: those to sum over; by default all that have a head.
        together: at most so many images of a task go through the encoder at once; by default as many as fit.

    Raises:
        KitError: the tasks of the batch are not those of the heads, a task has no images, one image does not fit into
            memory, or the batch has labels where the objective looks at none, or none where it needs them.
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
    parts = {task: batch[task] for task in tasks}
    _check_labels(parts, objective)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    one = images[tasks[0]][0]
    longest = max(len(images[task]) for task in tasks)
    together = min(together or longest, longest)
    most = min(_first_size(one), sum(min(together, len(images[task])) for task in tasks))
    return in_memory(
        lambda size: _summed(data, leaves, parts, size, together),
        most,
        one.device,
        what="the gradient",
        key=(one.numel(), len(leaves)),
    )


def _check_labels(batch: Mapping[str, Examples], objective: Objective) -> None:
    """Refuse images without labels for the cross-entropy, and labels that the entropy would not look at."""
    for task, examples in batch.items():
        if isinstance(examples, Tensor) == (objective == "cross-entropy"):
            has, other = ("no labels", "entropy") if isinstance(examples, Tensor) else ("labels", "cross-entropy")
            raise KitError(
                f"The images of '{task}' have {has}, which does not go with the objective '{objective}'. Hand over "
                f"data of the kind '{OBJECTIVES[objective]}', or choose the objective '{other}'."
            )


def _first_size(image: Tensor) -> int:
    """Return how many images to begin with: on a GPU all; on a CPU 27 of 224 x 224, as more would save no time."""
    return 10**9 if image.is_cuda else max(1, 2**22 // image.numel())


def _summed(
    data: TaskData, leaves: Mapping[str, Tensor], batch: Mapping[str, Examples], size: int, together: int
) -> tuple[float, Weights]:
    """Return loss and gradient, from `size` images at a time, of a task at most `together`."""
    loss, gradient = 0.0, dict[str, Tensor]()
    for group in _groups({task: len(_images(examples)) for task, examples in batch.items()}, size, together):
        with torch.enable_grad():
            parts = [_part(batch[task], rows) for task, rows, _ in group]
            features = data.encode(leaves, torch.cat([_images(part) for part in parts]))
            each = features.split([len(_images(part)) for part in parts])
            losses = [
                share * _loss(its, data.heads[task], part)
                for its, part, (task, _, share) in zip(each, parts, group, strict=True)
            ]
            summed = torch.stack(losses).sum()
            found = torch.autograd.grad(summed, list(leaves.values()), allow_unused=True)
        loss += summed.item()
        for name, new in zip(leaves, found, strict=True):
            if new is not None:
                # not in place: autograd may hand out one tensor as the gradient of two
                gradient[name] = gradient[name] + new if name in gradient else new
    return loss, gradient


def _groups(counts: Mapping[str, int], size: int, together: int) -> Iterator[list[tuple[str, slice, float]]]:
    """Yield which images go through the encoder together: task, rows, and their share of the task's images.

    All tasks have their turn before `together` images more of each follow. Those of a task stay together if they fit.
    """
    for begin in range(0, max(counts.values()), together):
        group: list[tuple[str, slice, float]] = []
        room = size
        for task, count in counts.items():
            end = min(begin + together, count)
            for start in range(begin, end, size):
                rows = slice(start, min(start + size, end))
                taken = rows.stop - rows.start
                if taken > room:
                    yield group
                    group, room = [], size
                group.append((task, rows, taken / count))
                room -= taken
        yield group


def _part(examples: Examples, rows: slice) -> Examples:
    return examples[rows] if isinstance(examples, Tensor) else (examples[0][rows], examples[1][rows])


def _images(examples: Examples) -> Tensor:
    return examples if isinstance(examples, Tensor) else examples[0]


def _loss(features: Tensor, head: Tensor, examples: Examples) -> Tensor:
    if isinstance(examples, Tensor):
        return mean_entropy(features, head)
    return mean_cross_entropy(features, head, examples[1])
