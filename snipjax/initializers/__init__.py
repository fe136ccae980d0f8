"""Initializers of weights, and the signal that they give a network."""

from snipjax.initializers.propagation import signal
from snipjax.initializers.signals import Signal, from_json, to_json
from snipjax.initializers.variance_scaling import (
    INITIALIZERS,
    Initializer,
    fan_in,
    glorot_uniform,
    he,
    heuristic_uniform,
    random_normal,
    truncated_normal,
    xavier,
)

__all__ = [
    "INITIALIZERS",
    "Initializer",
    "Signal",
    "fan_in",
    "from_json",
    "glorot_uniform",
    "he",
    "heuristic_uniform",
    "random_normal",
    "signal",
    "to_json",
    "truncated_normal",
    "xavier",
]
