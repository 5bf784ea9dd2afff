"""Images are evaluated about as fast as the encoder takes them: the next batch comes while a GPU works on this one.

Ours is the library's `accuracy`, on uint8 images in a mapped file that is in the page cache, as decoded images are. The
plain way copies one batch after another from there to the device. The floor has all images on the device already, and
only encodes. The models have random weights and the shapes of CLIP's; a GPU computes in bfloat16 as the real suites do.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import measuring, models
from mergekit_lite.suites.clip.clip_suite import ClipSuite
from mergekit_lite.suites.clip.half import computes_in_bfloat16
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.suites.suite import Split, Suite, Task, Which

CLASSES, SIDE = 50, 224
BATCH = {"cpu": 125, "cuda": 1000}
"""Images at once, as in the library's `accuracy`."""
DRAWN = 500
"""Images that are drawn; more are the same ones again."""
THREE = "ViT-B-32,ViT-B-16,ViT-L-14"


class NoiseSuite(ClipSuite):
    """A CLIP with random weights, and one task whose images are noise."""

    def __init__(self, model: str, images: np.ndarray, device: str, blocks: int, width: int) -> None:
        """Take the images (N, 3, 224, 224) uint8, and the model's shapes."""
        classes = tuple(f"class {number}" for number in range(CLASSES))
        task = Task("noise", "Noise", "none", classes, ("{}",))
        place, clip = torch.device(device), models.clip(blocks, width, model)
        Suite.__init__(self, model, model, [task], clip, None, place)
        self._half = computes_in_bfloat16(place)
        generator = torch.Generator().manual_seed(0)
        features = int(clip.get_submodule("visual").output_dim)  # type: ignore[arg-type]
        head = normalize(torch.randn(CLASSES, features, generator=generator), dim=1)
        self.heads: Mapping[str, Tensor] = {"noise": 100 * head.to(place)}
        self._images = Split(images, np.arange(len(images)) % CLASSES)

    def split(self, task: str, which: Which) -> Split:
        """Return the noise."""
        return self._images


def write_images(folder: Path, count: int) -> Path:
    """Write a file of `count` images, if it is not there; return its path."""
    path = folder / f"noise-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, SIDE, SIDE))
        noise = np.random.default_rng(0).integers(256, size=(min(DRAWN, count), 3, SIDE, SIDE), dtype=np.uint8)
        for begin in range(0, count, DRAWN):
            file[begin : begin + DRAWN] = noise[: count - begin]
        file.flush()
    return path


def right(suite: NoiseSuite, images: Tensor, labels: np.ndarray) -> Tensor:
    """Return how many images on the device are classified correctly."""
    logits = suite.encode(suite.base, images) @ suite.heads["noise"].T
    return (logits.argmax(dim=1) == torch.from_numpy(labels).to(images.device)).sum()


def floor(suite: NoiseSuite) -> float:
    """Return the accuracy on images that are on the device: as many as fit a batch, again and again."""
    split, size = suite.split("noise", "test"), BATCH[suite.device.type]
    images = torch.from_numpy(np.array(split.images[:size])).to(suite.device)
    labels = split.labels
    with torch.inference_mode():
        counts = [
            right(suite, images[: len(labels) - begin], labels[begin : begin + size])
            for begin in range(0, len(labels), size)
        ]
    return 100 * float(sum(counts)) / len(labels)


def plain(suite: NoiseSuite) -> float:
    """Return the accuracy: a batch is read, copied and encoded, then the next one."""
    split, size = suite.split("noise", "test"), BATCH[suite.device.type]
    correct = 0
    with torch.inference_mode():
        for begin in range(0, len(split.labels), size):
            rows = slice(begin, begin + size)
            images = torch.from_numpy(np.array(split.images[rows])).to(suite.device)
            correct += int(right(suite, images, split.labels[rows]))
    return 100 * correct / len(split.labels)


def ours(suite: NoiseSuite) -> float:
    """Return the accuracy by the library."""
    return accuracy(suite, suite.base, "noise")


IMPLEMENTATIONS = {"floor": floor, "plain": plain, "ours": ours}


def measure(model: str, images: str, *, device: str, blocks: int, width: int, repeats: int) -> dict[str, Any]:
    """Evaluate in each way, once to warm up, then timed.

    Returns:
        "images", how many; by way "seconds" (the median), and "accuracy" in percent; "dtype" of the encoder; and on a
        GPU "gpu", torch's peak.
    """
    file = np.load(images, mmap_mode="r")
    suite = NoiseSuite(model, file, device, blocks, width)
    ways: dict[str, Any] = {}
    for name, way in IMPLEMENTATIONS.items():
        percent = way(suite)
        ways[name] = {"seconds": measuring.seconds(partial(way, suite), repeats, device), "accuracy": percent}
    dtype = str(suite.working_dtype).removeprefix("torch.")
    return {"images": len(file), "ways": ways, "dtype": dtype, "gpu": measuring.gpu_peak(device)}


def main(
    only: Annotated[str, typer.Option(help="Models, comma-separated, by open_clip's names.")] = THREE,
    images: Annotated[int, typer.Option(min=1, help="Images to evaluate.")] = 8000,
    repeats: Annotated[int, typer.Option(min=1, help="Times each way is timed; the median.")] = 2,
    device: models.Device = "cpu",
    blocks: Annotated[int, typer.Option(min=0, help="Transformer blocks; 0 leaves it to the model.")] = 0,
    width: Annotated[int, typer.Option(min=0, help="Width, a multiple of 64; 0 leaves it to the model.")] = 0,
    folder: models.Folder = None,
    results: models.Results = models.RESULTS,
) -> None:
    """Time the evaluation of one model on many images, against encoding alone and against copying batch by batch."""
    chosen = only.split(",")
    options = {"models": chosen, "images": images, "repeats": repeats, "device": device}
    options |= {"blocks": blocks, "width": width}
    report = measuring.Report("evaluation_throughput", "Images evaluated in a second.", options, device)
    with models.model_folder(folder) as written:
        file = write_images(written, images)
        for model in chosen:
            depth, wide = models.shape_of(model)
            shape = {"blocks": blocks or depth, "width": width or wide}
            one = measuring.in_own_process(
                measure, model=model, images=str(file), device=device, repeats=repeats, **shape
            )
            ways = one.result["ways"]
            pace = {name: images / way["seconds"] for name, way in ways.items()}
            report.details[model] = {**one.result, **shape, "images a second": pace, **one.memory()}
            report.line(model, ", ".join(f"{name} {value:,.0f} images/s" for name, value in pace.items()))
            if abs(ways["plain"]["accuracy"] - ways["ours"]["accuracy"]) > 100 / images:
                raise RuntimeError(f"The accuracies of {model} differ: {ways}. Nothing to compare.")
            report.ratio(f"pace, ours / floor, {model}", pace["ours"] / pace["floor"], least=0.8)
            report.ratio(f"pace, ours / plain, {model}", pace["ours"] / pace["plain"])
    report.write(results)


if __name__ == "__main__":
    typer.run(main)
