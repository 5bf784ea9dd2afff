"""The seven corruptions of the robustness table: noise, blur, weather and compression on test images of any size.

They are those of Hendrycks & Dietterich (ICLR 2019, arXiv 1903.12261) with the constants for images of 32 x 32, which
stand in `reference/tasks.json`: FusionBench takes these whatever the size, and the robustness experiment severity 2.
FusionBench corrupts a picture before CLIP resizes it. Here the resized picture is corrupted, so that one cache of clean
images serves all; how coarse noise, blur and drops are in proportion differs where a picture was not 224 pixels wide.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mergekit_lite.cache import cache_dir, check_room, content_hash, ensure, intact
from mergekit_lite.errors import KitError, suggestion
from mergekit_lite.fingerprints import code_of
from mergekit_lite.suites.image_files import Pixels, write_changed
from mergekit_lite.suites.spatter import spattered
from mergekit_lite.workers import cores

if TYPE_CHECKING:  # a suite imports open_clip, which takes seconds
    from mergekit_lite.suites.suite import Split, Suite, Which

Values = NDArray[Any]  # of pixels, 0 to 255, not yet rounded


def gaussian_noise(image: Pixels, rng: np.random.Generator, sigma: float) -> Values:
    """Return x + N(0, sigma²) for each value x of `image` (3, H, W), x taken from 0 to 1."""
    return image + rng.normal(0, 255 * sigma, image.shape)


def impulse_noise(image: Pixels, rng: np.random.Generator, amount: float) -> Values:
    """Return `image` (3, H, W) with the share `amount` of its values turned to 0 or 255, as often the one as the other.

    Each value of each channel is drawn for itself: a dead pixel is coloured.
    """
    struck, salt = rng.random(image.shape) < amount, rng.random(image.shape) < 0.5
    return np.where(struck, np.where(salt, 255, 0), image)


def motion_blur(image: Pixels, rng: np.random.Generator, radius: float, sigma: float) -> Values:
    """Return `image` (3, H, W) smeared along a line at an angle drawn from -45° to 45°.

    ImageMagick's kernel: half a Gaussian, w[i] ~ exp(-i² / 2 sigma²) for i = 0 ... 2 ceil(radius), each step taken to
    the nearest pixel (no interpolation), the border pixels repeated.
    """
    angle = np.deg2rad(rng.uniform(-45, 45))
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    across, down = (np.ceil(steps * part - 0.5).astype(int) for part in (np.cos(angle), np.sin(angle)))
    reach, (height, width) = len(steps), image.shape[1:]
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge").astype(np.float64)
    blurred = np.zeros(image.shape)
    for weight, x, y in zip(weights, reach + across, reach + down, strict=True):
        blurred += weight * padded[:, y : y + height, x : x + width]
    return np.rint(blurred)


def contrast(image: Pixels, rng: np.random.Generator, factor: float) -> Values:
    """Return mean + factor (x - mean), with the mean of each channel of `image` (3, H, W)."""
    means = image.mean(axis=(1, 2), keepdims=True)
    return (image - means) * factor + means


def jpeg_compression(image: Pixels, rng: np.random.Generator, quality: int) -> Values:
    """Return `image` (3, H, W) after it was stored as JPEG of this quality (Pillow, colours at half the resolution)."""
    stored = BytesIO()
    _picture(image).save(stored, "JPEG", quality=quality)
    return _array(Image.open(stored))


def pixelate(image: Pixels, rng: np.random.Generator, scale: float) -> Values:
    """Return `image` (3, H, W) shrunk to int(32 scale) pixels a side, then brought to 32, with Pillow's box filter.

    To 32 whatever the size: the constants are meant for images of that size, and on others this is by far the hardest
    of the seven. Of a car at 224 x 224 nothing is left that tells its model, and every method falls to a few per cent.
    The result is scaled back to H x W as CLIP would scale the small picture up, bicubically.
    """
    small = _picture(image).resize((int(32 * scale),) * 2, Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    return _array(small.resize(image.shape[:0:-1], Image.Resampling.BICUBIC))


CORRUPTIONS: Mapping[str, Callable[..., Values]] = {
    "motion_blur": motion_blur,
    "impulse_noise": impulse_noise,
    "gaussian_noise": gaussian_noise,
    "pixelate": pixelate,
    "spatter": spattered,
    "contrast": contrast,
    "jpeg_compression": jpeg_compression,
}
"""Name -> function of an image, a random generator and the constants, in the order of the papers' table."""


