"""Files of mergekit's: what is read, what is refused, and that the answers are mergekit's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.merge.mergekit_arithmetic import drawn, largest
from mergekit_lite.merge.mergekit_yaml import read
from mergekit_lite.methods.dare_merging import draws
from mergekit_lite.weight_files import LazyWeights, write

ANSWERS = LazyWeights(Path(__file__).parent / "mergekit_answers.safetensors")
"""Inputs, and what mergekit made of them: `python -m benchmarks.against_mergekit --mergekit PYTHON --answers FILE`."""
CASES: dict[str, Any] = json.loads(ANSWERS.metadata["cases"])


def part(name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): ANSWERS[key] for key in ANSWERS if key.startswith(f"{name}/")}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder with the base and the three models that mergekit was given."""
    for name in ("base", "a", "b", "c"):
        write(tmp_path / name / "model.safetensors", part(name))
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def merged(folder: Path, content: Any) -> dict[str, Tensor]:
    (folder / "merge.yaml").write_text(yaml.safe_dump(content) if not isinstance(content, str) else content)
    done = CliRunner().invoke(app, ["merge", str(folder / "merge.yaml"), "-o", str(folder / "out")])
    assert done.exit_code == 0, done.output
    return dict(LazyWeights(folder / "out" / "model.safetensors"))


@pytest.mark.parametrize("name", CASES)
def test_the_merged_model_is_mergekit_s(name: str, models: Path) -> None:
    ours, theirs = merged(models, CASES[name]), part(name)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].dtype == tensor.dtype for key, tensor in theirs.items())
    if CASES[name]["dtype"] == "bfloat16":  # it rounds every step to bfloat16, this kit the outcome only
        base = part("base")
        apart = sum(float((ours[key].float() - tensor.float()).square().sum()) for key, tensor in theirs.items())
        moved = sum(float((tensor.float() - base[key]).square().sum()) for key, tensor in theirs.items())
        assert 0 < apart < 0.15**2 * moved
    elif CASES[name]["merge_method"] == "linear":  # it divides each weight by their sum, this kit the sum of products
        assert all(torch.allclose(ours[key], tensor, rtol=1e-6, atol=1e-7) for key, tensor in theirs.items())
    else:
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_a_drawn_delta_keeps_its_density_and_its_sum_of_magnitudes() -> None:
    delta = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    kept = drawn(delta, 0.4, draws(0, "a"), rescale=True)
    share = (kept != 0).double().mean()
    assert abs(share - 0.4) < 5 * (0.24 / delta.numel()) ** 0.5  # five standard deviations
    assert torch.allclose(kept.abs().sum(), delta.abs().sum())
    plain = drawn(delta, 0.4, draws(0, "a"), rescale=False)
    assert torch.equal(plain[plain != 0], delta[plain != 0])
    assert torch.equal(plain != 0, kept != 0)


def test_trimming_keeps_the_largest_of_each_tensor_and_at_least_one() -> None:
    delta = torch.tensor([[1.0, -4.0, 2.0], [0.5, 3.0, -0.1]])
    assert largest(delta, 0.5).tolist() == [[0.0, -4.0, 2.0], [0.0, 3.0, 0.0]]
    assert largest(delta, 0.01).count_nonzero() == 1
    assert torch.equal(largest(delta, 1.0), delta)
    assert torch.allclose(largest(delta, 0.5, rescale=True).abs().sum(), delta.abs().sum())


def test_a_merge_of_the_same_seed_is_the_same_whatever_is_seen_at_once(models: Path) -> None:
    recipe_of = CASES["dare_ties, all kept"] | {"parameters": {}}
    content = json.loads(json.dumps(recipe_of).replace('"density": 1.0', '"density": 0.5'))
    (models / "merge.yaml").write_text(yaml.safe_dump(content))
    base, experts = part("base"), {name: part(name) for name in "abc"}
    whole = read(models / "merge.yaml").merge(base, experts).weights
    recipe = read(models / "merge.yaml")
    pieces = {
        key: recipe.merge({key: base[key]}, {name: {key: one[key]} for name, one in experts.items()}).weights[key]
        for key in base
    }
    assert all(torch.equal(whole[key], pieces[key]) for key in base)


PLAIN = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 1.0, density: 0.5}
  - model: b
    parameters: {weight: 0.5}
