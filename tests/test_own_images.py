"""Images that a user has: in folders, in a file of numpy, in a data set of the hub. What is odd about them is said."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_data import connect, table
from loopback_hub import LoopbackHub, loopback_hub
from PIL import Image

from mergekit_lite.cache import cache_dir
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import decoded, pixels, sources
from mergekit_lite.suites.own import folders, splits
from mergekit_lite.suites.own.schema import OwnTask
from mergekit_lite.suites.suite import Split, Task, Which

pytestmark = pytest.mark.usefixtures("cache")
SIDE = 16
CLASSES = ("robin", "house sparrow", "wren")


def source(
    images: dict[str, Any], classes: tuple[str, ...] = CLASSES, crop: pixels.Crop = "open_clip"
) -> splits.Source:
    own = OwnTask(classnames=list(classes), images=images, expert="nothing")  # type: ignore[arg-type]
    return splits.Source(Task("birds", "Birds", "Birds", classes, ("a {}",)), own, SIDE, crop)


def brought(given: splits.Source, which: Which = "test", workers: int = 1) -> Split:
    return splits.brought(given, which, splits.fingerprint(given, which), workers)


def grey(value: int, size: tuple[int, int] = (20, 18)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folders of images whose grey tells class and number."""
    root = tmp_path / "birds"
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                grey(80 * label + 10 * number).save(folder / f"{number}.png")
    return root


@pytest.fixture
def birds(root: Path) -> splits.Source:
    return source({"folder": str(root)})


def kept() -> list[str]:
    """Return what there is of images in the cache, but for locks."""
    folder = cache_dir("images", "own")
    return sorted(one.name for one in folder.iterdir() if not one.name.endswith(".lock")) if folder.is_dir() else []


# Folders


def test_a_folder_per_class_is_decoded_to_labels_in_the_order_of_the_class_names(birds: splits.Source) -> None:
    found = brought(birds)
    assert (found.images.shape, str(found.images.dtype), str(found.labels.dtype)) == (
        (9, 3, SIDE, SIDE),
        "uint8",
        "int64",
    )
    assert isinstance(found.images, np.memmap)
    assert sorted(zip(found.labels, found.images[:, 0, 0, 0], strict=True)) == [
        (label, 80 * label + 10 * number) for label in range(3) for number in range(3)
    ]
    assert splits.counted(birds, "test") == splits.counted(birds, "train") == 9


def test_the_first_images_show_all_classes(birds: splits.Source) -> None:
    assert len(set(brought(birds).labels[:6].tolist())) == 3


