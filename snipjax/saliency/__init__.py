"""Criteria: how much each connection matters to the loss.

A criterion is a function ``(loss_fn, params, batch, *, key=None) -> scores`` of one
batch. ``scores`` is a pytree like ``params``, larger where a connection matters more.
Criteria are plain functions that :func:`jax.jit` and :func:`jax.vmap` take; they are
not compiled by themselves. :func:`snipjax.pruning.prune` compiles the one it is given,
and has it see the mean loss where there are several batches. Hyperparameters are
keywords, bound by :func:`functools.partial`.
"""

from snipjax._src.types import Criterion, LossFn, Scores
from snipjax.saliency.fisher import fisher, fisher_diagonal
from snipjax.saliency.gradient import sensitivity
from snipjax.saliency.grasp import grasp, grasp_magnitude
from snipjax.saliency.magnitude import magnitude
from snipjax.saliency.ntk_sap import ntk_sap
from snipjax.saliency.obd import hessian_diagonal, obd
from snipjax.saliency.obs import obs
from snipjax.saliency.prospr import prospr, prospr_first_order
from snipjax.saliency.random import random
from snipjax.saliency.snip import normalized, snip
from snipjax.saliency.synflow import synflow, synflow_l2
from snipjax.saliency.taylor import taylor, taylor_fisher

__all__ = [
    "Criterion",
    "LossFn",
    "Scores",
    "fisher",
    "fisher_diagonal",
    "grasp",
    "grasp_magnitude",
    "hessian_diagonal",
    "magnitude",
    "normalized",
    "ntk_sap",
    "obd",
    "obs",
    "prospr",
    "prospr_first_order",
    "random",
    "sensitivity",
    "snip",
    "synflow",
    "synflow_l2",
    "taylor",
    "taylor_fisher",
]
