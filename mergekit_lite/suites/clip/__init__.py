"""The papers' benchmark: OpenAI's CLIP ViTs, twenty data sets, and the expert that was fine-tuned on each of them."""

import torch

from mergekit_lite.suites.clip import joint, oc20
from mergekit_lite.suites.clip.benchmark import MODELS
from mergekit_lite.suites.clip.clip_suite import ClipSuite
from mergekit_lite.suites.clip.converted import ConvertedSuite
from mergekit_lite.suites.clip.joint import JointSuite
from mergekit_lite.suites.clip.oc20 import OC20Suite
from mergekit_lite.suites.clip.there import stock

__all__ = ["ClipSuite", "ConvertedSuite", "JointSuite", "OC20Suite", "load", "stock"]

FAMILIES = {oc20.FAMILY: OC20Suite, joint.FAMILY: JointSuite}
"""What comes from the hub, as those without a family do; of all others the checkpoints are converted by hand."""


def load(name: str, device: torch.device) -> ClipSuite:
    """Return the suite of the CLIP called `name` on `device`; its base weights are fetched if they are not there.

    After an @ comes the family of the experts: ``clip-vit-b-32@OC-20`` fetches and converts them,
    ``clip-vit-b-32@FB-multi-task`` has one model in the place of eight, and of any other family they were converted by
    hand (``clip-vit-b-32@OC-8``). Without it they are FusionBench's.

    Raises:
        KitError: the base weights cannot be fetched, or the family has nothing for this model.
    """
    model, _, family = name.partition("@")
    if not family:
        return ClipSuite(MODELS[model], device)
    return FAMILIES.get(family, ConvertedSuite)(MODELS[model], family, device)
