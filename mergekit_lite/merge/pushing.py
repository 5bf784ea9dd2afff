"""A merged model goes to the Hugging Face hub, into a repository that only its owner sees."""

import re
import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import OfflineModeIsEnabled

from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.hub import bars_in_a_terminal_only
from mergekit_lite.suites.clip.trouble import response
from mergekit_lite.suites.words import spelt

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_repository(name: str) -> None:
    """Check before the work that a model could be pushed to a repository of this name.

    Raises:
        KitError: it is no such name, there is no token, or the hub may not be asked.
    """
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise KitError(f"--push '{spelt(name)}' is no name of a repository. Write ORG/NAME, such as me/merged-vit.")
    if constants.HF_HUB_OFFLINE:
        raise KitError("--push needs the hub, but HF_HUB_OFFLINE is set. Unset it, or push later with `hf upload`.")
    if get_token() is None:
        raise KitError(
            "--push needs a token that may write: run `hf auth login`, or set HF_TOKEN. (Or leave --push out, and push "
            "later with `hf upload`.)"
        )


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder as the model repository `name`, and return its address.

    A repository that is not there yet is made, and private: who may see a model is decided by its licence, and
    opening it later is one click. One that is there gets a commit more, and stays as open as it is.

    Args:
        folder: of the model.
        name: ORG/NAME.

    Raises:
        KitError: the hub refused it or cannot be reached; the folder stays as it is.
    """
    api = HfApi()
    try:
        with bars_in_a_terminal_only():
            api.create_repo(name, private=True, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Merged with mergekit-lite")
    except Exception as error:  # of several libraries
        raise KitError(
            f"The model was merged, but not pushed to {name}: {_reason(error)}. {kept(folder, name)}"
        ) from error
    return f"{api.endpoint}/{name}"


def kept(folder: Path, name: str) -> str:
    """Say where a model is that was not pushed, and how to push it again."""
    return f"It stays in {spelt(folder)}. To push it again: hf upload {name} {shlex.quote(spelt(folder))}"


def _reason(error: Exception) -> str:
    answer = response(error)
    status = None if answer is None else answer.status_code
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub may not be asked (HF_HUB_OFFLINE is set)"
    if status in (401, 403):
        return f"the hub refused it ({status}); the token must be allowed to write there"
    if status is not None:
        return f"the hub answered with an error ({status}: {spelt(error).rstrip('. ')})"
    return f"{type(error).__name__}: {spelt(error)}".rstrip(". ")