parameters: {density: 0.2}
"""


def test_what_a_model_does_not_say_is_said_for_all(models: Path) -> None:
    (models / "merge.yaml").write_text(PLAIN)
    recipe = read(models / "merge.yaml")
    assert recipe.base == str(models / "base")
    assert recipe.models == {"a": str(models / "a"), "b": str(models / "b")}
    assert recipe.words["densities"] == "a 0.5, b 0.2"
    assert recipe.words["normalize"] == "True"
    assert recipe.dtype is None


def test_the_base_may_stand_among_the_models_and_models_may_share_a_name(models: Path) -> None:
    (models / "far").mkdir()
    (models / "a").rename(models / "far" / "b")
    text = PLAIN.replace("model: a", "model: far/b").replace("parameters: {density: 0.2}", "  - model: base\n")
    (models / "merge.yaml").write_text(text)
    assert list(read(models / "merge.yaml").models) == ["b", "b (2)"]


def test_a_model_called_like_a_second_one_takes_nobody_s_place(models: Path) -> None:
    (models / "b").rename(models / "a (2)")
    text = PLAIN.replace("model: a", "model: a (2)").replace("model: b", "model: a")
    (models / "merge.yaml").write_text(text)
    assert set(read(models / "merge.yaml").models.values()) == {str(models / "a (2)"), str(models / "a")}


def test_the_seed_chooses_what_dare_drops_and_is_refused_where_nothing_is_drawn(models: Path) -> None:
    (models / "merge.yaml").write_text(PLAIN.replace("ties", "dare_ties"))
    base, experts = part("base"), {name: part(name) for name in "ab"}
    drawn_by = {seed: read(models / "merge.yaml", seed=seed) for seed in (0, 1)}
    zero, one = (recipe.merge(base, experts).weights for recipe in drawn_by.values())
    again = read(models / "merge.yaml").merge(base, experts).weights
    assert all(torch.equal(zero[key], again[key]) for key in base)
    assert not all(torch.equal(zero[key], one[key]) for key in base)
    assert drawn_by[1].words["seed"] == "1"
    (models / "merge.yaml").write_text(PLAIN)
    with pytest.raises(KitError, match=r"'ties' draws nothing at random. Leave --seed out"):
        read(models / "merge.yaml", seed=1)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = changed("density: 0.5", "density: 3") + "slices: []\nchat_template: auto\n"
    (tmp_path / "merge.yaml").write_text(text)
    with pytest.raises(KitError) as told:
        read(tmp_path / "merge.yaml")
    assert all(place in str(told.value) for place in ("models.0.parameters.density: ", "slices: ", "chat_template: "))


LINEAR = """\
merge_method: linear
models:
  - {model: a, parameters: {weight: 1.0}}
  - {model: b, parameters: {weight: -1.0}}
"""


def test_a_linear_merge_has_no_base_that_a_model_could_equal(models: Path) -> None:
    (models / "merge.yaml").write_text(LINEAR.replace("-1.0", "3.0"))
    told = CliRunner().invoke(app, ["merge", str(models / "merge.yaml"), "-o", str(models / "o")])
    assert told.exit_code == 0, told.output
    assert "same weights" not in told.output


def test_weights_that_sum_to_zero_divide_nothing(models: Path) -> None:
    (models / "merge.yaml").write_text(LINEAR)
    with pytest.raises(KitError, match=r"the weights sum to zero, and linear divides by their sum\. Set `normalize: f"):
        read(models / "merge.yaml")
    (models / "merge.yaml").write_text(LINEAR + "parameters: {normalize: false}\n")
    merged_here = read(models / "merge.yaml").merge(part("a"), {name: part(name) for name in "ab"}).weights
    assert all(torch.equal(value, part("a")[key] - part("b")[key]) for key, value in merged_here.items())


def changed(old: str, new: str) -> str:
    assert old in PLAIN
    return PLAIN.replace(old, new)


BAD = {
    "another method": (changed("ties", "slerp"), r"merge_method: 'slerp' is not supported"),
    "a typing error": (changed("ties", "tise"), "'tise' is not supported. Did you mean 'ties'"),
    "slices": (PLAIN + "slices: []\n", "slices: this is not supported .layers of different models"),
    "a tokenizer": (PLAIN + "tokenizer_source: union\n", "tokenizer_source: this is not supported"),
    "a mask": (changed("{density: 0.2}", "{int8_mask: true}"), "int8_mask: this is not supported .masks are"),
    "a gradient": (changed("weight: 0.5", "weight: [0, 1]"), "one number is supported, not a gradient over layers"),
    "a filter": (
        changed("weight: 0.5", "weight: [{filter: mlp, value: 1}]"), "one number is supported, not a gradient over"
    ),
    "an unknown key": (PLAIN + "wheight: 1\n", "wheight: this is not supported"),
    "no base": (changed("base_model: base\n", ""), "ties needs a `base_model`, from which differences are taken"),
    "linear with a base": (changed("ties", "linear"), "linear takes no `base_model`"),
    "no models": (PLAIN.partition("models:")[0], "models: it is missing"),
    "no weight": (changed("{weight: 0.5}", "{}"), "the model 'b' has no `weight`, and `parameters` has none for all"),
    "the base alone": ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]\n", "names no model besides the base"),
    "a density of two": (changed("density: 0.5", "density: 2.0"), "density: Input should be less than or equal to 1"),
    "another dtype": (PLAIN + "dtype: float8\n", "dtype: Input should be 'float32', 'float16' or 'bfloat16'"),
    "a tab": (changed("  - model: a", "\t- model: a"), "YAML takes no tabs"),
    "a list": ("- a\n", "must hold `merge_method:` and `models:`; it holds list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_refused_by_name(case: str, tmp_path: Path) -> None:
    text, words = BAD[case]
    (tmp_path / "merge.yaml").write_text(text)
    with pytest.raises(KitError, match=f"(?s){words}"):
        read(tmp_path / "merge.yaml")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"There is no mergekit file .*lost\.yaml\. Check the path"):
        read(tmp_path / "lost.yaml")


def test_a_file_takes_no_other_models_or_parameters(models: Path) -> None:
    (models / "merge.yaml").write_text(PLAIN)
    told = CliRunner().invoke(app, ["merge", str(models / "merge.yaml"), "-p", "scaling=0.3", "-o", str(models / "o")])
    assert told.exit_code == 1
    assert "A mergekit file says itself what is merged, and how. Leave -p out." in told.output
    assert not (models / "o").exists()


def test_nan_is_found_and_nothing_is_written(models: Path) -> None:
    weights = part("a")
    next(iter(weights.values())).fill_(float("nan"))
    write(models / "a" / "model.safetensors", weights)
    (models / "merge.yaml").write_text(PLAIN)
    told = CliRunner().invoke(app, ["merge", str(models / "merge.yaml"), "-o", str(models / "o")])
    assert told.exit_code == 1
    assert "NaN or infinite values in a: " in told.output
    assert not (models / "o").exists()
