"""What is measured: checkpoints anywhere, and a suite's own base and experts, each under a name of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mergekit_lite.errors import KitError, shown, suggestion
from mergekit_lite.merge.jobs import shown_place
from mergekit_lite.suites.checkpoints.choosing import FIRST, INDEX, PICKLED, PICKLES
from mergekit_lite.suites.checkpoints.encoders import Encoder, as_encoder
from mergekit_lite.suites.checkpoints.opening import HUB, opened
from mergekit_lite.suites.suite import Suite
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three, is_finite

WORDS = {"base": "the suite's base", "expert": "each of the suite's experts on its own task"}
"""What may stand for a place; a folder that is called so is named with ``./`` before it."""


@dataclass(frozen=True)
class Model:
    """A row of the evaluation.

    Attributes:
        name: in tables and files.
        place: as it was named.
        encoder: its weights; None if `place` is one of `WORDS`.
        sha256: of the files they are in.
    """

    name: str
    place: str
    encoder: Encoder | None = None
    sha256: str = ""

    def weights(self, suite: Suite, task: str) -> Mapping[str, Tensor]:
        """Return the weights that are measured on `task`."""
        if self.encoder is not None:
            return self.encoder
        return suite.base if self.place == "base" else suite.experts[task]

    def digest(self, suite: Suite, task: str) -> str:
        """Return a hash of the weights that are measured on `task`, without making or fetching them."""
        if self.encoder is not None:
            return self.sha256
        return suite.base_hash() if self.place == "base" else suite.expert_hash(task)

    def provenance(self, suite: Suite, tasks: Sequence[str]) -> dict[str, object]:
        """Return where the weights are from and their hashes; of this machine's whole paths the last name alone."""
        if self.encoder is not None:
            checkpoint = self.encoder.view.checkpoint
            source = checkpoint.source if checkpoint.source != checkpoint.place else shown_place(self.place)
            return {"place": source, "sha256": self.sha256, "layout": self.encoder.view.layout_title}
        if self.place == "base":
            return {"place": WORDS["base"], "hash": suite.base_hash()}
        return {"place": WORDS["expert"], "hash": {task: suite.expert_hash(task) for task in tasks}}


def named(given: Sequence[str]) -> dict[str, str]:
    """Return name -> place out of texts ``PLACE`` or ``NAME=PLACE``; a place without a name is called by its last part.

    Raises:
        KitError: an empty name or place, or two rows of one name.
    """
    pairs = [_parted(text) for text in given]
    short = [name or _last(place) for name, place in pairs]
    taken = Counter(short)
    names = [
        name or (one if taken[one] == 1 else place.rstrip("/")) for (name, place), one in zip(pairs, short, strict=True)
    ]
    found: dict[str, str] = {}
    for name, (_, place) in zip(names, pairs, strict=True):
        if name in found and found[name] == place:
            raise KitError(f"'{spelt(place)}' is given twice. Name it once; each model is one row.")
        if name in found:
            raise KitError(
                f"Two models are called '{spelt(name)}' ({spelt(found[name])} and {spelt(place)}). Give each a name of "
                "its own: NAME=PLACE."
            )
        found[name] = place
    return found


def _parted(text: str) -> tuple[str, str]:
    """Return name, or nothing, and place."""
    name, equals, place = text.partition("=")
    if not equals or "/" in name or Path(text).exists():  # paths may hold the sign themselves
        name, place = "", text
    elif not name.strip():
        raise KitError(f"{shown(text)} has no name before the '='. Write NAME=PLACE, or PLACE alone.")
    if not place.strip():
        raise KitError(
            f"{shown(text)} names no place. Write PLACE or NAME=PLACE; a place is a file, a folder, hf:ORG/REPO, "
            "or one of the words base and expert."
        )
    return name.strip(), place


def _last(place: str) -> str:
    """Return the last part of a place that tells it from others: of a file with a usual name that is its folder."""
    path = Path(place.removeprefix(HUB))
    usual = path.name in (*FIRST, *PICKLES) or path.name.endswith(INDEX)
    last = path.parent.name if usual else path.name
    return (last.removesuffix(path.suffix) if path.suffix in (".safetensors", *PICKLED) else last) or place


def opened_models(places: Mapping[str, str], suite: Suite) -> list[Model]:
    """Return the models at `places` (name -> place), each fit for the suite's encoder.

    Raises:
        KitError: a place is not there, its checkpoint is of another architecture, or not all of it are numbers.
    """
    return [_opened(name, place, suite) for name, place in places.items()]


def _opened(name: str, place: str, suite: Suite) -> Model:
    if place in WORDS:
        return Model(name, place)
    try:
        checkpoint = opened(place, suite.device)
    except KitError as error:
        there = place.startswith(HUB) or Path(place).expanduser().exists()
        raise KitError(f"{error}{'' if there else suggestion(place, WORDS)}") from error
    encoder = as_encoder(checkpoint, suite.base, what=f"Model '{spelt(name)}'")
    bad = [f"'{key}'" for key in encoder if not is_finite(encoder[key])]
    if bad:
        raise KitError(
            f"NaN or infinite values in model '{spelt(name)}': {first_three(bad)}. Such a model answers nothing: merge "
            "or fetch it again."
        )
    return Model(name, place, encoder, checkpoint.digest())
