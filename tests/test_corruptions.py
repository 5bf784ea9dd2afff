"""The seven corruptions: their constants, equations and statistics, and how a suite and a study use them."""

import inspect
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

from mergekit_lite import cache as cache_module
from mergekit_lite import study
from mergekit_lite.cache import intact
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell, computing, engines
from mergekit_lite.suites import corruptions, image_files, spatter
from mergekit_lite.suites.corruptions import CORRUPTIONS, constants, corrupt, corrupt_ahead, corrupted

if TYPE_CHECKING:
    from mergekit_lite.suites.suite import Suite

NAMES = tuple(CORRUPTIONS)
SEVERITY_2 = {
    "motion_blur": (6, 1.5),
    "impulse_noise": (0.02,),
    "gaussian_noise": (0.06,),
    "pixelate": (0.9,),
    "spatter": (0.65, 0.1, 0.8, 0.7, 0.5, 0),
    "contrast": (0.5,),
    "jpeg_compression": (65,),
}


def pictures(count: int = 4, side: int = 32) -> np.ndarray:
    """Smooth and all different: colour gradients with a bright block."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    images = np.empty((count, 3, side, side), dtype=np.uint8)
    for number in range(count):
        phases = np.array([0.0, 1.0, 2.0])[:, None, None] + number
        images[number] = 127 + 100 * np.sin(3 * rows + phases) * np.cos(4 * columns - phases)
        images[number, :, side // 4 : side // 2, side // 8 * number : side // 8 * (number + 2)] = 230 - 20 * number
    return images


def stored() -> list[dict[str, Any]]:
    text = files("mergekit_lite").joinpath("reference/tasks.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["corruptions"]
    return found


def test_the_constants_are_those_of_the_reference_and_fit_the_functions() -> None:
    assert [one["name"] for one in stored()] == list(NAMES)
    for one in stored():
        assert one["severity_used"] == 2
        assert constants()[one["name"]][1] == SEVERITY_2[one["name"]]
        assert len(constants()[one["name"]]) == 5
        parameters = list(inspect.signature(CORRUPTIONS[one["name"]]).parameters)
        assert parameters == ["image", "rng", *one["parameters"]]


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", NAMES)
def test_each_changes_the_picture_and_neither_shape_nor_dtype(name: str, side: int) -> None:
    images = pictures(2, side)
    before = images.copy()
    changed = corrupt(images, name)
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    assert all((one != two).any() for one, two in zip(images, changed, strict=True))
    assert (images == before).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_severity_is_defined_and_the_last_is_harder_than_the_first(name: str) -> None:
    images = pictures(6)
    change = [np.abs(corrupt(images, name, level).astype(int) - images).mean() for level in (1, 2, 3, 4, 5)]
    assert all(change)
    assert change[4] > change[0]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_comes_out_the_same_in_whatever_batch(name: str, tmp_path: Path) -> None:
    images = pictures(5)
    together = corrupt(images, name, seed=3)
    assert (corrupt(images[2:4], name, seed=3) == together[2:4]).all()
    assert (corrupt(images[::-1], name, seed=3) == together[::-1]).all()
    np.save(tmp_path / "images.npy", images)
    assert (corrupt(np.load(tmp_path / "images.npy", mmap_mode="r"), name, seed=3) == together).all()
    other = corrupt(images, name, seed=4)
    assert (other == together).all() == (name in {"contrast", "pixelate", "jpeg_compression"})


def test_wrong_requests_are_said() -> None:
    with pytest.raises(KitError) as caught:
        corrupt(pictures(), "blur")
    assert str(caught.value) == f"There is no corruption 'blur'. Corruptions: {', '.join(NAMES)}."
    for severity in (0, 6):
        with pytest.raises(KitError, match=f"Severity {severity} of 'contrast' is not defined. Choose 1 .mild. to 5"):
            corrupt(pictures(), "contrast", severity)
    wrong: list[Any] = [pictures().astype(np.float32), pictures()[0], pictures().transpose(0, 2, 3, 1)]
    for images in wrong:
        with pytest.raises(KitError, match=r"Images to corrupt must be \(N, 3, H, W\) uint8, but are"):
            corrupt(images, "contrast")


# --- what each one is -------------------------------------------------------------------------------------------------


def grey(side: int = 96, value: int = 128) -> np.ndarray:
    return np.full((2, 3, side, side), value, dtype=np.uint8)


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_gaussian_noise_has_its_width_and_no_direction(severity: int) -> None:
    (sigma,) = constants()["gaussian_noise"][severity - 1]
    noise = corrupt(grey(), "gaussian_noise", severity).astype(float) - 128
    assert noise.std() == pytest.approx(255 * sigma, rel=0.02)
    assert abs(noise.mean() + 0.5) < 0.5  # half a level is lost where fractions are cut off
    assert abs(np.corrcoef(noise[0, 0].ravel(), noise[0, 1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_impulse_noise_strikes_its_share_half_salt_half_pepper(severity: int) -> None:
    (amount,) = constants()["impulse_noise"][severity - 1]
    struck = corrupt(grey(128), "impulse_noise", severity)
    assert set(np.unique(struck)) == {0, 128, 255}
    assert (struck == 255).mean() == pytest.approx(amount / 2, rel=0.15)
    assert (struck == 0).mean() == pytest.approx(amount / 2, rel=0.15)
    assert (struck[:, 0] != struck[:, 1]).mean() == pytest.approx(2 * amount * (1 - amount) + amount**2 / 2, rel=0.15)


def test_contrast_is_its_formula() -> None:
    images = pictures()
    means = images.astype(float).mean(axis=(2, 3), keepdims=True)
    assert (corrupt(images, "contrast") == np.floor(0.5 * images + 0.5 * means + 1e-9)).all()
    assert (corrupt(grey(value=201), "contrast") == 201).all()


def test_jpeg_compression_is_pillows() -> None:
    images = pictures()
    for image, found in zip(images, corrupt(images, "jpeg_compression"), strict=True):
        stream = BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(stream, "JPEG", quality=65)
        assert (np.asarray(Image.open(stream)).transpose(2, 0, 1) == found).all()


def test_pixelate_averages_over_boxes() -> None:
    """A side of 28 · 32 pixels divides into 28 boxes without remainder; up to 32, Pillow's box takes the nearest."""
    image = np.random.default_rng(0).integers(0, 256, (3, 896, 896), dtype=np.uint8)
    image[:, :448] //= 3
    means = np.floor(image.reshape(3, 28, 32, 28, 32).mean(axis=(2, 4)) + 0.5).astype(np.uint8)
    nearest = ((np.arange(32) + 0.5) * 28 / 32).astype(int)
    small = Image.fromarray(means[:, nearest][:, :, nearest].transpose(1, 2, 0))
    large = np.asarray(small.resize((896, 896), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(corrupt(image[None], "pixelate")[0].astype(int) - large).max() <= 2  # Pillow rounds after each axis


def test_pixelate_at_32_pixels_scales_nothing_back() -> None:
    image = pictures()[1]
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    twice = picture.resize((28, 28), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert (corrupt(image[None], "pixelate")[0] == np.asarray(twice).transpose(2, 0, 1)).all()


def test_pixelate_leaves_of_a_large_picture_no_more_than_32_pixels_a_side() -> None:
    stripes = np.zeros((1, 3, 224, 224), dtype=np.uint8)
    stripes[..., ::4] = stripes[..., 1::4] = 255  # lines two pixels wide, as on the grille of a car
    assert np.ptp(corrupt(stripes, "pixelate")[..., 16:-16].astype(int)) < 40
    assert np.ptp(corrupt(stripes, "jpeg_compression")[..., 16:-16].astype(int)) > 200


class Angle:
    """A random generator that draws this angle."""

    def __init__(self, angle: float) -> None:
        self.angle = angle

    def uniform(self, low: float, high: float) -> float:
        assert (low, high) == (-45, 45)
        return self.angle


@pytest.mark.parametrize(
    ("angle", "top", "total"),
    [
        (-30.5, [[33, 70, 107, 144, 163, 153, 95, 3], [50, 87, 124, 160, 180, 170, 4, 20]], 24016),
        (13.37, [[36, 73, 107, 129, 166, 156, 98, 6], [76, 110, 132, 169, 162, 110, 30, 46]], 24098),
    ],
)
def test_motion_blur_is_imagemagicks(angle: float, top: list[list[int]], total: int) -> None:
    """The numbers are those of `convert -motion-blur 6x1.5+13.37` (ImageMagick 6.9.11), on this picture."""
    image = (np.arange(3 * 8 * 8) * 37 % 256).astype(np.uint8).reshape(3, 8, 8)
    blurred = corruptions.motion_blur(image, Angle(angle), 6, 1.5)  # type: ignore[arg-type]
    assert blurred[0, :2].tolist() == top
    assert blurred.sum() == total


def test_motion_blur_keeps_the_brightness_and_leaves_what_is_even_alone() -> None:
    assert (corrupt(grey(value=77), "motion_blur") == 77).all()
    images = np.zeros((8, 3, 64, 64), dtype=np.uint8)
    images[..., 20:40, 20:40] = 200  # far from the border, over which light may leave
    images[:, 0, 0, 0] = np.arange(8)  # so that they differ, and with them their angles
    blurred = corrupt(images, "motion_blur")
    assert blurred[:, 1:].mean(axis=(1, 2, 3)) == pytest.approx(images[:, 1:].mean(), rel=2e-3)
    assert len({image[1].tobytes() for image in blurred}) > 4  # near angles pass through the same pixels


def test_spatter_adds_pale_turquoise_water_or_brown_mud() -> None:
    water = corrupt(grey(value=0), "spatter", 2).astype(float)
    wet = water[:, 1] > 50
    assert 0.01 < wet.mean() < 0.2
    assert np.abs(water[:, 0] / 175 - water[:, 1] / 238)[wet].max() < 0.01
    assert (water[:, 1] == water[:, 2]).all()
    assert water.max() == 119  # half of 238 at the brightest place
    mud = corrupt(grey(value=255), "spatter", 5)
    assert np.abs(mud.min(axis=(0, 2, 3)).astype(int) - [63, 42, 20]).max() < 15
    dry = spatter.spattered(pictures()[0], np.random.default_rng(0), 0.1, 0.01, 0.7, 0.7, 0.5, 0)
    assert (dry == pictures()[0]).all()


DROPS = np.zeros((12, 12))
DROPS[2:6, 3:8] = 180
DROPS[7:10, 6:11] = [[190, 0, 178, 180, 181], [179, 185, 0, 0, 180], [0, 180, 190, 200, 185]]
EDGES = """
............ ....###..... ...#...#.... ..#....#.... ..#....#.... ...#####....
.........##. .....#.#..## ......#..#.# ......##..#. ........###. ............
"""


DISTANCES = """
221100011233 221000001233 110000001223 110011001122 110000000112 110000000111
221100000000 322110000000 332210000000 443211000000 544321100000 554321100000
"""


def test_the_steps_of_spatter_are_opencvs() -> None:
    """Numbers of OpenCV 5.0.0 for these drops: Canny, then distanceTransform and blur, equalizeHist, filter2D."""
    edges = spatter.canny(DROPS, 50, 150)
    assert ["".join(".#"[int(one)] for one in row) for row in edges] == EDGES.split()
    theirs = np.array([list(row) for row in DISTANCES.split()]).astype(float)
    ours = np.floor(spatter.box_blur(spatter.distances(edges)))
    assert np.abs(ours - theirs).max() <= 1  # theirs are up to 2 % short
    assert (ours != theirs).mean() < 0.05
    equalised = spatter.equalised(theirs)
    assert equalised[-1].tolist() == [255, 255, 245, 227, 190, 121, 121, 0, 0, 0, 0, 0]
    embossed = np.clip(spatter.emboss(equalised), 0, 255)
    assert embossed[0].tolist() == [190, 0, 0, 0, 0, 0, 121, 255, 255, 255, 255, 227]
    assert embossed[-2].tolist() == [255, 245, 209, 135, 15, 52, 0, 0, 0, 0, 0, 0]
    assert (spatter.equalised(np.full((3, 3), 20.0)) == 20).all()


def test_distances_are_euclidean_up_to_their_end() -> None:
    edges = np.zeros((50, 60), dtype=bool)
    edges[[3, 30], [5, 40]] = True
    rows, columns = np.mgrid[0:50, 0:60]
    exact = np.minimum(np.hypot(rows - 3, columns - 5), np.hypot(rows - 30, columns - 40))
    np.testing.assert_allclose(spatter.distances(edges), np.minimum(exact, spatter.FAR))
    assert (spatter.distances(np.zeros((4, 5), dtype=bool)) == spatter.FAR).all()


# --- in a suite -------------------------------------------------------------------------------------------------------


@pytest.fixture
def suite() -> "Suite":
    return fakes.fake_suite()


def test_test_images_are_corrupted_once_and_training_images_never(
    suite: "Suite", cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = corrupted(suite, "gaussian_noise")
    clean, found = suite.split("digits", "test"), noisy.split("digits", "test")
    assert (found.images == corrupt(clean.images, "gaussian_noise")).all()
    assert (found.labels == clean.labels).all()
    assert noisy.split("digits", "train") is suite.split("digits", "train")
    (kept,) = cache.rglob("*.npy")
    assert kept.name.startswith("digits-test-gaussian_noise-")
    monkeypatch.setattr(corruptions, "corrupt", None)  # what lies in the cache is not made again
    assert (corrupted(suite, "gaussian_noise").split("digits", "test").images == found.images).all()
    assert noisy.base is suite.base
    assert noisy.device == suite.device


def test_files_and_fingerprints_follow_all_that_matters(suite: "Suite", cache: Path) -> None:
    variants = [
        corrupted(suite, "contrast"),
        corrupted(suite, "pixelate"),
        corrupted(suite, "contrast", 3),
        corrupted(suite, "contrast", seed=1),
        corrupted(fakes.fake_suite(seed=1), "contrast"),
    ]
    for one in variants:
        one.split("digits", "test")
    assert len(list(cache.rglob("*.npy"))) == len(variants)
    prints = [json.dumps(one.fingerprint(("digits",), ("digits",))) for one in (suite, *variants)]
    assert len(set(prints)) == len(variants) + 1
    assert corrupted(suite, "") is suite
    with pytest.raises(KitError, match="There is no corruption 'fog'"):
        corrupted(suite, "fog")


def test_a_corrupted_suite_stays_so_in_other_processes_and_with_other_experts(suite: "Suite", cache: Path) -> None:
    noisy = corrupted(suite, "gaussian_noise", seed=2)
    expected = noisy.split("digits", "test").images
    for other in (noisy.with_expert_seed(0), noisy.with_expert_seed(1), pickle.loads(pickle.dumps(noisy.loader))()):
        assert (other.split("digits", "test").images == expected).all()
    assert noisy.with_expert_seed(1).experts is not suite.experts
    twice = corrupted(noisy, "contrast").split("digits", "test").images
    assert (twice == corrupt(expected, "contrast")).all()


# --- one file for all models, made ahead by all cores -----------------------------------------------------------------


@dataclass
class Model(fakes.FakeSuite):
    """One of several models with the same images."""

    images_name: str = "real"

    def with_expert_seed(self, seed: int) -> "Model":
        return self


def model(name: str, **given: Any) -> Any:
    return Model(name, **given)


def kept(cache: Path) -> list[str]:
    """The files of images, without the hashes in their names."""
    return sorted(path.name.rpartition("-")[0] for path in cache.rglob("*.npy"))


def test_models_with_the_same_images_share_what_is_made_of_them(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = corrupted(model("small"), "contrast"), corrupted(model("large"), "contrast")
    found = small.split("digits", "test").images
    monkeypatch.setattr(corruptions, "write_changed", None)  # nothing is made twice
    assert (large.split("digits", "test").images == found).all()
    (path,) = cache.rglob("*.npy")
    assert path.parent == cache / "images" / "real"
    assert "small" not in path.name


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    """Images as a suite has them: those of a file."""
    np.save(tmp_path / "clean.npy", pictures(11, 8))
    images: np.ndarray = np.load(tmp_path / "clean.npy", mmap_mode="r")
    return images


@pytest.mark.parametrize(
    ("part", "workers"), [(slice(None), 1), (slice(None), 2), (slice(2, None), 2), (slice(None, None, -1), 1)]
)
def test_chunks_and_processes_make_no_difference(
    mapped: np.ndarray,
    tmp_path: Path,
    part: slice,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of a mapped file is opened anew by each process, a part of one is handed over."""
    monkeypatch.setattr(image_files, "CHUNK", 4 * mapped[0].nbytes)  # the last chunk is not full
    path, clean = tmp_path / "made" / "changed.npy", mapped[part]
    image_files.write_changed(path, clean, partial(corrupt, name="spatter"), workers=workers, what="drops")
    assert intact(path)
    assert (np.load(path) == corrupt(np.array(clean), "spatter")).all()
    assert re.fullmatch(rf"(drops: \d+ of {len(clean)}, \d+ s\n)+", capsys.readouterr().out)


def test_of_a_mapped_file_its_place_is_handed_over_and_not_its_pixels(mapped: np.ndarray) -> None:
    whole, part = pickle.dumps(image_files._handed_over(mapped)), pickle.dumps(image_files._handed_over(mapped[1:]))
    assert mapped[0].tobytes() not in whole
    assert mapped[1].tobytes() in part
    assert (pickle.loads(whole)() == mapped).all()


def test_a_small_split_starts_no_process(suite: "Suite", cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The miniature's is one chunk, and nothing is said about it."""
    assert image_files.CHUNK > 1000 * 3 * 32 * 32
    pids: list[int] = []

    def change(images: Any) -> Any:  # of this test, and so not to be had in another process
        pids.append(os.getpid())
        return images

    image_files.write_changed(
        cache / "same.npy", suite.split("digits", "test").images, change, workers=8, what="the same"
    )
    assert pids == [os.getpid()]
    assert capsys.readouterr().out == ""


def ends(images: Any) -> Any:
    os._exit(1)


def test_a_worker_that_ends_is_worded_and_leaves_nothing(
    mapped: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "CHUNK", 4 * mapped[0].nbytes)
    with pytest.raises(KitError, match=r"^drops: a worker process ended abruptly, most often because the memory ran"):
        image_files.write_changed(tmp_path / "made" / "changed.npy", mapped, ends, workers=2, what="drops")
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_disk_that_is_full_for_a_worker_is_worded_and_nothing_is_left(
    mapped: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "CHUNK", 4 * mapped[0].nbytes)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * mapped[0].nbytes, limits[1]))
        with pytest.raises(KitError, match=r"changed\.npy cannot be written \(File too large\)\. Free some space"):
            image_files.write_changed(
                tmp_path / "made" / "changed.npy", mapped, partial(corrupt, name="contrast"), workers=2, what="drops"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "made").iterdir()) == []


SLOW = """
import signal, time
import fakes
from mergekit_lite.suites import corruptions, image_files

signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it
image_files.CHUNK = 4 * 3 * 8 * 8
real = corruptions.corrupt
corruptions.corrupt = lambda images, **given: time.sleep(0.2) or real(images, **given)
corruptions.corrupted(fakes.fake_suite(), "contrast").split("digits", "test")
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_half_made_when_a_run_was_killed_is_never_taken_for_images(
    suite: "Suite", cache: Path, how: signal.Signals
) -> None:
    places = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    with subprocess.Popen([sys.executable, "-c", SLOW], env=places, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None and not any(path.stat().st_size > 1500 for path in cache.rglob("*.tmp")):
            time.sleep(0.05)
        run.send_signal(how)
    assert kept(cache) == []
    assert len(list(cache.rglob("*.tmp"))) == (how is signal.SIGKILL)
    found = corrupted(suite, "contrast").split("digits", "test").images
    assert (found == corrupt(suite.split("digits", "test").images, "contrast")).all()
    assert not list(cache.rglob("*.tmp"))


def test_room_is_asked_for_before_anything_is_written(suite: "Suite", cache: Path, monkeypatch: Any) -> None:
    noisy, size = corrupted(suite, "contrast"), suite.split("digits", "test").images.nbytes

    def free(amount: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": amount}))

    free(size - 1)
    with pytest.raises(KitError, match=r"no room for digits, test, contrast: it takes 0\.00 GB, but .*images/fake has"):
        noisy.split("digits", "test")
    assert kept(cache) == []
    free(size)
    noisy.split("digits", "test")

    free(2 * size)  # enough for each, but not for all three that are missing
    wanted = [(suite, "contrast", ("digits", "signs")), (suite, "pixelate", ("digits", "signs"))]
    with pytest.raises(KitError, match="There is no room for 3 splits of corrupted images: it takes"):
        corrupt_ahead(wanted, workers=1)
    assert kept(cache) == ["digits-test-contrast"]
    free(3 * size)
    corrupt_ahead(wanted, workers=1)
    assert len(kept(cache)) == 4


@pytest.mark.parametrize(("device", "processes"), [("cuda", 7), ("cpu", 2)])
def test_all_cores_are_at_work_beside_a_gpu_and_as_many_as_are_given_on_a_cpu(
    device: str, processes: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = image_files.write_changed

    def noted(*given: Any, workers: int, what: str) -> None:
        asked.append(workers)
        real(*given, workers=1, what=what)

    monkeypatch.setattr(corruptions, "write_changed", noted)
    monkeypatch.setattr(corruptions, "cores", lambda: 7)
    clean = model("small", device=torch.device(device))
    noisy = corrupted(clean, "contrast")
    noisy.prepare(("digits", "signs"), 2)
    assert clean.prepared == [("digits", "signs")]
    noisy.prepare(("digits",), 2)  # there already
    noisy.split("scenes", "test")
    assert asked == [processes, processes, 7 if device == "cuda" else 1]


def cells(**given: Any) -> list[Cell]:
    asked: dict[str, Any] = {"method": "simple_average", "pool": ("digits", "signs"), "evaluate": ("digits",)}
    return [Cell(**{**asked, "corruption": "contrast", **given})]


ADAPTS: dict[str, Any] = {
    "method": "layer_wise_adamerging",
    "parameters": {"steps": 1, "images_per_task": 2, "learning_rate": 0.01},
    "pool": ("digits", "signs", "scenes"),
}


@pytest.mark.parametrize(
    ("grid_of", "tasks"),
    [
        (cells(), ["digits"]),
        (cells() + cells(evaluate=("scenes",), corruption="pixelate"), ["digits", "scenes"]),
        (cells(**ADAPTS, evaluate=("signs",)), ["signs"]),
        (cells(**ADAPTS, evaluate=("signs",), adapt=("digits",)), ["digits", "signs"]),
        (cells(**ADAPTS, evaluate=("signs",), adapt=("digits",), split="held-out"), ["digits"]),
        (cells(split="held-out"), []),
        (cells(corruption=""), []),
    ],
)
def test_a_study_corrupts_before_its_cells_run(
    grid_of: Sequence[Cell],
    tasks: Sequence[str],
    suite: "Suite",
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before: list[list[str]] = []
    read: list[str] = []
    real: Callable[..., Any] = computing.compute
    digest = cache_module.file_digest

    def noted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    def watched(*given: Any) -> Any:
        before.append(kept(cache))
        monkeypatch.setattr(cache_module, "file_digest", noted)
        return real(*given)

    monkeypatch.setattr(engines.here, "compute", watched)
    study.run(suite, list(grid_of), workers=1, folder=tmp_path / "records")
    assert [name.partition("-")[0] for name in before[0]] == list(tasks)
    assert kept(cache) == before[0]  # nothing was made that no cell looks at, nor inside of one
    assert read == []  # and nothing was read there to see that it is whole


def test_images_that_change_with_the_experts_are_each_made_ahead(cache: Path, tmp_path: Path) -> None:
    """Each training run of the pico pool has images of its own."""
    from mergekit_lite.course import pico_suite

    pico = pico_suite.load("pico", torch.device("cpu"))
    task, *_ = pico.tasks
    asked = [one for seed in (0, 1) for one in cells(pool=tuple(pico.tasks), evaluate=(task,), expert_seed=seed)]
    study.run(pico, asked, workers=1, folder=tmp_path / "records")
    assert kept(cache) == [f"{task}-test-contrast"] * 2
