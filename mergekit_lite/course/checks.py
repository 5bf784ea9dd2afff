"""What must hold of a merging method, whatever its equation: each check asks the same question twice in other words.

The checks need no suite: a pico pool is handed in, and the method is called on it as it is, see `trials.merge`.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mergekit_lite.course import trials
from mergekit_lite.course.pico import Pico
from mergekit_lite.course.trials import Trial, along, distance, merge
from mergekit_lite.methods.registry import Merged, MethodInfo
from mergekit_lite.weights import first_three, is_finite, mismatches

CLOSE = 1e-4
"""Two merges of one question may be so far apart, in lengths of a task vector. Sums that are formed in another order
differ by 1e-15 (float64) or 1e-7 (float32), which some hundred steps of an optimiser magnify; a method that depends on
names or order differs by far more."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what must hold.
        passed: whether it does; None if there is nothing to be said, or a hint only.
        reason: why it must hold and what to do if it does not; or why the check says nothing.
    """

    name: str
    passed: bool | None
    reason: str = ""


def run_checks(info: MethodInfo, pool: Pico) -> list[Finding]:
    """Return the findings of all checks, in their order, without those that make no sense after one that failed.

    Args:
        info: the method, most often from `load_method`.
        pool: a pico pool, from `pico.make`.
    """
    return list(_all(_Method(info, pool)))


@dataclass(frozen=True)
class _Method:
    """A method on its pool; what several checks look at is computed once."""

    info: MethodInfo
    pool: Pico

    @cached_property
    def first(self) -> Trial:
        return merge(self.info, self.pool)

    @cached_property
    def draws(self) -> bool:
        """Whether the method draws random numbers itself, besides the order of the images."""
        if "seed" not in self.info.resources:
            return False
        one, other = (merge(self.info, self.pool, seed, data_seed=0) for seed in (0, 1))
        return bool(one.failure or other.failure) or distance(one.weights, other.weights, self.pool) > CLOSE


def _all(method: _Method) -> Iterator[Finding]:
    yield (runs := _it_runs(method))
    if not runs.passed:
        return
    yield (whole := _all_tensors(method))
    if not whole.passed:
        return
    yield (finite := _finite(method))
    if not finite.passed:
        return
    yield _one_model(method)
    yield _untouched(method)
    yield _the_same_again(method)
    yield _nothing_to_merge(method)
    yield _other_names(method)
    yield _another_order(method)
    yield _alone(method)
    yield from _suites_imported(method)


def _it_runs(method: _Method) -> Finding:
    name = "it runs and returns `Merged`"
    if method.first.failure:
        return Finding(name, False, method.first.failure)
    if not isinstance(method.first.merged, Merged):
        return Finding(name, False, f"It returned {type(method.first.merged).__name__}. Return `Merged(weights)`.")
    return Finding(name, True)


def _all_tensors(method: _Method) -> Finding:
    name = "every tensor is there, in its shape and dtype"
    try:
        problems = mismatches(method.pool.base, method.first.weights)
    except (AttributeError, TypeError) as error:  # weights that are no mapping, or hold no tensors
        return Finding(name, False, f"`Merged` holds no tensors by name ({error}). Return a dict of tensors in it.")
    words = "The merged model must fit the encoder: return every tensor of the base, in its shape and dtype."
    return Finding(name, not problems, f"{first_three(problems)}. {words}" if problems else "")


def _finite(method: _Method) -> Finding:
    broken = [f"'{key}'" for key, tensor in method.first.weights.items() if not is_finite(tensor)]
    words = "Look for a division by 0, or a logarithm or root of what may be 0 or less."
    return Finding("no NaN, no infinity", not broken, f"{first_three(broken)} hold some. {words}" if broken else "")


def _one_model(method: _Method) -> Finding:
    name = "one model for all tasks (no `own`)"
    if method.info.reference:
        return Finding(
            name, False, "It is registered with `reference=True`, but a reference is no merge: leave it out."
        )
    if method.first.merged.own:
        return Finding(name, False, "It returned weights of single tasks. A merge is one model: leave `own` out.")
    return Finding(name, True)


def _untouched(method: _Method) -> Finding:
    name = "base and experts stay as they are"
    changed = ", ".join(method.first.changed)
    words = "Others use these weights too. Avoid `+=`, `add_` and the like: make new tensors, or clone first."
    return Finding(name, not changed, f"It changed {changed} in place. {words}" if changed else "")


def _the_same_again(method: _Method) -> Finding:
    name = "with one seed, the same result twice"
    again = merge(method.info, method.pool, noise=1)
    if again.failure:
        return Finding(name, False, f"The second call failed: {again.failure}")
    same = distance(method.first.weights, again.weights, method.pool) == 0
    words = "Draw random numbers from `torch.Generator().manual_seed(seed)`, with `seed: int = 0` among the arguments."
    return Finding(name, same, "" if same else f"A result that nobody can repeat is none. {words}")


def _nothing_to_merge(method: _Method) -> Finding:
    name = "experts equal to the base give the base"
    trial = merge(method.info, trials.all_alike(method.pool, method.pool.base))
    why = "Where nothing was learnt, there is nothing to add: all task vectors are 0."
    if trial.failure:
        return Finding(name, False, f"It failed there: {trial.failure} {why}")
    if not all(is_finite(tensor) for tensor in trial.weights.values()):
        return Finding(name, False, f"NaN or infinite weights. {why} Guard divisions, by a norm for instance.")
    far = distance(trial.weights, method.pool.base, method.pool)
    return Finding(name, far <= CLOSE, "" if far <= CLOSE else f"{_far(far)} {why} Add to the base, not beside it.")


def _other_names(method: _Method) -> Finding:
    name = "other names of the tasks change nothing"
    why = "A task's name carries no weight: constants for single names do not help on pools that nobody has seen."
    return _asked_again(method, name, trials.renamed(method.pool), why)


def _another_order(method: _Method) -> Finding:
    name = "another order of the experts changes nothing"
    why = "The order of a pool is chance. Treat all experts alike, or sort them by what they are."
    return _asked_again(method, name, trials.only(method.pool, list(reversed(method.pool.experts))), why)


def _asked_again(method: _Method, name: str, pool: Pico, why: str) -> Finding:
    trial = merge(method.info, pool)
    if trial.failure:
        return Finding(name, False, f"It failed there: {trial.failure} {why}")
    far = distance(method.first.weights, trial.weights, method.pool)
    if far <= CLOSE:
        return Finding(name, True)
    if method.draws:
        return Finding(name, None, "It draws random numbers, and they may fall to other experts: not compared.")
    return Finding(name, False, f"{_far(far)} {why}")


def _alone(method: _Method) -> Finding:
    """Check one expert alone.

    It must come back where several copies of it do, as with every average: then all that differs is how many there are.
    Where copies do not, as with a scaled sum, it is enough that the method takes one expert.
    """
    name = "one expert alone comes back, where copies of it do"
    task, expert = next(iter(method.pool.experts.items()))
    alone = trials.only(method.pool, [task])
    trial = merge(method.info, alone)
    if trial.refused or "too few experts" in merge(method.info, alone, registered=True).failure:
        return Finding(name, None, "It says itself that one expert is too few.")
    if trial.failure:
        return Finding(name, False, f"It failed with one expert: {trial.failure} Needs it more? Say `smallest_pool`.")
    if not all(is_finite(tensor) for tensor in trial.weights.values()):
        return Finding(name, False, "NaN or infinite weights with one expert. Guard divisions by their number less 1.")
    factor, beside = along(trial.weights, expert, method.pool.base)
    if abs(factor - 1) <= CLOSE and beside <= CLOSE:
        return Finding(name, True)
    copies = merge(method.info, trials.all_alike(method.pool, expert))
    if not copies.failure and distance(copies.weights, expert, alone) <= CLOSE:
        words = "Copies of an expert give the expert, but the expert alone does not: is the number of experts typed in?"
        return Finding(name, False, words)
    if beside <= CLOSE:
        return Finding(name, None, f"It need not: the method scales, one expert comes back {factor:.3g} times.")
    return Finding(name, None, "It need not: the method changes single task vectors, so they are not weighed only.")


def _suites_imported(method: _Method) -> Iterator[Finding]:
    source = method.info.source
    if source is None:
        return
    guilty = [path.name for path in sorted(source.parent.rglob("*.py")) if _imports_suites(path)]
    if guilty:
        words = "A method gets all that it may see as arguments, and grading has no suite: leave that import out."
        yield Finding("a hint: suites or studies are imported", None, f"{', '.join(guilty)}: {words}")


def _imports_suites(path: Path) -> bool:
    forbidden = ("mergekit_lite.suites", "mergekit_lite.study")
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if any(name == one or name.startswith(f"{one}.") for name in names for one in forbidden):
            return True
    return False


def _far(distance: float) -> str:
    return f"The result is {distance:.2g} lengths of a task vector away."
