"""The same files merged by mergekit and by `mergekit-lite merge`, and where its TIES leaves that of the authors.

mergekit runs in a Python of its own, on a LLaMA of 824 parameters with random weights: every method, weights and
densities that differ, both ways of normalising, lambda, two dtypes. Then TIES at equal density and weight, on the
miniature's eight experts: mergekit's arithmetic, the authors' (`methods.ties_merging`), and what lies between.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from torch import Tensor

from benchmarks import measuring, models
from mergekit_lite.merge import mergekit_yaml
from mergekit_lite.merge.mergekit_arithmetic import added, largest
from mergekit_lite.methods.ties import cutoff, ties_merging
from mergekit_lite.weight_files import read, write

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 1.0}
DENSITIES = {"a": 0.4, "b": 0.6, "c": 0.5}
ONES = {"a": 1.0, "b": 1.0, "c": 1.0}

RUN = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from importlib.metadata import version
for name, case in json.load(open("cases.json")).items():
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, random_seed=0)
    run_merge(MergeConfiguration.model_validate(case), f"theirs/{name}", options)
print("mergekit", version("mergekit"))
"""

MAKE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, vocab_size=20, max_position_embeddings=16)
torch.manual_seed(0)
base = LlamaForCausalLM(config)
base.save_pretrained("base")
for name in "abc":
    model = LlamaForCausalLM(config)
    model.load_state_dict({key: value + 0.02 * torch.randn_like(value) for key, value in base.state_dict().items()})
    model.save_pretrained(name)
"""


def case(
    method: str,
    densities: Mapping[str, float] | None = None,
    weights: Mapping[str, float] = WEIGHTS,
    dtype: str = "float32",
    normalize: bool | None = None,
    scale: float | None = None,
    rescale: bool | None = None,
) -> dict[str, Any]:
    """Return what a file of mergekit's holds."""
    given = {"normalize": normalize, "lambda": scale, "rescale": rescale}
    parameters = {name: value for name, value in given.items() if value is not None}
    listed = [
        {"model": name, "parameters": {"weight": weight, **({"density": densities[name]} if densities else {})}}
        for name, weight in weights.items()
    ]
    base = {} if method == "linear" else {"base_model": "base"}
    return {"merge_method": method, "dtype": dtype, "models": listed, "parameters": parameters, **base}


CASES = {
    "linear": case("linear"),
    "linear, sum": case("linear", normalize=False),
    "task_arithmetic": case("task_arithmetic"),
    "task_arithmetic, mean": case("task_arithmetic", normalize=True),
    "task_arithmetic, lambda": case("task_arithmetic", scale=0.4),
    "ties": case("ties", DENSITIES),
    "ties, sum": case("ties", DENSITIES, normalize=False),
    "ties, lambda": case("ties", DENSITIES, scale=0.4),
    "ties, no density": case("ties"),
    "ties, a negative weight": case("ties", DENSITIES, {**WEIGHTS, "a": -0.5}),
    "ties, equal": case("ties", {name: 0.2 for name in ONES}, ONES),
    "ties, less than one entry": case("ties", {name: 0.001 for name in ONES}, ONES),
    "dare_linear, all kept": case("dare_linear", ONES),
    "dare_ties, all kept": case("dare_ties", ONES),
    "dare_ties, all kept, mean": case("dare_ties", ONES, normalize=True),
    "ties, bfloat16": case("ties", DENSITIES, dtype="bfloat16"),
}
MORE = {"ties, rescaled": case("ties", DENSITIES, rescale=True)}
"""Compared here only: the answers for the tests stay below 100 kB."""
DRAWN = {"dare_linear": case("dare_linear", DENSITIES, {"a": 1.0})}


