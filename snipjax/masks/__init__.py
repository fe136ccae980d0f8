"""Masks: which connections are kept."""

from snipjax._src.types import Mask, Prunable, Scores, Select
from snipjax.masks.budgets import by_group, with_minimum_density
from snipjax.masks.mask import apply, check_mask, kept_count, ones, sparsity
from snipjax.masks.prunable import (
    are_prunable,
    excluding,
    is_bias,
    is_normalization,
    kernels,
    weights_and_biases,
)
from snipjax.masks.summary import Row, Summary, summary, warn_if_disconnected
from snipjax.masks.topk import Rule, global_topk, layerwise_topk, select_leaves

__all__ = [
    "Mask",
    "Prunable",
    "Row",
    "Rule",
    "Scores",
    "Select",
    "Summary",
    "apply",
    "are_prunable",
    "by_group",
    "check_mask",
    "excluding",
    "global_topk",
    "is_bias",
    "is_normalization",
    "kept_count",
    "kernels",
    "layerwise_topk",
    "ones",
    "select_leaves",
    "sparsity",
    "summary",
    "warn_if_disconnected",
    "weights_and_biases",
    "with_minimum_density",
]