def test_two_processes_decode_to_the_same_pixels(birds: splits.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    one = brought(birds)
    pixels_before, labels = np.array(one.images), one.labels
    shutil.rmtree(cache_dir("images"))
    monkeypatch.setattr(decoded, "CHUNK", 4)
    two = brought(birds, workers=2)
    assert np.array_equal(two.images, pixels_before)
    assert np.array_equal(two.labels, labels)


def test_what_is_decoded_is_not_decoded_again(birds: splits.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    print_ = splits.fingerprint(birds, "test")
    assert not splits.is_decoded(birds, "test", print_)
    brought(birds)
    monkeypatch.setattr(decoded, "filled", None)
    assert len(brought(birds).labels) == 9
    assert splits.is_decoded(birds, "test", print_)
    assert not splits.is_decoded(birds, "train", splits.fingerprint(birds, "train"))


def test_what_was_interrupted_goes_on_where_it_stopped(birds: splits.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "CHUNK", 4)
    usual, seen = pixels.decode_rows, list[int]()

    def interrupted(work: pixels.Work, rows: tuple[int, int]) -> str:
        if rows[0] == 4 and len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(rows[0])
        return usual(work, rows)

    monkeypatch.setattr(decoded, "decode_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        brought(birds)
    seen.append(-1)
    brought(birds)
    assert seen == [0, -1, 4, 8]
    assert not [name for name in kept() if name.endswith((".part", ".ledger", ".tmp"))]


@pytest.mark.parametrize("change", ["pixels", "label", "class order"])
def test_the_fingerprint_is_of_contents_and_labels(root: Path, birds: splits.Source, change: str) -> None:
    before = splits.fingerprint(birds, "test")
    if change == "pixels":
        path, state = root / "test" / "wren" / "0.png", (root / "test" / "wren" / "0.png").stat()
        size = path.stat().st_size
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert path.stat().st_size == size
    elif change == "label":
        (root / "test" / "wren" / "2.png").rename(root / "test" / "robin" / "3.png")
    else:
        birds = source({"folder": str(root)}, (CLASSES[1], CLASSES[0], CLASSES[2]))
    assert splits.fingerprint(birds, "test") != before


def test_the_fingerprint_stays_when_the_folder_moves_or_is_copied(
    root: Path, birds: splits.Source, tmp_path: Path
) -> None:
    before = [splits.fingerprint(birds, which) for which in ("train", "test")]
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert [splits.fingerprint(source({"folder": str(moved)}), which) for which in ("train", "test")] == before
    assert splits.fingerprint(source({"folder": str(moved)}, crop="transformers"), "test") != before[1]
    assert splits.fingerprint(replace(birds, side=32), "test") != before[1]


def test_files_are_read_once_for_their_hash(birds: splits.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    before = splits.fingerprint(birds, "test")
    monkeypatch.setattr(folders, "file_digest", None)
    assert splits.fingerprint(birds, "test") == before


def test_train_and_test_may_be_called_otherwise(root: Path) -> None:
    (root / "test").rename(root / "validation")
    given = source({"folder": str(root), "test": "validation"})
    assert len(brought(given).labels) == 9


def test_no_more_training_images_are_kept_than_of_the_benchmark(
    birds: splits.Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = splits.fingerprint(birds, "train")
    monkeypatch.setenv(decoded.TRAIN_VARIABLE, "4")
    assert splits.fingerprint(birds, "train") != before
    assert len(brought(birds, "train").labels) == splits.counted(birds, "train") == 4
    assert len(brought(birds, "test").labels) == splits.counted(birds, "test") == 9


@pytest.mark.parametrize("name", ["House_Sparrow", "house-sparrow", "HOUSE SPARROW"])
def test_folders_may_differ_from_class_names_in_case_and_punctuation(
    root: Path, birds: splits.Source, name: str
) -> None:
    (root / "test" / "house sparrow").rename(root / "test" / name)
    assert splits.counted(birds, "test") == 9


def test_two_folders_alike_are_not_guessed_between(root: Path, birds: splits.Source) -> None:
    (root / "test" / "house sparrow").rename(root / "test" / "house_sparrow")
    shutil.copytree(root / "test" / "house_sparrow", root / "test" / "House Sparrow")
    words = r"Classes without a folder: house sparrow\. Folders that are no class: House Sparrow; house_sparrow\."
    with pytest.raises(KitError, match=words):
        splits.counted(birds, "test")


def test_classes_that_differ_in_case_alone_need_their_very_folders(root: Path) -> None:
    given = source({"folder": str(root)}, ("robin", "House sparrow", "house sparrow", "wren"))
    with pytest.raises(KitError, match=r"Classes without a folder: House sparrow\. Folders that are no class: none\."):
        splits.counted(given, "test")


def test_folders_that_are_not_the_classes_are_said_from_both_sides(root: Path, birds: splits.Source) -> None:
    (root / "test" / "wren").rename(root / "test" / "finch")
    with pytest.raises(
        KitError,
        match=r"Task 'birds': the folders in .*/birds/test are not its classes\. Classes without a folder: wren\. "
        r"Folders that are no class: finch\. Call each folder as its class, or list the classes in `classnames`\.",
    ):
        splits.counted(birds, "test")


def test_of_many_folders_three_are_named(root: Path, birds: splits.Source) -> None:
    for number in range(5):
        (root / "test" / f"more{number}").mkdir()
    with pytest.raises(KitError, match=r"no class: more0; more1; more2; and 2 more\."):
        splits.counted(birds, "test")


def test_an_empty_class_is_said(root: Path, birds: splits.Source) -> None:
    for path in (root / "test" / "wren").iterdir():
        path.unlink()
    (root / "test" / "wren" / ".DS_Store").write_bytes(b"hidden")
    with pytest.raises(KitError, match=r"'birds': classes without an image: wren, see .*/test/wren\. Put images there"):
        brought(birds)
    assert kept() == []


def test_an_empty_folder_is_said(root: Path, birds: splits.Source) -> None:
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    with pytest.raises(
        KitError, match=r"without a folder: robin; house sparrow; wren\. Folders that are no class: none"
    ):
        brought(birds)


def test_a_missing_test_folder_is_said(root: Path, birds: splits.Source) -> None:
    shutil.rmtree(root / "test")
    with pytest.raises(KitError, match=r"'birds': there is no folder .*/birds/test\. Make it, with a folder of images"):
        brought(birds)


def test_without_training_images_only_who_needs_them_complains(root: Path, birds: splits.Source) -> None:
    shutil.rmtree(root / "train")
    assert splits.counted(birds, "train") == 0
    assert len(brought(birds, "test").labels) == 9
    with pytest.raises(
        KitError, match=r"'birds' has no training images, which this method needs: there is not the folder .*/train\."
    ):
        brought(birds, "train")


def test_what_is_hidden_is_left_out_in_silence(
    root: Path, birds: splits.Source, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".DS_Store", "._0.png"):
        (root / "test" / "wren" / name).write_bytes(b"nothing")
    for folder in (root / "test" / ".cache", root / "test" / "wren" / ".ipynb_checkpoints"):
        folder.mkdir()
        grey(0).save(folder / "0.png")
    assert len(brought(birds).labels) == 9
    assert "left out" not in capsys.readouterr().out


def test_what_is_no_image_is_left_out_and_said_once(
    root: Path, birds: splits.Source, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "test" / "wren" / "licence.txt").write_text("free")
    assert len(brought(birds).labels) == 9
    assert capsys.readouterr().out.count("Task 'birds': left out, as no images: licence.txt.") == 1


def test_folders_inside_that_of_a_class_are_its_images_too(root: Path, birds: splits.Source) -> None:
    inside = root / "test" / "wren" / "2024"
    inside.mkdir()
    grey(255).save(inside / "0.JPG", "JPEG")
    found = brought(birds)
    assert found.labels.tolist().count(2) == 4


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (lambda path: grey(77).convert("L").save(path), "grey.png"),
        (lambda path: grey(77).convert("P", palette=Image.Palette.ADAPTIVE).save(path), "palette.gif"),
        (lambda path: grey(77).convert("RGBA").save(path), "alpha.png"),
        (lambda path: grey(77).convert("LA").save(path), "grey and alpha.png"),
        (lambda path: grey(77).convert("CMYK").save(path), "print.tif"),
    ],
    ids=["grey", "palette", "RGBA", "grey with alpha", "CMYK"],
)
def test_images_of_other_modes_become_rgb(
    root: Path, birds: splits.Source, save: Callable[[Path], None], name: str
) -> None:
    for path in (root / "test" / "wren").iterdir():
        path.unlink()
    save(root / "test" / "wren" / name)
    found = brought(birds)
    (wren,) = found.images[found.labels == 2]
    assert np.abs(wren.astype(int) - 77).max() <= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], r"image file is truncated|broken|Truncated"),
        (lambda whole: b"", r"cannot identify image file"),
        (lambda whole: b"<html>not found</html>", r"cannot identify image file"),
    ],
    ids=["half", "empty", "a web page"],
)
def test_a_broken_image_is_said_and_nothing_is_left(
    root: Path, birds: splits.Source, content: Callable[[bytes], bytes], words: str
) -> None:
    path = root / "test" / "wren" / "1.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(KitError, match=r"'birds': image .*/test/wren/1\.png cannot be decoded \(") as caught:
        brought(birds)
    assert re.search(words, str(caught.value))
    assert str(caught.value).endswith("Take it out, or save it anew as PNG or JPEG with 8 bits per colour.")
    assert kept() == []


def test_an_image_of_sixteen_bits_is_refused_as_it_would_become_white(root: Path, birds: splits.Source) -> None:
    Image.fromarray(np.full((20, 20), 30000, np.uint16)).save(root / "test" / "wren" / "1.png")
    with pytest.raises(
        KitError, match=r"wren/1\.png cannot be decoded \(its mode is I;16, more than 8 bits per colour\)"
    ):
        brought(birds)


def test_a_huge_image_is_refused(root: Path, birds: splits.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(KitError, match=r"cannot be decoded \(Image size \(360 pixels\) exceeds limit"):
        brought(birds)


def test_room_is_checked_before_anything_is_decoded(birds: splits.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 0, 1000))
    with pytest.raises(KitError, match=r"no room for the images of 'birds', test"):
        brought(birds)
    assert kept() == []


# A file of numpy


def arrays(split: str = "test", count: int = 6, shape: tuple[int, ...] = (20, 18, 3)) -> dict[str, Any]:
    labels = np.arange(count) % len(CLASSES)
    images = np.broadcast_to((80 * labels).astype(np.uint8).reshape(-1, *(1 for _ in shape)), (count, *shape))
    return {f"{split}_images": images, f"{split}_labels": labels}


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "birds.npz"
    np.savez(path, **arrays("test"), **arrays("train", 9))
    return path


@pytest.mark.parametrize("shape", [(20, 18, 3), (3, 20, 18), (20, 18)], ids=["channels last", "first", "grey"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_a_file_of_numpy_is_decoded(tmp_path: Path, shape: tuple[int, ...], save: Callable[..., None]) -> None:
    save(tmp_path / "birds.npz", **arrays(shape=shape))
    found = brought(source({"npz": str(tmp_path / "birds.npz")}))
    assert found.images.shape == (6, 3, SIDE, SIDE)
    assert np.array_equal(found.images[:, 1, 3, 3], 80 * found.labels)
    assert sorted(found.labels) == [0, 0, 1, 1, 2, 2]
    assert not [name for name in kept() if "unpacked" in name]


def test_two_processes_decode_a_file_of_numpy(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "CHUNK", 2)
    found = brought(source({"npz": str(npz)}), "train", workers=2)
    assert np.array_equal(found.images[:, 1, 3, 3], 80 * found.labels)


def test_a_file_of_numpy_is_known_by_its_content(npz: Path) -> None:
    given = source({"npz": str(npz)})
    before = [splits.fingerprint(given, which) for which in ("train", "test")]
    assert before[0] != before[1]
    assert (splits.counted(given, "train"), splits.counted(given, "test")) == (9, 6)
    np.savez(npz, **arrays("test", 9), **arrays("train", 9))
    assert splits.fingerprint(given, "test") != before[1]


def test_a_file_of_numpy_may_do_without_training_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "birds.npz", **arrays())
    given = source({"npz": str(tmp_path / "birds.npz")})
    assert splits.counted(given, "train") == 0
    with pytest.raises(KitError, match=r"no training images.*there is not the array train_images in .*birds\.npz"):
        brought(given, "train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_images": None}, r"has no array 'test_images', but test_labels\. Add it\."),
        ({"test_labels": None}, r"has no array 'test_labels', but test_images\. Add it\."),
        (
            {"test_images": np.zeros((6, 20, 18, 3))},
            r"is \(6, 20, 18, 3\) float64\. Images must be uint8 from 0 to 255",
        ),
        ({"test_images": np.zeros((6, 400), np.uint8)}, r"is \(6, 400\) uint8\. Images must be"),
        ({"test_images": np.zeros((6, 20, 18, 4), np.uint8)}, r"is \(6, 20, 18, 4\) uint8\. Images must be"),
        ({"test_images": np.zeros((0, 20, 18, 3), np.uint8)}, r"is \(0, 20, 18, 3\) uint8\. Images must be"),
        ({"test_labels": np.arange(5) % 3}, r"test_labels in .* is \(5,\) int64, but there are 6 images\. Give one"),
        ({"test_labels": np.zeros(6)}, r"test_labels in .* is \(6,\) float64, but there are 6 images\. Give one whole"),
        ({"test_labels": np.array(["robin"] * 6)}, r"test_labels in .* is \(6,\) <U5, but there are"),
        (
            {"test_labels": np.array([1, 2, 3, 1, 2, 3])},
            r"numbers from 1 to 3, but the classes are 0 to 2\. A label is",
        ),
        ({"test_labels": np.array([0, 1, -1, 0, 1, 2])}, r"numbers from -1 to 2, but the classes are 0 to 2\."),
        ({"test_labels": np.zeros(6, int)}, r"classes without an image in test_labels of .*: house sparrow; wren\."),
    ],
    ids=[
        *("no images", "no labels", "floats", "flat", "four channels", "none"),
        *("few", "float labels", "words", "from one", "negative", "empty class"),
    ],
)
def test_a_file_of_numpy_that_does_not_fit_is_said(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    content = {**arrays(), **change}
    np.savez(tmp_path / "birds.npz", **{name: one for name, one in content.items() if one is not None})
    with pytest.raises(KitError, match=words):
        brought(source({"npz": str(tmp_path / "birds.npz")}))
    assert kept() == []


@pytest.mark.parametrize("damage", ["missing", "half", "text", "pickle", "bytes"])
def test_a_damaged_file_of_numpy_is_said(npz: Path, damage: str) -> None:
    given = source({"npz": str(npz)})
    if damage == "missing":
        npz.unlink()
    elif damage == "half":
        npz.write_bytes(npz.read_bytes()[: npz.stat().st_size // 2])
    elif damage == "text":
        npz.write_text("birds")
    elif damage == "pickle":
        np.savez(npz, **{**arrays(), "test_labels": np.array([object()] * 6)}, allow_pickle=True)
    else:  # of the pixels, which the archive has a checksum of
        content = bytearray(npz.read_bytes())
        content[1000] ^= 255
        npz.write_bytes(content)
    with pytest.raises(KitError, match=r"'birds': .*birds\.npz.*(no whole file of numpy\.savez|whole number for each)"):
        brought(given)
    assert not [name for name in kept() if not name.endswith(".sha256")]


# A data set of the hub

CARD = """---
dataset_info:
  splits:
  - {name: train, num_bytes: 1, num_examples: 7000}
  - {name: test, num_bytes: 1, num_examples: 34}
---
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    pytest.importorskip("datasets")
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        yield served


def put_birds(hub: LoopbackHub, count: int = 12, **names: str) -> str:
    import datasets

    labels = [number % 3 for number in range(count)]
    kind = datasets.ClassLabel(names=["Robin", "house_sparrow", "wren"])
    content = {f"data/{split}-0.parquet": table(labels, kind, **names) for split in ("train", "test")}
    return hub.put("dataset", "ann/birds", content)


def test_a_data_set_of_the_hub_is_brought(hub: LoopbackHub) -> None:
    put_birds(hub)
    given = source({"dataset": "ann/birds"})
    found = brought(given)
    assert found.images.shape == (12, 3, SIDE, SIDE)
    assert found.labels.tolist() == [number % 3 for number in range(12)]
    assert splits.is_decoded(given, "test", "")
    assert not splits.is_decoded(given, "train", "")


def test_sizes_of_a_data_set_without_a_card_are_unknown_until_it_is_decoded(hub: LoopbackHub) -> None:
    put_birds(hub)
    given = source({"dataset": "ann/birds"})
    assert splits.counted(given, "test") == 0
    brought(given)
    assert splits.counted(given, "test") == 12


def test_sizes_of_a_data_set_are_those_of_its_card(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    put_birds(hub)
    hub.content("dataset", "ann/birds")["README.md"] = CARD.encode()
    given = source({"dataset": "ann/birds"})
    monkeypatch.setattr(decoded, "filled", None)
    assert [splits.counted(given, which) for which in ("train", "test")] == [5000, 34]


def test_offline_nothing_is_asked_to_count(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert splits.counted(source({"dataset": "ann/birds"}), "test") == 0
    assert not hub.asked


def test_room_is_checked_when_the_number_of_images_is_known(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    put_birds(hub)
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr(decoded, "check_room", lambda folder, wanted, what: asked.append((wanted, what)))
    brought(source({"dataset": "ann/birds"}))
    assert asked[-1] == (12 * 3 * SIDE * SIDE, "the images of 'birds', test")


def test_columns_and_splits_are_found_by_the_names_that_are_given(hub: LoopbackHub) -> None:
    put_birds(hub, image="photo", label="species")
    given = source({"dataset": "ann/birds", "image": "photo", "label": "species", "test": "train"})
    assert len(brought(given).labels) == 12


def test_a_branch_that_is_named_pins_its_commit(hub: LoopbackHub) -> None:
    commit = put_birds(hub)
    assert sources.located(source({"dataset": "ann/birds", "revision": "main"}).hub_task, "test").commit == commit


def test_a_revision_that_is_named_is_taken(hub: LoopbackHub) -> None:
    first = put_birds(hub, 12)
    put_birds(hub, 15)
    old, new = source({"dataset": "ann/birds", "revision": first}), source({"dataset": "ann/birds"})
    assert sources.located(old.hub_task, "test").commit == first
    assert (len(brought(old).labels), len(brought(new).labels)) == (12, 15)


def test_labels_in_another_order_are_refused(hub: LoopbackHub) -> None:
    put_birds(hub)
    given = source({"dataset": "ann/birds"}, ("wren", "house sparrow", "robin"))
    with pytest.raises(KitError, match=r"label 0 of .* means 'Robin', which is class 2 here, so all accuracies would"):
        brought(given)


def test_labels_of_other_names_are_said(hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    put_birds(hub)
    brought(source({"dataset": "ann/birds"}, ("Erithacus", "Passer", "Troglodytes")))
    assert "calls its labels otherwise: 'Robin' is taken for 'Erithacus', 'wren' for 'Troglodytes'." in (
        capsys.readouterr().out
    )
    brought(source({"dataset": "ann/birds"}), "train")
    assert "otherwise" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"label": "species"}, r"has no column 'species', but image, label\. Compare `images` and `classnames` in the"),
        ({"test": "validation"}, r"has no split 'validation', but train, test\. Compare `images`"),
        ({"dataset": "ann/fish"}, r"ann/fish could not be fetched: the hub has no such repository"),
    ],
    ids=["column", "split", "repository"],
)
def test_a_data_set_that_is_not_as_the_file_says_is_said(hub: LoopbackHub, images: dict[str, str], words: str) -> None:
    put_birds(hub)
    with pytest.raises(KitError, match=words):
        brought(source({"dataset": "ann/birds", **images}))


def test_a_number_of_classes_that_is_another_is_said(hub: LoopbackHub) -> None:
    put_birds(hub)
    with pytest.raises(KitError, match=r"must have all labels from 0 to 1, but has labels from 0 to 2, .*and 3 names"):
        brought(source({"dataset": "ann/birds"}, ("robin", "wren")))


def test_a_task_called_as_one_of_the_benchmark_has_its_own_sizes(hub: LoopbackHub) -> None:
    put_birds(hub)
    given = source({"dataset": "ann/birds"})
    task = replace(given.hub_task, name="mnist")
    sources.located(task, "train")
    assert decoded.sizes(task) == (0, 0)
