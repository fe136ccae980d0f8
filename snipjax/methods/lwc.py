"""Learning weights and connections: magnitude pruning with each layer's threshold.

The threshold of a layer is a quality parameter times the standard deviation of its
weights. The paper chooses the quality of each layer by its sensitivity, less for
smaller layers. Here it is proportional to the logarithm of the layer's size, and as
large as leaves the connections that the round is to have.

Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural
Networks", NeurIPS 2015.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from snipjax import masks
from snipjax.methods import layers
from snipjax.methods.problem import Outcome, Problem
from snipjax.methods.rounds import Removal, Round, Rounds, prune_and_retrain


@dataclasses.dataclass(frozen=True)
class LWC(Rounds):
    """Hyperparameters of :func:`lwc`: the rounds; a tenth is the paper's rate."""


def lwc(
    problem: Problem,
    sparsity: float,
    settings: LWC = LWC(),
    pretrained: Outcome | None = None,
) -> Outcome:
    """Prunes by magnitude and retrains, in rounds.

    In every round, the connections w still in a layer are removed for good if::

        |w| <= quality * log(1 + size(layer)) * std(layer)

    The quality of a round is the one that keeps exactly as many connections as the
    round is to have. Arguments, returns and errors: :mod:`snipjax.methods`.

    Han, Pool, Tran, Dally, NeurIPS 2015.
    """
    weakest = functools.partial(weakest_removed, prunable=problem.prunable)

    def remove(params: chex.ArrayTree, mask: chex.ArrayTree, this: Round) -> Removal:
        mask = this.watch(weakest, params, mask, sparsity=this.sparsity)
        return Removal(params, mask)

    return prune_and_retrain(
        problem, sparsity, settings, remove, pretrained=pretrained, keys_per_round=1
    )


def weakest_removed(
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    *,
    sparsity: float,
    prunable: masks.Prunable,
) -> chex.ArrayTree:
    """Returns the mask without the weights smallest against their layer's threshold."""
    _, std = layers.mean_and_std(params, mask)
    thresholds = jax.tree.map(jnp.multiply, layers.log_size(mask), std)
    scores = jax.tree.map(
        lambda keep, w, threshold: jnp.where(keep, jnp.abs(w) / threshold, -1.0),
        mask,
        params,
        thresholds,
    )
    return masks.global_topk(scores, sparsity, prunable)
