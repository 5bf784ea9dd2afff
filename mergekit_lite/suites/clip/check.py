"""Is each expert what it is taken for? Wrong checkpoints and mixed-up splits are the field's most frequent trouble.

Every expert is measured on the test images of its own task and compared with the accuracy published for it
(FusionBench's, in `reference/tasks.json`). It costs one pass over the test images, once: the answer is kept in the
cache under a hash of the expert, the base, the head and the images.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mergekit_lite.cache import cache_dir, content_hash, ensure, sealed
from mergekit_lite.errors import KitError
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites import scoring
from mergekit_lite.suites.clip import hub, sources
from mergekit_lite.suites.clip.benchmark import expert_file

if TYPE_CHECKING:
    from mergekit_lite.suites.clip.clip_suite import ClipSuite

VARIABLE = "MERGEKIT_LITE_SKIP_EXPERT_CHECK"
"""Set to 1, experts are merged unchecked. A variable and not a parameter: it reaches a study that was started by a
notebook, a profile or the command line alike, and none of them has to hand it through."""


class Checked(NamedTuple):
    """The accuracy of the expert of `task` on its own test images and the published one, both in percent."""

    task: str
    measured: float
    published: float

    @property
    def difference(self) -> float:
        """Return measured minus published, in points; the published accuracy has two decimals, and so has this."""
        return round(self.measured - self.published, 2)


def skipped() -> bool:
    """Return whether the user asked to merge without the check."""
    return os.environ.get(VARIABLE, "").lower() not in ("", "0", "false", "no")


def check_experts(suite: "ClipSuite", tasks: Sequence[str], tolerance: float = 0.5) -> list[Checked]:
    """Return what the experts of `tasks` reach on their own tasks.

    Args:
        suite: where experts and images come from.
        tasks: names of tasks.
        tolerance: how many points measured and published accuracy may lie apart, in either direction. Rounding in
            bfloat16 and another JPEG decoder move it by one or two tenths.

    Raises:
        KitError: some lie further apart; all of them are listed with their numbers.
    """
    answers = [Checked(task, _measured(suite, task), _published(suite, task)) for task in tasks]
    off = [one for one in answers if abs(one.difference) > tolerance]
    if off:
        raise KitError(_refusal(suite, off, len(answers), tolerance))
    return answers


def _published(suite: "ClipSuite", task: str) -> float:
    return suite.entries[task].accuracy[suite.model.key]["finetuned"]


def _measured(suite: "ClipSuite", task: str) -> float:
    key = content_hash([suite.fingerprint([task], [task]), code_of(scoring.accuracy, *suite.computing)])
    path = cache_dir("checks", suite.name) / f"{task}-{key}.json"

    def measure() -> None:
        measured = scoring.accuracy(suite, suite.experts[task], task)
        facts = {"accuracy": measured, "sources": suite.sources([task])}
        with sealed(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        published = _published(suite, task)
        print(f"Expert {task} on its own task: {measured:.2f} %, published {published:.2f} %.", flush=True)

    ensure(measure, path)
    return float(json.loads(path.read_text(encoding="utf-8"))["accuracy"])


def _files(suite: "ClipSuite", task: str) -> list[Path]:
    """Return the file of an expert in the hub's cache, and those that pin its data set to a state of the hub."""
    entry = suite.entries[task]
    pins = [sources.place(entry, split) for split in (entry.train_split, entry.test_split)]
    return [hub.downloaded(*expert_file(suite.model, entry)).resolve(), *pins]


def _refusal(suite: "ClipSuite", off: Sequence[Checked], total: int, tolerance: float) -> str:
    lines = [
        f"{len(off)} of {total} experts of {suite.title} are more than {tolerance} points away from the accuracy "
        "published for them on their own tasks:"
    ]
    for one in off:
        entry = suite.entries[one.task]
        lines.append(
            f"  {one.task}: measured {one.measured:.2f} %, expected {one.published:.2f} %, difference "
            f"{one.difference:+.2f} ({entry.experts[suite.model.key]} on {entry.dataset}, split {entry.test_split})"
        )
    lines += [
        "Far too low: the checkpoint of another task or model, labels in another order than the class names, or "
        "another split. Too high: images the expert was trained on among the test images. A point or two: another "
        "preprocessing, or a data set that was changed on the hub.",
        f"To have them as the hub has them now, delete these files and run `mergekit-lite fetch {suite.name}`; "
        f"`suite.sources(tasks)` names what was used. To merge them as they are, set {VARIABLE}=1.",
        *(f"  {path}" for one in off for path in _files(suite, one.task)),
    ]
    return "\n".join(lines)
