"""What FusionBench printed of the base and the experts, which are its own; read from `reference/reported.csv`."""

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

ROWS = {"base": "Pre-trained", "expert": "Fine-tuned"}


@cache
def prints(model: Key, weights: Literal["base", "expert"]) -> Mapping[str, Mapping[str, str]]:
    """Return task -> table -> top-1 accuracy in percent, with the decimals it was printed with."""
    name = f"ViT-{model[0].upper()}-{model[1:]}"  # b32 -> ViT-B-32
    found: dict[str, dict[str, str]] = {}
    stored = files("mergekit_lite").joinpath("reference/reported.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(StringIO(stored)):
        told = (row["paper"], row["family"], row["model"], row["method"])
        if told == ("FusionBench", "FB", name, ROWS[weights]) and row["table"] in TABLES:
            found.setdefault(row["task"], {})[row["table"]] = row["accuracy"]
    return found
