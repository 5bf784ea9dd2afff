"""What of a suite lies on this machine already. No weight and no image is read.

Where HF_HUB_OFFLINE is set, as `doctor` has it, nothing is asked of the hub either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mergekit_lite.suites.clip import decoded, hub, joint
from mergekit_lite.suites.clip.benchmark import MODELS, ClipModel, base_file, expert_file, hub_tasks
from mergekit_lite.suites.clip.clip_suite import ClipSuite
from mergekit_lite.suites.clip.converted import ConvertedSuite, place
from mergekit_lite.suites.clip.joint import JointSuite
from mergekit_lite.suites.suite import Which, chosen_tasks


@dataclass(frozen=True)
class Stock:
    """One kind of thing: the names of those that are there and of those that are not, and bytes still to write.

    Bytes are those of decoded images, which are computed. How large a download is, the hub knows.
    """

    what: str
    there: tuple[str, ...]
    missing: tuple[str, ...]
    to_write: int = 0


def stock(suite: str, tasks: str | Sequence[str]) -> list[Stock]:
    """Return what is there of base, experts, test and training images of `tasks`, in this order.

    Args:
        suite: one of the real models, with its family behind an @ if it has one.
        tasks: names, or the name of a set.

    Raises:
        KitError: an unknown task.
    """
    name, _, family = suite.partition("@")
    model, entries, side = MODELS[name], hub_tasks(), _side(MODELS[name])
    converted = family not in ("", joint.FAMILY)
    if family == joint.FAMILY and model.key in joint.REPOSITORIES:
        entries = JointSuite._entries(model)
    chosen = [task for task in chosen_tasks(tasks, tuple(hub_tasks()), "The benchmark") if task in entries]
    crop = ConvertedSuite.crop if converted else ClipSuite.crop

    def expert(task: str) -> bool:
        if converted:
            return place(name, family, task).exists()
        return hub.cached(*expert_file(model, entries[task])) is not None

    def images(what: str, which: Which) -> Stock:
        row = _row(what, chosen, lambda task: decoded.known(entries[task], which, side, crop) is not None)
        to_write = sum(decoded.predicted_bytes(entries[task], which, side) for task in row.missing)
        return replace(row, to_write=to_write)

    base = _row("base weights", (model.title,), lambda _: hub.cached(*base_file(model)) is not None)
    return [base, _row("experts", chosen, expert), images("test images", "test"), images("training images", "train")]


def _row(what: str, names: Sequence[str], there: Callable[[str], bool]) -> Stock:
    found = {name: there(name) for name in names}
    return Stock(what, tuple(n for n in names if found[n]), tuple(n for n in names if not found[n]))


def _side(model: ClipModel) -> int:
    import open_clip  # takes seconds

    return int((open_clip.get_model_config(model.architecture) or {})["vision_cfg"]["image_size"])
