"""The papers' benchmark: OpenAI's CLIP ViTs, twenty data sets, and the expert that was fine-tuned on each of them."""

import torch

from mergekit_lite.suites.clip.benchmark import MODELS
from mergekit_lite.suites.clip.clip_suite import ClipSuite
from mergekit_lite.suites.clip.converted import ConvertedSuite
from mergekit_lite.suites.clip.there import stock

__all__ = ["ClipSuite", "ConvertedSuite", "load", "stock"]


def load(name: str, device: torch.device) -> ClipSuite:
    """Return the suite of the CLIP called `name` on `device`; its base weights are fetched if they are not there.

    After an @ comes the family of converted experts: ``clip-vit-b-32@OC-8``. Without it they are the hub's.

    Raises:
        KitError: the base weights cannot be fetched.
    """
    model, _, family = name.partition("@")
    return ConvertedSuite(MODELS[model], family, device) if family else ClipSuite(MODELS[model], device)
