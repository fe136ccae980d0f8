"""Smaller networks: whole units removed from any JAX function."""

from snipjax.shrink.cost import Cost, Csr, Variant, cost, seconds_in_turns
from snipjax.shrink.keep import keep
from snipjax.shrink.layers import Count, Layer, Member, Units
from snipjax.shrink.removal import Removed, removed, shrink
from snipjax.shrink.scores import layerwise, unit_scores
from snipjax.shrink.units import units

__all__ = [
    "Cost",
    "Count",
    "Csr",
    "Layer",
    "Member",
    "Removed",
    "Units",
    "Variant",
    "cost",
    "keep",
    "layerwise",
    "removed",
    "seconds_in_turns",
    "shrink",
    "unit_scores",
    "units",
]
