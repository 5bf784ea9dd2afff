"""Random encoders with the shapes of CLIP's ViTs, experts in files, heads and images, and what the machine is.

Speed and memory depend on shapes, not on what a model has learned. Only the spectral merges notice the numbers, so the
task vectors have a falling spectrum, see `synthetic_change`.
"""

import contextlib
import copy
import importlib
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from mergekit_lite import __version__
from mergekit_lite.methods.registry import Examples
from mergekit_lite.weight_files import LazyWeights, write
from mergekit_lite.weights import Weights
from mergekit_lite.workers import cores

GIB = 2**30
MODEL, BLOCKS, WIDTH = "ViT-B-32", 12, 768

# Options that several scripts share.
Pool = Annotated[int, typer.Option(min=1, help="How many experts.")]
Blocks = Annotated[int, typer.Option(min=1, help="Transformer blocks; 12 is ViT-B/32, fewer are a quick trial.")]
Width = Annotated[int, typer.Option(min=64, help="Width, a multiple of 64; 768 is ViT-B/32, less is a quick trial.")]
Model = Annotated[str, typer.Option(help="Whose shapes, by open_clip's name; of another depth if --blocks says so.")]
Device = Annotated[str, typer.Option(help="cpu, or cuda.")]
Folder = Annotated[
    Path | None,
    typer.Option(help="Where the models are written and found again; by default a temporary folder that is removed."),
]
Results = Annotated[Path, typer.Option(help="Where the JSON record goes.")]

RESULTS = Path(__file__).parent / "results"


def clip(blocks: int = BLOCKS, width: int = WIDTH, model: str = MODEL) -> nn.Module:
    """Return open_clip's `model` with random weights, always the same ones, and hardly any text encoder."""
    import open_clip  # takes seconds, and not every script needs it

    settings = open_clip.get_model_config(model)
    settings["vision_cfg"] |= {"layers": blocks, "width": width}
    settings["text_cfg"] |= {"layers": 1, "vocab_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole: nn.Module = open_clip.model.CLIP(**settings)
    open_clip.set_model_preprocess_cfg(
        whole, {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    )
    return whole.eval()


def encoder(blocks: int = BLOCKS, width: int = WIDTH, model: str = MODEL) -> nn.Module:
    """Return the image encoder of `clip`."""
    return clip(blocks, width, model).get_submodule("visual")


def shape_of(model: str) -> tuple[int, int]:
    """Return how many blocks a model has, and its width."""
    import open_clip

    vision = open_clip.get_model_config(model)["vision_cfg"]
    return vision["layers"], vision["width"]


def synthetic_change(start: Tensor, generator: torch.Generator, share: float = 0.03) -> Tensor:
    """Return one tensor of a task vector, `share` as long as the base's tensor.

    A matrix is a product A diag(i^-0.7) B with Gaussian A and B of full rank: its singular values fall from the first
    on, to less than a hundredth, without a gap. Everything else is Gaussian noise. What is zero in a random base, as
    biases are, changes as if its entries were 0.01.
    """
    if start.dim() == 2:
        rank = min(start.shape)
        left = torch.randn(start.shape[0], rank, generator=generator)
        right = torch.randn(rank, start.shape[1], generator=generator)
        change = left * torch.arange(1, rank + 1).pow(-0.7) @ right
    else:
        change = torch.randn(start.shape, generator=generator)
    length = max(float(start.norm()), 0.01 * start.numel() ** 0.5)
    return change * (share * length / change.norm())


def write_models(folder: Path, distinct: int, *, blocks: int, width: int, model: str = MODEL) -> Path:
    """Write the base and `distinct` experts as float32 safetensors, those that are not there yet; return their folder.

    A subfolder holds models of one size, so that trials and full runs can share `folder`.
    """
    place = folder / f"{model.lower()}-{blocks}x{width}"
    place.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(distinct) if not _path(place, number).exists()]
    if not missing and (place / "base.safetensors").exists():
        return place
    base = {name: tensor.detach() for name, tensor in encoder(blocks, width, model).named_parameters()}
    write(place / "base.safetensors", base)
    for number in missing:
        generator = torch.Generator().manual_seed(1 + number)
        expert = {name: start + synthetic_change(start, generator) for name, start in base.items()}
        write(_path(place, number), expert)
    return place


def link_models(place: Path, distinct: int, count: int) -> None:
    """Fill a pool up to `count` experts with further names of the first `distinct` files, which takes no disk."""
    for number in range(distinct, count):
        if not _path(place, number).exists():
            try:
                os.link(_path(place, number % distinct), _path(place, number))
            except OSError:  # a file system without hard links
                _path(place, number).symlink_to(_path(place, number % distinct))


def _path(place: Path, number: int) -> Path:
    return place / f"expert{number:02d}.safetensors"


def load(place: Path, pool: int, device: str = "cpu") -> tuple[Weights, dict[str, LazyWeights]]:
    """Return the base in memory, on `device`, and the experts as files, whose tensors will be put there too."""
    file = LazyWeights(place / "base.safetensors", device)
    base = {name: tensor.clone() for name, tensor in file.items()}  # a copy: not a view of the file
    return base, {f"task{number:02d}": LazyWeights(_path(place, number), device) for number in range(pool)}


@contextlib.contextmanager
def model_folder(folder: Path | None) -> Iterator[Path]:
    """Give `folder`, or a temporary one that is removed afterwards."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


@dataclass
class NoiseTasks:
    """Tasks of 10 to 50 classes whose images are noise: the same ones in every batch (`registry.TaskData`).

    Attributes:
        module: the encoder whose parameters are replaced.
        heads: task -> head (C, D).
        given: task -> images, or images and labels.
        autocast: encode in bfloat16, as far as torch deems it safe.
    """

    module: nn.Module
    heads: dict[str, Tensor]
    given: dict[str, Examples]
    autocast: bool = False

    @property
    def device(self) -> str:
        """The device, "cpu" or "cuda"."""
        return next(iter(self.heads.values())).device.type

    @classmethod
    def of(
        cls, module: nn.Module, tasks: int, images: int, device: str = "cpu", *, labels: bool = False
    ) -> "NoiseTasks":
        """Draw heads, and `images` images of 224 x 224 a task."""
        generator, features = torch.Generator().manual_seed(0), int(module.output_dim)  # type: ignore[arg-type]
        heads: dict[str, Tensor] = {}
        given: dict[str, Examples] = {}
        for number in range(tasks):
            task, classes = f"task{number:02d}", 10 + 40 * number // max(tasks - 1, 1)
            heads[task] = 100 * normalize(torch.randn(classes, features, generator=generator), dim=1).to(device)
            noise = torch.randn(images, 3, 224, 224, generator=generator).to(device)
            drawn = torch.randint(classes, (images,), generator=generator).to(device)
            given[task] = (noise, drawn) if labels else noise
        return cls(module.to(device), heads, given)

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return features (N, D) of unit length, float32."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            features = functional_call(self.module, dict(weights), (images,))
        return normalize(features.float(), dim=1)

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, Examples]]:
        """Yield the given images, once a step."""
        for _ in range(steps):
            yield self.given


def module_with(shape: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a module of its own with these weights, in memory of its own."""
    own = copy.deepcopy(shape)
    own.load_state_dict(dict(weights))
    return own


@cache
def peer(module: str) -> Any:
    """Return a module of FusionBench, or None where it, or what it needs, is not installed."""
    try:
        return importlib.import_module(f"fusion_bench.{module}")
    except ImportError:
        return None


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what was measured on, and with which versions."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mergekit_lite": __version__,
        "fusion_bench": _version("fusion_bench"),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
