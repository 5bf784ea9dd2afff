"""The real data sets, served by a small hub on this machine: quirks, checks, faults, and what is said about them."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damages import made_a_folder, made_a_loop
from loopback_data import card, connect, named, put_data, table
from loopback_hub import LoopbackHub, loopback_hub

from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import hub as weights
from mergekit_lite.suites.clip import hub_data, sources
from mergekit_lite.suites.clip.benchmark import HubTask, hub_tasks
from mergekit_lite.suites.clip.labels import NAMED_LIKE_THE_PROMPTS, check_labels, label_numbers, plain

pytest.importorskip("datasets")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as served:
        yield served


@pytest.fixture
def pauses(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    return connect(hub, monkeypatch, tmp_path)


def task(name: str) -> HubTask:
    return hub_tasks()[name]


def put_mnist(hub: LoopbackHub, kind: object = None, **columns: str) -> str:
    labels = [*range(10)] * 2
    files = {f"data/{split}-0.parquet": table(labels, kind or named("mnist"), **columns) for split in ("train", "test")}
    return hub.put("dataset", "ylecun/mnist", files)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(
    "name", ["mnist", "svhn", "pcam", "fer2013", "cifar100", "food101", "eurosat"], ids=lambda name: name
)
def test_each_layout_is_brought_to_images_and_labels(hub: LoopbackHub, name: str) -> None:
    put_data(hub, name)
    for which, repeats in (("test", 2), ("train", 1)):
        dataset = hub_data.labelled(task(name), which)  # type: ignore[arg-type]
        once = [*range(len(task(name).classnames))]
        assert dataset.column_names == ["image", "label"]
        assert dataset[0]["image"].size == (24, 20)
        assert label_numbers(dataset, task(name)).tolist() == (once * 2 if repeats == 2 else once[::-1])


@pytest.mark.usefixtures("pauses")
def test_only_the_wanted_split_is_downloaded(hub: LoopbackHub) -> None:
    put_data(hub, "eurosat")
    hub_data.labelled(task("eurosat"), "test")
    content = [path for method, path, _ in hub.asked if method == "GET" and path.startswith("cdn/")]
    assert len(content) == 1
    assert "data/test-" in content[0]


@pytest.mark.usefixtures("pauses")
def test_the_first_answer_pins_the_commit(hub: LoopbackHub) -> None:
    first = put_mnist(hub)
    assert sources.located(task("mnist"), "test").commit == first
    hub.put("dataset", "ylecun/mnist", {"data/test-0.parquet": b"not what it was"})
    assert sources.located(task("mnist"), "test").commit == first
    assert len(hub_data.labelled(task("mnist"), "test")) == 20


def test_what_was_downloaded_is_read_without_asking_the_hub(
    hub: LoopbackHub, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    put_data(hub, "mnist")
    hub_data.labelled(task("mnist"), "test")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(hub_data.labelled(task("mnist"), "test")) == 20
    assert hub.asked == []
    with pytest.raises(KitError, match=r"was not fetched, and HF_HUB_OFFLINE forbids.*fetch SUITE --tasks dtd"):
        hub_data.labelled(task("dtd"), "test")


@pytest.mark.usefixtures("pauses")
def test_a_renamed_column_is_said_with_the_columns_there_are(hub: LoopbackHub) -> None:
    put_mnist(hub, label="digit")
    with pytest.raises(KitError, match=r"'mnist': .*has no column 'label', but image, digit\. The data set may"):
        hub_data.labelled(task("mnist"), "test")


@pytest.mark.usefixtures("pauses")
def test_a_column_that_contradicts_the_card_is_said(hub: LoopbackHub) -> None:
    put_data(hub, "food101")
    content = hub.content("dataset", "ethz/food101")
    content["data/validation-00000-of-00001.parquet"] = table([*range(101)], named("food101"), label="dish")
    with pytest.raises(KitError, match=r"'food101': .*split validation.* has no column 'label', but image, dish"):
        hub_data.labelled(task("food101"), "test")


@pytest.mark.usefixtures("pauses")
def test_labels_in_another_order_are_refused(hub: LoopbackHub) -> None:
    import datasets

    names = [*"0123456798"]
    put_mnist(hub, datasets.ClassLabel(names=names))
    with pytest.raises(KitError, match=r"label 8 of .* means '9', which is class 9 here, so all accuracies would be"):
        hub_data.labelled(task("mnist"), "test")


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_split": "training"}, r"has no split 'training', but train, test\."),
        ({"config": "large"}, r"ylecun/mnist could not be fetched: .*large.* not found.*small"),
        ({"dataset": "nobody/mnist"}, r"nobody/mnist could not be fetched: the hub has no such repository"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub: LoopbackHub, change: dict[str, str], words: str) -> None:
    put_mnist(hub)
    if "config" in change:
        rows = table([*range(10)], named("mnist"))
        files = {f"small/{split}-0.parquet": rows for split in ("train", "test")}
        hub.put("dataset", "ylecun/mnist", {**files, "README.md": card(small=("train", "test"))})
    with pytest.raises(KitError, match=words):
        sources.located(replace(task("mnist"), **change), "train")  # type: ignore[arg-type]


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("name", ["emnist_letters", "kmnist"])
def test_a_configuration_is_found_by_its_name_and_not_missed_where_there_is_none(
    hub: LoopbackHub, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_data(hub, name)
    assert [file.path for file in sources.located(task(name), "test").files] == [
        f"{task(name).config}/test-00000-of-00001.parquet"
    ]
    labels = [*range(len(task(name).classnames))]
    rows = table(labels, named(name))
    hub.put("dataset", "someone/copy", {"data/train-0.parquet": rows, "data/test-0.parquet": rows})
    files = sources.located(replace(task(name), dataset="someone/copy"), "test").files
    assert [file.path for file in files] == ["data/test-0.parquet"]
    assert f"someone/copy has no configuration '{task(name).config}', but one only" in capsys.readouterr().out


@pytest.mark.usefixtures("pauses")
def test_a_missing_file_is_said(hub: LoopbackHub) -> None:
    put_mnist(hub)
    source = sources.located(task("mnist"), "test")
    del hub.content("dataset", "ylecun/mnist")["data/test-0.parquet"]
    with pytest.raises(KitError, match=r"data/test-0.parquet of the data set ylecun/mnist could not .*no such file"):
        hub_data.downloaded(task("mnist"), source)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_short_trouble_of_the_hub_is_waited_for(hub: LoopbackHub, pauses: list[float], status: int) -> None:
    put_mnist(hub)
    hub.fail("api/datasets/ylecun/mnist", status=status, times=1)
    hub.fail("cdn/", status=status, times=1, methods=("GET",))
    assert len(hub_data.labelled(task("mnist"), "test")) == 20
    assert pauses


@pytest.mark.parametrize(("status", "words"), [(429, "limit of requests is reached"), (503, "the hub has trouble")])
def test_a_long_trouble_of_the_hub_is_explained(hub: LoopbackHub, pauses: list[float], status: int, words: str) -> None:
    put_mnist(hub)
    hub.fail("ylecun/mnist", status=status, times=10_000)
    with pytest.raises(KitError, match=rf"ylecun/mnist could not be fetched: .*{words}.*it resumes where it stopped"):
        hub_data.labelled(task("mnist"), "test")
    assert pauses


@pytest.mark.usefixtures("pauses")
def test_a_download_that_breaks_off_resumes_where_it_stopped(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # bytes, for 10 MB
    put_mnist(hub)
    hub.fail("cdn/", cut=1000)
    assert len(hub_data.labelled(task("mnist"), "test")) == 20
    ranges = [wanted for method, path, wanted in hub.asked if method == "GET" and path.startswith("cdn/")]
    assert ranges == [None, "bytes=1000-"]


@pytest.mark.usefixtures("pauses")
def test_after_an_interruption_only_the_files_that_are_missing_are_fetched(hub: LoopbackHub) -> None:
    parts = {f"data/test-0000{part}-of-00003.parquet": table([*range(10)], named("mnist")) for part in range(3)}
    hub.put("dataset", "ylecun/mnist", parts)
    hub.fail("test-00002", status=404, times=100)
    with pytest.raises(KitError, match="test-00002-of-00003"):
        hub_data.labelled(task("mnist"), "test")
    hub.faults.clear()
    hub.asked.clear()
    assert len(hub_data.labelled(task("mnist"), "test")) == 30
    assert {path.rpartition("/")[2] for _, path, _ in hub.asked} == {"test-00002-of-00003.parquet"}


@pytest.mark.usefixtures("pauses")
def test_wrong_content_is_found_removed_and_fetched_anew(hub: LoopbackHub) -> None:
    put_mnist(hub)
    hub.fail("cdn/", spoil=True)
    with pytest.raises(KitError, match=r"data/test-0.parquet .* came with another content than the hub announces"):
        hub_data.labelled(task("mnist"), "test")
    assert len(hub_data.labelled(task("mnist"), "test")) == 20


@pytest.mark.usefixtures("pauses")
def test_what_was_damaged_on_the_disk_is_found_and_fetched_anew(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    put_mnist(hub)
    source = sources.located(task("mnist"), "test")
    (path,) = hub_data.downloaded(task("mnist"), source)
    content, written = path.read_bytes(), path.stat()
    path.resolve().write_bytes(bytes([255 - content[0]]) + content[1:])
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    weights._digest.cache_clear()  # as in another process
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KitError, match=rf"what the hub lists for data/test-0.* Delete {path.resolve()}, unset HF_HUB"):
        hub_data.downloaded(task("mnist"), source)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub_data.downloaded(task("mnist"), source)[0].read_bytes() == content
    assert "is damaged: it is fetched anew" in capsys.readouterr().out


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"rows"', b'"sows"').replace(b'"bytes": ', b'"bytes": 1'))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def swapped(path: Path) -> None:
    """The other split's file with its seal."""
    other = sources.place(task("mnist"), "train")
    for ending in ("", ".sha256"):
        path.with_name(path.name + ending).write_bytes(other.with_name(other.name + ending).read_bytes())


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(
    "damage",
    [zeroed, flipped, truncated, Path.unlink, made_a_folder, made_a_loop, swapped],
    ids=lambda one: one.__name__,
)
def test_a_damaged_note_of_where_a_split_lies_is_asked_for_again_at_the_same_commit(
    hub: LoopbackHub, damage: Callable[[Path], None]
) -> None:
    put_mnist(hub)
    before = sources.located(task("mnist"), "test")
    put_mnist(hub, label="digit")  # the hub moves on
    path = sources.place(task("mnist"), "test")
    damage(path)
    assert sources.located(task("mnist"), "test") == before
    assert sources.known_source(task("mnist"), "test") == before


