"""The family OC-20 straight from the hub: experts of the TALL-masks authors, converted when they are first asked for.

Their repository holds state dicts of open_clip's image encoder, with what is left of the text encoder beside it (for
ViT-B/32 the table of words alone is a fifth of the 454 MB). `pickled.convert` takes the image encoder with its
projection out, without running anything, and writes it where converted experts are kept: from then on they are read
as those of any family, and the downloaded files may be deleted.
"""

from collections.abc import Mapping, Sequence

from mergekit_lite.cache import locked
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import hub, pickled
from mergekit_lite.suites.clip.benchmark import Key
from mergekit_lite.suites.clip.converted import ConvertedSuite
from mergekit_lite.weight_files import LazyWeights

FAMILY = "OC-20"
REPOSITORY = "nik-dim/tall_masks"

FOLDERS: Mapping[Key, str] = {
    "b32": "ViT-B-32",
    "b16": "VIT-B-16",  # spelt so
    "l14": "ViT-L-14",  # as in the authors' code; a listing of this folder was not seen
}

NAMES: Mapping[str, str] = {
    "sun397": "SUN397",
    "stanford-cars": "Cars",
    "resisc45": "RESISC45",
    "eurosat": "EuroSAT",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "mnist": "MNIST",
    "dtd": "DTD",
    "oxford_flowers102": "Flowers102",
    "pcam": "PCAM",
    "fer2013": "FER2013",
    "oxford-iiit-pet": "OxfordIIITPet",
    "stl10": "STL10",
    "cifar100": "CIFAR100",
    "cifar10": "CIFAR10",
    "food101": "Food101",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "rendered-sst2": "RenderedSST2",
}
"""Our task -> their name of it, as in their code's list of data sets. `emnist_letters` is missing: theirs is of digits.
"""

NOTES = (
    "EMNIST of this family is the ten digits, so emnist_letters has no expert; the test images of DTD that its authors "
    "report on overlap those its expert was trained on (98 % there)"
)
"""What every record of this family says, beside where its weights come from."""


def expert_file(model: Key, task: str) -> tuple[str, str]:
    """Return repository and name of the file with the expert of `task`.

    Raises:
        KitError: the family has none.
    """
    if task not in NAMES:
        raise KitError(
            f"The family {FAMILY} has no expert of '{task}'. Its EMNIST is the ten digits, another task than the 26 "
            f"letters, and its data set is not known to this kit. Leave it out; there are: {', '.join(NAMES)}."
        )
    return REPOSITORY, f"single_task/{FOLDERS[model]}/{NAMES[task]}Val/nonlinear_finetuned.pt"


class OC20Suite(ConvertedSuite):
    """Experts of the TALL-masks authors on the benchmark's images; the projection is merged, since they trained it."""

    def expert_hash(self, task: str) -> str:
        """Return the SHA-256 of the authors' file, which the hub is asked for if there is no converted expert yet."""
        if self.has_expert(task):
            return self._opened(task).metadata["source_sha256"]
        return hub.source(*expert_file(self.model.key, task)).sha256

    def sources(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return where base and experts come from, and what is odd about the family."""
        there = [task for task in tasks if self.has_expert(task)]
        coming = {task: str(hub.source(*expert_file(self.model.key, task))) for task in tasks if task not in there}
        return super().sources(there) | coming | {FAMILY: NOTES}

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """As `ConvertedSuite.prepare`; a task without an expert is refused before anything is fetched."""
        for task in tasks:
            expert_file(self.model.key, task)
        super().prepare(tasks, workers)

    def _opened(self, task: str) -> LazyWeights:
        """Return the converted expert, which is fetched and converted if it is not there."""
        file, path = expert_file(self.model.key, task), self.expert_path(task)
        if not path.exists():
            fetched = hub.downloaded(*file)
            with locked(path):
                if not path.exists():
                    print(f"Converting {'/'.join(file)}.", flush=True)
                    source = str(hub.source(*file))
                    pickled.convert(fetched, path, family=FAMILY, model=self.model, task=task, source=source)
        return super()._opened(task)

    def _anew(self, task: str) -> str:
        return "run the same again: it is fetched and converted anew."
