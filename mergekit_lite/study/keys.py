"""What names a record: a hash of all that may change the answer to a cell, and of nothing else.

Of the code, what is computed counts (`mergekit_lite.fingerprints`): of the method and all that it uses, wherever that
lies, of the task data, of the encoder and of the evaluation. Where code was changed and records computed anew came out
the same to the last bit, the new code counts as the old: `reference/same_answers.json` holds what counts as what, and
which records were tried (``python -m benchmarks.same_answers``).
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

from mergekit_lite.cache import content_hash
from mergekit_lite.errors import KitError
from mergekit_lite.fingerprints import PACKAGE, code_of
from mergekit_lite.machine import versions
from mergekit_lite.methods import registry
from mergekit_lite.methods.shared import places
from mergekit_lite.study import evaluation, task_data
from mergekit_lite.study.checks import resolved
from mergekit_lite.study.records import Cell
from mergekit_lite.suites import broken, corruptions, walking
from mergekit_lite.suites.suite import Suite


def cell_key(suite: Suite, cell: Cell) -> str:
    """Return the 16 hexadecimal digits that name the record of `cell`.

    They change with the resolved parameters, the tasks, the seed, the weights and images of the suite, the code that is
    run, the versions of torch and open_clip, and the class and precision of the device; with docstrings, comments,
    annotations, messages and the places of files they do not.

    Raises:
        KitError: the cell names something that does not exist.
    """
    return key_of(suite, resolved(suite, cell))


def key_of(suite: Suite, cell: Cell) -> str:
    """Return the key of a cell that is resolved already."""
    return content_hash(what_decides(suite, cell))


def what_decides(suite: Suite, cell: Cell) -> dict[str, Any]:
    """Return all that the key of a (resolved) cell is made of: what is asked, and what the answer depends on.

    Returns:
        ``cell`` and ``access``, the question; ``suite``, hashes of the weights and images that it looks at; ``code``, a
        hash; and ``environment``: versions, class of device, and precision.
    """
    return {
        "cell": cell.question(),
        "access": str(registry.get(cell.method).access_with(cell.parameters)),
        "suite": _fingerprint(asked(suite, cell), cell),
        "code": _code(suite, cell),
        "environment": _environment(suite),
    }


def asked(suite: Suite, cell: Cell) -> Suite:
    """Return the suite that `cell` is about: with experts of its seed, and with its corruption of the test images."""
    return corruptions.corrupted(suite.with_expert_seed(cell.expert_seed), cell.corruption)


def _fingerprint(suite: Suite, cell: Cell) -> dict[str, Any]:
    """Return hashes of the weights and images that the (resolved) cell looks at; `suite` is the one it is about."""
    looked_at = tuple(dict.fromkeys((*cell.evaluate, *cell.adapt)))
    access = registry.get(cell.method).access_with(cell.parameters)
    learnt = cell.adapt if access in (registry.Access.CALIBRATION, registry.Access.LABELLED) else ()
    known = suite.fingerprint(cell.pool, looked_at, learnt)
    if cell.split == "test":
        return known
    return known | {"held-out data": {task: suite.data_hash(task, cell.split) for task in cell.evaluate}}


def _code(suite: Suite, cell: Cell) -> str:
    """Return a hash of the code that computes a (resolved) cell."""
    parts: list[Any] = [registry.get(cell.method).function]
    for role in ("start", "inside"):
        with suppress(KitError):  # most often the name of another method, to which no import leads
            parts.append(registry.get(str(cell.parameters.get(role))).function)
    parts += [*suite.computing, evaluation.accuracies]
    if "data" in registry.get(cell.method).resources:
        parts.append(task_data.shown)
    if "walk" in registry.get(cell.method).resources:
        parts.append(walking.walk_through)
    if cell.broken:
        parts.append(broken.Broken)
    return content_hash([_code_of(part) for part in parts])


def kit_of(suite: Suite) -> str:
    """Return a hash of the code that all cells of `suite` run, whatever their methods."""
    return content_hash([_code_of(part) for part in (*suite.computing, evaluation.accuracies, task_data.shown)])


def _environment(suite: Suite) -> dict[str, str]:
    """Return what else may change an answer's digits: versions, class of device, and precision."""
    # A build's suffix, such as +cpu, says what the class of device says.
    known = {name: version.partition("+")[0] for name, version in versions().items() if name in ("torch", "open_clip")}
    # Other places of a bank are exact; this one rounds the task vectors, and is only ever asked for.
    bank = {"bank": "bfloat16"} if places.asked_for() == "bfloat16" else {}
    return {**known, **bank, "device": suite.device.type, "dtype": str(suite.working_dtype).removeprefix("torch.")}


def _code_of(part: Any) -> str:
    # The kit's own code does not change while it runs; a notebook's cell may.
    code = _known_code_of(part) if part.__module__.partition(".")[0] == PACKAGE else code_of(part)
    return same_answers().get(code, code)


_known_code_of = cache(code_of)


@cache
def same_answers() -> Mapping[str, str]:
    """Return hash of code -> hash of the earlier code that it counts as, since it gives the same answers."""
    with files("mergekit_lite").joinpath("reference/same_answers.json").open(encoding="utf-8") as stream:
        return {one["code"]: one["counts_as"] for one in json.load(stream)["parts"]}
