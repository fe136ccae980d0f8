"""Optimal brain damage: a trained network loses what its curvature says it can."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax import masks, saliency
from snipjax.methods import phases
from snipjax.methods.problem import Outcome, Problem
from snipjax.methods.rounds import Removal, Round, Rounds, prune_and_retrain


@dataclasses.dataclass(frozen=True)
class OBD(Rounds):
    """Holds the hyperparameters of :func:`obd`: rounds, and batches of the curvature.

    Attributes:
      rounds: number of rounds.
      retraining: steps of a round, as a share of dense training's.
      learning_rate: learning rate of retraining, as a share of dense training's.
      decays: number of decays of the learning rate in each round.
      num_batches: number of training batches that the curvature is the mean over.

    Example:
      >>> settings = OBD(rounds=2)
      >>> settings.rounds, settings.num_batches
      (2, 500)
    """

    num_batches: int = 500


def obd(
    problem: Problem,
    sparsity: float,
    settings: OBD = OBD(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Prunes a trained network by optimal brain damage and retrains it, in rounds.

    A round estimates the diagonal :math:`h` of the curvature on the training set,
    removes for good the connections of the least saliency

    .. math:: s_j = \frac{1}{2} h_j w_j^2

    of all layers together, and trains the others.

    If the loss returns logits, of which it is the cross entropy, the curvature is the
    Gauss-Newton matrix (``gauss_newton_diagonal``). Otherwise it is the Hessian of
    the loss, by :func:`snipjax.saliency.obd`.

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

        settings = methods.OBD(rounds=2, num_batches=10)
        params, mask, history = methods.obd(problem, 0.95, settings)

    LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989, section 2.3.
    """
    least_salient = functools.partial(
        least_salient_removed, problem, num_batches=settings.num_batches
    )

    def remove(params: chex.ArrayTree, mask: chex.ArrayTree, this: Round) -> Removal:
        mask = this.watch(
            least_salient,
            problem.train,
            params,
            mask,
            this.key,
            sparsity=this.sparsity,
        )
        return Removal(params, mask)

    return prune_and_retrain(problem, sparsity, settings, remove, pretrained=pretrained)


def gauss_newton_diagonal(
    problem: Problem, params: chex.ArrayTree, batch: Any, key: chex.PRNGKey
) -> chex.ArrayTree:
    r"""Returns an estimate of the diagonal of the Gauss-Newton matrix, on one batch.

    With the Jacobian :math:`J` of an example's logits in the parameters, the cross
    entropy's Hessian in the logits, and a factor of it,

    .. math:: G = \frac{1}{n} \sum_{i=1}^n J_i^T A_i J_i, \quad
              A = \mathrm{diag}(p) - p p^T = S S^T, \quad
              S = (\mathrm{diag}(p) - p p^T) \, \mathrm{diag}(p)^{-1/2},

    the square of :math:`\sum_i J_i^T S_i v_i / \sqrt{n}`, of independent signs
    :math:`v`, has mean :math:`\mathrm{diag}(G)`: Hutchinson's estimator on a factor
    of the matrix. So one gradient of the batch gives an estimate without bias that
    is never negative. It is the diagonal of the Hessian where the logits are
    piecewise linear in every single parameter, as with ReLU and max-pooling. Weights
    that a convolution shares are taken together, unlike in LeCun's recursion.
    """

    def logits(params: chex.ArrayTree) -> chex.Array:
        _, aux = problem.loss(params, batch)
        return jnp.asarray(aux.logits, jnp.float32)

    outputs, pull_back = jax.vjp(logits, params)
    p = jax.nn.softmax(outputs)
    signed = jnp.sqrt(p) * jax.random.rademacher(key, p.shape, p.dtype)
    signed -= p * jnp.sum(signed, axis=-1, keepdims=True)
    (gradient,) = pull_back(signed / jnp.sqrt(len(p)))
    return jax.tree.map(jnp.square, gradient)


def least_salient_removed(
    problem: Problem,
    examples: chex.ArrayTree,
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    key: chex.PRNGKey,
    *,
    sparsity: float,
    num_batches: int,
) -> chex.ArrayTree:
    """Returns the mask without the connections that the loss will miss least."""
    params = masks.apply(mask, params)

    _, aux = jax.eval_shape(problem.loss, params, problem.example_batch())

    def scores(batch: Any, key: chex.PRNGKey) -> chex.ArrayTree:
        if aux.logits is not None:
            return gauss_newton_diagonal(problem, params, batch, key)
        return saliency.obd(
            lambda params, batch: problem.loss(params, batch)[0],
            params,
            batch,
            key=key,
            num_samples=1,
        )

    mean = phases.mean_over_batches(
        problem, scores, examples, key=key, num_batches=num_batches
    )
    if aux.logits is not None:
        mean = jax.tree.map(lambda h, w: h * w**2 / 2, mean, params)
    never = jnp.finfo(jnp.float32).min
    scored = jax.tree.map(lambda keep, s: jnp.where(keep, s, never), mask, mean)
    return masks.global_topk(scored, sparsity, problem.prunable)
