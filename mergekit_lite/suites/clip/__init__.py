"""The papers' benchmark: OpenAI's CLIP ViTs, twenty data sets, and the expert that was fine-tuned on each of them."""

import torch

from mergekit_lite.suites.clip.benchmark import MODELS
from mergekit_lite.suites.clip.clip_suite import ClipSuite
from mergekit_lite.suites.clip.converted import ConvertedSuite
from mergekit_lite.suites.clip.oc20 import FAMILY, OC20Suite
from mergekit_lite.suites.clip.there import stock

__all__ = ["ClipSuite", "ConvertedSuite", "OC20Suite", "load", "stock"]


def load(name: str, device: torch.device) -> ClipSuite:
    """Return the suite of the CLIP called `name` on `device`; its base weights are fetched if they are not there.

    After an @ comes the family of the experts: ``clip-vit-b-32@OC-20`` fetches and converts them, of any other family
    they were converted by hand (``clip-vit-b-32@OC-8``). Without it they are FusionBench's.

    Raises:
        KitError: the base weights cannot be fetched.
    """
    model, _, family = name.partition("@")
    if not family:
        return ClipSuite(MODELS[model], device)
    return (OC20Suite if family == FAMILY else ConvertedSuite)(MODELS[model], family, device)
