"""What the loopback hub holds: data sets with the columns, splits and oddities of the real ones, and tiny CLIPs."""

import io
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from PIL import Image

from mergekit_lite.suites.clip.benchmark import MODELS, hub_tasks

SIDE = 32
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""ViT-B/32 with two blocks, as open_clip describes a model."""


def connect(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[float]:
    """Have this process ask `hub` instead of the real one, and return the pauses that are not waited for.

    The libraries read their environment when they are imported, so their settings are changed here one by one.
    """
    import datasets
    from huggingface_hub import constants

    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(folder / "kit"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        datasets.config, "HUB_DATASETS_URL", hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", folder / "modules")
    from mergekit_lite.suites.clip import hub as weights
    from mergekit_lite.suites.clip import pins

    weights.announced.cache_clear()  # what another hub said
    pins.completed.cache_clear()
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def picture(seed: int, mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (20, 24)) -> dict[str, Any]:
    """Return an image as the datasets library stores it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def parquet(columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]) -> bytes:
    """Return a table as `push_to_hub` writes it, with the types of its columns in the file."""
    import datasets

    stream = io.BytesIO()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(dict(columns), features=datasets.Features(features)).to_parquet(stream)
    return stream.getvalue()


def table(
    labels: Sequence[Any], kind: Any, *, image: str = "image", label: str = "label", mode: str = "RGB", **more: Any
) -> bytes:
    """Return a table of random images with `labels`, whose type is `kind`; `more` are columns of whole numbers."""
    import datasets

    columns = {image: [picture(place, mode) for place in range(len(labels))], label: list(labels), **more}
    numbers = {name: datasets.Value("int64") for name in more}
    return parquet(columns, {image: datasets.Image(), label: kind, **numbers})


