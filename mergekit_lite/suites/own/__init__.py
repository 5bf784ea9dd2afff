"""A suite that is described by a file: your own models, tasks and images."""

import torch

from mergekit_lite.suites.own.own_suite import OwnSuite
from mergekit_lite.suites.own.reading import read_suite_file

__all__ = ["OwnSuite", "load", "read_suite_file"]


def load(name: str, device: torch.device) -> OwnSuite:
    """Return the suite that the file called `name` describes, on `device`.

    Raises:
        KitError: the file is not valid, or what it names is not there.
    """
    return OwnSuite(read_suite_file(name), device)
