"""A hub, a network or a disk that behaves badly: each ends in words, nothing is half-written, the next run goes on."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
from loopback_data import CONFIG, connect, put_data, put_models
from loopback_hub import LoopbackHub, loopback_hub
from rich.console import Console

from mergekit_lite.cache import file_digest, intact
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import fetch as fetching
from mergekit_lite.suites.clip import hub as weights
from mergekit_lite.suites.clip import locks, pins, sources
from mergekit_lite.suites.clip.benchmark import MODELS, hub_tasks

pytest.importorskip("datasets")
SUITE, EXPERT, MNIST = "clip-vit-b-32", "tanganke/clip-vit-base-patch32_mnist", "ylecun/mnist"
NAME = "model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODELS[SUITE].architecture, CONFIG)
    with loopback_hub() as served:
        put_data(served, "mnist")
        put_models(served, "mnist")
        yield served


@pytest.fixture
def pauses(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    return connect(hub, monkeypatch, tmp_path)


def fetch(**options: Any) -> str:
    text = io.StringIO()
    fetching.fetch_suite(SUITE, "mnist", train=False, console=Console(file=text, width=200), **options)
    return text.getvalue()


def downloads(hub: LoopbackHub) -> list[str]:
    return [path for method, path, _ in hub.asked if method == "GET" and path.startswith("cdn/")]


def half_written(folder: Path) -> list[str]:
    """Return the files that were begun and not finished: the hub's library and this one name them differently."""
    return [path.name for path in folder.rglob("*") if path.suffix in (".incomplete", ".tmp", ".part")]


def goes_on(hub: LoopbackHub, folder: Path) -> None:
    """Check that nothing half-written is there, and that a hub without faults is all that it takes."""
    assert half_written(folder) == []
    hub.faults.clear()
    hub.sizes.clear()
    weights.announced.cache_clear()  # as in another process
    pins.completed.cache_clear()
    assert "All is there." in fetch()
    assert half_written(folder) == []


# Limits of requests.


@pytest.mark.parametrize("part", ["api/datasets/ylecun", "cdn/", f"{EXPERT}/resolve"])
def test_a_limit_of_requests_is_waited_for_as_long_as_the_hub_asks(
    hub: LoopbackHub, pauses: list[float], tmp_path: Path, part: str
) -> None:
    hub.fail(part, status=429, times=2, headers={"Retry-After": "40"})
    assert "All is there." in fetch()
    assert max(pauses) in (40, 41)  # huggingface_hub waits a second longer
    assert half_written(tmp_path) == []


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "40"}, {"Retry-After": "999999"}, {"Retry-After": "soon"}])
def test_a_limit_that_never_ends_is_said_in_the_end(
    hub: LoopbackHub, pauses: list[float], tmp_path: Path, headers: dict[str, str]
) -> None:
    for part in (EXPERT, MNIST):
        hub.fail(part, status=429, times=10_000, headers=headers)
    with pytest.raises(KitError, match=r"2 of 3 could not be fetched") as told:
        fetch()
    assert str(told.value).count("the hub's limit of requests is reached (429). Wait some minutes") == 2
    assert pauses
    goes_on(hub, tmp_path)


# Repositories that are closed, gone or elsewhere.


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "GatedRepo", "it is gated: its owner lets in only those who ask. Ask for access"),
        (403, "GatedRepo", "it is gated: its owner lets in only those who ask. Ask for access"),
        (401, "RepoNotFound", "the hub has no such repository, or it is private. Check the name"),
        (404, "RepoNotFound", "the hub has no such repository, or it is private. Check the name"),
        (401, "", r"the hub refused it \(401\). Set HF_TOKEN"),
        (404, "", r"the repository has no such file \(404\)"),
    ],
)
@pytest.mark.parametrize(("what", "part"), [("weights: mnist", EXPERT), ("test images: mnist", MNIST)])
@pytest.mark.usefixtures("pauses")
def test_a_closed_repository_is_said_and_the_rest_is_brought(
    hub: LoopbackHub, tmp_path: Path, what: str, part: str, status: int, code: str, words: str
) -> None:
    headers = {"X-Error-Code": code} if code else {}
    hub.fail(part, status=status, times=10_000, headers=headers)
    with pytest.raises(KitError, match=rf"1 of 3 could not .*\n  {what}: .*{part}.* could not be fetched: {words}"):
        fetch()
    hub.asked.clear()
    goes_on(hub, tmp_path)
    assert all(part in path for path in downloads(hub)), "only what was missing"


