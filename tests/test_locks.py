"""Lock files and pinned commits: what one machine fetched another one fetches to the bit, and takes in every run."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
from loopback_data import CONFIG, connect, put_data, put_models
from loopback_hub import LoopbackHub, loopback_hub
from rich.console import Console
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import benchmark, locks, pins, sources
from mergekit_lite.suites.clip import fetch as fetching
from mergekit_lite.suites.clip import hub as weights
from mergekit_lite.suites.clip.benchmark import MODELS, hub_tasks

pytest.importorskip("datasets")
SUITE, EXPERT, MNIST = "clip-vit-b-32", "tanganke/clip-vit-base-patch32_mnist", "ylecun/mnist"
NAME = "model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, MODELS[SUITE].architecture, CONFIG)
    with loopback_hub() as served:
        connect(served, monkeypatch, tmp_path)
        put_data(served, "mnist", "stl10")
        put_models(served, "mnist", "stl10", "rendered-sst2")
        yield served


def fetch(tasks: str | None = "mnist", **options: Any) -> str:
    text = io.StringIO()
    fetching.fetch_suite(SUITE, tasks, train=False, console=Console(file=text, width=200), **options)
    return text.getvalue()


def another_machine(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have what follows run with empty caches."""
    connect(hub, monkeypatch, folder)


def changed(hub: LoopbackHub) -> None:
    """Give the expert and the data set of MNIST another commit, with other content."""
    put_models(hub, "mnist", "stl10", seed=1)
    put_data(hub, "mnist", times=3)


def locked(said: str) -> Path:
    found = re.search(r"Commits and hashes are in (\S+\.lock\.json); with --lock FILE", said)
    assert found, said
    return Path(found[1])


def test_a_lock_names_all_commits_and_hashes(hub: LoopbackHub, tmp_path: Path) -> None:
    path = locked(fetch())
    assert path == tmp_path / "kit" / "locks" / f"{SUITE}.lock.json"
    lock = locks.read(path, SUITE)
    assert lock.tasks == ["mnist"]
    base, name = benchmark.base_file(MODELS[SUITE])
    for repo, filename in ((base, name), (EXPERT, NAME)):
        found = weights.source(repo, filename)
        assert lock.models[repo].model_dump() == {"commit": found.commit, "files": {filename: found.sha256}, "now": ""}
    splits = [sources.located(hub_tasks()["mnist"], which) for which in ("test", "train")]
    assert lock.datasets[MNIST].commit == splits[0].commit
    assert lock.datasets[MNIST].files == {file.path: file.digest for split in splits for file in split.files}


