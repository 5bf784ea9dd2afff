"""Our pre-trained and fine-tuned models beside what FusionBench printed of the very same weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from mergekit_lite.analysis.published import accuracies, by_task
from mergekit_lite.suites.clip.printed import TABLES

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record


def beside_prints(record: "Record", data_sets: Mapping[str, str], model: str = "ViT-B-32") -> pd.DataFrame:
    """Return what a record reached on each task and what was printed of the same weights, in percent.

    For the pre-trained model the two prints lie up to two points apart, for experts a fraction of one. What agrees with
    either agrees, so the nearer one counts.

    Args:
        record: of the pre-trained model or of the individual experts.
        data_sets: task -> the data set that it is, or stands for.
        model: ``ViT-B-32``, ``ViT-B-16`` or ``ViT-L-14``.

    Returns:
        One row per task: ``measured``, ``published`` (the nearer print), ``prints`` (all of them, as text) and
        ``difference`` (measured minus published, in points); missing where nothing was printed.
        ``frame.attrs["label"]`` says whose numbers these are.

    Raises:
        KitError: nothing was printed for that model.
    """
    tables = [accuracies(model, table.removesuffix(" tasks"), "FusionBench", table, "FB") for table in TABLES]
    found = pd.concat([by_task(rows, list(data_sets.values())).loc[[record.cell.method]] for rows in tables])
    rows = []
    for task, data_set in data_sets.items():
        measured, prints = record.accuracy[task], found[data_set].dropna().tolist()
        nearest = min(prints, key=lambda value: abs(measured - value)) if prints else float("nan")
        rows.append((measured, nearest, " and ".join(map(str, prints)), round(measured - nearest, 2)))
    columns = ["measured", "published", "prints", "difference"]
    frame = pd.DataFrame(rows, columns=columns, index=list(data_sets))
    frame.attrs["label"] = f"FusionBench, {'/'.join(model.rsplit('-', 1))} (FB)"
    return frame
