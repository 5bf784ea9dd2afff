"""A suite that is described by a file: your own models, tasks and images."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mergekit_lite.suites.own.own_suite import OwnSuite


def load(name: str, device: torch.device) -> "OwnSuite":
    """Return the suite that the file called `name` describes, on `device`.

    Raises:
        KitError: the file is not valid, or what it names is not there.
    """
    # The benchmark is read by the same schema, and is what a suite of one's own is built on: no circle this way.
    from mergekit_lite.suites import suite_path
    from mergekit_lite.suites.own.own_suite import OwnSuite
    from mergekit_lite.suites.own.reading import read_suite_file

    return OwnSuite(read_suite_file(suite_path(name)), device)
