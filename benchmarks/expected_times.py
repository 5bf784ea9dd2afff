"""How long the profiles of the real models should take on this GPU: what they ask for, times the measured pace.

It measures nothing itself. The pace of evaluation and the time of a step of AdaMerging are read from the records of
`evaluation_throughput` and `adamerging_step`. A step of few tasks and images is the quickest that a profile takes, one
of twenty tasks the slowest, hence two numbers. Fetching and decoding, fine-tuning and figures are not in them.
"""

import json
from pathlib import Path
from typing import Any

import typer

from benchmarks import measuring, models

EVALUATIONS, STEPS = 28_540_000, 92_400
"""Images through the encoder for accuracies, and optimiser steps, of the profile clip-vit-b-32: counted from its cells.
The others have the same notebooks and parameters."""

PROFILES = {"clip-vit-b-32": "ViT-B-32", "clip-vit-b-16": "ViT-B-16", "clip-vit-l-14": "ViT-L-14"}


def records(results: Path, script: str, machine: str) -> list[dict[str, Any]]:
    """Return the records of a script that were measured on this machine."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob(f"{script}-*.json"))]
    return [one for one in found if measuring.hardware(one["machine"]) == machine]


def paces(results: Path, machine: str) -> dict[str, float]:
    """Return model -> images evaluated in a second."""
    details = {k: v for one in records(results, "evaluation_throughput", machine) for k, v in one["details"].items()}
    return {model: one["images a second"]["ours"] for model, one in details.items()}


def steps(results: Path, machine: str) -> dict[str, list[tuple[int, float]]]:
    """Return model -> images in a step, and its seconds, fewest images first."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in records(results, "adamerging_step", machine):
        if "ours" in one["details"]:
            asked = one["options"]
            pair = asked["pool"] * asked["images"], one["details"]["ours"]["seconds"]
            found.setdefault(asked["model"], []).append(pair)
    return {model: sorted(pairs) for model, pairs in found.items()}


def hours(pace: float, seconds: float) -> float:
    """Return how long a profile takes, from images evaluated in a second, and the seconds of a step."""
    return (EVALUATIONS / pace + STEPS * seconds) / 3600


def main(device: models.Device = "cpu", results: models.Results = models.RESULTS) -> None:
    """Say how long the profiles of the real models should take, from what was measured on this machine."""
    options = {"evaluations": EVALUATIONS, "steps": STEPS, "device": device}
    report = measuring.Report("expected_times", "Hours of the profiles of the real models.", options, device)
    machine = measuring.hardware(report.machine)
    pace, taken = paces(results, machine), steps(results, machine)
    for profile, model in PROFILES.items():
        if model not in pace or model not in taken:
            report.line(profile, "not measured: the evaluation of its model, or its step, has no record here")
            continue
        (few, quick), (many, slow) = taken[model][0], taken[model][-1]
        least, most = sorted(hours(pace[model], one) for one in (quick, slow))
        report.details[profile] = {
            "images evaluated a second": pace[model],
            "seconds a step": {few: quick, many: slow},
            "hours": [least, most],
        }
        report.line(
            profile,
            f"{least:.1f} to {most:.1f} h: {pace[model]:,.0f} images/s, {quick:.3f} s a step of {few} images, "
            f"{slow:.3f} s of {many}",
        )
    report.write(results)


if __name__ == "__main__":
    typer.run(main)
