"""Learning weights and connections: magnitude pruning with each layer's threshold."""

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
    """Holds the hyperparameters of :func:`lwc`: the rounds.

    A tenth of the learning rate is the paper's.

    Attributes:
      rounds: number of rounds.
      retraining: steps of a round, as a share of dense training's.
      learning_rate: learning rate of retraining, as a share of dense training's.
      decays: number of decays of the learning rate in each round.

    Example:
      >>> settings = LWC(rounds=3)
      >>> settings.rounds, settings.learning_rate
      (3, 0.1)
    """


def lwc(
    problem: Problem,
    sparsity: float,
    settings: LWC = LWC(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Prunes by magnitude and retrains, in rounds.

    In every round, the connections :math:`w` still in a layer are removed for good if

    .. math:: |w| \le q \log(1 + n_l) \, \sigma_l

    with the size :math:`n_l` and the standard deviation :math:`\sigma_l` of the layer.
    The paper chooses the quality of each layer by its sensitivity, less for smaller
    layers. Here :math:`q` is the one that keeps exactly as many connections as the
    round is to have.

    Args:
      problem: the network, its data and its training.
      sparsity: share of all prunable connections to remove, in [0, 1).
      settings: the hyperparameters.
      pretrained: the outcome of :func:`dense` to start from; trained first if it is
        None.

    Returns:
      The parameters of the evaluation with the least error on validation, a mask of
      bool arrays like them, and the history.

    Raises:
      ValueError: if the sparsity or a field of the problem is out of range, or
        ``pretrained`` is of another network.

    Example:
      ``problem`` is a :class:`Problem`, as its example makes one:

      .. code-block:: python

        from snipjax import methods

        settings = methods.LWC(rounds=3)
        params, mask, history = methods.lwc(problem, 0.95, settings)

    Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural
    Networks", NeurIPS 2015.
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