@pytest.mark.usefixtures("pauses")
def test_a_repository_that_was_moved_is_followed_and_the_records_say_so(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.move("model", EXPERT, "fusion/mnist-expert")
    hub.move("dataset", MNIST, "lecun/digits")
    said = fetch()
    source = weights.source(EXPERT, NAME)
    assert str(source) == f"{EXPERT}@{source.commit}/{NAME} (the hub has it as fusion/mnist-expert)"
    assert sources.located(hub_tasks()["mnist"], "test").now == "lecun/digits"
    path = re.search(r"\S+\.lock\.json", said)
    assert path
    lock = locks.read(Path(path[0]), SUITE)
    assert (lock.models[EXPERT].now, lock.datasets[MNIST].now) == ("fusion/mnist-expert", "lecun/digits")
    connect(hub, monkeypatch, tmp_path / "other")
    fetch(lock=Path(path[0]))
    assert weights.source(EXPERT, NAME) == source


@pytest.mark.parametrize(("what", "part"), [("weights: mnist", EXPERT), ("test images: mnist", MNIST)])
@pytest.mark.usefixtures("pauses")
def test_a_redirect_loop_is_said(hub: LoopbackHub, tmp_path: Path, what: str, part: str) -> None:
    hub.moved[part] = part
    with pytest.raises(
        KitError, match=rf"{what}: .*{part}.* sends the request on and on, and never to an answer\. Set"
    ):
        fetch()
    hub.moved.clear()
    goes_on(hub, tmp_path)


# Sizes that are not those that come.


@pytest.mark.parametrize("change", [-1, -1000, 1, 10**6])
@pytest.mark.parametrize("name", [NAME, "data/test-00000-of-00001.parquet"])
@pytest.mark.usefixtures("pauses")
def test_a_wrong_size_is_said_with_both_numbers(hub: LoopbackHub, tmp_path: Path, name: str, change: int) -> None:
    kind, repository = ("model", EXPERT) if name == NAME else ("dataset", MNIST)
    size = len(hub.content(kind, repository)[name])  # type: ignore[arg-type]
    hub.sizes[name] = size + change
    words = rf"could not be fetched: {size} bytes arrived, and the hub had announced {size + change}\. Look at the net"
    with pytest.raises(KitError, match=words):
        fetch()
    goes_on(hub, tmp_path)


@pytest.mark.usefixtures("pauses")
def test_a_size_beyond_all_disks_is_said_before_anything_is_downloaded(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.sizes["data/test-00000-of-00001.parquet"] = 10**18
    with pytest.raises(KitError, match=r"no room for what is to be fetched: it takes \d0{9}\.\d\d GB"):
        fetch()
    assert downloads(hub) == []
    hub.sizes.clear()
    for path in (tmp_path / "kit" / "sources").rglob("*mnist-test*"):
        path.unlink()  # as the book says: what the hub said is kept until then
    goes_on(hub, tmp_path)


@pytest.mark.usefixtures("pauses")
def test_a_hub_that_hangs_up_again_and_again_is_said(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail(f"cdn/{EXPERT}", cut=0, times=1000)
    with pytest.raises(KitError, match=rf"{EXPERT}.* could not be fetched: .* does not answer\. Look at the network"):
        fetch()
    goes_on(hub, tmp_path)


# The secure connection.


@pytest.mark.usefixtures("pauses")
def test_a_server_without_tls_is_said_as_such(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    secure = hub.endpoint.replace("http:", "https:")
    monkeypatch.setattr(constants, "ENDPOINT", secure)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", secure + "/{repo_id}/resolve/{revision}/{filename}")
    words = rf"the secure connection to {secure} failed \(.*SSL.*\)\. Look at this machine's clock \(it says \d{{4}}-"
    for call in (
        lambda: weights.downloaded(EXPERT, NAME),
        lambda: weights.source(EXPERT, NAME),
        lambda: sources.located(hub_tasks()["mnist"], "test"),
    ):
        with pytest.raises(KitError, match=words):
            call()


# The disk.


@pytest.mark.parametrize("what", ["a file in its place", "read-only"])
@pytest.mark.usefixtures("pauses")
def test_a_hub_cache_that_cannot_be_written_is_said(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "hub"
    if what == "read-only":  # as a system answers that mounts it so; root meets it too
        make = os.makedirs

        def refused(path: Any, *args: Any, **kwargs: Any) -> None:
            if str(path).startswith(str(folder)):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            make(path, *args, **kwargs)

        monkeypatch.setattr(os, "makedirs", refused)
    else:
        folder.write_text("a file")
    with pytest.raises(KitError, match=r"3 of 3 could not be fetched") as told:
        fetch()
    assert str(told.value).count(f"the folder {folder} cannot be written to. Make it writable or set HF_HOME") == 3
    if what == "read-only":
        monkeypatch.setattr(os, "makedirs", make)
    else:
        folder.unlink()
    goes_on(hub, tmp_path)


@pytest.mark.usefixtures("pauses")
def test_a_read_only_hub_cache_that_holds_everything_serves(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch()

    def refused(path: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "makedirs", refused)
    hub.asked.clear()
    assert weights.downloaded(EXPERT, NAME).is_file()
    assert hub.asked == []


# Half a fetch, and two at once.


def test_offline_with_half_a_fetch_what_lacks_is_said_and_online_it_goes_on(
    hub: LoopbackHub, pauses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    hub.fail(f"cdn/{EXPERT}", status=503, times=10_000)
    hub.fail(f"cdn/datasets/{MNIST}", cut=100, times=10_000)
    with pytest.raises(KitError, match="2 of 3 could not be fetched"):
        fetch()
    assert half_written(tmp_path) == []
    hub.faults.clear()
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KitError, match=r"2 of 3 could not be fetched") as told:
        fetch()
    assert hub.asked == []
    assert re.search(rf"weights: mnist: {EXPERT}/{NAME} .* \(HF_HUB_OFFLINE is set\)\. Unset", str(told.value))
    assert re.search(r"test images: mnist: .* \(HF_HUB_OFFLINE is set\)\.", str(told.value))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    goes_on(hub, tmp_path)
    assert len(downloads(hub)) == 2


REDUCED = """
import json, sys, open_clip
open_clip.factory._MODEL_CONFIGS[{architecture!r}] = json.loads({config!r})
from mergekit_lite.cli import app
app(["fetch", {suite!r}, "--tasks", "mnist", "--workers", "1"])
"""


def test_two_fetches_at_once_on_one_cache_both_end_well(hub: LoopbackHub, tmp_path: Path) -> None:
    code = REDUCED.format(architecture=MODELS[SUITE].architecture, config=json.dumps(CONFIG), suite=SUITE)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MERGEKIT_"))},
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "MERGEKIT_LITE_CACHE": str(tmp_path / "kit"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def begun() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe, text=True)

    for process in [begun(), begun()]:
        said, complaints = process.communicate(timeout=300)
        assert process.returncode == 0, complaints
        assert "All is there." in said
    assert half_written(tmp_path) == []
    assert len(downloads(hub)) == len(set(downloads(hub))) == 4, "each file once"
    large = [path for path in (tmp_path / "hf").rglob("blobs/*") if len(path.name) == 64]
    assert len(large) == 4
    assert all(file_digest(path) == path.name for path in large)
    assert all(intact(path.with_suffix("")) for path in (tmp_path / "kit" / "sources").rglob("*.json.sha256"))
