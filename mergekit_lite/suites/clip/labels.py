"""The columns of a real data set, and whether its labels mean what the class names of the benchmark say."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.benchmark import HubTask
from mergekit_lite.suites.words import spelt

if TYPE_CHECKING:  # optional, and takes seconds to import
    import datasets

OTHER_COLUMNS = {"image": ("image", "img", "jpg"), "label": ("label", "fine_label", "cls")}
"""Names under which copies of these data sets hold the two columns, tried after the one of the suite file."""

NAMED_LIKE_THE_PROMPTS = frozenset(
    {
        "stanford-cars",
        "resisc45",
        "svhn",
        "mnist",
        "dtd",
        "oxford-iiit-pet",
        "stl10",
        "cifar100",
        "cifar10",
        "food101",
        "fashion_mnist",
    }
)
"""Tasks whose data set, if it names its labels, names them as the prompts do, so that their order is checked by name:
most names must be found. The others are named otherwise or not at all (folders of EuroSAT and SUN397, numbers of GTSRB
and Flowers, romanised KMNIST, booleans of PCAM, plain integers of FER2013, EMNIST and Rendered-SST2 in some copies).
For those the number of classes is checked, and that no name that is found stands in another place."""


def two_columns(dataset: "datasets.Dataset", task: HubTask, where: str) -> "datasets.Dataset":
    """Return `dataset` with its columns of images and of labels alone, called `image` and `label`.

    Raises:
        KitError: one of them is there under none of the names that are known.
    """
    found = {}
    for role, declared in (("image", task.image_column), ("label", task.label_column)):
        # What a user names is meant; of the benchmark's data sets copies are known that call it otherwise.
        others = OTHER_COLUMNS[role] if task.test_images or declared == role else ()
        names = [name for name in (declared, *others) if name in dataset.column_names]
        if not names:
            raise KitError(
                f"Task '{task.name}': {where} has no column '{declared}', "
                f"but {spelt(', '.join(dataset.column_names))}. {task.remedy}"
            )
        found[names[0]] = role
    return dataset.select_columns(list(found)).rename_columns({name: role for name, role in found.items()})


def label_numbers(dataset: "datasets.Dataset", task: HubTask, where: str = "the data set") -> NDArray[np.int64]:
    """Return the labels (N,) of what `labelled` returned; false is 0 and true is 1. No image is looked at."""
    labels = np.asarray(dataset["label"][:])
    if labels.dtype.kind not in "biu":
        raise KitError(
            f"Task '{task.name}': the labels of {where} are {labels.dtype}, not whole numbers. {task.remedy}"
        )
    return labels.astype(np.int64)


def check_labels(task: HubTask, where: str, feature: Any, labels: NDArray[np.int64]) -> int:
    """Check that the labels mean what the class names say, and return how many classes were recognised by their name.

    Raises:
        KitError: another number of classes, a class without an image, a label out of range, or names in another order.
    """
    classes = len(task.classnames)
    names: list[str] = list(getattr(feature, "names", None) or [])
    found = np.unique(labels)
    if (names and len(names) != classes) or not np.array_equal(found, np.arange(classes)):
        strange = f"labels from {found.min()} to {found.max()}, {len(found)} of them" if len(found) else "no labels"
        raise KitError(
            f"Task '{task.name}': {where} must have all labels from 0 to {classes - 1}, but has {strange}"
            f"{f', and {len(names)} names' if names else ''}. {task.remedy}"
        )
    ours = {plain(name): place for place, name in enumerate(task.classnames)}
    recognised = 0
    for place, name in enumerate(names):
        expected = ours.get(plain(name))
        if expected not in (None, place):
            raise KitError(
                f"Task '{task.name}': label {place} of {where} means '{spelt(name)}', which is class {expected} here, "
                f"so all accuracies would be wrong. {task.remedy}"
            )
        recognised += expected is not None
    numbered = [plain(name) for name in names] == [str(place) for place in range(classes)]
    if names and not numbered and task.name in NAMED_LIKE_THE_PROMPTS and 2 * recognised < classes:
        raise KitError(
            f"Task '{task.name}': of the {classes} label names of {where} ('{spelt(names[0])}', '{spelt(names[1])}', "
            f"...) only {recognised} are class names here, so their order cannot be checked. {task.remedy}"
        )
    return recognised


def plain(name: str) -> str:
    """Return a class name without what copies of a data set write differently: case, blanks and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
