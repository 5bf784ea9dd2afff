"""Entropy and loss of each test image: does the one, which needs no label, tell anything about the other?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite


def entropy_and_loss(
    suite: "Suite", weights: Mapping[str, Tensor], tasks: Sequence[str], batch_size: int = 125
) -> pd.DataFrame:
    """Return a row for each test image of `tasks`: columns ``task``, ``entropy`` and ``loss``, both in nats.

    The entropy is that of the prediction, as AdaMerging minimises it; the loss is the cross-entropy with the label.
    """
    frames = []
    for task in tasks:
        split, head = suite.split(task, "test"), suite.heads[task].to(suite.device)
        entropies, losses = [], []
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
        columns = {"entropy": torch.cat(entropies).double().numpy(), "loss": torch.cat(losses).double().numpy()}
        frames.append(pd.DataFrame({"task": task, **columns}))
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
