"""Are base and experts what they are taken for? Wrong checkpoints and mixed-up splits are the field's daily trouble.

Of the base: how far the experts lie from it, and what it reaches on two tasks without any training. Of every expert:
what it reaches on its own task. The accuracies are compared with those that FusionBench printed. It costs one pass over
the test images, once: the answers are kept in the cache under a hash of weights, heads, images and code.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from mergekit_lite.cache import cache_dir, content_hash, ensure, sealed
from mergekit_lite.errors import KitError
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites import scoring
from mergekit_lite.suites.clip import pins, sources
from mergekit_lite.suites.clip.benchmark import base_file, expert_file
from mergekit_lite.suites.clip.printed import Row, prints

if TYPE_CHECKING:
    from mergekit_lite.suites.clip.clip_suite import ClipSuite

VARIABLE = "MERGEKIT_LITE_SKIP_EXPERT_CHECK"
"""Set to 1, base and experts are merged unchecked. A variable and not a parameter: it reaches a study that was started
by a notebook, a profile or the command line alike, and none of them has to hand it through."""

Weights = Literal["base", "expert"]
Verdict = Literal["agrees", "somewhat off", "far off"]


class Limits(NamedTuple):
    """Points from a measured accuracy to the nearest print: above `warn` they are told, above `refuse` refused."""

    warn: float
    refuse: float


LIMITS: Mapping[Weights, Limits] = {
    # Two prints of one expert lie up to 0.24 points apart (Cars, ViT-B/32: 78.52 and 78.3); bfloat16 and another
    # decoder of JPEG add one or two tenths.
    "expert": Limits(0.5, 1.5),
    # Two prints of the pre-trained model lie up to 2.29 points apart (EuroSAT, ViT-L/14: 61.19 and 58.9): nothing was
    # trained on these images, so many of them lie close to a border between classes.
    "base": Limits(1.0, 3.0),
}

FAR = 0.5
"""Length of a task vector, in lengths of the base, from which on the two have nothing to do with each other.