@cache
def constants() -> Mapping[str, tuple[tuple[float, ...], ...]]:
    """Return name -> for each severity 1 to 5 the constants, in the order of the function's parameters."""
    with files("mergekit_lite").joinpath("reference/tasks.json").open(encoding="utf-8") as stream:
        stored: list[dict[str, Any]] = json.load(stream)["corruptions"]
    return {
        one["name"]: tuple(tuple(level) if isinstance(level, list) else (level,) for level in one["constants"])
        for one in stored
    }


def check(name: str, severity: int = 2) -> None:
    """Check that there is a corruption `name` with this severity.

    Raises:
        KitError: there is not.
    """
    if name not in CORRUPTIONS:
        raise KitError(
            f"There is no corruption '{name}'.{suggestion(name, CORRUPTIONS)} Corruptions: {', '.join(CORRUPTIONS)}."
        )
    if severity not in range(1, 6):
        raise KitError(f"Severity {severity} of '{name}' is not defined. Choose 1 (mild) to 5; the papers' table is 2.")


def corrupt(images: Pixels, name: str, severity: int = 2, seed: int = 0) -> Pixels:
    """Return corrupted copies of `images` (N, 3, H, W) uint8, of the same shape and dtype.

    What chance decides depends on the picture and `seed` alone: an image comes out the same in whatever batch, order or
    process, and two equal images come out equal. Fractions are cut off, as the source does (motion blur rounds).

    Raises:
        KitError: there is no such corruption or severity, or the images are not (N, 3, H, W) uint8.
    """
    check(name, severity)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise KitError(
            f"Images to corrupt must be (N, 3, H, W) uint8, but are {images.shape} {images.dtype}. "
            "Put the channels first and scale them to 0 ... 255."
        )
    return _one_by_one(CORRUPTIONS[name], constants()[name][severity - 1], images, [seed, zlib.crc32(name.encode())])


def _one_by_one(
    corruption: Callable[..., Values], levels: Sequence[float], images: Pixels, stream: Sequence[int]
) -> Pixels:
    result = np.empty_like(images)
    for place, image in enumerate(images):
        rng = np.random.default_rng([*stream, zlib.crc32(image.tobytes())])
        result[place] = np.clip(corruption(np.asarray(image), rng, *levels), 0, 255)
    return result


def corrupted(suite: "Suite", name: str, severity: int = 2, seed: int = 0) -> "Suite":
    """Return `suite` with corrupted test images; an empty `name` returns the suite itself.

    Whoever adapts to test images without labels and whoever measures accuracy see the same corrupted images, as in the
    papers' robustness experiment. Training images stay clean, and so do the experts.

    Raises:
        KitError: there is no such corruption or severity.
    """
    if not name:
        return suite
    check(name, severity)
    return cast("Suite", _Corrupted(suite, name, severity, seed))


def corrupt_ahead(looked_at: Iterable[tuple["Suite", str, Iterable[str]]], workers: int) -> None:
    """Corrupt test images that are not kept yet: all that a study looks at, before its cells run.

    What is made inside a cell is counted in the cell's seconds, and on a GPU it waits for one core after another.

    Args:
        looked_at: suites, each with the name of a corruption (severity 2, as in cells) and names of tasks.
        workers: processes on a CPU; on a GPU, beside which nothing else computes, there is one per core.

    Raises:
        KitError: there is no room for all of them (nothing was written), or a file cannot be written.
    """
    views = ((cast("_Corrupted", corrupted(suite, name)), tasks) for suite, name, tasks in looked_at)
    _make_missing([(view, task) for view, tasks in views for task in tasks], workers)


