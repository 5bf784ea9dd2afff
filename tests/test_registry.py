"""The registry: signatures are schemas, errors name what exists, what goes in and comes out is checked."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged, all_methods, get, method, registry, resolve
from mergekit_lite.weight_files import LazyWeights, write
from mergekit_lite.weights import weights_hash

Experts = Mapping[str, Mapping[str, Tensor]]


@pytest.fixture
def _own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register methods that are gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_the_methods_stand_in_the_order_of_the_tables() -> None:
    assert [one.name for one in all_methods()][:23] == [
        "pretrained",
        "individual",
        "multi_task_training",
        "simple_average",
        "task_arithmetic",
        "fixed_coefficients",
        "ties_merging",
        "dare",
        "consensus",
        "tsv_merging",
        "iso_c",
        "iso_cts",
        "fisher_merging",
        "regmean",
        "regmean_plus_plus",
        "task_wise_adamerging",
        "task_wise_adamerging_plus",
        "layer_wise_adamerging",
        "layer_wise_adamerging_plus",
        "adarank",
        "hard_frank_wolfe",
        "soft_frank_wolfe",
        "combined_frank_wolfe",
    ]


def test_each_method_says_what_data_it_sees() -> None:
    seen = {one.name: one.access for one in all_methods()}
    assert seen["ties_merging"] is Access.NONE
    assert seen["layer_wise_adamerging"] is Access.UNLABELLED
    assert str(seen["layer_wise_adamerging"]) == "unlabelled test"
    assert get("task_arithmetic").resources == ("base", "experts")
    assert get("layer_wise_adamerging").resources == ("base", "experts", "data", "seed", "watch")


def test_defaults_are_the_papers() -> None:
    assert resolve("task_arithmetic", {}) == {"scaling": 0.3}
    assert resolve("ties_merging", {}) == {"density": 0.2, "scaling": 0.3, "merge": "sum"}
    assert (
        resolve("layer_wise_adamerging", {})
        == resolve("task_wise_adamerging", {})
        == {
            **{"steps": 500, "learning_rate": 1e-3, "images_per_task": 32, "share": 1.0},
            **{"initial": 0.3, "clamp": True, "objective": "entropy"},
        }
    )


def test_given_parameters_take_the_place_of_defaults() -> None:
    resolved = resolve("ties_merging", {"merge": "mean", "scaling": 1})
    assert json.dumps(resolved) == '{"density": 0.2, "scaling": 1.0, "merge": "mean"}'  # an int is taken for a float


def test_an_unknown_method_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(KitError) as error:
        get("task_aritmetic")
    assert str(error.value).startswith(
        "There is no method 'task_aritmetic'. Did you mean 'task_arithmetic'? Methods: pre"
    )
    known = "Methods: pretrained, individual, multi_task_training"
    with pytest.raises(KitError, match=rf"There is no method 'zzz'\. {known}"):
        resolve("zzz", {})


def test_an_unknown_parameter_is_answered_with_names_types_and_defaults() -> None:
    with pytest.raises(KitError) as error:
        resolve("ties_merging", {"densty": 0.2})
    assert str(error.value) == (
        "Method 'ties_merging' has no parameter 'densty'. Did you mean 'density'? Parameters of 'ties_merging': "
        "density: float = 0.2, scaling: float = 0.3, merge: 'sum' | 'mean' = 'sum'."
    )
    with pytest.raises(KitError) as error:
        resolve("simple_average", {"scaling": 0.2})
    assert str(error.value) == (
        "Method 'simple_average' has no parameter 'scaling'. Parameters of 'simple_average': none."
    )


@pytest.mark.parametrize(
    ("name", "parameter", "value", "message"),
    [
        ("task_arithmetic", "scaling", "0.3", r"cannot be '0\.3' \(str\): Input should be a valid number\. \(In YAML"),
        ("task_arithmetic", "scaling", True, r"cannot be True \(bool\): Input should be a valid number\."),
        ("task_arithmetic", "scaling", None, r"cannot be None \(NoneType\)"),
        ("task_arithmetic", "scaling", float("nan"), r"cannot be nan \(float\): Input should be a finite number\."),
        ("layer_wise_adamerging", "steps", 1.5, r"cannot be 1\.5 \(float\): Input should be a valid integer\."),
        ("layer_wise_adamerging", "steps", -1, r"cannot be -1 \(int\): .* greater than or equal to 0\."),
        ("layer_wise_adamerging", "images_per_task", 0, r"cannot be 0 \(int\): .* greater than or equal to 1\."),
        ("layer_wise_adamerging", "learning_rate", 0.0, r"cannot be 0\.0 \(float\): .* greater than 0\."),
        ("layer_wise_adamerging", "clamp", 1, r"cannot be 1 \(int\): Input should be a valid boolean\."),
        ("ties_merging", "merge", "max", r"cannot be 'max' \(str\): Input should be 'sum' or 'mean'\."),
        ("ties_merging", "density", 0.0, r"cannot be 0\.0 \(float\): Input should be greater than 0\."),
        ("ties_merging", "density", 20, r"cannot be 20 \(int\): Input should be less than or equal to 1\."),
    ],
)
def test_an_ill_typed_parameter_says_what_it_got_and_what_it_needs(
    name: str, parameter: str, value: Any, message: str
) -> None:
    with pytest.raises(KitError, match=f"Parameter '{parameter}' of method '{name}' {message}") as error:
        resolve(name, {parameter: value})
    assert f"Parameters of '{name}': " in str(error.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(KitError, match=r"'scaling' .* cannot be 'x'.*no parameter 'foo'"):
        resolve("ties_merging", {"scaling": "x", "foo": 1})


def test_a_direct_call_checks_its_parameters_like_a_cell_does(pico: Pico) -> None:
    ties = get("ties_merging").function
    with pytest.raises(KitError, match="Did you mean 'density'"):
        ties(pico.base, pico.experts, densty=0.2)
    with pytest.raises(KitError, match="'density' of method 'ties_merging' cannot be 0"):
        ties(pico.base, pico.experts, density=0)


@pytest.mark.usefixtures("_own_methods")
def test_one_decorator_makes_a_function_a_method(pico: Pico) -> None:
    @method(title="Half way", cite="me2026", access=Access.NONE, smallest_pool=2)
    def half_way(
        base: Mapping[str, Tensor], experts: Experts, *, mode: Literal["a", "b"] = "a", share: float = 0.5
    ) -> Merged:
        """Go a share of the way to the first expert."""
        first = next(iter(experts.values()))
        return Merged({name: base[name].lerp(first[name], share) for name in base}, trace={"mode": mode})

    assert half_way.__doc__ == "Go a share of the way to the first expert."
    info = get("half_way")
    assert (info.title, info.cite, info.access, info.resources) == (
        "Half way",
        "me2026",
        Access.NONE,
        ("base", "experts"),
    )
    assert resolve("half_way", {}) == {"mode": "a", "share": 0.5}
    merged = info.function(pico.base, pico.experts, share=1.0)
    torch.testing.assert_close(merged.weights, pico.experts["digits"])
    with pytest.raises(KitError, match=r"^The pool has too few experts: 2 or more are needed, there: signs\."):
        half_way(pico.base, {"signs": pico.experts["signs"]})


@pytest.mark.usefixtures("_own_methods")
def test_a_parameter_without_type_default_or_keyword_is_refused() -> None:
    message = (
        r"Parameter 'x' of method '\w+' must be keyword-only with a type and a default, such as `\*, x: float = 0\.3`"
    )

    def untyped(base: Any, experts: Any, *, x=0.3) -> Merged: ...  # type: ignore[no-untyped-def,empty-body]
    def bare(base: Any, experts: Any, *, x: float) -> Merged: ...  # type: ignore[empty-body]
    def positional(base: Any, experts: Any, x: float = 0.3) -> Merged: ...  # type: ignore[empty-body]

    for function in (untyped, bare, positional):
        with pytest.raises(KitError, match=message):
            method(title="", cite="", access=Access.NONE)(function)


@pytest.mark.usefixtures("_own_methods")
def test_a_name_that_is_taken_is_refused_but_a_cell_may_run_twice() -> None:
    def mine(base: Any, experts: Any) -> Merged:
        return Merged(dict(base))

    register = method(title="", cite="", access=Access.NONE)
    register(mine)
    register(mine)
    mine.__name__ = "ties_merging"
    with pytest.raises(KitError, match=r"There already is a method 'ties_merging' in mergekit_lite\.methods\.ties\."):
        register(mine)


def test_merged_for_task_prefers_the_tasks_own_weights() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    merged = Merged({"a": zero, "b": zero}, own={"signs": {"a": one}})
    assert merged.for_task("digits") == {"a": zero, "b": zero}
    assert merged.for_task("signs") == {"a": one, "b": zero}


@pytest.mark.usefixtures("_own_methods")
def test_the_bare_function_is_within_reach() -> None:
    def mine(base: Any, experts: Any) -> Merged:
        return Merged(dict(base))

    registered = method(title="", cite="", access=Access.NONE)(mine)
    assert get("mine").function is registered
    assert registered.__wrapped__ is mine  # type: ignore[attr-defined]
    assert get("mine").source is None


# What a method answers


def answering(merge: Any, **more: Any) -> Any:
    def mine(base: Any, experts: Any) -> Merged:
        return merge(base, experts)

    return method(title="", cite="", access=Access.NONE, **more)(mine)


@pytest.mark.usefixtures("_own_methods")
@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (lambda base, experts: Merged({}), r"'conv1\.weight' is missing; .* and 1 more\. Return every tensor"),
        (lambda base, experts: Merged({**base, "x": base["proj"]}), r"'x' is not in the base\."),
        (lambda base, experts: Merged({**base, "proj": base["proj"].T}), r"has shape \(5, 6\), the base \(6, 5\)"),
        (
            lambda base, experts: Merged({**base, "proj": base["proj"].half()}),
            r"torch\.float16, the base torch\.float64",
        ),
        (lambda base, experts: dict(base), r"'mine' returned dict\. Return `Merged"),
        (lambda base, experts: None, r"'mine' returned NoneType\."),
    ],
)
def test_an_outcome_that_does_not_fit_the_base_is_refused(merge: Any, message: str, pico: Pico) -> None:
    with pytest.raises(KitError, match=message):
        answering(merge)(pico.base, pico.experts)


@pytest.mark.usefixtures("_own_methods")
def test_only_a_reference_answers_with_weights_of_single_tasks(pico: Pico) -> None:
    def cheat(base: Any, experts: Any) -> Merged:
        return Merged(dict(base), own=experts)

    with pytest.raises(KitError, match=r"'mine' returned weights of single tasks .* which only a reference does"):
        answering(cheat)(pico.base, pico.experts)
    assert set(answering(cheat, reference=True)(pico.base, pico.experts).own) == set(pico.experts)
    without = {task: {name: one for name, one in pico.base.items() if name != "proj"} for task in pico.experts}
    with pytest.raises(KitError, match=r"do not fit the base: 'proj' is missing"):
        answering(lambda base, experts: Merged(base, own=without), reference=True)(pico.base, pico.experts)
    assert [info.name for info in all_methods() if info.reference and info.name != "mine"] == [
        "pretrained",
        "individual",
    ]


# What a method may write to

WRITING = {
    "in place": lambda tensor: tensor.add_(1),
    "through data": lambda tensor: tensor.data.add_(1),
    "through numpy": lambda tensor: np.add(tensor.numpy(), 1, out=tensor.numpy()),
    "turned round": lambda tensor: tensor.data.copy_(tensor.flip(0).clone()),
}


@pytest.mark.usefixtures("_own_methods")
@pytest.mark.parametrize("how", WRITING)
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_a_method_writes_to_reaches_nobody_else(how: str, on_disk: bool, pico: Pico, tmp_path: Path) -> None:
    experts: dict[str, Any] = dict(pico.experts)
    if on_disk:
        for task, expert in pico.experts.items():
            write(tmp_path / task, expert)
            experts[task] = LazyWeights(tmp_path / task)
    before = {name: weights_hash(weights) for name, weights in {"base": pico.base, **experts}.items()}

    def scribble(base: Any, experts: Any) -> Merged:
        for weights in (base, *experts.values()):
            WRITING[how](weights["proj"])
        return Merged(base)

    merged = answering(scribble)(pico.base, experts).weights
    assert {name: weights_hash(weights) for name, weights in {"base": pico.base, **experts}.items()} == before
    own = pico.base["proj"].clone()
    WRITING[how](own)
    assert torch.equal(merged["proj"], own)  # what it wrote counts for itself


@pytest.mark.usefixtures("_own_methods")
def test_the_base_that_pretrained_returns_is_a_copy(pico: Pico) -> None:
    before = weights_hash(pico.base)
    get("pretrained").function(pico.base, {}).weights["proj"].zero_()
    assert weights_hash(pico.base) == before


@pytest.mark.usefixtures("_own_methods")
def test_each_expert_is_asked_for_once(pico: Pico) -> None:
    asked: list[str] = []

    class Opening(Mapping[str, Mapping[str, Tensor]]):
        def __getitem__(self, key: str) -> Mapping[str, Tensor]:
            asked.append(key)
            return pico.experts[key]

        def __iter__(self) -> Iterator[str]:
            return iter(pico.experts)

        def __len__(self) -> int:
            return len(pico.experts)

    get("task_arithmetic").function(pico.base, Opening())
    assert asked == list(pico.experts)