@pytest.mark.usefixtures("pauses")
def test_names_in_a_data_set_cannot_move_the_cursor(hub: LoopbackHub) -> None:
    put_mnist(hub, label="\x1b[2Jdigit")
    with pytest.raises(KitError, match=r"but image, \\x1b\[2Jdigit\.") as told:
        hub_data.labelled(task("mnist"), "test")
    assert str(told.value).isprintable()
    with pytest.raises(KitError, match=r"\\x1b\[2J") as told:
        check_labels(task("mnist"), "x", kind(*[f"\x1b[2J{place}c" for place in range(10)]), np.arange(10))
    assert str(told.value).isprintable()


@pytest.mark.usefixtures("pauses")
def test_too_small_a_disk_is_said_before_anything_is_downloaded(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_mnist(hub)
    source = sources.located(task("mnist"), "test")
    hub.asked.clear()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(
        KitError, match=r"no room for downloading ylecun/mnist.* too few\. Choose fewer tasks, or set M"
    ):
        hub_data.downloaded(task("mnist"), source)
    assert hub.asked == []


def test_without_the_library_its_installation_is_said(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(KitError, match=r"pip install 'mergekit-lite\[real\]'"):
        hub_data.labelled(task("mnist"), "test")


def kind(*names: str) -> object:
    return type("ClassLabel", (), {"names": list(names)})


def test_class_names_are_compared_without_spelling() -> None:
    assert plain("T - shirt / top") == plain("t_shirt_TOP") == "tshirttop"
    for entry in hub_tasks().values():
        assert len({plain(name) for name in entry.classnames}) == len(entry.classnames), entry.name
    assert set(hub_tasks()) >= NAMED_LIKE_THE_PROMPTS
    food = task("food101")
    names = [name.upper().replace(" ", "-") for name in food.classnames]
    assert check_labels(food, "x", kind(*names), np.arange(101)) == 101


def test_names_unlike_the_prompts_are_refused_only_where_they_should_be_alike() -> None:
    ten = np.arange(10)
    assert check_labels(task("kmnist"), "x", kind(*[f"o{place}" for place in range(10)]), ten) == 0
    assert check_labels(task("mnist"), "x", None, ten) == 0  # plain numbers: their count is all there is
    with pytest.raises(KitError, match=r"of the 10 label names of x \('c0', 'c1', ...\) only 0 are class names here"):
        check_labels(task("mnist"), "x", kind(*[f"c{place}" for place in range(10)]), ten)


@pytest.mark.parametrize("labels", [[*range(9)], [*range(11)], [*range(1, 11)], []])
def test_every_class_must_occur_and_no_other(labels: list[int]) -> None:
    with pytest.raises(KitError, match="must have all labels from 0 to 9, but has"):
        check_labels(task("mnist"), "x", None, np.asarray(labels, dtype=np.int64))


def test_another_number_of_names_is_refused() -> None:
    with pytest.raises(KitError, match="and 11 names"):
        check_labels(task("mnist"), "x", kind(*[str(place) for place in range(11)]), np.arange(10))


@pytest.mark.usefixtures("pauses")
def test_a_file_that_is_no_table_is_said(hub: LoopbackHub) -> None:
    hub.put("dataset", "ylecun/mnist", {"data/test-0.parquet": b"PAR1 and then something else"})
    with pytest.raises(KitError, match=r"'mnist': the data set ylecun/mnist, split test, .* cannot be read: "):
        hub_data.labelled(task("mnist"), "test")


@pytest.mark.usefixtures("pauses")
def test_labels_that_are_no_numbers_are_refused(hub: LoopbackHub) -> None:
    import datasets

    labels = [str(place) for place in range(10)]
    hub.put("dataset", "ylecun/mnist", {"data/test-0.parquet": table(labels, datasets.Value("string"))})
    with pytest.raises(KitError, match="not whole numbers"):
        hub_data.labelled(task("mnist"), "test")
