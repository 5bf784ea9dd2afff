"""The card of a merged model: README.md as the hub reads it, with all that is needed to make the model again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from mergekit_lite.machine import versions
from mergekit_lite.merge.jobs import Job
from mergekit_lite.merge.plan import copied, dtypes, names_words, notes
from mergekit_lite.suites.words import spelt

LIBRARIES = {"open_clip_config.json": "open_clip"}
"""A file beside the weights -> the library that loads them."""


def model_card(job: Job, digests: Sequence[str], command: str) -> str:
    """Return the text of README.md.

    Args:
        job: what was merged.
        digests: of the weights of `job.models`.
        command: the one that did it.
    """
    hubs = list(dict.fromkeys(model.hub for model in job.models if model.hub))
    data = ModelCardData(
        base_model=hubs or None,
        base_model_relation="merge" if hubs else None,
        library_name=_library(job),
        license="unknown",
        tags=["merge", "mergekit-lite"],
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(job, digests, command)}"))


def _library(job: Job) -> str | None:
    """Return which library loads the model, as far as the files beside its weights tell."""
    beside = {file.name: file for file in job.target.beside}
    for name, library in LIBRARIES.items():
        if name in beside:
            return library
    try:
        config = json.loads(beside["config.json"].read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    return "timm" if "pretrained_cfg" in config else "transformers" if "model_type" in config else None


def _text(job: Job, digests: Sequence[str], command: str) -> str:
    asked = job.asked
    experts = job.models[1:]
    lines = [
        f"# {asked.title} of {len(experts)} models",
        "",
        f"Made by mergekit-lite: the weights of {len(experts)} experts and their base, merged into one model by "
        f"{asked.title}.",
        "",
        "## Method",
        "",
        *_table(
            ("", ""),
            {"method": f"`{asked.name}`", **_quoted(asked.parameters), **asked.words, "names": names_words(job)},
        ),
        "",
        "## Models",
        "",
        *_table(
            ("", "place", "names", "SHA-256"),
            {
                (f"expert {model.name}" if model.name else "base"): (
                    f"`{model.place}`",
                    model.layout or "open_clip",
                    digest,
                )
                for model, digest in zip(job.models, digests, strict=True)
            },
        ),
        "",
        "Of several weight files, the hash is of their hashes, one after another.",
        "",
        "## Tensors",
        "",
        f"{len(job.target.parts)} tensors were merged: {', '.join(f'{n} {kind}' for kind, n in dtypes(job).items())}.",
        "Sums were formed in float32 or wider.",
        *(f"\nCopied from the base ({why}): {_listed(names)}." for why, names in copied(job).items()),
        *(f"\n{note}" for note in notes(job)),
        "",
        "## Made with",
        "",
        *_table(("", ""), {name.replace("_", "-"): version for name, version in versions().items()}),
        "",
        "```bash",
        command,
        "```",
        "",
        "The licence is that of the base and the experts: look there before you share this model.",
        "",
    ]
    return "\n".join(lines)


def _quoted(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"`{spelt(json.dumps(value))}`" for name, value in parameters.items()}


def _table(head: Sequence[str], content: Mapping[str, str | Sequence[str]]) -> list[str]:
    """Return a table of Markdown."""
    found = [head, ["---"] * len(head)]
    found += [[name, *([words] if isinstance(words, str) else words)] for name, words in content.items()]
    return ["| " + " | ".join(spelt(cell).replace("|", "\\|") for cell in row) + " |" for row in found]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{spelt(name)}`" for name in names[:10]) + (
        f" and {len(names) - 10} more" if len(names) > 10 else ""
    )
