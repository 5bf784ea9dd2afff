"""What a study computes and keeps: the cell (a question), the record (its answer) and what the record came from."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from mergekit_lite.cache import LEDGER, content_hash, written_whole
from mergekit_lite.errors import KitError
from mergekit_lite.suites.broken import Damage

DIGEST = "digest"
"""Entry of a record's file, not of the record: a hash of all others, by which a changed file is noticed."""

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Cell(BaseModel):
    """One question: merge the experts of `pool` by `method`, then measure the accuracy on `evaluate`.

    A method that looks at data sees that of the tasks `adapt`; where none are named, of those in pool and evaluation
    both, or of the whole pool if these have nothing in common. Calibration inputs are always those of the pool: each
    expert is shown its own. The experts named in `broken` have learnt nothing, see `suites.broken.Broken`.

    Accuracy is measured on all test images, unless `split` is "held-out": on these, constants are chosen. `images` and
    `curve_images` measure on the first so many of each task instead, which is quicker: for sweeps, and for curves.

    With a `corruption`, such as "motion_blur", all test images are corrupted (`suites.corruptions`, severity 2):
    those that the accuracy is measured on and those that a method adapts to. Training images stay clean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    parameters: dict[str, Any] = {}
    pool: tuple[str, ...]
    evaluate: tuple[str, ...]
    adapt: tuple[str, ...] = ()
    broken: dict[str, Damage] = {}
    seed: int = 0
    expert_seed: int = Field(default=0, ge=0, description="which training run the experts are from")
    corruption: str = Field(default="", description="of the test images; empty: they are as they are")
    split: Literal["test", "held-out"] = "test"
    images: int = Field(default=0, ge=0, description="measure on the first so many images of each task; 0: on all")
    curve_every: int = Field(default=0, ge=0, description="evaluate every so many steps into record.curve; 0: no curve")
    curve_images: int = Field(default=0, ge=0, description="as `images`, for the points of the curve")

    def question(self) -> dict[str, Any]:
        """Return what a key holds of this cell."""
        # What is not used is left out, so that a new field renames no record.
        unused = {name for name in ("corruption", "broken", "images", "curve_images") if not getattr(self, name)}
        unused |= {"split"} if self.split == "test" else set()
        # A method of one's own is what its code does: the file that a name may begin with can move.
        return self.model_dump(exclude=unused) | {"method": self.method.rpartition(":")[2]}

    @property
    def label(self) -> str:
        """The method as one would call it, with the parameters that were given: ``ties_merging(scaling=0.5)``.

        After it comes the corruption, if there is one: ``simple_average under contrast``.
        """
        given = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        where = f" under {self.corruption}" if self.corruption else ""
        return (f"{self.method}({given})" if given else self.method) + where


class CurvePoint(BaseModel):
    """Accuracy in percent after `step` steps of adaptation, when the method had been shown `images` images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    images: int = 0
    accuracy: dict[str, Percent]

    @property
    def average(self) -> float:
        """The mean over the tasks, in percent."""
        return sum(self.accuracy.values()) / len(self.accuracy)


class Provenance(BaseModel):
    """What a record was computed with: enough to tell why two records differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: str
    torch: str
    open_clip: str
    mergekit_lite: str
    device: str
    dtype: str
    commit: str | None = Field(description="commit of the library's source, with + if files differ from it")
    suite: dict[str, Any] = Field(description="hashes of the base weights, the experts and the data")
    sources: dict[str, str] = Field({}, description="where downloaded weights are from: repository@commit/file")
    code: str = Field(description="hash of the source of the method and of the evaluation")
    started: datetime


class Record(BaseModel):
    """The answer to one cell, kept as one JSON file whose name is `key`.

    `accuracy` is in percent per task. `seconds` holds ``merge`` (merging and adapting) and ``evaluate`` (all measuring,
    the curve's included). `peak_memory_mib` is the most memory held at once while the cell was computed: that of the
    GPU's tensors on a GPU, else that of the whole process. `images` counts the images that the method was shown while
    it merged, one that was seen twice twice, and `labels` those that came with a label; evaluating does not count.
    `travel` is how far an optimiser could have moved a coefficient, steps times learning rate, and `converged` whether
    it was still lowering its objective, see `study.budgets`; both are None where nothing is optimised.
    """

    # NaN in a trace stays NaN: JSON's null would come back as None and break the arithmetic of whoever plots it.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    key: str
    suite: str
    cell: Cell
    title: str
    access: str
    cite: str
    accuracy: dict[str, Percent]
    seconds: dict[str, float]
    peak_memory_mib: float
    images: int = 0
    labels: int = 0
    travel: float | None = None
    converged: bool | None = None
    trace: dict[str, Any] = {}
    curve: list[CurvePoint] = []
    provenance: Provenance

    @property
    def average(self) -> float:
        """The mean over the evaluated tasks, in percent."""
        return sum(self.accuracy.values()) / len(self.accuracy)

    def on(self, tasks: Sequence[str]) -> "Record":
        """Return this record with the accuracy on `tasks` alone, in that order; all else stays as it is.

        Raises:
            KitError: the record was not evaluated on one of them.
        """
        missing = [task for task in tasks if task not in self.accuracy]
        if missing:
            raise KitError(f"{self.title} was evaluated on {', '.join(self.accuracy)}, not on {', '.join(missing)}.")
        return self.model_copy(update={"accuracy": {task: self.accuracy[task] for task in tasks}})


def note(suite: str, keys: Sequence[str]) -> None:
    """Add ``suite/key`` for each record to the ledger, if there is one: what a notebook was made from.

    Raises:
        KitError: it cannot be written to.
    """
    path = os.environ.get(LEDGER)
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8") as ledger:
            ledger.writelines(f"{suite}/{key}\n" for key in keys)
    except OSError as error:
        raise KitError(
            f"The names of the records cannot be added to {path} ({error.strerror}). "
            f"The records are kept; name another file in {LEDGER}, or unset it."
        ) from error


def read_record(path: Path, key: str, cell: Cell | None = None) -> Record | str | None:
    """Return the record that `path` holds, None if there is no file, or a few words on why it is no record of `key`.

    It is one if it is as it was written (its digest says), says that it is `key`, and answers `cell`, where that is
    known.
    """
    try:
        if path.exists() and not path.is_file():
            return "it is no file"
        content = from_json(path.read_bytes())
        if not isinstance(content, dict) or content.pop(DIGEST, None) != _digest(content):
            return "it is not as it was written"
        record = Record.model_validate(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    except ValueError as error:
        return f"invalid JSON: {error}"
    if record.key != key:
        return f"it says it is {record.key}"
    if cell and content_hash(record.cell.question()) != content_hash(cell.question()):
        return f"it answers {record.cell.label}"
    return record


def write_record(record: Record, path: Path) -> Record:
    """Write `record` whole or not at all; return it as it reads back, so that first and later runs see the same."""
    content = from_json(record.model_dump_json())
    with written_whole(path) as temporary:
        text = json.dumps(content | {DIGEST: _digest(content)}, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return Record.model_validate(content)


def _digest(content: Mapping[str, Any]) -> str:
    """Return the hash of a record's content; a NaN in a trace is part of it."""
    return content_hash(json.dumps(content, sort_keys=True))
