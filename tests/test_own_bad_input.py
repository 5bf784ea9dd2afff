"""A walk through `merge`, `evaluate`, `doctor` and `init` with the mistakes of users: each is told what to mend."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from own_suite_files import write_suite
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mergekit_lite.cache import file_digest
from mergekit_lite.cli import app

MERGE = "merge task_arithmetic --base base.safetensors --expert a=experts/shades.safetensors --expert b={} -o merged"
TWO = MERGE.format("experts/sides")
C = MERGE.format("c")
SEES = "merge regmean --suite tiny.yaml --device cpu -o merged"
EVALUATE = "evaluate base --suite tiny.yaml"
CONFIG = "merge config.yaml -o merged"
Change = Callable[[], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of two tasks: base, experts and images as files."""
    return write_suite(tmp_path_factory.mktemp("template")).parent


@pytest.fixture(autouse=True)
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's folder, which commands run in; the cache is elsewhere."""
    shutil.copytree(template, tmp_path / "own")
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def tree() -> dict[str, str]:
    """Return what lies in the folder: path -> a hash of its content."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else file_digest(path) if path.is_file() else ""
        for path in Path().rglob("*")
    }


def told(command: str) -> str:
    """Return what a command says that fails as it should: in words, and with the folder left as it was."""
    before = tree()
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)  # no traceback
    assert "Traceback" not in result.output
    assert "Merged" not in result.stdout
    assert result.stderr.startswith("Error: ")
    assert tree() == before
    assert not list(Path("../cache").rglob("*.tmp"))
    return " ".join(result.stderr.split())


def nothing() -> None:
    """Leave the folder as it is: the mistake is in the command."""


def weights(change: Callable[[dict[str, torch.Tensor]], object], place: str = "c") -> Change:
    """Return what writes a changed expert to the folder `place`."""

    def write() -> None:
        content = load_file("experts/shades.safetensors")
        change(content)
        Path(place).mkdir()
        save_file(content, Path(place, "model.safetensors"))

    return write


def shards(change: Callable[[dict[str, str]], object], cut: int = 0) -> Change:
    """Return what writes an expert in two shards, with a changed index and the second shard cut."""

    def write() -> None:
        content = load_file("experts/shades.safetensors")
        Path("c").mkdir()
        index: dict[str, str] = {}
        for number in (0, 1):
            part = dict(list(content.items())[number::2])
            index |= dict.fromkeys(part, f"model-{number}.safetensors")
            save_file(part, f"c/model-{number}.safetensors")
        change(index)
        Path("c/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        if cut:
            path = Path("c/model-1.safetensors")
            path.write_bytes(path.read_bytes()[:-cut])

    return write


def suite(old: str, new: str) -> Change:
    def edit() -> None:
        text = Path("tiny.yaml").read_text()
        assert old in text
        Path("tiny.yaml").write_text(text.replace(old, new, 1))

    return edit


def image(content: bytes | None = None) -> Change:
    """Return what breaks one test image: other bytes in its place, or its end cut off."""
    path = Path("images/shades/test/dark/1.png")
    return lambda: path.write_bytes(path.read_bytes()[:-40] if content is None else content)


def filled() -> None:
    Path("merged").mkdir()
    Path("merged/thesis.tex").write_text("mine")


def empty_class() -> None:
    shutil.rmtree("images/shades/test/light")
    Path("images/shades/test/light").mkdir()


def npz(images: np.ndarray, labels: np.ndarray) -> Change:
    def write() -> None:
        np.savez("shades.npz", test_images=images, test_labels=labels)
        suite("{folder: images/shades}", "{npz: shades.npz}")()

    return write


CASES: dict[str, tuple[Change, str, str, str]] = {
    "an empty folder": (
        lambda: Path("c").mkdir(),
        C,
        "c holds no weights, but nothing at all.",
        "Name the folder with model.safetensors",
    ),
    "a folder of folders": (
        nothing,
        MERGE.format("images"),
        "images holds no weights",
        "Name the folder with model.safetensors",
    ),
    "two bases": (
        nothing,
        f"{TWO} --base experts/sides",
        "--base is given 2 times (base.safetensors, experts/sides).",
        "leave the others out",
    ),
    "one expert where two are needed": (
        nothing,
        "merge consensus --base base.safetensors --expert a=experts/sides -o merged",
        "the pool has 1 experts",
        "Choose a smaller agreement or add experts.",
    ),
    "no expert": (nothing, "merge dare --base base.safetensors -o merged", "Name the models", "--expert NAME=PLACE"),
    "an expert without a name": (
        nothing,
        TWO.replace("b=", ""),
        "--expert 'experts/sides' is not NAME=PLACE.",
        "Give each expert a name",
    ),
    "two experts of one name": (
        nothing,
        TWO.replace("b=", "a="),
        "Two experts are called 'a' (experts/shades.safetensors and experts/sides).",
        "Give each a name of its own.",
    ),
    "an expert of another size": (
        weights(lambda one: one.update({"conv1.weight": torch.ones(32, 3, 8, 8)})),
        C,
        "expert 'b' do not fit the base: 'conv1.weight' has shape (32, 3, 8, 8), the base (64, 3, 8, 8)",
        "--exclude 'visual.conv1.*'",
    ),
    "an expert with fewer layers": (
        weights(lambda one: [one.pop(name) for name in list(one) if ".1." in name]),
        C,
        "'transformer.resblocks.1.ln_1.weight' is missing",
        "Only models of one architecture, fine-tuned from the same base, can be merged",
    ),
    "another model altogether": (
        weights(lambda one: [one.pop(name) for name in list(one) if name != "conv1.weight"]),
        C,
        "these are names as they are and open_clip's CLIP",
        "Only models of one architecture",
    ),
    "a truncated shard": (
        shards(lambda index: None, cut=100),
        C,
        "c/model-1.safetensors is not a whole safetensors file",
        "Delete it and make or fetch it again",
    ),
    "an index that names a missing file": (
        shards(lambda index: index.update(more="model-2.safetensors")),
        C,
        "c/model.safetensors.index.json names the file model-2.safetensors, which is not there.",
        "Fetch the whole model again",
    ),
    "an index that climbs out of its folder": (
        shards(lambda index: index.update(more="../base.safetensors")),
        C,
        "names the file '../base.safetensors', which lies in another folder.",
        "Get the model from its authors again.",
    ),
    "an index that is no JSON": (
        lambda: (shards(lambda index: None)(), Path("c/model.safetensors.index.json").write_text("{")),
        C,
        "c/model.safetensors.index.json is no index of weights",
        "Fetch or save the model again.",
    ),
    "a file that ends too early": (
        lambda: Path("experts/shades.safetensors").write_bytes(b"\x08\0\0"),
        TWO,
        "experts/shades.safetensors is not a whole safetensors file",
        "Delete it and make or fetch it again",
    ),
    "NaN": (
        weights(lambda one: one["conv1.weight"].view(-1)[3:4].fill_(float("nan"))),
        C,
        "NaN or infinite values in expert 'b': 'conv1.weight'.",
        "fetch or train it again",
    ),
    "an output that exists": (
        filled,
        TWO,
        "The folder merged exists and is not empty.",
        "Choose another one; nothing is written over.",
    ),
    "an output below a file": (
        nothing,
        TWO.replace("-o merged", "-o tiny.yaml/merged"),
        "tiny.yaml is a file",
        "Choose another folder.",
    ),
    "an output inside an expert": (
        nothing,
        TWO.replace("-o merged", "-o experts/sides/merged"),
        "lies inside the folder of expert 'b'",
        "Choose a folder elsewhere",
    ),
    "no output": (nothing, TWO.replace("-o merged", ""), "where the merged model goes", "-o FOLDER"),
    "a path that is mistyped": (
        nothing,
        MERGE.format("expert/sides"),
        "There is no path expert/sides here, so it was looked for on the hub",
        "Unset HF_HUB_OFFLINE",
    ),
    "a file that is mistyped": (
        nothing,
        MERGE.format("expert/sides.safetensors"),
        "There is no checkpoint expert/sides.safetensors.",
        "Check the path",
    ),
    "a hub that may not be asked": (
        nothing,
        MERGE.format("hf:nobody/nothing"),
        "nobody/nothing could not be fetched: it is not in the cache",
        "Unset HF_HUB_OFFLINE",
    ),
    "a method that is mistyped": (
        nothing,
        TWO.replace("task_arithmetic", "task_arithmatic"),
        "There is no method 'task_arithmatic'.",
        "Did you mean 'task_arithmetic'?",
    ),
    "a parameter that is mistyped": (
        nothing,
        f"{TWO} -p scalling=1",
        "has no parameter 'scalling'.",
        "Did you mean 'scaling'?",
    ),
    "a method that looks at data, without a suite": (
        nothing,
        TWO.replace("task_arithmetic", "task_wise_adamerging"),
        "'task_wise_adamerging' looks at test images without labels.",
        "Add --suite",
    ),
    "a device that is not there": (nothing, f"{TWO} --device cuda:99", "Device 'cuda:99' cannot be used", "Use 'cpu'"),
    "a tab in a suite file": (
        suite("  shades:", "\tshades:"),
        SEES,
        "tiny.yaml is not valid YAML",
        "line 7, column 1: \\tshades: ^ Indent with spaces: YAML takes no tabs.",
    ),
    "an unknown key": (
        suite("title: Shades", "titel: Shades"),
        SEES,
        "tasks.shades.titel: there is no such key.",
        "Did you mean 'title'?",
    ),
    "a path that climbs out of the folder": (
        suite("images/shades", "../images/shades"),
        SEES,
        "tasks.shades.images.folder is '../images/shades', which climbs out of the folder",
        "Put the data into that folder, or give a whole path.",
    ),
    "a suite file that is not there": (
        nothing,
        "evaluate base --suite tinny.yaml",
        "There is no suite file 'tinny.yaml'",
        "begin with `mergekit-lite init FOLDER`",
    ),
    "a task that is mistyped": (nothing, f"{EVALUATE} --tasks shade", "has no task 'shade'.", "Did you mean 'shades'?"),
    "class names that do not match the folders": (
        suite("[dark, light]", "[dark, bright]"),
        EVALUATE,
        "Classes without a folder: bright. Folders that are no class: light.",
        "Call each folder as its class, or list the classes in `classnames`.",
    ),
    "a class twice": (
        suite("[dark, light]", "[dark, dark]"),
        EVALUATE,
        "tasks.shades.classnames: the class 'dark' is there more than once",
        "rename one of them",
    ),
    "an empty class": (empty_class, EVALUATE, "Task 'shades': classes without an image: light", "Put images there"),
    "no test images": (
        lambda: shutil.rmtree("images/shades/test"),
        EVALUATE,
        "Task 'shades': there is no folder",
        "Make it, with a folder of images for each class.",
    ),
    "no training images where they are needed": (
        lambda: shutil.rmtree("images/shades/train"),
        SEES,
        "Task 'shades' has no training images, which this method needs",
        "Add them, or take a method that needs none.",
    ),
    "an image that ends too early": (
        image(),
        EVALUATE,
        "shades/test/dark/1.png cannot be decoded (image file is truncated).",
        "Take it out, or save it anew",
    ),
    "a text called an image": (
        image(b"robin"),
        EVALUATE,
        "shades/test/dark/1.png cannot be decoded (cannot identify image file",
        "Take it out, or save it anew",
    ),
    "arrays of other lengths": (
        npz(np.zeros((4, 40, 40, 3), np.uint8), np.zeros(3, int)),
        EVALUATE,
        "test_labels in ",
        "there are 4 images. Give one whole number for each image.",
    ),
    "labels of no class": (
        npz(np.zeros((2, 40, 40, 3), np.uint8), np.array([0, 2])),
        EVALUATE,
        "holds numbers from 0 to 2, but the classes are 0 to 1.",
        "A label is the place of its class in `classnames`, from 0.",
    ),
    "images of floats": (
        npz(np.zeros((2, 40, 40, 3)), np.array([0, 1])),
        EVALUATE,
        "is (2, 40, 40, 3) float64.",
        "Images must be uint8 from 0 to 255",
    ),
    "a base that is not there": (
        lambda: Path("base.safetensors").unlink(),
        EVALUATE,
        "base.safetensors",
        "Check the path",
    ),
    "an architecture that is mistyped": (
        suite("tiny.json", "ViT-B-23"),
        EVALUATE,
        "open_clip knows no model 'ViT-B-23'.",
        "Did you mean 'ViT-B-32'?",
    ),
    "another model to evaluate": (
        lambda: save_file({"a": torch.ones(3)}, "c.safetensors"),
        EVALUATE.replace("base", "c.safetensors"),
        "Model 'c' is not the image encoder that is wanted here: 'class_embedding' is missing",
        "Give a checkpoint of the same architecture as the base.",
    ),
    "a result in another format": (nothing, f"{EVALUATE} -o result.xlsx", "result.xlsx", "End the name with one"),
    "a result over another file": (
        lambda: Path("result.json").write_text("{}"),
        f"{EVALUATE} -o result.json",
        "result.json exists and is no evaluation",
        "Take another name.",
    ),
    "a device as a result": (
        lambda: Path("result.json").symlink_to("/dev/zero"),  # it has no end
        f"{EVALUATE} -o result.json",
        "result.json exists and is no evaluation",
        "Take another name.",
    ),
    "a mergekit file with a tab": (
        lambda: Path("config.yaml").write_text("merge_method:\tties\n"),
        CONFIG,
        "config.yaml is not valid YAML",
        "Indent with spaces: YAML takes no tabs.",
    ),
    "a method of mergekit's that is not known here": (
        lambda: Path("config.yaml").write_text("merge_method: slerp\nmodels: [{model: experts/sides}]\n"),
        CONFIG,
        "merge_method: 'slerp' is not supported.",
        "Supported: linear, task_arithmetic, ties, dare_linear, dare_ties.",
    ),
    "an unknown key of mergekit's": (
        lambda: Path("config.yaml").write_text("merge_method: ties\nbase_model: base.safetensors\nmodls: []\n"),
        CONFIG,
        "modls: this is not supported.",
        "Did you mean 'models'?",
    ),
    "a mergekit file that is not there": (nothing, CONFIG, "There is no mergekit file config.yaml.", "Check the path."),
    "a full folder to begin in": (nothing, "init .", "is there already and is not empty.", "Name a new folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_with_what_to_do_and_leaves_nothing(case: str) -> None:
    change, command, *words = CASES[case]
    change()
    said = told(command)
    assert all(one in said for one in words), said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (TWO, "is full: the merged model takes 0.01 GB, and 0.00 GB are free. Nothing was left"),
        (EVALUATE, "There is no room for the images of 'shades', test"),
    ],
)
def test_a_full_disk_is_told_before_the_work(command: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**6, used=10**6, free=0))
    assert words in told(command)


def test_doctor_tells_all_mistakes_at_once() -> None:
    empty_class()
    Path("experts/sides/model.safetensors").unlink()
    said = told("doctor tiny.yaml")
    assert "Task 'shades': classes without an image: light" in said
    assert "experts/sides holds no weights" in said


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_grey_and_other_images_are_no_mistake(mode: str) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    path = Path("images/shades/test/dark/1.png")
    Image.open(path).convert(mode).save(path.with_suffix(suffix))
    result = CliRunner().invoke(app, [*EVALUATE.split(), "--tasks", "shades"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["classifier.weight", "model.proj"])
def test_what_no_encoder_has_is_left_out_and_said(name: str) -> None:
    weights(lambda one: one.update({name: torch.ones(2, 64)}))()
    result = CliRunner().invoke(app, C.split())
    assert result.exit_code == 0, result.output
    said = f"Of expert 'b' is left out, as it is no part of CLIP's image encoder: '{name}'."
    assert said in result.stdout
    assert said in Path("merged/README.md").read_text()
    assert set(load_file("merged/open_clip_model.safetensors")) == set(load_file("base.safetensors"))
