"""The plan of a grading: which pools a submission is tried on, within which limits, and what earns points."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, registry

MOST = 10_000.0  # points, seconds, GiB: far more than any plan needs


def _listed(value: Any) -> Any:
    """Let one value stand for a list of one; a text may hold several names with commas between."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Worth = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedPool(_Part):
    """Experts to merge, and where the merge is measured.

    Attributes:
        tasks: whose experts are merged: names, or a set of the suite such as ``eight``.
        evaluate: where the accuracy is measured; by default on `tasks`.
        adapt: whose images a method with data access is handed; by default those of `tasks`.
        corruption: of the test images, such as ``contrast``; by default they are as they are.
    """

    tasks: Names = Field(min_length=1)
    evaluate: Names = ()
    adapt: Names = ()
    corruption: str = ""


class Limits(_Part):
    """What one process of a submission may take: it merges one pool, or runs the checks and tests.

    Attributes:
        seconds: by the clock, from when its code begins to run.
        memory: in GiB, that of Python and PyTorch among it: about 0.7.
    """

    seconds: Worth = 60.0
    memory: Annotated[float, Field(ge=1, le=MOST)] = 4.0


class Tests(_Part):
    """Tests of the teacher's own: a file with functions ``test_...(module)``, each an equal share of the points.

    A function gets the module that the submission is, and fails by an exception, an `assert` for instance. Of a
    notebook that module holds the methods, and the names that the tests read as ``module.name``. Where nothing but
    tests earns points and there are no pools, a submission need not define a method.
    """

    points: Worth
    file: Path


class Place(_Part):
    """Points by where the mean normalised accuracy lies between two of the kit's methods, along a line.

    At `floor` and below there are none, at `ceiling` and above all. Normalised accuracy is the merge's accuracy over
    that of the task's own expert, averaged over tasks, pools and expert seeds.

    Attributes:
        points: the most there are.
        floor: the method that earns nothing, such as ``simple_average``.
        ceiling: the method that earns everything, such as ``tsv_merging``.
        pools: on which it counts. By default: for `accuracy` all that `hidden` does not name and that do without the
            private task; for `private` those which measure the private task.
    """

    points: Worth
    floor: str
    ceiling: str
    pools: Names = ()


class Quick(_Part):
    """Points for speed: all if the slowest merge took `seconds` or less, none from twice that on, a line between."""

    points: Worth
    seconds: Worth


class Criteria(_Part):
    """What earns points; what is left out counts nothing.

    Attributes:
        checks: points for the checks that `mergekit-lite course check` runs too, each an equal share.
        tests: the teacher's own tests.
        accuracy: on the pools that students know, or may know.
        hidden: on pools that they do not.
        private: on the private task alone, whose images nobody can draw or has seen.
        time: for speed.
    """

    checks: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    tests: Tests | None = None
    accuracy: Place | None = None
    hidden: Place | None = None
    private: Place | None = None
    time: Quick | None = None

    def places(self) -> Iterator[tuple[str, Place]]:
        """Yield name and content of the criteria that accuracy decides."""
        named = (("accuracy", self.accuracy), ("hidden", self.hidden), ("private", self.private))
        yield from ((name, place) for name, place in named if place)

    def worth(self) -> dict[str, float]:
        """Return the most points by criterion, of those that count."""
        rest = (("tests", self.tests), *self.places(), ("time", self.time))
        given = {"checks": self.checks} | {name: one.points for name, one in rest if one}
        return {name: points for name, points in given.items() if points}


