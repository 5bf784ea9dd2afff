"""`merge --push`: the merged folder arrives on a hub, private; if it does not, the folder stays and that is said."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from loopback_upload import TOKEN, WritableHub, writable_hub
from safetensors.torch import save_file
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.merge import pushing

TWO = ("--base", "base", "--expert", "a=a", "--expert", "b=b", "-o", "merged")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """A hub that one may write to, and models to merge in the current folder."""
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        (tmp_path / name).mkdir()
        save_file({"layer.weight": torch.randn(4, 3, generator=generator)}, tmp_path / name / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with writable_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["merge", "task_arithmetic", *TWO, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_merged_model_is_pushed_whole_into_a_private_repository(hub: WritableHub, tmp_path: Path) -> None:
    code, said, complaint = call("--push", "me/merged")
    assert (code, complaint) == (0, "")
    assert said.endswith(f"Merged: merged\nPushed: {hub.endpoint}/me/merged\n")
    there = hub.content("model", "me/merged")
    assert there == {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    assert set(there) == {"model.safetensors", "config.json", "README.md"}
    assert hub.private == {"me/merged": True}
    assert hub.messages == ["Merged with mergekit-lite"]
    assert set(hub.cards) == {there["README.md"].decode()}


def test_a_repository_that_is_there_gets_a_commit_more_and_stays_as_open_as_it_is(hub: WritableHub) -> None:
    hub.put("model", "me/merged", {"notes.md": b"mine"})
    assert call("--push", "me/merged")[0] == 0
    assert set(hub.content("model", "me/merged")) == {"notes.md", "model.safetensors", "config.json", "README.md"}
    assert hub.private == {}
    assert len(hub.repositories["model", "me/merged"]) == 2


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("repos/create", 403, "the hub refused it (403); the token must be allowed to write there"),
        ("preupload", 401, "the hub refused it (401)"),
        ("/commit/", 500, "the hub answered with an error (500: "),
    ],
)
def test_a_failed_push_leaves_the_merged_folder_and_says_so(
    part: str, status: int, words: str, hub: WritableHub, tmp_path: Path
) -> None:
    hub.fail(part, status=status, times=99)
    code, said, complaint = call("--push", "me/merged")
    assert code == 1
    assert "Pushed" not in said
    assert f"Error: The model was merged, but not pushed to me/merged: {words}" in complaint
    assert complaint.endswith("It stays in merged. To push it again: hf upload me/merged merged\n")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_a_push_that_is_interrupted_leaves_the_merged_folder_and_says_so(
    hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*some: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", interrupted)
    code, _, complaint = call("--push", "me/merged")
    assert code == 130
    assert complaint == "Interrupted. It stays in merged. To push it again: hf upload me/merged merged\n"
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_token_that_may_not_write_is_refused(hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    code, _, complaint = call("--push", "me/merged")
    assert code == 1
    assert "the hub refused it (401)" in complaint


@pytest.mark.parametrize("name", ["merged", "me/", "me/a/b", "me/mer ged", "me/..", "-me/x", ""])
def test_a_name_that_is_no_repositorys_is_refused_before_the_work(name: str, hub: WritableHub, tmp_path: Path) -> None:
    code, said, complaint = call("--push", name)
    assert (code, said) == (1, "")
    assert f"--push '{name}' is no name of a repository. Write ORG/NAME" in complaint
    assert not (tmp_path / "merged").exists()
    assert not hub.asked


def test_without_a_token_or_offline_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pushing, "get_token", lambda: None)
    with pytest.raises(KitError, match="--push needs a token that may write: run `hf auth login`, or set HF_TOKEN"):
        pushing.check_repository("me/merged")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KitError, match="--push needs the hub, but HF_HUB_OFFLINE is set"):
        pushing.check_repository("me/merged")


def test_a_base_of_the_hub_is_named_in_the_card(
    hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    files = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    commit = hub.put("model", "org/base", files)
    result = CliRunner().invoke(
        app, ["merge", "task_arithmetic", "--base", "hf:org/base", "--expert", "a=a", "--expert", "b=b", "-o", "merged"]
    )
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.to_dict()["base_model"] == ["org/base"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert f"| base | `org/base@{commit}` |" in text
    assert "--base hf:org/base" in text