def _make_missing(wanted: Sequence[tuple["_Corrupted", str]], workers: int) -> None:
    """Make what is missing of `wanted`, if there is room for all of it."""
    files = {view.kept_at(task): (view, task) for view, task in wanted}
    missing = {path: one for path, one in files.items() if not intact(path, say=False)}
    room: Counter[Path] = Counter()
    for path, (view, task) in missing.items():
        room[path.parent] += view.clean(task).images.nbytes
    for folder, size in room.items():
        check_room(folder, size, f"{len(missing)} splits of corrupted images")
    for path, (view, task) in missing.items():
        view.make(task, workers)
        intact(path)  # what this process has read whole once, no cell of it reads again


class _Corrupted:
    """A suite whose test images are corrupted at first use and kept in the cache; all else is the suite's own."""

    def __init__(self, suite: "Suite", name: str, severity: int, seed: int) -> None:
        self._suite, self._corruption = suite, (name, severity, seed)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._suite, attribute)

    @property
    def loader(self) -> Callable[[], "Suite"]:
        """Return a picklable function that makes this suite again."""
        return partial(_load, self._suite.loader, *self._corruption)

    def with_expert_seed(self, seed: int) -> "Suite":
        """Return this suite with experts of another training run, its test images corrupted as here."""
        return corrupted(self._suite.with_expert_seed(seed), *self._corruption)

    def prepare(self, tasks: Sequence[str], workers: int) -> None:
        """Make all that the suite itself makes of `tasks`, then corrupt their test images."""
        self._suite.prepare(tasks, workers)
        _make_missing([(self, task) for task in tasks], workers)

    def split(self, task: str, which: "Which") -> "Split":
        """Return the images and labels of one split of `task`: corrupted where it is the test split."""
        if which != "test":
            return self._suite.split(task, which)
        self.make(task, workers=1)  # on a CPU there is one process per core already
        clean = self.clean(task)
        return type(clean)(np.load(self.kept_at(task), mmap_mode="r"), clean.labels)

    def clean(self, task: str) -> "Split":
        """Return the test images of `task` that are to be corrupted, and their labels."""
        return self._suite.split(task, "test")

    def kept_at(self, task: str) -> Path:
        """Return the file of the corrupted test images: named after what decides its pixels, never after a model."""
        name = f"{task}-test-{self._corruption[0]}-{self.data_hash(task, 'test')}"
        return cache_dir("images", self._suite.images_name) / f"{name}.images.npy"

    def make(self, task: str, workers: int) -> None:
        """Corrupt the test images of `task` unless they are kept; on a GPU by one process per core."""
        (name, severity, seed), path = self._corruption, self.kept_at(task)

        def write() -> None:
            change = partial(corrupt, name=name, severity=severity, seed=seed)
            processes = cores() if self.device.type == "cuda" else workers
            write_changed(path, self.clean(task).images, change, workers=processes, what=f"{task}, test, {name}")

        ensure(write, path)

    def data_hash(self, task: str, which: "Which") -> str:
        """Return the suite's hash of a split, that of the test images changed by what the images went through."""
        clean = self._suite.data_hash(task, which)
        return content_hash([clean, self._identity]) if which == "test" else clean

    def fingerprint(self, pool: Sequence[str], evaluate: Sequence[str], learnt: Sequence[str] = ()) -> dict[str, Any]:
        """Return the suite's hashes, those of the test images changed by what the images went through."""
        clean, identity = self._suite.fingerprint(pool, evaluate, learnt), self._identity
        data = {task: content_hash([images, identity]) for task, images in clean["data"].items()}
        return {**clean, "data": data, "corruption": identity}

    @property
    def _identity(self) -> dict[str, Any]:
        name, severity, seed = self._corruption
        known = {"name": name, "severity": severity, "seed": seed, "constants": constants()[name][severity - 1]}
        return {**known, "code": _code_of(CORRUPTIONS[name], _one_by_one)}


_code_of = cache(code_of)


def _load(loader: Callable[[], "Suite"], name: str, severity: int, seed: int) -> "Suite":
    return corrupted(loader(), name, severity, seed)


def _picture(image: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _array(picture: Image.Image) -> Pixels:
    return np.asarray(picture).transpose(2, 0, 1)
