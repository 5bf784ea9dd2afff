"""A tiny suite from a file: a CLIP of the papers' form with random weights, two tasks, images in folders."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from tiny_clip import CONFIG

from mergekit_lite.suites.clip.transformers_format import to_transformers
from mergekit_lite.weight_files import write

CLASSES = {"shades": ("dark", "light"), "sides": ("left", "right", "none of both")}

SUITE = """\
name: tiny
title: A tiny suite
model: tiny.json
base: base.safetensors
sets: {both: [shades, sides]}
tasks:
  shades:
    title: Shades
    classnames: [dark, light]
    templates: ["a photo of a {}.", "a {} picture"]
    images: {folder: images/shades}
    expert: experts/shades.safetensors
  sides:
    classnames: sides.txt
    images: {folder: images/sides}
    expert: experts/sides
"""


def picture(task: str, label: int, number: int, train: bool) -> Image.Image:
    """Return an image of 40 x 34 pixels that tells its class."""
    rng = np.random.default_rng([len(task), label, number, train])
    pixels = rng.integers(0, 90, size=(34, 40, 3), dtype=np.uint8)
    if task == "shades" and label == 1:
        pixels += 150
    if task == "sides" and label < 2:
        pixels[:, label * 20 : label * 20 + 20] += 150
    return Image.fromarray(pixels)


def write_suite(folder: Path, each: int = 4) -> Path:
    """Write the suite with `each` images per class and split into `folder`; return the suite file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    (folder / "sides.txt").write_text("\n".join(CLASSES["sides"]) + "\n")
    open_clip.factory._MODEL_CONFIGS["mergekit-lite-test-own"] = CONFIG
    torch.manual_seed(0)
    model = open_clip.create_model("mergekit-lite-test-own")
    write(folder / "base.safetensors", model.state_dict())
    weights = {name: value.detach() for name, value in model.visual.named_parameters() if name != "proj"}
    experts = {
        task: {name: value + 0.02 * torch.randn_like(value) for name, value in weights.items()} for task in CLASSES
    }
    write(folder / "experts" / "shades.safetensors", experts["shades"])
    write(folder / "experts" / "sides" / "model.safetensors", to_transformers(experts["sides"]))
    for task, names in CLASSES.items():
        for train in (True, False):
            for label, name in enumerate(names):
                place = folder / "images" / task / ("train" if train else "test") / name
                place.mkdir(parents=True, exist_ok=True)
                for number in range(each):
                    picture(task, label, number, train).save(place / f"{number}.png")
    path = folder / "tiny.yaml"
    path.write_text(SUITE)
    return path