def test_another_machine_fetches_what_is_locked_and_a_plain_run_takes_it(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    lock = locked(fetch())
    before = weights.source(EXPERT, NAME), sources.located(hub_tasks()["mnist"], "test")
    changed(hub)
    another_machine(hub, monkeypatch, tmp_path / "other")
    again = locked(fetch(None, lock=lock))
    assert again != lock
    assert again.read_bytes() == lock.read_bytes()
    hub.asked.clear()
    weights.announced.cache_clear()  # as in another process
    pins.completed.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (weights.source(EXPERT, NAME), sources.located(hub_tasks()["mnist"], "test")) == before
    assert before[0].commit in str(weights.downloaded(EXPERT, NAME))
    fetch()
    assert hub.asked == []


def test_a_lock_goes_before_what_was_fetched_earlier(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = locked(fetch())
    old = weights.source(EXPERT, NAME), sources.located(hub_tasks()["mnist"], "test")
    changed(hub)
    another_machine(hub, monkeypatch, tmp_path / "other")
    fetch()
    new = weights.source(EXPERT, NAME), sources.located(hub_tasks()["mnist"], "test")
    assert new != old
    fetch(None, lock=lock)
    assert (weights.source(EXPERT, NAME), sources.located(hub_tasks()["mnist"], "test")) == old


def test_a_commit_that_is_gone_is_said_and_nothing_is_pinned(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = locked(fetch())
    commits = locks.read(lock, SUITE)
    changed(hub)
    hub.forget("model", EXPERT)
    hub.forget("dataset", MNIST)
    another_machine(hub, monkeypatch, tmp_path / "other")
    with pytest.raises(KitError, match=r"^Not all that .* names can be had:\n(.*\n){2}Copy HF_HOME") as told:
        fetch(None, lock=lock)
    for repo, commit in ((EXPERT, commits.models[EXPERT].commit), (MNIST, commits.datasets[MNIST].commit)):
        assert f"  {repo}: the repository no longer has the commit {commit}\n" in str(told.value)
    assert not list((tmp_path / "other").rglob("*.safetensors"))
    fetch()  # nothing of the lock is left


def test_another_hash_is_said(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = locked(fetch())
    text = lock.read_text()
    for repo, kind in ((EXPERT, "models"), (MNIST, "datasets")):
        content = json.loads(text)
        name = next(iter(content[kind][repo]["files"]))
        content[kind][repo]["files"][name] = "0" * 64
        lock.write_text(json.dumps(content))
        another_machine(hub, monkeypatch, tmp_path / kind)
        words = rf"{repo}: the hash of {name} at commit .{{40}} is .{{16}}\.\.\., but 0{{16}}\.\.\. is locked"
        with pytest.raises(KitError, match=words):
            fetch(None, lock=lock)
        del content[kind][repo]["files"][name]
        lock.write_text(json.dumps(content))
        with pytest.raises(KitError, match="but it is not in the lock"):
            fetch(None, lock=lock)


def test_tasks_beyond_the_lock_are_said(hub: LoopbackHub) -> None:
    lock = locked(fetch())
    with pytest.raises(KitError, match=r"does not name a commit of .*_stl10, tanganke/stl10\. .* these tasks: mnist\."):
        fetch("mnist,stl10", lock=lock)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"cannot be read \(No such file or directory\)\. Name a file that `mergekit-lite fetch SUITE` wrote"),
        ("", "is no lock file: the whole: Invalid JSON"),
        ("[]", "is no lock file: the whole: "),
        ("{}", "is no lock file: suite: Field required"),
        ('{"suite": "clip-vit-l-14", "tasks": [], "models": {}, "datasets": {}}', "lock file of clip-vit-l-14, not"),
        ('{"suite": "\\u001b[2J", "tasks": [], "models": {}, "datasets": {}}', r"lock file of \\x1b\[2J, not of clip"),
        (
            '{"suite": "clip-vit-b-32", "tasks": [], "models": {"a": {"commit": "..", "files": {}}}, "datasets": {}}',
            "is no lock file: models.a.commit: String should match",
        ),
    ],
)
def test_what_is_no_lock_is_said_on_the_command_line(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "some.lock.json"
    if content is not None:
        path.write_text(content)
    result = CliRunner().invoke(app, ["fetch", SUITE, "--lock", str(path)])
    assert result.exit_code == 1
    assert re.search(words, result.stderr)


def test_a_lock_and_a_dry_run_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="Leave out --lock or --dry-run"):
        fetch(None, lock=tmp_path / "some.lock.json", dry_run=True)


# Commits of which reference/tasks.json knows the first digits.


def test_the_known_commits_belong_to_repositories_that_are_used() -> None:
    used = {entry.dataset for entry in hub_tasks().values()}
    used |= {repo for entry in hub_tasks().values() for repo in entry.experts.values()}
    elsewhere = {repo for repo in benchmark.revisions() if "TA8_mtl" in repo or "tall_masks" in repo}
    assert benchmark.revisions().keys() - elsewhere <= used
    assert all(re.fullmatch("[0-9a-f]{7}", one) for one in benchmark.revisions().values())


def test_a_known_commit_is_completed_once_and_kept(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    first = next(iter(hub.repositories["model", EXPERT]))
    data = next(iter(hub.repositories["dataset", MNIST]))
    for seed in range(1, 4):  # so that the list has several pages
        put_models(hub, "mnist", seed=seed)
        put_data(hub, "mnist", times=2 + seed)
    monkeypatch.setattr(pins, "revisions", lambda: {EXPERT: first[:7], MNIST: data[:7]})
    assert weights.source(EXPERT, NAME).commit == first
    said = fetch()
    assert weights.source(EXPERT, NAME).commit == first
    assert sources.located(hub_tasks()["mnist"], "test").commit == data
    assert first[:7] in said
    lists = [path for _, path, _ in hub.asked if "/commits/" in path]
    assert len(lists) == 4, "two pages for each of the two repositories"
    hub.asked.clear()
    pins.completed.cache_clear()  # as in another process
    assert weights.source(EXPERT, NAME).commit == first
    assert hub.asked == []
    # A copy of the hub's own cache without this library's: the folder's name tells the commit.
    shutil.rmtree(tmp_path / "kit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.source(EXPERT, NAME).commit == first


def test_a_known_commit_that_the_hub_does_not_list_does_not_stop_the_first_run(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pins, "revisions", lambda: {EXPERT: "0123456", MNIST: "0123456"})
    head = list(hub.repositories["model", EXPERT])[-1]
    fetch()
    assert weights.source(EXPERT, NAME).commit == head
    told = capsys.readouterr().out
    for repo in (EXPERT, MNIST):
        words = f"{repo}: commit 0123456 is not to be had, so the present state is taken (the hub does not list it).\n"
        assert told.count(words) == 1
    put_models(hub, "mnist", seed=1)
    pins.completed.cache_clear()
    assert weights.source(EXPERT, NAME).commit == head, "what was taken stays"


def test_a_list_that_cannot_be_had_does_not_stop_the_first_run(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pins, "revisions", lambda: {EXPERT: "0123456"})
    hub.fail("/commits/", status=403, times=1000)
    fetch()
    assert "(the list of commits could not be fetched: the hub refused it (403)." in capsys.readouterr().out


def test_the_first_answer_pins_a_model_whatever_else_is_fetched_later(hub: LoopbackHub) -> None:
    import huggingface_hub

    path = weights.downloaded(EXPERT, NAME)
    put_models(hub, "mnist", seed=1)
    huggingface_hub.hf_hub_download(EXPERT, NAME)  # by another program, which moves `main` in the hub's cache
    assert weights.downloaded(EXPERT, NAME) == path


def test_a_copied_cache_of_the_hub_serves_without_notes(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    lock = locked(fetch())
    another_machine(hub, monkeypatch, tmp_path / "other")
    fetch(None, lock=lock)
    shutil.rmtree(tmp_path / "other" / "kit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.downloaded(EXPERT, NAME).is_file()


# The base in the older of open_clip's two formats.


def test_a_base_without_safetensors_is_read_from_the_pickle(hub: LoopbackHub, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load

    from mergekit_lite.suites.clip import ClipSuite

    repo, name = benchmark.base_file(MODELS[SUITE])
    tensors = load(hub.content("model", repo)[name])
    torch.save(tensors, tmp_path / "base.bin")
    content = (tmp_path / "base.bin").read_bytes()
    hub.put("model", repo, {"open_clip_pytorch_model.bin": content, NAME: b"timm's own, of another form"})
    announced = weights.source(repo, name)
    assert announced.filename == "open_clip_pytorch_model.bin"
    lock = locks.read(locked(fetch()), SUITE)
    assert lock.models[repo].files == {"open_clip_pytorch_model.bin": announced.sha256}
    hub.asked.clear()
    suite = ClipSuite(MODELS[SUITE], torch.device("cpu"))
    assert hub.asked == []
    assert suite.base_hash() == announced.sha256
    assert suite.sources([])["base"] == str(announced) == f"{repo}@{announced.commit}/open_clip_pytorch_model.bin"
    for key, value in suite.base.items():
        assert torch.equal(value, tensors[f"visual.{key}"])


def test_a_base_of_neither_format_is_said(hub: LoopbackHub) -> None:
    repo, name = benchmark.base_file(MODELS[SUITE])
    hub.put("model", repo, {NAME: b"timm's own, of another form"})
    for call in (weights.downloaded, weights.source):
        with pytest.raises(KitError, match=rf"{repo}/{name} could not be fetched: the repository has no such file"):
            call(repo, name)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize("content", [{"visual.proj": Harmful()}, {"visual.proj": 1}, {}, 3], ids=type)
def test_a_pickle_of_something_else_is_said_and_nothing_in_it_runs(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: object
) -> None:
    import torch

    from mergekit_lite.suites.clip import ClipSuite

    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "base.bin")
    repo, _ = benchmark.base_file(MODELS[SUITE])
    hub.put("model", repo, {"open_clip_pytorch_model.bin": (tmp_path / "base.bin").read_bytes()})
    with pytest.raises(KitError, match=r"open_clip_pytorch_model.bin does not hold the weights of ViT-B-32-quickgelu"):
        ClipSuite(MODELS[SUITE], torch.device("cpu"))
    assert not (tmp_path / "harmed").exists()
