"""Criteria: how much each connection matters to the loss.

A criterion is a function ``(loss_fn, params, batch, *, key=None) -> scores`` of one
batch. ``scores`` is a pytree like ``params``, larger where a connection matters more.
Criteria are plain functions that :func:`jax.jit` and :func:`jax.vmap` take; they are
not compiled by themselves. :func:`snipjax.pruning.prune` compiles the one it is given,
and has it see the mean loss where there are several batches. Hyperparameters are
keywords, bound by :func:`functools.partial`.
"""

from snipjax._src.types import Criterion, LossFn, Scores
from snipjax.saliency.gradient import sensitivity
from snipjax.saliency.magnitude import magnitude
from snipjax.saliency.obd import hessian_diagonal, obd
from snipjax.saliency.obs import obs
from snipjax.saliency.random import random
from snipjax.saliency.snip import normalized, snip

__all__ = [
    "Criterion",
    "LossFn",
    "Scores",
    "hessian_diagonal",
    "magnitude",
    "normalized",
    "obd",
    "obs",
    "random",
    "sensitivity",
    "snip",
]