def merged_here(folder: Path, name: str, what: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what this kit makes of a file."""
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(dict(what)), encoding="utf-8")
    recipe = mergekit_yaml.read(path)
    tuned = {key: read(Path(place) / "model.safetensors") for key, place in recipe.models.items()}
    base = read(Path(recipe.base) / "model.safetensors") if recipe.base else next(iter(tuned.values()))
    return {key: value.to(recipe.dtype) for key, value in recipe.merge(base, tuned).weights.items()}


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> float:
    """Return ||one - other|| / ||other - base||."""
    moved = sum(float((one[key].double() - other[key].double()).square().sum()) for key in other)
    length = sum(float((other[key].double() - base[key].double()).square().sum()) for key in other)
    return float((moved / length) ** 0.5)


def causes() -> dict[str, dict[str, float]]:
    """Return for two densities how far TIES merges of the miniature's eight experts are apart, all weights one."""
    from mergekit_lite.suites import load_suite

    suite = load_suite("miniature", "cpu")
    base = dict(suite.base)
    experts = {name: dict(suite.experts[name]) for name in suite.names("eight")}

    def theirs(keep: Callable[[str, Tensor], Tensor], *, mean: bool) -> dict[str, Tensor]:
        return {
            key: added(
                start,
                [expert[key] for expert in experts.values()],
                [1.0] * len(experts),
                [lambda delta, name=name: keep(name, delta) for name in experts],  # type: ignore[misc]
                elect=True,
                normalize=mean,
                scale=1.0,
            )
            for key, start in base.items()
        }

    found = {}
    for density in (0.2, 0.5):
        cutoffs = {name: cutoff(base, expert, density) for name, expert in experts.items()}

        def each(name: str, delta: Tensor, density: float = density) -> Tensor:
            return largest(delta, density)

        def at_once(name: str, delta: Tensor, cutoffs: Mapping[str, float] = cutoffs) -> Tensor:
            return delta * (delta.abs() >= cutoffs[name])

        mean, total = (
            ties_merging(base, experts, density=density, scaling=1.0, merge=how).weights for how in ("mean", "sum")
        )
        found[f"{density:g}"] = {
            "mergekit's, against the authors' mean": apart(theirs(each, mean=True), mean, base),
            "mergekit's with one cutoff for all tensors, against the authors' mean": apart(
                theirs(at_once, mean=True), mean, base
            ),
            "mergekit's without normalize, against the authors' sum": apart(theirs(each, mean=False), total, base),
            "mergekit's, against the authors' sum": apart(theirs(each, mean=True), total, base),
        }
    return found


def main(
    mergekit: Annotated[str, typer.Option(metavar="PYTHON", help="A Python that has mergekit.")],
    answers: Annotated[
        Path | None, typer.Option(help="Write inputs and mergekit's answers here, for the tests.")
    ] = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Compare, print the differences, and write a record."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "cases.json").write_text(json.dumps(CASES | MORE | DRAWN), encoding="utf-8")
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        for code in (MAKE, RUN):
            done = subprocess.run(
                [mergekit, "-c", code], cwd=folder, env=offline, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr)
        version = done.stdout.strip().splitlines()[-1]
        base = read(folder / "base" / "model.safetensors")
        tuned = {name: read(folder / name / "model.safetensors") for name in WEIGHTS}
        theirs = {name: read(folder / "theirs" / name / "model.safetensors") for name in CASES | MORE | DRAWN}
        differences = {
            name: apart(merged_here(folder, name, what), theirs[name], base) for name, what in (CASES | MORE).items()
        }
        rates = _rates(theirs["dare_linear"], tuned["a"], base)
        if answers:
            kept = {"base": base, **tuned, **{name: theirs[name] for name in CASES}}
            flat = {f"{name}/{key}": value for name, one in kept.items() for key, value in one.items()}
            write(answers, flat, {"made with": version, "cases": json.dumps(CASES)})
    claim = (
        "A file of mergekit's gives mergekit's model: to the last bit in float32, but for DARE's draws, `linear`, and "
        "which of equal magnitudes TIES keeps."
    )
    report = measuring.Report("against_mergekit", claim, {"mergekit": version})
    report.details = {"dare_linear at a density of 0.4": rates, "ties on the miniature's eight experts": causes()}
    for name, difference in differences.items():
        report.ratio(
            f"{name}: difference / length of the update", difference, most=1e-6 if "bfloat16" not in name else 0.1
        )
    report.line("why TIES differs", json.dumps(report.details))
    report.write(results)


def _rates(merged: Mapping[str, Tensor], model: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, float]:
    """Return which share of entries mergekit's DARE kept at a density of 0.4, and how the scale compares."""
    kept = total = 0
    ratios = []
    for key, start in base.items():
        before, after = model[key] - start, merged[key] - start
        mask = after.abs() > 1e-7
        kept, total = kept + int(mask.sum()), total + mask.numel()
        if mask.any():
            ratios.append(float(after.abs().sum() / before.abs().sum()))
    return {"kept": kept / total, "sum of magnitudes after / before": sum(ratios) / len(ratios)}


if __name__ == "__main__":
    typer.run(main)
