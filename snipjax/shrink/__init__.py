"""Smaller networks: whole units removed from any JAX function."""

from snipjax.shrink.keep import keep
from snipjax.shrink.removal import Removed, removed, shrink
from snipjax.shrink.scores import unit_scores
from snipjax.shrink.units import Count, Layer, Member, Units, units

__all__ = [
    "Count",
    "Layer",
    "Member",
    "Removed",
    "Units",
    "keep",
    "removed",
    "shrink",
    "unit_scores",
    "units",
]