class Plan(_Part):
    """One file `plan.yaml`. All paths in it are relative to it.

    ::

        suite: miniature
        access: [none, unlabelled test]
        pools:
          open: {tasks: [digits, signs, scenes]}
          hidden: {tasks: [textures, letters, vehicles, faces], corruption: contrast}
          private: {tasks: [flags, numbers, pets]}
        expert_seeds: [5417]
        private: flags.py
        limits: {seconds: 60, memory: 4}
        points:
          checks: 2
          tests: {points: 2, file: test_gradient.py}
          accuracy: {points: 2, floor: simple_average, ceiling: tsv_merging}
          hidden: {points: 2, floor: simple_average, ceiling: tsv_merging, pools: [hidden]}
          private: {points: 1, floor: simple_average, ceiling: tsv_merging}
          time: {points: 1, seconds: 20}

    Attributes:
        suite: where experts and images come from.
        access: the data access, or a list of those, that a method may have; see `methods.Access`.
        pools: by names of your choice, which students read on their page.
        expert_seeds: each pool is merged once with the experts of each of these training runs. Take numbers that no
            student has, so that experts which were looked at before are others.
        private: the file of a task as `book/examples/flags.py`; its expert is trained here, and no student has it.
        seed: that a method with a `seed` is given.
        limits: of each process.
        points: what earns them.
    """

    suite: str = "miniature"
    access: Annotated[tuple[Access, ...], BeforeValidator(_listed), Field(min_length=1)] = (Access.NONE,)
    pools: dict[Annotated[str, Field(pattern=r"^\w[\w -]{0,49}$")], PlannedPool] = {}
    expert_seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    private: Path | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    limits: Limits = Limits()
    points: Criteria

    @model_validator(mode="after")
    def _fits_together(self) -> "Plan":
        if not self.points.worth():
            raise ValueError("points: nothing earns any. Name one of: " + ", ".join(Criteria.model_fields))
        measured = [name for name, _ in self.points.places()] + ["time"] * (self.points.time is not None)
        if measured and not self.pools:
            raise ValueError(f"points.{measured[0]}: there is no pool to merge. Name one under `pools`")
        for name, place in self.points.places():
            for pool in place.pools:
                if pool not in self.pools:
                    raise ValueError(f"points.{name}.pools: there is no pool '{pool}'. Pools: {', '.join(self.pools)}")
            for method in (place.floor, place.ceiling):
                registry.get(method)
        if self.points.hidden and not self.points.hidden.pools:
            raise ValueError("points.hidden.pools: say which pools are hidden from students")
        if self.points.private and not self.private:
            raise ValueError("private: `points.private` needs a private task. Name its file")
        return self

    def on(self, criterion: str, private_task: str | None) -> tuple[str, ...]:
        """Return the names of the pools that `accuracy`, `hidden` or `private` counts on."""
        place = dict(self.points.places())[criterion]
        if place.pools:
            return place.pools
        holding = tuple(name for name, pool in self.pools.items() if private_task in (pool.evaluate or pool.tasks))
        if criterion == "private":
            return holding
        hidden = self.points.hidden.pools if self.points.hidden else ()
        return tuple(name for name in self.pools if name not in (*holding, *hidden))

    @property
    def asks_for_method(self) -> bool:
        """Whether submissions must define a method: tests alone may be of functions."""
        return bool(self.pools or self.points.checks)

    def question(self) -> dict[str, Any]:
        """Return what decides what is measured; how many points that earns is not among it."""
        asked = self.model_dump(mode="json", exclude={"points", "private"})
        return asked | {"checks": bool(self.points.checks)}


def read_plan(path: Path) -> Plan:
    """Return the plan in the file `path`, the paths in it made whole.

    Raises:
        KitError: there is no such file, or it is no plan; each problem is named with its place.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"The plan {path} cannot be read ({error.strerror}). Name a file such as plan.yaml.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KitError(f"The plan {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise KitError(f"The plan {path} must hold `pools:` and `points:`, but it holds {type(content).__name__}.")
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(_problem(one["loc"], one["msg"]) for one in error.errors(include_url=False))
        raise KitError(
            f"The plan {path} is not valid (its fields: {', '.join(Plan.model_fields)}):\n{problems}"
        ) from None
    return _whole(plan, path.absolute().parent)


def _problem(place: tuple[str | int, ...], message: str) -> str:
    words = message.removeprefix("Value error, ")
    return f"  {'.'.join(map(str, place))}: {words}" if place else f"  {words}"


def _whole(plan: Plan, folder: Path) -> Plan:
    """Return `plan` with whole paths, which are those of files."""
    private, tests = plan.private and folder / plan.private, plan.points.tests
    if tests:
        tests = tests.model_copy(update={"file": folder / tests.file})
    for what, file in (("private", private), ("points.tests.file", tests and tests.file)):
        if file and not file.is_file():
            raise KitError(f"{what}: there is no file {file}. Paths in a plan are relative to the plan.")
    points = plan.points.model_copy(update={"tests": tests})
    return plan.model_copy(update={"private": private, "points": points})
