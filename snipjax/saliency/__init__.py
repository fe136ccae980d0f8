"""Criteria: how much each connection matters to the loss, before any training.

A criterion is a function ``(loss_fn, params, batch) -> scores``. ``scores`` is a
pytree like ``params`` with float32 leaves, larger where a connection matters more.
Pass one to :func:`snipjax.pruning.prune`, or write your own.
"""

from snipjax._src.losses import Criterion, LossFn, MeanLoss
from snipjax.saliency.second_order import obd, obs
from snipjax.saliency.snip import magnitude, normalized, random, sensitivity, snip

__all__ = [
    "Criterion",
    "LossFn",
    "MeanLoss",
    "magnitude",
    "normalized",
    "obd",
    "obs",
    "random",
    "sensitivity",
    "snip",
]
