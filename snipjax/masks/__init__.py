"""Masks: which connections are kept."""

from snipjax._src.types import Mask, Prunable, Scores, Select
from snipjax.masks.allocations import (
    erdos_renyi,
    erk,
    smart_ratio,
    uniform,
    uniform_plus,
)
from snipjax.masks.budgets import by_group, with_minimum_density
from snipjax.masks.densities import (
    Allocation,
    Densities,
    by_allocation,
    by_density,
    densities,
)
from snipjax.masks.effective import effective, effective_sparsity
from snipjax.masks.mask import apply, check_mask, kept_count, ones, sparsity
from snipjax.masks.order import layer_order
from snipjax.masks.prunable import (
    are_prunable,
    excluding,
    is_bias,
    is_normalization,
    kernels,
    weights_and_biases,
)
from snipjax.masks.sanity import shuffle
from snipjax.masks.structure import blocks, n_of_m, units
from snipjax.masks.summary import Row, Summary, summary, warn_if_disconnected
from snipjax.masks.topk import Rule, global_topk, layerwise_topk, select_leaves

__all__ = [
    "Allocation",
    "Densities",
    "Mask",
    "Prunable",
    "Row",
    "Rule",
    "Scores",
    "Select",
    "Summary",
    "apply",
    "are_prunable",
    "blocks",
    "by_allocation",
    "by_density",
    "by_group",
    "check_mask",
    "densities",
    "effective",
    "effective_sparsity",
    "erdos_renyi",
    "erk",
    "excluding",
    "global_topk",
    "is_bias",
    "is_normalization",
    "kept_count",
    "kernels",
    "layer_order",
    "layerwise_topk",
    "n_of_m",
    "ones",
    "select_leaves",
    "shuffle",
    "smart_ratio",
    "sparsity",
    "summary",
    "uniform",
    "uniform_plus",
    "units",
    "warn_if_disconnected",
    "weights_and_biases",
    "with_minimum_density",
]
