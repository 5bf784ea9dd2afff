"""What is kept is noticed when it is damaged, and made again; folders, disks and locks that do not serve are worded."""

import errno
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest

from mergekit_lite import study
from mergekit_lite.cache import ensure, intact, locked, seal_of, sealed, written_whole
from mergekit_lite.errors import KitError
from mergekit_lite.study import Cell
from mergekit_lite.suites import load_suite, miniature
from mergekit_lite.suites.corruptions import corrupted
from mergekit_lite.suites.miniature.experts import Recipe
from mergekit_lite.suites.suite import Suite

CELL = Cell(method="simple_average", pool=("signs", "scenes"), evaluate=("signs",), corruption="contrast")
OTHER = CELL.model_copy(update={"evaluate": ("scenes",)})


@pytest.fixture(scope="module")
def small() -> Iterator[Suite]:
    """The miniature with few images and hardly trained experts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "SIZES", {"train": 40, "test": 20})
        patch.setattr(miniature, "RECIPE", Recipe(steps=2, learning_rate=1e-3, batch_size=8))
        yield load_suite("miniature", "cpu")


@pytest.fixture(scope="module")
def made(small: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds all that two cells need, and their records."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEKIT_LITE_CACHE", str(folder))
        study.run(small, [CELL, OTHER], workers=1)
    return folder


@pytest.fixture
def kept(made: Path, cache: Path) -> Path:
    """A copy of that cache."""
    return Path(shutil.copytree(made, cache))


def first_bytes(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def zeroed(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def one_bit(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def swapped(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def deleted(path: Path, other: Path) -> None:
    path.unlink()


def folder_instead(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("somebody's")


def unreadable(path: Path, other: Path) -> None:
    path.chmod(0)


def link_loop(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def without_seal(path: Path, other: Path) -> None:
    seal_of(path).unlink(missing_ok=True)


def seal_is_a_folder(path: Path, other: Path) -> None:
    without_seal(path, other)
    seal_of(path).mkdir()


DAMAGES = (
    first_bytes, zeroed, one_bit, swapped, deleted, folder_instead,
    unreadable, link_loop, pipe, without_seal, seal_is_a_folder,
)  # fmt: skip
KINDS = {  # what is damaged, and another of its kind
    "expert": ("experts/miniature/signs-*.safetensors", "experts/miniature/scenes-*.safetensors"),
    "images": ("images/miniature/signs-test-*.images.npy", "images/miniature/scenes-test-*.images.npy"),
    "labels": ("images/miniature/signs-test-*.labels.npy", "images/miniature/scenes-test-*.labels.npy"),
    "corrupted images": ("images/miniature/signs-test-contrast-*.npy", "images/miniature/scenes-test-contrast-*.npy"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_said_and_made_again_with_the_same_result(
    small: Suite, kept: Path, capsys: pytest.CaptureFixture[str], kind: str, damage: Callable[[Path, Path], None]
) -> None:
    (expected,) = study.run(small, [CELL], workers=1)
    (kept / "records" / "miniature" / f"{expected.key}.json").unlink()
    path, other = (
        next(one for one in sorted(kept.glob(pattern)) if ("contrast" in one.name) == ("corrupted" in kind))
        for pattern in KINDS[kind]
    )
    content = path.read_bytes()
    damage(path, other)
    (record,) = study.run(small, [CELL], workers=1)
    assert (record.key, record.accuracy) == (expected.key, expected.accuracy)
    assert path.read_bytes() == content
    assert intact(path)
    said = capsys.readouterr().out.count(f"{path} is damaged: it is made anew.")
    quiet = {"deleted", "without_seal"} | ({"unreadable"} if os.geteuid() == 0 else set())
    assert said == (damage.__name__ not in quiet)


@pytest.mark.parametrize("damage", DAMAGES[:9])
def test_a_damaged_record_is_computed_again(
    small: Suite, kept: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path, Path], None]
) -> None:
    expected, other = study.run(small, [CELL, OTHER], workers=1)
    folder = kept / "records" / "miniature"
    path = folder / f"{expected.key}.json"
    damage(path, folder / f"{other.key}.json")
    (record,) = study.run(small, [CELL], workers=1)
    assert (record.key, record.accuracy) == (expected.key, expected.accuracy)
    assert study.run(small, [CELL], workers=1) == [record]
    quiet = {"deleted"} | ({"unreadable"} if os.geteuid() == 0 else set())
    said = f"The record {path.name} of simple_average under contrast is damaged ("
    assert (said in capsys.readouterr().out) == (damage.__name__ not in quiet)


def test_a_folder_in_a_files_place_is_moved_aside_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("somebody's")
    with written_whole(tmp_path / "a") as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "a").read_text() == "ours"
    assert [one.read_text() for one in tmp_path.glob("a.aside-*/notes.txt")] == ["somebody's"]


def test_an_expert_made_twice_is_the_same_file(small: Suite, made: Path, cache: Path) -> None:
    small.expert("signs")
    (again,) = cache.glob("experts/miniature/*.safetensors")
    assert again.read_bytes() == (made / again.relative_to(cache)).read_bytes()


# --- folders that can only be read, and disks that are full -----------------------------------------------------------


read_only: list[str] = []
"""Folders in which this process may not write: as root, permissions would not hinder it."""


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not read_only or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.chmod"):
        return
    flags = arguments[2] if event == "open" else os.O_WRONLY
    writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writing and str(arguments[0]).startswith(tuple(read_only)):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))


sys.addaudithook(refuse)


@pytest.fixture
def only_read(kept: Path) -> Iterator[Path]:
    """A whole cache on a read-only file system."""
    read_only.append(str(kept))
    yield kept
    read_only.clear()


def test_a_cache_that_can_only_be_read_serves_as_long_as_it_holds_everything(small: Suite, only_read: Path) -> None:
    first, second = study.run(small, [CELL, OTHER], workers=1)
    assert first.average > 0 < second.average
    assert small.expert("signs")["conv1.weight"].shape == small.base["conv1.weight"].shape
    assert len(small.split("signs", "test").labels) == 20
    assert len(corrupted(small, "contrast").split("signs", "test").images) == 20


def test_what_such_a_cache_lacks_is_worded_before_anything_is_computed(small: Suite, only_read: Path) -> None:
    with pytest.raises(KitError, match=r"records/miniature cannot be written \(Read-only file system\)\. Free some"):
        study.run(small, [CELL.model_copy(update={"seed": 1})], workers=1)
    with pytest.raises(KitError, match=r"images\.npy cannot be written \(Read-only .*; the cache can be elsewhere"):
        small.split("digits", "test")


def test_a_full_disk_is_worded_while_images_are_corrupted(small: Suite, kept: Path) -> None:
    before = sorted(kept.rglob("*.npy"))
    noisy = corrupted(small, "gaussian_noise")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        with pytest.raises(KitError, match=r"gaussian_noise-\w+\.images\.npy cannot be written \(File too large\)"):
            noisy.split("signs", "test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(kept.rglob("*.npy")) == before
    assert not list(kept.rglob("*.tmp"))


def test_a_ledger_that_cannot_be_written_to_is_worded_and_the_records_are_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_LEDGER", str(tmp_path))
    plain = CELL.model_copy(update={"corruption": ""})
    with pytest.raises(KitError, match=r"cannot be added to .* \(Is a directory\)\. The records are kept; name"):
        study.run(fakes.fake_suite(), [plain], workers=1)
    assert len(list(cache.glob("records/fake/*.json"))) == 1


# --- locks ------------------------------------------------------------------------------------------------------------


def test_what_killed_processes_left_half_written_is_swept_under_the_lock(tmp_path: Path) -> None:
    swept = (".a.npy.17.tmp", ".a.npy.sha256.17.tmp", ".b.npy.99.tmp")
    stays = (".c.npy.17.tmp", ".a.npy2.17.tmp", ".a.npy.lock", "a.npy.17.tmp")
    for name in (*swept, *stays):
        (tmp_path / name).touch()
    with locked(tmp_path / "a.npy", tmp_path / "b.npy"):
        assert {one.name for one in tmp_path.iterdir()} == set(stays)


def test_of_two_that_need_a_file_one_makes_it(tmp_path: Path) -> None:
    path, made = tmp_path / "a", []

    def make() -> None:
        time.sleep(0.2)
        made.append(threading.get_ident())
        with sealed(path) as temporary:
            temporary.write_text("once")

    threads = [threading.Thread(target=ensure, args=(make, path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), path.read_text()) == (1, "once")
