"""What FusionBench printed of the base and of the weights it tuned itself; read from `reference/reported.csv`."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from io import StringIO
from typing import Literal

from mergekit_lite.suites.clip.benchmark import Key

TABLES = ("twenty tasks", "eight tasks")
"""Its two evaluations of the same weights: the first has two decimals and all tasks, the second one decimal and eight.
Its third print of the pre-trained model, beside the generalisation runs, contradicts both and is left out."""

Row = Literal["Pre-trained", "Fine-tuned", "Traditional MTL"]


@cache
def prints(model: Key, row: Row) -> Mapping[str, Mapping[str, str]]:
    """Return task -> table -> top-1 accuracy in percent, with the decimals it was printed with."""
    name = f"ViT-{model[0].upper()}-{model[1:]}"  # b32 -> ViT-B-32
    found: dict[str, dict[str, str]] = {}
    stored = files("mergekit_lite").joinpath("reference/reported.csv").read_text(encoding="utf-8")
    for one in csv.DictReader(StringIO(stored)):
        told = (one["paper"], one["family"], one["model"], one["method"])
        if told == ("FusionBench", "FB", name, row) and one["table"] in TABLES:
            found.setdefault(one["task"], {})[one["table"]] = one["accuracy"]
    return found