Fine-tuning moves the matrices by a few per cent of their length; the miniature's experts, which learn much faster, by 6
to 11 per cent (measured). Matrices of two networks that were trained apart are as good as orthogonal, so that
||a - b||^2 = ||a||^2 + ||b||^2, which is at least 1 in units of either. Half of that leaves room on both sides."""

ZERO_SHOT = 2  # tasks that the base is tried on

_told: set[tuple[str, "Checked"]] = set()  # what this process has warned of


class Checked(NamedTuple):
    """One accuracy beside what was published for it.

    Attributes:
        weights: whose it is: the base's, or that of the expert of `task`.
        task: on whose test images it was measured.
        measured: top-1 accuracy in percent.
        published: table of FusionBench -> the accuracy as printed there, in percent.
    """

    weights: Weights
    task: str
    measured: float
    published: tuple[tuple[str, str], ...]

    @property
    def difference(self) -> float:
        """Return measured minus the nearest print, in points, with the two decimals that the longer print has."""
        return min((round(self.measured - float(percent), 2) for _, percent in self.published), key=abs)

    @property
    def verdict(self) -> Verdict:
        """Return what `LIMITS` make of the difference."""
        limits, off = LIMITS[self.weights], abs(self.difference)
        return "agrees" if off <= limits.warn else "somewhat off" if off <= limits.refuse else "far off"

    @property
    def words(self) -> str:
        """Return the row as one line of a message."""
        told = " and ".join(f"{percent} % ({table})" for table, percent in self.published)
        return f"{self.task}: measured {self.measured:.2f} %, published {told}, difference {self.difference:+.2f}"


def skipped() -> bool:
    """Return whether the user asked to merge without the check."""
    return os.environ.get(VARIABLE, "").lower() not in ("", "0", "false", "no")


def check_base(suite: "ClipSuite", tasks: Sequence[str]) -> list[Checked]:
    """Check that the experts of `tasks` were fine-tuned from this base, and that it reaches what was published for it.

    Returns:
        What it reaches on the tasks of `zero_shot_tasks`.

    Raises:
        KitError: an expert is further than `FAR` from the base; or an accuracy is further from both prints than
            `LIMITS` allow. All of them are listed.
    """
    far = {task: one for task, one in distances(suite, tasks).items() if not one <= FAR}
    if far:
        raise KitError(_too_far(suite, far, len(tasks)))
    return _judged(suite, base_rows(suite, tasks))


def check_experts(suite: "ClipSuite", tasks: Sequence[str]) -> list[Checked]:
    """Check that the experts of `tasks` reach on their own tasks what was published for them, and return what they do.

    Raises:
        KitError: some are further from both prints than `LIMITS` allow; all of them are listed with their numbers.
    """
    return _judged(suite, expert_rows(suite, tasks))


def base_rows(suite: "ClipSuite", tasks: Sequence[str]) -> list[Checked]:
    """Return what the base reaches on two of `tasks`, beside the prints; nothing is judged, and nothing raised."""
    return [_row(suite, "base", task, suite.fingerprint([], [task])) for task in zero_shot_tasks(suite, tasks)]


def expert_rows(suite: "ClipSuite", tasks: Sequence[str]) -> list[Checked]:
    """Return what the experts of `tasks` reach on their own tasks, beside the prints; nothing is judged."""
    return [_row(suite, "expert", task, suite.fingerprint([task], [task])) for task in tasks]


def zero_shot_tasks(suite: "ClipSuite", tasks: Sequence[str]) -> list[str]:
    """Return the two of `tasks` that tell most about a base for the least time.

    These are the smallest test sets on which CLIP reaches at least twice what guessing does: on others (two classes, or
    Japanese characters) a wrong base would reach the same.
    """

    def told(task: str) -> tuple[bool, int]:
        zero_shot = min(float(percent) for _, percent in _published(suite, "base", task))
        return zero_shot < 2 * 100 / len(suite.tasks[task].classnames), suite.entries[task].test_images

    return sorted(dict.fromkeys(tasks), key=told)[:ZERO_SHOT]


def distances(suite: "ClipSuite", tasks: Sequence[str]) -> dict[str, float]:
    """Return for each task how far its expert is from the base, see `distance`."""

    def of(task: str) -> float:
        key = content_hash([suite.base_hash(), suite.expert_hash(task), code_of(distance)])
        return _kept(suite, task, f"distance-{task}-{key}", lambda: distance(suite.base, suite.experts[task]))

    return {task: of(task) for task in tasks}


def distance(base: Mapping[str, Tensor], expert: Mapping[str, Tensor]) -> float:
    """Return ||expert - base|| / ||base|| over all matrices, one tensor at a time.

    Gains and biases are left out: the gains of layer norms are near one in any network, so they would draw two networks
    together that have nothing in common.
    """
    moved = length = 0.0
    for name, start in base.items():
        if start.ndim > 1:
            start = start.double()
            moved += float((expert[name].double() - start).square().sum())
            length += float(start.square().sum())
    return math.sqrt(moved / length) if length else math.inf


def _row(
    suite: "ClipSuite",
    weights: Weights,
    task: str,
    fingerprint: Mapping[str, Any],
) -> Checked:
    key = content_hash([fingerprint, code_of(scoring.accuracy, *suite.computing)])
    published = _published(suite, weights, task)

    def measure() -> float:
        measured = scoring.accuracy(suite, suite.base if weights == "base" else suite.experts[task], task)
        whose = f"Expert {task} on its own task" if weights == "expert" else f"The base on {task}, zero-shot"
        told = " and ".join(percent for _, percent in published)
        print(f"{whose}: {measured:.2f} %, published {told} %.", flush=True)
        return measured

    name = task if weights == "expert" else f"base-{task}"
    return Checked(weights, task, _kept(suite, task, f"{name}-{key}", measure), published)


def _published(suite: "ClipSuite", weights: Weights, task: str) -> tuple[tuple[str, str], ...]:
    row: Row = "Pre-trained" if weights == "base" else suite.printed
    return tuple(prints(suite.model.key, row)[task].items())


def _kept(suite: "ClipSuite", task: str, name: str, measure: Callable[[], float]) -> float:
    """Return an answer that is in the cache under `name`, or measure it and keep it there."""
    path = cache_dir("checks", suite.name) / f"{name}.json"

    def make() -> None:
        facts = {"measured": measure(), "sources": suite.sources([task])}
        with sealed(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    ensure(make, path)
    return float(json.loads(path.read_text(encoding="utf-8"))["measured"])


def _judged(suite: "ClipSuite", rows: list[Checked]) -> list[Checked]:
    """Return `rows`; refuse those that are far off, and say once per process which are somewhat off."""
    if far := [row for row in rows if row.verdict == "far off"]:
        raise KitError(_refusal(suite, far, len(rows)))
    if off := [row for row in rows if row.verdict == "somewhat off" and (suite.name, row) not in _told]:
        _told.update((suite.name, row) for row in off)
        print(_warning(suite, off, len(rows)), flush=True)
    return rows


def _warning(suite: "ClipSuite", off: Sequence[Checked], total: int) -> str:
    limits = LIMITS[off[0].weights]
    return "\n".join(
        [
            f"{_count(suite, off, total)} between {limits.warn:g} and {limits.refuse:g} points away from what "
            "FusionBench printed, and used all the same:",
            *(f"  {row.words}" for row in off),
            "Likely causes: another decoder of JPEG, another crop or another precision than FusionBench's; a data set "
            "that was changed a little on the hub.",
        ]
    )


CAUSES: Mapping[Weights, str] = {
    "expert": (
        "Far too low: the checkpoint of another task or model, labels in another order than the class names, or "
        "another split. Too high: images the expert was trained on among the test images. Two or three points: another "
        "preprocessing, or a data set that was changed on the hub."
    ),
    "base": (
        "Likely causes: weights of another CLIP or of another pre-training than OpenAI's, plain GELU instead of "
        "QuickGELU, another preprocessing, labels in another order than the class names, or another split. A wrong "
        "base spoils every task vector."
    ),
}


def _refusal(suite: "ClipSuite", far: Sequence[Checked], total: int) -> str:
    weights = far[0].weights
    lines = [
        f"{_count(suite, far, total)} more than {LIMITS[weights].refuse:g} points away from what FusionBench printed:"
    ]
    for row in far:
        entry = suite.entries[row.task]
        whose = entry.experts[suite.model.key] if weights == "expert" else "the base"
        lines.append(f"  {row.words} ({whose} on {entry.dataset}, split {entry.test_split})")
    paths = [path for row in far for path in _files(suite, weights, row.task)]
    return "\n".join([*lines, CAUSES[weights], *_remedy(suite, paths)])


def _too_far(suite: "ClipSuite", far: Mapping[str, float], total: int) -> str:
    return "\n".join(
        [
            f"{len(far)} of {total} experts of {suite.title} were not fine-tuned from this base: their matrices lie "
            f"more than {FAR:g} of the base's length away from it, where fine-tuning moves them by a few per cent:",
            *(f"  {task}: {one:.2f}" for task, one in far.items()),
            "If it is all of them the base is of another model or of another pre-training; if it is one, that expert.",
            *_remedy(suite, [suite.base_path(), *(suite.expert_path(task) for task in far)]),
        ]
    )


def _count(suite: "ClipSuite", rows: Sequence[Checked], total: int) -> str:
    if rows[0].weights == "base":
        return f"The base of {suite.title} is on {len(rows)} of {total} tasks, without any training,"
    return f"{len(rows)} of {total} experts of {suite.title} {'is' if len(rows) == 1 else 'are'}"


def _files(suite: "ClipSuite", weights: Weights, task: str) -> list[Path]:
    """Return the file with the weights on this machine, and those that pin it and the data set to states of the hub."""
    entry = suite.entries[task]
    path, (repo, _) = (
        (suite.base_path(), base_file(suite.model))
        if weights == "base"
        else (suite.expert_path(task), expert_file(suite.model, entry))
    )
    return [path, pins.place(repo), *(sources.place(entry, split) for split in (entry.train_split, entry.test_split))]


def _remedy(suite: "ClipSuite", paths: Sequence[Path]) -> list[str]:
    return [
        f"To use them as they are, set {VARIABLE}=1. `suite.sources(tasks)` names what was used. To have all as the "
        f"hub has it now, run `mergekit-lite fetch {suite.model.name}` after deleting these files:",
        *(f"  {path}" for path in dict.fromkeys(path.resolve() for path in paths)),
    ]
