"""Which files of a folder, or of a repository, hold the weights, and which ones belong to them."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mergekit_lite.errors import KitError, shown
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three

FIRST = (
    *("model.safetensors", "model.safetensors.index.json"),  # in the order of transformers and timm
    "open_clip_model.safetensors",
    "adapter_model.safetensors",  # refused by its name, see `chosen`
)
PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")

COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe")
"""Suffixes of what lies beside weights and belongs to them: configuration, tokenizer, preprocessing."""

INDEX = ".safetensors.index.json"


def chosen(names: Collection[str], where: str) -> str:
    """Return which of the files called `names` holds the weights, or the index of the files that do.

    Names that libraries give go first: ``model.safetensors``, an index, open_clip's; then the only safetensors file
    there is; then pickles, in the same way.

    Args:
        names: of the files in one folder.
        where: what folder it is, for the error.

    Raises:
        KitError: none does, or several could.
    """
    if "adapter_model.safetensors" in names and not set(FIRST[:2]) & set(names):
        raise KitError(
            f"{where} holds an adapter (adapter_model.safetensors), not a model. Merge it into its base first, with "
            "`merge_and_unload()` of the `peft` library, and name the folder of the result."
        )
    for name in FIRST:
        if name in names:
            return name
    for group in (
        [name for name in names if name.endswith(INDEX)],
        [name for name in names if name.endswith(".safetensors")],
        [name for name in PICKLES if name in names],
        [name for name in names if name.endswith(PICKLED) and name != "training_args.bin"],
    ):
        if len(group) == 1:
            return group[0]
        if len(group) > 1:
            if all(re.search(r"-\d+-of-\d+\.safetensors$", name) for name in group):
                raise KitError(
                    f"{where} has a model in several files, {first_three(sorted(group))}, but no index of them. Fetch "
                    "the whole model again, with model.safetensors.index.json."
                )
            raise KitError(
                f"{where} has {len(group)} files that could be the model: {first_three(sorted(group))}. "
                "Name the one that is meant."
            )
    if any(name.endswith(".bin.index.json") for name in names):
        raise KitError(
            f"{where} has its weights in several pickles. Load the model with its library and call "
            "`save_pretrained(folder)`, which writes safetensors; then name that folder."
        )
    there = first_three(sorted(map(spelt, names))) or "nothing at all"
    raise KitError(
        f"{where} holds no weights, but {there}. Name the folder with model.safetensors, or the file itself."
    )


def companions(names: Collection[str]) -> list[str]:
    """Return which files beside the weights are to be copied with them: neither weights, indices nor a card."""
    return sorted(
        name for name in names if name.endswith(COMPANIONS) and not name.endswith((".index.json", "trainer_state.json"))
    )


def shards(index: Path) -> dict[str, str]:
    """Return name of a tensor -> name of the file it is in, by an index as transformers writes it.

    Raises:
        KitError: it is damaged, or names a file that is missing or lies in another folder.
    """
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
        listed = content["weight_map"]
        if not isinstance(listed, Mapping) or not listed or not all(isinstance(file, str) for file in listed.values()):
            raise TypeError("`weight_map` must name a file for each tensor")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise KitError(
            f"{index} is no index of weights ({type(error).__name__}: {spelt(error)}). Fetch or save the model again."
        ) from error
    for file in dict.fromkeys(listed.values()):
        if file in (".", "..") or PurePosixPath(file).name != file or "\\" in file:
            raise KitError(
                f"{index} names the file {shown(file)}, which lies in another folder. Files of a model lie beside its "
                "index: nothing was read. Get the model from its authors again."
            )
        if not (index.parent / file).is_file():
            raise KitError(
                f"{index} names the file {spelt(file)}, which is not there. Fetch the whole model again, or copy the "
                "missing file beside the index."
            )
        if not file.endswith(".safetensors"):
            raise KitError(
                f"{index} names the file {spelt(file)}, which is not called safetensors. Save the model again with its "
                "own library."
            )
    return dict(listed)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; Python's own reader would take the last of two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"it has '{twice}' twice")
    return found
