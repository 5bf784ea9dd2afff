"""An evaluation as a file: JSON with all it came from, or CSV with a row for each model and task."""

import csv
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from mergekit_lite.cache import check_writable, existing, written_whole
from mergekit_lite.errors import KitError
from mergekit_lite.evaluate.confusing import Confusion
from mergekit_lite.evaluate.measuring import Evaluation
from mergekit_lite.machine import device_name, now, source_commit, versions
from mergekit_lite.suites.words import spelt

KIND = "mergekit-lite evaluation"
COLUMNS = ("model", "task", "accuracy", "low", "high", "correct", "images", "normalised")


def check_output(path: Path) -> None:
    """Check, before any work, that `path` can be written: a file of an earlier evaluation is replaced, no other.

    Raises:
        KitError: the suffix is neither .json nor .csv, its folder cannot be written to, or something else is there.
    """
    if path.suffix not in _READS:
        raise KitError(f"-o {spelt(str(path))}: a result is written as .json or .csv. End the name with one of them.")
    if path.is_dir():
        raise KitError(f"{spelt(str(path))} is a folder. Name a file in it, such as {spelt(path.name)}/result.json.")
    if path.exists() and not _is_ours(path):
        raise KitError(
            f"{spelt(str(path))} exists and is no evaluation in that format, so it is left as it is. Take another name."
        )
    folder = existing(path.parent)
    if not folder.is_dir():
        raise KitError(f"{spelt(str(folder))} is a file, so that nothing can be written below it. Take another folder.")
    check_writable(folder)


def _is_ours(path: Path) -> bool:
    try:
        # A device may have no end.
        return path.is_file() and _READS[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


_READS: dict[str, Callable[[str], bool]] = {
    ".json": lambda text: json.loads(text).get("kind") == KIND,
    ".csv": lambda text: text.splitlines()[:1] == [",".join(COLUMNS)],
}


def write_result(evaluation: Evaluation, path: Path, confused: Confusion | None = None) -> None:
    """Write an evaluation, whole or not at all, as the suffix of `path` says.

    Raises:
        KitError: it cannot be written.
    """
    if path.suffix == ".csv":
        text = StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(evaluation))
        content = text.getvalue()
    else:
        content = json.dumps(report(evaluation, confused), indent=1, ensure_ascii=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return a row for each model and task, with `COLUMNS`; accuracies in percent."""
    return [
        {
            "model": model,
            "task": task,
            "accuracy": score.accuracy,
            "low": score.low,
            "high": score.high,
            "correct": score.correct,
            "images": score.images,
            "normalised": score.normalised,
        }
        for (model, task), score in evaluation.scores.items()
    ]


def report(evaluation: Evaluation, confused: Confusion | None = None) -> dict[str, Any]:
    """Return the evaluation and all it came from, as JSON has it."""
    suite, tasks = evaluation.suite, evaluation.tasks
    found: dict[str, Any] = {
        "kind": KIND,
        "made": now().isoformat(),
        **versions(),
        "commit": source_commit(),
        "device": device_name(suite.device),
        "dtype": str(suite.working_dtype).removeprefix("torch."),
        # its hashes are of the base, the experts, the class names, and the images
        "suite": {"title": suite.title, **suite.fingerprint(tasks, tasks), "sources": suite.sources(tasks)},
        "models": [{"name": model.name, **model.provenance(suite, tasks)} for model in evaluation.models],
        "experts": {task: evaluation.scores[evaluation.first, task].expert for task in tasks},
        "results": rows(evaluation),
        "averages": [_average(evaluation, model.name) for model in evaluation.models],
    }
    if confused is not None:
        found["confusion"] = {
            "model": confused.model,
            "task": confused.task,
            "classnames": list(confused.classnames),
            "rows": "true class",
            "columns": "predicted class",
            "matrix": confused.matrix.tolist(),
        }
    return found


def _average(evaluation: Evaluation, model: str) -> dict[str, Any]:
    one = evaluation.averages[model]
    found = {"model": model, "accuracy": one.accuracy, "low": one.low, "high": one.high, "normalised": one.normalised}
    if one.difference is None:
        return found
    apart = one.difference
    return found | {
        "difference": {
            "to": evaluation.first,
            "points": apart.points,
            "low": apart.low,
            "high": apart.high,
            "decided": apart.decided,
        }
    }
