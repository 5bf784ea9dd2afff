"""Merging methods, one file an idea; each function reads like its equation and is registered by one decorator."""

# isort: off
# The order of these imports is the order of registration, which is the order of rows in every table: first what needs
# no data, then what needs images without labels, then what needs labels.
from mergekit_lite.methods.references import individual, pretrained
from mergekit_lite.methods.multi_task import multi_task_training
from mergekit_lite.methods.averaging import fixed_coefficients, simple_average, task_arithmetic
from mergekit_lite.methods.ties import ties_merging
from mergekit_lite.methods.dare_merging import dare
from mergekit_lite.methods.consensus_merging import consensus
from mergekit_lite.methods.tsv import tsv_merging
from mergekit_lite.methods.isotropic import iso_c, iso_cts
from mergekit_lite.methods.fisher import fisher_merging
from mergekit_lite.methods.regmean_merging import regmean
from mergekit_lite.methods.regmean_plus import regmean_plus_plus
from mergekit_lite.methods.adamerging import (
    layer_wise_adamerging,
    layer_wise_adamerging_plus,
    task_wise_adamerging,
    task_wise_adamerging_plus,
)
from mergekit_lite.methods.adarank_merging import adarank
from mergekit_lite.methods.frank_wolfe.hard import hard_frank_wolfe
from mergekit_lite.methods.frank_wolfe.soft import soft_frank_wolfe
from mergekit_lite.methods.frank_wolfe.combined import combined_frank_wolfe

# isort: on
from mergekit_lite.methods.own_files import load_method
from mergekit_lite.methods.registry import (
    Access,
    Merged,
    MethodInfo,
    TaskData,
    Watch,
    all_methods,
    get,
    method,
    resolve,
)

__all__ = [
    "Access",
    "Merged",
    "MethodInfo",
    "TaskData",
    "Watch",
    "adarank",
    "all_methods",
    "combined_frank_wolfe",
    "consensus",
    "dare",
    "fisher_merging",
    "fixed_coefficients",
    "get",
    "hard_frank_wolfe",
    "individual",
    "iso_c",
    "iso_cts",
    "layer_wise_adamerging",
    "layer_wise_adamerging_plus",
    "load_method",
    "method",
    "multi_task_training",
    "pretrained",
    "regmean",
    "regmean_plus_plus",
    "resolve",
    "simple_average",
    "soft_frank_wolfe",
    "task_arithmetic",
    "task_wise_adamerging",
    "task_wise_adamerging_plus",
    "ties_merging",
    "tsv_merging",
]
