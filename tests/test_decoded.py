"""Decoding once: the very pixels that the experts saw, kept in memory-mapped files that resume, and tell of damage."""

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damages import made_a_folder, made_a_loop
from loopback_data import connect, named, picture, put_data, table
from loopback_hub import LoopbackHub, loopback_hub
from PIL import Image

from mergekit_lite.cache import cache_dir, file_digest
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import decoded, hub_data, pixels
from mergekit_lite.suites.clip.benchmark import HubTask, hub_tasks

pytest.importorskip("datasets")
SIDE = 32


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        monkeypatch.setattr(decoded, "CHUNK", 8)
        put_data(served, "mnist")
        yield served


@pytest.fixture
def mnist() -> HubTask:
    return replace(hub_tasks()["mnist"], test_images=20)


def decoding(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Note which chunks are decoded from now on, and be interrupted at one of them."""
    chunks: list[int] = []
    usual = pixels.decode_rows

    def watched(work: pixels.Work, rows: tuple[int, int]) -> str:
        if rows[0] // 8 == stop_at:
            raise KeyboardInterrupt
        chunks.append(rows[0] // 8)
        return usual(work, rows)

    monkeypatch.setattr(decoded, "decode_rows", watched)
    return chunks


def files(suffix: str) -> list[Path]:
    return sorted(path for path in cache_dir("images", "clip").iterdir() if path.name.endswith(suffix))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "RGBA", "P", "CMYK", "LA"])
@pytest.mark.parametrize("size", [(300, 240), (25, 31), (224, 224), (500, 333)])
def test_pixels_are_open_clips_own_bit_for_bit(mode: str, size: tuple[int, int]) -> None:
    from open_clip import image_transform
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    rng = np.random.default_rng(size[0])
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    found = pixels.preprocessing(224, "open_clip")(image)
    assert found.dtype == np.uint8
    assert found.shape == (3, 224, 224)
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    normalised = (torch.tensor(found).float() / 255 - mean) / std  # as `Suite` does it on the device
    transform = image_transform(224, is_train=False)
    assert torch.equal(normalised, transform(image.convert("RGB")))
    if mode in ("RGB", "L"):
        assert torch.equal(normalised, transform(image))


CROPS = {
    # a picture's size: its size when scaled, and what transformers and open_clip then cut off at the left and the top
    (640, 427): ((335, 224), (55, 0), (56, 0)),
    (427, 640): ((224, 335), (0, 55), (0, 56)),
    (500, 375): ((298, 224), (37, 0), (37, 0)),
    (500, 333): ((336, 224), (56, 0), (56, 0)),
    (1024, 681): ((336, 224), (56, 0), (56, 0)),
    (225, 224): ((225, 224), (0, 0), (0, 0)),
    (227, 224): ((227, 224), (1, 0), (2, 0)),
    (224, 229): ((224, 229), (0, 2), (0, 2)),
    (224, 231): ((224, 231), (0, 3), (0, 4)),
    (25, 31): ((224, 277), (0, 26), (0, 26)),
    (29, 36): ((224, 278), (0, 27), (0, 27)),
    (600, 401): ((335, 224), (55, 0), (56, 0)),
    (28, 28): ((224, 224), (0, 0), (0, 0)),
}


@pytest.mark.parametrize("size", CROPS)
def test_the_two_crops_differ_by_a_pixel_where_the_margin_is_odd(size: tuple[int, int]) -> None:
    scaled, *corners = CROPS[size]
    width, height = scaled
    places = np.zeros((height, width, 3), np.uint8)  # each pixel says where it is, modulo 256
    places[..., 0], places[..., 1] = np.arange(width) % 256, np.arange(height)[:, None] % 256
    crops: tuple[pixels.Crop, ...] = ("transformers", "open_clip")
    for crop, corner in zip(crops, corners, strict=True):
        scale, cut = pixels.preprocessing(224, crop).steps
        assert scale(Image.new("RGB", size)).size == scaled
        image = cut(Image.fromarray(places))
        assert (image.size, image.getpixel((0, 0))[:2]) == ((224, 224), corner)


SHAPES = [*CROPS, *np.random.default_rng(0).integers(20, 700, (30, 2)).tolist()]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pixels_are_those_of_transformers_own_processor_bit_for_bit(mode: str) -> None:
    """Of the one that works with PIL, as FusionBench had it."""
    theirs = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil()
    ours = pixels.preprocessing(224, "transformers")
    for width, height in SHAPES:
        noise = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert(mode)
        expected = theirs(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        assert np.array_equal(ours(image), expected), (width, height)


@pytest.mark.usefixtures("hub")
def test_images_of_another_crop_lie_in_a_file_of_their_own(mnist: HubTask) -> None:
    first = decoded.decoded_split(mnist, "test", SIDE)
    assert decoded.known(mnist, "test", SIDE, "open_clip") is None
    other = decoded.decoded_split(mnist, "test", SIDE, crop="open_clip")
    assert len(files(".images.npy")) == 2
    # 24 x 20 pixels are scaled to 38 x 32, and either cuts 3 of the 6 too many off the left
    assert np.array_equal(first.images, other.images)
    assert decoded.known(mnist, "test", SIDE, "open_clip") is not None


@pytest.mark.usefixtures("hub")
def test_test_images_keep_their_order_and_training_images_are_a_fixed_draw(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(decoded.TRAIN_VARIABLE, "6")
    test, train = (decoded.decoded_split(mnist, which, SIDE) for which in ("test", "train"))
    assert test.images.shape == (20, 3, SIDE, SIDE)
    assert isinstance(test.images, np.memmap)
    assert test.labels.tolist() == [*range(10)] * 2
    dataset = hub_data.labelled(mnist, "test")
    for place in (0, 7, 8, 19):
        assert np.array_equal(test.images[place], pixels.preprocessing(SIDE, "transformers")(dataset[place]["image"]))
    order = np.random.RandomState(0).permutation(10)[:6]
    assert train.labels.tolist() == [9 - place for place in order]


def test_a_second_reading_asks_nobody_and_decodes_nothing(
    hub: LoopbackHub, mnist: HubTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = decoded.decoded_split(mnist, "test", SIDE)
    assert not list(cache_dir("arrow", "clip").iterdir())  # the library's copy is not kept
    hub.asked.clear()
    chunks = decoding(monkeypatch)
    again = decoded.decoded_split(mnist, "test", SIDE)
    assert np.array_equal(first.images, again.images)
    assert (chunks, hub.asked) == ([], [])


@pytest.mark.usefixtures("hub")
def test_an_interrupted_run_resumes_at_the_chunk_where_it_stopped(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as interrupted:
        chunks = decoding(interrupted, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            decoded.decoded_split(mnist, "test", SIDE)
    assert chunks == [0, 1]
    assert decoded.known(mnist, "test", SIDE) is None
    assert all(path.name.startswith(".") for path in files(""))  # nothing that looks finished
    chunks = decoding(monkeypatch)
    split = decoded.decoded_split(mnist, "test", SIDE)
    assert chunks == [2]
    dataset = hub_data.labelled(mnist, "test")
    assert np.array_equal(split.images[3], pixels.preprocessing(SIDE, "transformers")(dataset[3]["image"]))
    assert not files(".part")
    assert not files(".ledger")


@pytest.mark.usefixtures("hub")
def test_what_was_spoilt_in_an_interrupted_run_is_decoded_again(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as interrupted:
        decoding(interrupted, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            decoded.decoded_split(mnist, "test", SIDE)
    np.load(files(".part")[0], mmap_mode="r+")[9] = 0
    with files(".ledger")[0].open("a") as ledger:
        ledger.write("2 cut")
    chunks = decoding(monkeypatch)
    decoded.decoded_split(mnist, "test", SIDE)
    assert chunks == [1, 2]


@pytest.mark.usefixtures("hub")
def test_damage_is_found_and_only_what_is_wrong_is_decoded_again(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = np.array(decoded.decoded_split(mnist, "test", SIDE).images)
    np.load(files(".images.npy")[0], mmap_mode="r+")[17, 0, 0, 0] ^= 1
    chunks = decoding(monkeypatch)
    after = decoded.decoded_split(mnist, "test", SIDE)
    assert chunks == [2]
    assert np.array_equal(before, after.images)
    assert "is damaged: what is wrong is decoded again" in capsys.readouterr().out


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def unbalanced(path: Path) -> None:
    """The first bytes of numpy's files say what is in them, in Python's own syntax."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"}", b"{", 1))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def swapped(path: Path) -> None:
    """Another split's file, whole in itself, under this one's name."""
    kind = next(kind for kind in (".images.npy", ".labels.npy", ".json") if path.name.endswith(kind))
    (other,) = (one for one in files(kind) if one != path)
    path.write_bytes(other.read_bytes())


DAMAGES = (zeroed, flipped, unbalanced, truncated, Path.unlink, made_a_folder, made_a_loop, swapped)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("kind", [".images.npy", ".labels.npy", ".json"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_whatever_happens_to_a_file_of_a_cache_it_mends_itself(
    mnist: HubTask, kind: str, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = decoded.decoded_split(mnist, "test", SIDE)
    images, labels = np.array(before.images), before.labels
    decoded.decoded_split(replace(mnist, test_split="train"), "test", SIDE)
    path = next(path for path in files(kind) if path.name.startswith(name_of(mnist)))
    damage(path)
    monkeypatch.setattr(decoded, "_read", set())  # as in another process
    chunks = decoding(monkeypatch)
    after = decoded.decoded_split(mnist, "test", SIDE)
    assert np.array_equal(after.images, images)
    assert after.labels.tolist() == labels.tolist()
    assert path.is_file()
    assert not path.is_symlink()
    if kind == ".labels.npy":
        assert chunks == []  # the images are right
    assert (damage is not made_a_folder) or [one for one in files("") if ".aside-" in one.name]


def name_of(task: HubTask) -> str:
    return f"{task.name}-test-{SIDE}-{decoded.fingerprint(task, 'test', SIDE)}"


@pytest.mark.usefixtures("hub")
def test_one_flipped_bit_that_left_no_trace_is_found_in_the_next_process(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = np.array(decoded.decoded_split(mnist, "test", SIDE).images)
    path = files(".images.npy")[0]
    written = path.stat()
    np.load(path, mmap_mode="r+")[17, 0, 0, 0] ^= 1
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    monkeypatch.setattr(decoded, "_read", set())
    chunks = decoding(monkeypatch)
    after = decoded.decoded_split(mnist, "test", SIDE)
    assert chunks == [2]
    assert np.array_equal(before, after.images)
    assert "is damaged: what is wrong is decoded again" in capsys.readouterr().out


@pytest.mark.usefixtures("hub")
def test_a_cache_is_read_whole_once_per_process_and_after_it_was_written_to(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded.decoded_split(mnist, "test", SIDE)
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(decoded, "file_digest", noted)
    for _ in range(3):
        decoded.decoded_split(mnist, "test", SIDE)
    assert len(read) == 1
    os.utime(files(".images.npy")[0])
    decoded.decoded_split(mnist, "test", SIDE)
    assert len(read) == 2


@pytest.mark.usefixtures("hub")
def test_a_finished_cache_is_read_without_a_lock(mnist: HubTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it serves from a folder that nobody may write to."""
    decoded.decoded_split(mnist, "test", SIDE)
    monkeypatch.setattr("mergekit_lite.cache.FileLock", lambda path: pytest.fail(f"locks {path}"))
    assert len(decoded.decoded_split(mnist, "test", SIDE).images) == 20


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("damage", [zeroed, made_a_folder, made_a_loop], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("suffix", [".part", ".ledger"])
def test_what_an_interrupted_run_left_may_be_damaged_too(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], suffix: str
) -> None:
    with monkeypatch.context() as interrupted:
        decoding(interrupted, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            decoded.decoded_split(mnist, "test", SIDE)
    damage(files(suffix)[0])
    split = decoded.decoded_split(mnist, "test", SIDE)
    dataset = hub_data.labelled(mnist, "test")
    assert np.array_equal(split.images[3], pixels.preprocessing(SIDE, "transformers")(dataset[3]["image"]))


@pytest.mark.usefixtures("hub")
def test_a_folder_that_cannot_be_written_to_is_said(mnist: HubTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decoded, "open_memmap", full)
    with pytest.raises(
        KitError, match=r"'mnist': images cannot be kept in .*clip \(No space left on device\)\. Free s"
    ):
        decoded.decoded_split(mnist, "test", SIDE)


@pytest.mark.parametrize("chosen", ["some", "²", "-1", "1.5", "", "9" * 5000])
def test_a_number_of_training_images_that_is_none_is_said(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(decoded.TRAIN_VARIABLE, chosen)
    with pytest.raises(KitError, match=r"MERGEKIT_LITE_TRAIN_IMAGES is '.*'\. Set it to a number"):
        decoded.train_images()


@pytest.mark.usefixtures("hub")
def test_what_is_handed_to_another_process_decodes_the_same_there(
    mnist: HubTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = np.array(decoded.decoded_split(mnist, "test", SIDE).images)
    for path in files(".npy") + files(".json"):
        path.unlink()
    monkeypatch.setattr(decoded, "handed_over", lambda work: pickle.loads(pickle.dumps(work)))
    assert np.array_equal(decoded.decoded_split(mnist, "test", SIDE).images, alone)


def forget(task: HubTask) -> None:
    """Let the hub be asked anew, as an error about changed data advises."""
    for path in cache_dir("sources", "clip").glob("*.json"):
        assert path.name.startswith(task.name)
        path.unlink()


@pytest.mark.usefixtures("hub")
def test_the_fingerprint_is_of_the_files_and_not_of_the_commit(hub: LoopbackHub, mnist: HubTask) -> None:
    first = decoded.fingerprint(mnist, "test", SIDE)
    assert first != decoded.fingerprint(mnist, "train", SIDE)
    assert first != decoded.fingerprint(mnist, "test", 64)
    content = dict(hub.content("dataset", mnist.dataset))
    hub.put("dataset", mnist.dataset, {**content, "NOTES.md": b"a new line"})
    forget(mnist)
    assert decoded.fingerprint(mnist, "test", SIDE) == first
    hub.put("dataset", mnist.dataset, {**content, "data/test-00000-of-00001.parquet": b"other"})
    forget(mnist)
    assert decoded.fingerprint(mnist, "test", SIDE) != first
    assert not [path for method, path, _ in hub.asked if method == "GET" and path.startswith("cdn/")]


def test_an_image_that_cannot_be_decoded_is_named(hub: LoopbackHub, mnist: HubTask) -> None:
    import datasets
    from loopback_data import parquet

    images = [picture(place) for place in range(10)]
    images[4] = {"bytes": b"no image", "path": None}
    content = parquet({"image": images, "label": [*range(10)]}, {"image": datasets.Image(), "label": named("mnist")})
    hub.put("dataset", mnist.dataset, {"data/test-0.parquet": content})
    with pytest.raises(KitError, match=r"'mnist': image 4 cannot be decoded \(cannot identify image file"):
        decoded.decoded_split(mnist, "test", SIDE)


def test_too_small_a_disk_is_said_before_anything_is_downloaded(
    hub: LoopbackHub, mnist: HubTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(KitError, match=r"no room for the images of 'mnist', test: it takes .* set MERGEKIT_LITE_CACHE"):
        decoded.decoded_split(mnist, "test", SIDE)
    assert not [path for _, path, _ in hub.asked if path.startswith("cdn/")]


def test_sizes_are_known_before_anything_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = hub_tasks()
    assert set(decoded.TRAIN_SIZES) == set(tasks)
    assert decoded.sizes(tasks["mnist"]) == (5000, 10000)
    assert decoded.sizes(tasks["oxford_flowers102"]) == (1020, 6149)
    assert decoded.predicted_bytes(tasks["mnist"], "test", 224) == 10000 * (3 * 224 * 224 + 8)
    monkeypatch.setenv(decoded.TRAIN_VARIABLE, "0")
    assert decoded.sizes(tasks["pcam"]) == (262144, 32768)


@pytest.mark.usefixtures("hub")
def test_the_predicted_size_is_the_size(mnist: HubTask) -> None:
    decoded.decoded_split(mnist, "test", SIDE)
    size = sum(path.stat().st_size for path in files(".npy") if not path.name.startswith("."))
    assert abs(size - decoded.predicted_bytes(mnist, "test", SIDE)) < 1000  # headers


def test_another_number_of_test_images_is_told(
    hub: LoopbackHub, mnist: HubTask, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.put("dataset", mnist.dataset, {"data/test-0.parquet": table([*range(10)], named("mnist"))})
    decoded.decoded_split(mnist, "test", SIDE)
    assert "mnist: 10 test images, not 20 as in FusionBench." in capsys.readouterr().out
    assert decoded.sizes(mnist)[1] == decoded.counted(mnist, SIDE, "open_clip")[1] == 20  # as published
    assert decoded.counted(mnist, SIDE) == (decoded.sizes(mnist)[0], 10)


def test_a_full_disk_is_worded_while_images_are_written(tmp_path: Path) -> None:
    """On a real disk of 1 MB: a page of a map that finds no room would end the process (SIGBUS)."""
    code = """
import numpy as np, sys
from pathlib import Path
from PIL import Image
from numpy.lib.format import open_memmap
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import decoded, pixels
dataset = [{"image": Image.new("RGB", (224, 224), (1, 2, 3))}] * 20
work = pixels.Work("mnist", dataset, np.arange(20), Path("disk/.part"), pixels.preprocessing(224, "transformers"))
decoded.CHUNK = 4
try:
    decoded.filled(work, "mnist, test", (20, 3, 224, 224), Path("disk/.ledger"), 1)
except KitError as error:
    print(error)
"""
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=1m none disk"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be made here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, code]
    environment = {**os.environ, "PYTHONPATH": str(Path(decoded.__file__).parents[3])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Task 'mnist': decoded images cannot be written to disk (No space left on device). Free some" in done.stdout
