"""What single test images say: entropy beside loss, and how far an accuracy would move with other images."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mergekit_lite.errors import KitError
from mergekit_lite.methods import registry
from mergekit_lite.methods.averaging import fixed_coefficients
from mergekit_lite.methods.frank_wolfe.gradient import START
from mergekit_lite.weights import Pool, Weights, difference, in_dtypes_of, working_dtype
from mergekit_lite.workers import cores, side_by_side

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record
    from mergekit_lite.suites.suite import Suite

Name = TypeVar("Name", bound=Hashable)


def entropy_and_loss(
    suite: "Suite", weights: Mapping[str, Tensor], tasks: Sequence[str], batch_size: int = 125
) -> pd.DataFrame:
    """Return one row per test image of `tasks`: columns ``task``, ``entropy`` and ``loss`` (nats), and ``right``.

    The entropy is that of the prediction, as AdaMerging minimises it; the loss is the cross-entropy with the label;
    ``right`` says whether the image is classified correctly.
    """
    frames = []
    for task in tasks:
        split, head = suite.split(task, "test"), suite.heads[task].to(suite.device)
        entropies, losses, rights = [], [], []
        with torch.inference_mode():
            for start in range(0, len(split.labels), batch_size):
                rows = slice(start, start + batch_size)
                # np.array copies: torch must not write to a read-only memory map
                features = suite.encode(weights, torch.from_numpy(np.array(split.images[rows])).to(suite.device))
                logits = features @ head.to(features.dtype).T
                logs = logits.log_softmax(1)
                labels = torch.as_tensor(np.array(split.labels[rows]), device=logits.device)
                entropies.append(-(logs.exp() * logs).sum(1).cpu())
                losses.append(cross_entropy(logits, labels, reduction="none").cpu())
                rights.append((logits.argmax(1) == labels).cpu())
        columns = {"entropy": torch.cat(entropies).double().numpy(), "loss": torch.cat(losses).double().numpy()}
        frames.append(pd.DataFrame({"task": task, **columns, "right": torch.cat(rights).numpy()}))
    return pd.concat(frames, ignore_index=True)


def grouped(frame: pd.DataFrame, groups: int = 10) -> pd.DataFrame:
    """Return the means of groups of images: those of each task, sorted by entropy, in `groups` parts of equal size.

    Args:
        frame: as `entropy_and_loss` returns it.
        groups: parts of each task; a task with fewer images has fewer.
    """
    rank = frame.groupby("task", sort=False)["entropy"].rank(method="first") - 1
    size = frame.groupby("task", sort=False)["entropy"].transform("size")
    part = (rank * np.minimum(groups, size) // size).astype(int)
    # A stable sort keeps the tasks in their order.
    ordered = frame.assign(group=part).sort_values("group", kind="stable")
    return ordered.groupby(["task", "group"], sort=False)[["entropy", "loss"]].mean().reset_index()


def image_spread(record: "Record", sizes: Mapping[str, int], draws: int = 10_000, seed: int = 0) -> np.ndarray:
    """Return the record's average accuracy (%) on `draws` bootstrap samples of the test images.

    Each task's images are drawn anew, with replacement, as many as there are. An image is classified correctly or not,
    so the accuracy and the number of images are enough: nothing is evaluated again.

    Args:
        record: whose accuracy.
        sizes: number of test images by task.
        draws: bootstrap samples.
        seed: of the draws.

    Raises:
        KitError: a size is missing.
    """
    missing = [task for task in record.accuracy if not sizes.get(task)]
    if missing:
        raise KitError(f"The number of test images of {', '.join(missing)} is needed. Give sizes[task].")
    counts = {task: round(value / 100 * sizes[task]) for task, value in record.accuracy.items()}
    outcomes = {task: np.repeat([1.0, 0.0], [right, sizes[task] - right]) for task, right in counts.items()}
    return _resampled(outcomes, draws, seed)


def paired_spread(one: pd.DataFrame, other: pd.DataFrame, draws: int = 10_000, seed: int = 0) -> np.ndarray:
    """Return the difference of two average accuracies (points, `one` minus `other`) on bootstrap samples.

    Both models answer the same images in each sample, so what makes an image easy or hard for both drops out.

    Args:
        one: as `entropy_and_loss` returns it.
        other: of another model on the same images in the same order.
        draws: bootstrap samples.
        seed: of the draws.

    Raises:
        KitError: the two frames are not about the same images.
    """
    if list(one["task"]) != list(other["task"]):
        raise KitError("The two models did not answer the same images. Call entropy_and_loss with the same tasks.")
    difference = one["right"].to_numpy(float) - other["right"].to_numpy(float)
    outcomes = {str(task): difference[rows] for task, rows in one.groupby("task", sort=False).indices.items()}
    return _resampled(outcomes, draws, seed)


def _resampled(outcomes: Mapping[str, np.ndarray], draws: int, seed: int) -> np.ndarray:
    """Return 100 times the mean over tasks of each task's mean outcome, (draws,); outcomes have a few values each."""
    generator, total = np.random.default_rng(seed), np.zeros(draws)
    for values in outcomes.values():
        kinds, counts = np.unique(values, return_counts=True)
        drawn = generator.multinomial(len(values), counts / len(values), size=draws)
        total += drawn @ kinds / len(values)
    return 100 * total / len(outcomes)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the two quantiles that hold the part `level` of the draws between them."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rebuilt(suite: "Suite", record: "Record") -> Weights:
    """Return the merged weights of a record again, without adapting: a record keeps accuracies, but no weights.

    Raises:
        KitError: the method would have to see its data again. Merges without data, AdaMerging, and soft FW-Merging of
            whole models from the pre-trained one can be rebuilt.
    """
    cell, info = record.cell, registry.get(record.cell.method)
    suite = suite.with_expert_seed(cell.expert_seed)
    experts = {name: suite.experts[name] for name in cell.pool}
    # Their merges are sums of whole task vectors; those of AdaMerging++ are of vectors that TIES has trimmed.
    learned = cell.method in {"task_wise_adamerging", "layer_wise_adamerging"}
    if cell.method == "soft_frank_wolfe" and not cell.broken and _all_in(record.trace):
        return _mixed(suite.base, experts, record.trace)
    if cell.broken or (not learned and "data" in info.resources):
        raise KitError(
            f"{record.title} cannot be merged again from its record. Take a merge without data, or AdaMerging."
        )
    if learned:
        merged = fixed_coefficients(suite.base, experts, coefficients=record.trace["coefficients"]["values"])
    else:
        seed = {"seed": cell.seed} if "seed" in info.resources else {}
        merged = info.function(suite.base, experts, **seed, **cell.parameters)
    if merged.own:
        raise KitError(f"{record.title} is no single model. Take a merge without data, or AdaMerging.")
    return dict(merged.weights)


