"""Fetching ahead of time: sizes first, then what is missing or damaged, then a table, then no network is needed."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
from loopback_data import CONFIG, SIDE, connect, put_data, put_models
from loopback_hub import LoopbackHub, loopback_hub
from rich.console import Console
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import decoded
from mergekit_lite.suites.clip import fetch as fetching
from mergekit_lite.suites.clip.benchmark import MODELS, hub_tasks
from mergekit_lite.suites.clip.fetch import Item

pytest.importorskip("datasets")
SUITE, TASKS = "clip-vit-b-32", "mnist,pcam"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODELS[SUITE].architecture, CONFIG)
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        put_data(served, "mnist", "pcam")
        put_models(served, "mnist", "pcam")
        yield served


def fetch(tasks: str | None = TASKS, **options: Any) -> tuple[list[Item], str]:
    text = io.StringIO()
    items = fetching.fetch_suite(SUITE, tasks, console=Console(file=text, width=200), **options)
    return items, text.getvalue()


def downloads(hub: LoopbackHub) -> list[str]:
    return [path for method, path, _ in hub.asked if method == "GET" and path.startswith("cdn/")]


def test_weights_and_images_are_brought_and_listed(hub: LoopbackHub) -> None:
    items, said = fetch()
    assert [item.what for item in items] == [
        *("weights: base", "weights: mnist", "weights: pcam"),
        *("test images: mnist", "train images: mnist", "test images: pcam", "train images: pcam"),
    ]
    assert {item.state for item in items} == {"there"}
    assert len(downloads(hub)) == 7
    for item in items:
        assert re.search(rf"{item.what} .*{re.escape(item.where)}.*{item.commit[:7]}.*there.*{item.content[:8]}", said)
    assert "GB to download" in said.splitlines()[0]
    assert "With HF_HUB_OFFLINE=1 nothing is asked of the hub any more." in said


def test_a_dry_run_tells_sizes_and_downloads_nothing(hub: LoopbackHub) -> None:
    items, said = fetch(dry_run=True)
    assert downloads(hub) == []
    assert {item.state for item in items} == {"missing"}
    base = next(iter(hub.content("model", items[0].where).values()))
    assert items[0].download == len(base)
    assert items[3].decoded == decoded.predicted_bytes(hub_tasks()["mnist"], "test", SIDE)
    assert "missing" in said


def test_training_images_can_be_left_out(hub: LoopbackHub) -> None:
    items, _ = fetch("mnist", train=False)
    assert [item.what for item in items] == ["weights: base", "weights: mnist", "test images: mnist"]
    assert not [path for path in downloads(hub) if "train" in path]


def test_a_second_fetch_downloads_nothing(hub: LoopbackHub) -> None:
    fetch()
    hub.asked.clear()
    items, said = fetch()
    assert hub.asked == []
    assert {item.state for item in items} == {"there"}
    assert "0.00 GB to download" in said


def test_one_failure_is_told_at_the_end_and_the_next_fetch_resumes(hub: LoopbackHub) -> None:
    hub.fail("clip-vit-base-patch32_mnist", status=503, times=10_000)
    hub.fail("1aurent/PatchCamelyon/resolve", status=404, times=10_000)
    with pytest.raises(KitError, match="could not be fetched from the hub; what was fetched is kept") as caught:
        fetch()
    assert "weights: mnist: tanganke/clip-vit-base-patch32_mnist" in str(caught.value)
    assert "the hub has trouble (503)" in str(caught.value)
    assert "train images: pcam" in str(caught.value)
    hub.faults.clear()
    hub.asked.clear()
    items, _ = fetch()
    assert {item.state for item in items} == {"there"}
    names = {path.partition("/resolve/")[0].removeprefix("cdn/") for path in downloads(hub)}
    assert names == {"tanganke/clip-vit-base-patch32_mnist", "datasets/1aurent/PatchCamelyon"}


def test_weights_that_arrive_damaged_are_not_kept(hub: LoopbackHub) -> None:
    hub.fail("cdn/tanganke/clip-vit-base-patch32_mnist", spoil=True)
    with pytest.raises(KitError, match=r"1 of 3 .*\n  weights: mnist: .*arrived damaged"):
        fetch("mnist", train=False)
    items, _ = fetch("mnist", train=False)
    assert {item.state for item in items} == {"there"}


@pytest.mark.parametrize("dry_run", [True, False])
def test_offline_what_was_not_fetched_is_said(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    from huggingface_hub import constants

    fetch("mnist", train=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch("mnist", train=False)
    with pytest.raises(KitError, match=r"HF_HUB_OFFLINE(.|\n)*test images: pcam: .*HF_HUB_OFFLINE forbids"):
        fetch("mnist, pcam,mnist", train=False, dry_run=dry_run)


def test_weights_that_were_damaged_on_disk_are_fetched_again(hub: LoopbackHub, tmp_path: Path) -> None:
    fetch("mnist", train=False)
    path = next((tmp_path / "hub").glob("models--tanganke--*/blobs/*"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([255 - content[-1]]))
    hub.asked.clear()
    fetch("mnist", train=False)
    assert len(downloads(hub)) == 1
    assert path.read_bytes() == content


def test_images_that_were_damaged_on_disk_are_decoded_again(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("mnist", train=False)
    path = next((tmp_path / "kit" / "images" / "clip").glob("mnist-test-*.images.npy"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([255 - content[-1]]))
    fetch("mnist", train=False)
    assert path.read_bytes() == content
    assert "is damaged" in capsys.readouterr().out


def test_too_small_a_disk_is_said_first(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(KitError, match=r"no room for what is to be fetched.* GB too few\. Choose fewer tasks"):
        fetch()
    assert downloads(hub) == []


@pytest.mark.parametrize(
    ("suite", "tasks", "words"),
    [
        ("clip-vit-b32", "eight", "There is no suite 'clip-vit-b32'. Did you mean 'clip-vit-b-32'? Suites that are f"),
        ("miniature", "eight", "The miniature needs nothing from the hub."),
        ("clip-vit-b-32", "eigth", "The benchmark has no task 'eigth'. Did you mean 'eight'? Tasks: sun397, "),
        ("clip-vit-b-32", "mnist,dtt", "The benchmark has no task 'dtt'. Did you mean 'dtd'?"),
        ("clip-vit-b-32", ",", "No task is named."),
    ],
)
def test_names_that_do_not_exist_are_said_on_the_command_line(suite: str, tasks: str, words: str) -> None:
    result = CliRunner().invoke(app, ["fetch", suite, "--tasks", tasks])
    assert result.exit_code == 1
    assert words in result.stderr
