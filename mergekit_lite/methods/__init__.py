"""Merging methods, one file an idea; each function reads like its equation and is registered by one decorator."""

# isort: off
# The order of these imports is the order of registration, which is the order of rows in every table.
from mergekit_lite.methods.references import individual, pretrained
from mergekit_lite.methods.averaging import simple_average, task_arithmetic
from mergekit_lite.methods.ties import ties_merging
from mergekit_lite.methods.adamerging import layer_wise_adamerging, task_wise_adamerging

# isort: on
from mergekit_lite.methods.registry import (
    Access,
    Merged,
    MethodInfo,
    UnlabelledData,
    Watch,
    all_methods,
    code_fingerprint,
    get,
    method,
    resolve,
)

__all__ = [
    "Access",
    "Merged",
    "MethodInfo",
    "UnlabelledData",
    "Watch",
    "all_methods",
    "code_fingerprint",
    "get",
    "individual",
    "layer_wise_adamerging",
    "method",
    "pretrained",
    "resolve",
    "simple_average",
    "task_arithmetic",
    "task_wise_adamerging",
    "ties_merging",
]
