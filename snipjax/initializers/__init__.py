"""Variance scaling, and the signal it gives."""

from snipjax.initializers.signals import Signal
from snipjax.initializers.variance_scaling import (
    INITIALIZERS,
    NORMAL_STDDEV,
    Initializer,
    Loss,
    by_name,
    fan_in,
    glorot_uniform,
    he,
    heuristic_uniform,
    random_normal,
    signal,
    truncated_normal,
    xavier,
)

__all__ = [
    "INITIALIZERS",
    "NORMAL_STDDEV",
    "Initializer",
    "Loss",
    "Signal",
    "by_name",
    "fan_in",
    "glorot_uniform",
    "he",
    "heuristic_uniform",
    "random_normal",
    "signal",
    "truncated_normal",
    "xavier",
]