def archive(labels: Sequence[int]) -> bytes:
    """Return a WebDataset archive: of each sample a class number and a JPEG file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for place, label in enumerate(labels):
            for suffix, content in (("cls", str(label).encode()), ("jpg", picture(place, "L", "JPEG")["bytes"])):
                member = tarfile.TarInfo(f"s{place:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def named(task: str) -> Any:
    """Return the type of a label column that names the classes as folders are named."""
    import datasets

    return datasets.ClassLabel(names=[name.lower().replace(" ", "_") for name in hub_tasks()[task].classnames])


def put_data(hub: LoopbackHub, *tasks: str, times: int = 2) -> None:
    """Fill the hub with `tasks`, every class `times` times in the test split and once in the training split."""
    import datasets

    for task in tasks:
        entry = hub_tasks()[task]
        once = list(range(len(entry.classnames)))
        test, train = once * times, once[::-1]
        kind = named(task)
        files: dict[str, bytes] = {}
        if task == "fer2013":  # archives, and beside them lists of which the library must not make data
            files = {
                "test/0.tar": archive(test),
                "test/nshards.txt": b"1",
                "train/0.tar": archive(train),
                "train/nshards.txt": b"1",
                "classnames.txt": "\n".join(entry.classnames).encode(),
            }
        elif task == "svhn":  # two configurations; the other one has no labels
            other = parquet({"image": [picture(0)]}, {"image": datasets.Image()})
            files = {
                "README.md": card(full_numbers=("train", "test"), cropped_digits=("train", "test")),
                "full_numbers/train-00000-of-00001.parquet": other,
                "full_numbers/test-00000-of-00001.parquet": other,
                "cropped_digits/train-00000-of-00001.parquet": table(train, kind),
                "cropped_digits/test-00000-of-00001.parquet": table(test, kind),
            }
        elif task == "pcam":  # labels are truth values
            truth = datasets.Value("bool")
            files = {
                "README.md": card(default=("train", "valid", "test")),
                "data/train-00000-of-00001.parquet": table([bool(one) for one in train], truth),
                "data/valid-00000-of-00001.parquet": table([True, False], truth),
                "data/test-00000-of-00001.parquet": table([bool(one) for one in test], truth),
            }
        elif task == "cifar100":  # two columns of labels, neither called "label"
            coarse = {split: [one // 5 for one in labels] for split, labels in (("train", train), ("test", test))}
            files = {
                f"data/{split}-00000-of-00001.parquet": table(
                    labels, kind, image="img", label="fine_label", coarse_label=coarse[split]
                )
                for split, labels in (("train", train), ("test", test))
            }
        elif task == "food101":  # no test split, and a card that describes the columns and counts the rows
            files = {
                "README.md": _description(task, {"train": len(train), "validation": len(test)}),
                "data/train-00000-of-00001.parquet": table(train, kind),
                "data/validation-00000-of-00001.parquet": table(test, kind),
            }
        elif task in ("emnist_letters", "kmnist"):  # one configuration, which is not called "default"
            name = str(entry.config)
            files = {
                "README.md": card(**{name: ("train", "test")}),
                f"{name}/train-00000-of-00001.parquet": table(train, kind, mode="L"),
                f"{name}/test-00000-of-00001.parquet": table(test, kind, mode="L"),
            }
        elif task == "eurosat":  # folder names unlike the prompts, and corrupted copies that nobody asks for
            folders = datasets.ClassLabel(names=FOLDERS)
            files = {
                f"data/{split}-00000-of-00001.parquet": table(labels, folders)
                for split, labels in (("train", train), ("test", test), ("contrast", test))
            }
            files["README.md"] = card(default=("train", "test", "contrast"))
        else:
            mode = "L" if task == "mnist" else "RGB"
            files = {
                "data/train-00000-of-00001.parquet": table(train, kind, mode=mode),
                "data/test-00000-of-00001.parquet": table(test, kind, mode=mode),
            }
        hub.put("dataset", entry.dataset, files)


FOLDERS = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)
"""The folders of EuroSAT, in the order of its classes."""


def _description(task: str, rows: Mapping[str, int]) -> bytes:
    names = named(task).names
    lines = ["---", "dataset_info:", "  features:", "  - name: image", "    dtype: image", "  - name: label"]
    lines += ["    dtype:", "      class_label:", "        names:"]
    lines += [f"          '{place}': {name}" for place, name in enumerate(names)]
    lines += ["  splits:"]
    for split, count in rows.items():
        lines += [f"  - name: {split}", f"    num_bytes: {count}", f"    num_examples: {count}"]
    lines += ["  download_size: 1", "  dataset_size: 1", "---", ""]
    return "\n".join(lines).encode()


def card(**configurations: tuple[str, ...]) -> bytes:
    """Return a data set's card: configuration -> splits, each configuration in a folder of its name."""
    lines = ["---", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        folder = "data" if name == "default" else name
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
    return "\n".join([*lines, "---", ""]).encode()


def put_models(hub: LoopbackHub, *tasks: str, seed: int = 0) -> None:
    """Fill the hub with the base of ViT-B/32, reduced before this, and a random expert for each task."""
    import open_clip
    from safetensors.torch import save

    from mergekit_lite.suites.clip.benchmark import base_file, expert_file
    from mergekit_lite.suites.clip.transformers_format import to_transformers

    model = MODELS["clip-vit-b-32"]
    torch.manual_seed(seed)
    clip = open_clip.create_model(model.architecture)
    repository, filename = base_file(model)
    hub.put("model", repository, {filename: save({key: one.contiguous() for key, one in clip.state_dict().items()})})
    encoder = {name: value.detach() for name, value in clip.visual.named_parameters() if name != "proj"}
    for task in tasks:
        changed = {name: value + 0.01 * torch.randn_like(value) for name, value in encoder.items()}
        repository, filename = expert_file(model, hub_tasks()[task])
        hub.put("model", repository, {filename: save(to_transformers(changed)), "README.md": b"an expert"})
