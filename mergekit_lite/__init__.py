"""mergekit-lite: a reproducible research kit for model merging.

Data walks one way: profile -> papermill -> notebook -> `study.run` -> suite -> method -> evaluation -> record -> table
and figure.
"""

import warnings
from importlib.metadata import version

# open_clip imports tqdm's notebook bar, which warns in a kernel without widgets; no widget bar is ever shown here.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = version("mergekit-lite")