def answers(suite: "Suite", records: Mapping[Name, "Record"], workers: int | None = None) -> dict[Name, pd.DataFrame]:
    """Return what each merge says to the test images of its tasks, see `entropy_and_loss`; merges run side by side.

    Args:
        suite: of the records.
        records: by names of your choice. Those that cannot be merged again, see `rebuilt`, are left out.
        workers: processes; None is one per core, and this process alone on a GPU.
    """
    if workers is None:
        workers = 1 if suite.device.type == "cuda" else cores()
    alone = min(workers, len(records)) <= 1
    found = side_by_side((lambda: suite) if alone else suite.loader, _answer, list(records.items()), workers)
    given = {name: outcome() for (name, _), outcome in found}
    return {name: frame for name in records if (frame := given[name]) is not None}


def _answer(suite: "Suite", item: "tuple[Any, Record]") -> pd.DataFrame | None:
    _, record = item
    try:
        weights = rebuilt(suite, record)
    except KitError:
        return None
    return entropy_and_loss(suite, weights, tuple(record.accuracy))


def _all_in(trace: Mapping[str, Any]) -> bool:
    """Return whether a trace of soft FW-Merging says all that the merge was made of."""
    whole = all(isinstance(pick, str) and pick != START for picks in trace.get("chosen", [[None]]) for pick in picks)
    return whole and trace["start"]["method"] == "base" and "stopped" not in trace


def _mixed(base: Mapping[str, Tensor], experts: Pool, trace: Mapping[str, Any]) -> Weights:
    """Return what soft FW-Merging ends with: in each iteration theta + sum_j lambda_j (s_j - theta)."""
    theta = {name: tensor.to(working_dtype(tensor)) for name, tensor in base.items()}
    for picks, inner in zip(trace["chosen"], trace["inner"], strict=True):
        pairs = [(experts[pick], values) for pick, values in zip(picks, inner["coefficients"], strict=True)]
        for place, (name, start) in enumerate(theta.items()):
            parts = (values[place % len(values)] * difference(vertex[name], start) for vertex, values in pairs)
            theta[name] = start + sum(parts, torch.zeros_like(start))
    return in_dtypes_of(base, theta)
