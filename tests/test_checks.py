"""The checks of a method: the kit's own methods pass them all, and whatever is wrong in one way fails one of them."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergekit_lite.course import pico
from mergekit_lite.course.checks import Finding, run_checks
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged, TaskData, get, load_method, method, registry
from mergekit_lite.methods.adamerging import task_wise_adamerging

Models = dict[str, dict[str, Tensor]]
POOL = pico.make()

RUNS = "it runs and returns `Merged`"
WHOLE = "every tensor is there, in its shape and dtype"
FINITE = "no NaN, no infinity"
ONE = "one model for all tasks (no `own`)"
UNTOUCHED = "base and experts stay as they are"
AGAIN = "with one seed, the same result twice"
NOTHING = "experts equal to the base give the base"
NAMES = "other names of the tasks change nothing"
ORDER = "another order of the experts changes nothing"
ALONE = "one expert alone comes back, where copies of it do"


@pytest.fixture(autouse=True)
def own_methods_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def findings(function: Callable[..., Any], **about: Any) -> dict[str, Finding]:
    name = method(**{"title": "Mine", "cite": "", "access": Access.NONE, **about})(function).__name__
    return {one.name: one for one in run_checks(get(name), POOL)}


def failed(found: dict[str, Finding]) -> set[str]:
    return {name for name, one in found.items() if one.passed is False}


def mean(base: dict[str, Tensor], experts: Models) -> dict[str, Tensor]:
    return {
        name: start + torch.stack([one[name] - start for one in experts.values()]).mean(0)
        for name, start in base.items()
    }


KIT = [
    *("simple_average", "task_arithmetic", "ties_merging", "dare", "consensus", "tsv_merging", "iso_c", "iso_cts"),
    *("regmean", "hard_frank_wolfe"),
]


@pytest.mark.parametrize("name", KIT)
def test_methods_of_the_kit_pass(name: str) -> None:
    found = run_checks(get(name), POOL)
    assert [one for one in found if one.passed is False] == []
    undecided = {one.name for one in found if one.passed is None}
    assert undecided <= {ALONE, NAMES}
    assert (NAMES in undecided) == (name == "dare")
    assert (ALONE in undecided) == (name not in ("simple_average", "tsv_merging", "regmean"))
    assert len(found) == 10


def test_a_method_that_adapts_passes() -> None:
    def few_steps(base: Any, experts: Any, data: TaskData, *, seed: int = 0) -> Merged:
        return task_wise_adamerging(base, experts, data, steps=5, learning_rate=0.1, seed=seed)

    found = findings(few_steps, access=Access.UNLABELLED)
    assert failed(found) == set()
    assert found[NAMES].passed is found[ORDER].passed is found[AGAIN].passed is True
    assert "the method scales, one expert comes back" in found[ALONE].reason


def raises(base: Any, experts: Any) -> Merged:
    raise LookupError("no such thing")


def leaves(base: Any, experts: Any) -> Merged:
    sys.exit(0)


def bare_dict(base: Any, experts: Any) -> Any:
    return mean(base, experts)


def list_in_merged(base: Any, experts: Any) -> Merged:
    return Merged([1])  # type: ignore[arg-type]


def no_tensors(base: Any, experts: Any) -> Merged:
    return Merged(dict.fromkeys(base, 1.0))  # type: ignore[arg-type]


def forgets(base: Any, experts: Any) -> Merged:
    return Merged({name: tensor for name, tensor in mean(base, experts).items() if name != "fc.weight"})


def half(base: Any, experts: Any) -> Merged:
    return Merged({name: tensor.half() for name, tensor in mean(base, experts).items()})


def not_a_number(base: Any, experts: Any) -> Merged:
    return Merged({name: tensor.log() for name, tensor in mean(base, experts).items()})


def own(base: Any, experts: Any) -> Merged:
    return Merged(mean(base, experts), own=experts)


def in_place(base: Any, experts: Any) -> Merged:
    start = {name: tensor.clone() for name, tensor in base.items()}
    for one in experts.values():
        for name, tensor in one.items():
            base[name] += (tensor - start[name]) / len(experts)
    return Merged(base)


def by_torch(base: Any, experts: Any) -> Merged:
    return Merged({name: start + torch.rand(()) * (mean(base, experts)[name] - start) for name, start in base.items()})


def by_numpy(base: Any, experts: Any) -> Merged:
    factor = np.random.rand() * random.random()
    return Merged({name: start + factor * (mean(base, experts)[name] - start) for name, start in base.items()})


def shrinks(base: Any, experts: Any) -> Merged:
    return Merged({name: 0.9 * tensor for name, tensor in mean(base, experts).items()})


def divides(base: Any, experts: Any) -> Merged:
    merged = {}
    for name, start in base.items():
        vectors = [one[name] - start for one in experts.values()]
        merged[name] = start + sum(vector / vector.norm() for vector in vectors)
    return Merged(merged)


def by_name(base: Any, experts: Any) -> Merged:
    factors = {"circles": 0.4, "squares": 0.2, "stripes": 0.3}
    vectors = {task: {name: one[name] - start for name, start in base.items()} for task, one in experts.items()}
    total = {name: sum(factors.get(task, 0.1) * one[name] for task, one in vectors.items()) for name in base}
    return Merged({name: start + total[name] for name, start in base.items()})


def first_counts_double(base: Any, experts: Any) -> Merged:
    first = next(iter(experts.values()))
    return Merged({name: (tensor + first[name]) / 2 for name, tensor in mean(base, experts).items()})


def three_typed_in(base: Any, experts: Any) -> Merged:
    total = {name: sum(one[name] - start for one in experts.values()) for name, start in base.items()}
    return Merged({name: start + total[name] / 3 for name, start in base.items()})


def second_expert(base: Any, experts: Any) -> Merged:
    list(experts.values())[1]
    return Merged(mean(base, experts))


WRONG = {
    raises: (RUNS, "LookupError: 'no such thing'"),
    leaves: (RUNS, "SystemExit"),
    bare_dict: (RUNS, "It returned dict. Return `Merged"),
    list_in_merged: (WHOLE, "'conv.weight' is missing"),
    no_tensors: (WHOLE, "holds no tensors by name"),
    forgets: (WHOLE, "'fc.weight' is missing"),
    half: (WHOLE, "float16, the base torch.float64"),
    not_a_number: (FINITE, "Look for a division by 0"),
    own: (ONE, "leave `own` out"),
    in_place: (UNTOUCHED, "It changed the base in place"),
    by_torch: (AGAIN, "manual_seed"),
    by_numpy: (AGAIN, "manual_seed"),
    shrinks: (NOTHING, "lengths of a task vector away"),
    divides: (NOTHING, "Guard divisions"),
    by_name: (NAMES, "A task's name carries no weight"),
    first_counts_double: (ORDER, "The order of a pool is chance"),
    three_typed_in: (ALONE, "is the number of experts typed in"),
    second_expert: (ALONE, "It failed with one expert: IndexError"),
}


@pytest.mark.parametrize("function", WRONG, ids=lambda function: function.__name__)
def test_a_wrong_method_fails_the_check_that_is_about_it_and_no_other(function: Callable[..., Any]) -> None:
    name, words = WRONG[function]
    found = findings(function)
    assert failed(found) == {name}
    assert words in found[name].reason


def test_a_reference_is_no_merge() -> None:
    def reference(base: Any, experts: Any) -> Merged:
        return Merged(base, own=experts)

    assert "a reference is no merge" in findings(reference, reference=True)[ONE].reason


def test_whoever_needs_more_experts_may_say_so() -> None:
    def pair(base: Any, experts: Any) -> Merged:
        first, second, *_ = sorted(experts.values(), key=lambda one: float(one["fc.weight"].sum()))
        return Merged({name: (first[name] + second[name]) / 2 for name in base})

    found = findings(pair, smallest_pool=2)
    assert failed(found) == set()
    assert "one expert is too few" in found[ALONE].reason

    def refuses(base: Any, experts: Any) -> Merged:
        if len(experts) < 2:
            raise KitError("Give two experts or more.")
        return Merged(mean(base, experts))

    assert "one expert is too few" in findings(refuses)[ALONE].reason


def test_an_import_of_suites_is_hinted_at_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "method.py").write_text(
        "from helper import merged\nfrom mergekit_lite.methods import Access, Merged, method\n\n"
        "@method(title='', cite='', access=Access.NONE)\ndef mine(base, experts):\n    return Merged(merged(experts))\n"
    )
    (tmp_path / "helper.py").write_text(
        "from mergekit_lite import study\n\ndef merged(experts):\n    first = next(iter(experts.values()))\n"
        "    return {name: sum(one[name] for one in experts.values()) / len(experts) for name in first}\n"
    )
    (info,) = load_method(tmp_path / "method.py")
    *checks, hint = run_checks(info, POOL)
    assert all(one.passed for one in checks)
    assert hint.passed is None
    assert hint.reason.startswith("helper.py: A method gets all that it may see as arguments")


def test_an_error_is_told_with_its_line_of_the_students_file(tmp_path: Path) -> None:
    (tmp_path / "method.py").write_text(
        "from mergekit_lite.methods import Access, Merged, method\n\n@method(title='', cite='', access=Access.NONE)\n"
        "def mine(base, experts):\n    return Merged(base['no such tensor'])\n"
    )
    (info,) = load_method(tmp_path / "method.py")
    (finding,) = run_checks(info, POOL)
    assert finding.reason == "KeyError: \"'no such tensor'\" (method.py, line 5)."


def test_checks_leave_the_pool_and_the_random_generators_alone() -> None:
    before = {name: tensor.clone() for name, tensor in POOL.base.items()}
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    findings(in_place)
    assert all(torch.equal(POOL.base[name], tensor) for name, tensor in before.items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), repr(np.random.get_state()))


def test_the_pico_pool_is_a_pool_in_which_merging_matters() -> None:
    for task, expert in POOL.experts.items():
        assert POOL.accuracy(expert, task) > 90
        assert POOL.accuracy(POOL.base, task) < 50
    again = pico.make()
    assert all(torch.equal(again.base[name], tensor) for name, tensor in POOL.base.items())


def test_the_checks_need_no_suite_and_no_study() -> None:
    text = (
        "import sys, mergekit_lite.course.checks as c\nprint([m for m in sys.modules if m.startswith(sys.argv[1:][0])])"
    )
    for module in ("mergekit_lite.suites", "mergekit_lite.study", "open_clip"):
        done = subprocess.run([sys.executable, "-c", text, module], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
