"""Optimal brain damage: a trained network loses what its curvature says it can.

LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax import masks, saliency
from snipjax.methods import phases
from snipjax.methods import settings as checks
from snipjax.methods.problem import Outcome, Problem
from snipjax.methods.rounds import (
    Removal,
    Rounds,
    prune_and_retrain,
    round_sparsity,
)


@dataclasses.dataclass(frozen=True)
class OBD(Rounds):
    """Hyperparameters of :func:`obd`: the rounds, and the batches of the curvature.

    Attributes:
      num_batches: number of training batches that the curvature is the mean over.
    """

    num_batches: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_integers(self, "num_batches")


def obd(
    problem: Problem,
    sparsity: float,
    settings: OBD = OBD(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Prunes a trained network by optimal brain damage and retrains it, in rounds.

    A round estimates the diagonal ``h`` of the curvature on the training set, removes
    for good the connections of the least :math:`h_j w_j^2 / 2` of all layers together,
    and trains the others. The density of the rounds shrinks geometrically to its
    target.

    If the loss returns logits, of which it is the cross entropy, the curvature is the
    Gauss-Newton matrix (:func:`gauss_newton_diagonal`). Otherwise it is the Hessian of
    the loss, by :func:`snipjax.saliency.obd`.

    Args:
      problem: the network, its data and its training.
      sparsity: the sparsity to reach, of all prunable connections together.
      settings: hyperparameters.
      pretrained: outcome of dense training, which is done if it is None.

    Returns:
      The parameters of the last round's evaluation with the least error on
      validation, the mask, and the history.

    Raises:
      ValueError: if the sparsity is outside [0, 1), or ``pretrained`` is of another
        network.

    Example:
      >>> params, mask, history = obd(problem, 0.92)  # doctest: +SKIP

    LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989, section 2.3.
    """

    def least_salient(
        examples: chex.ArrayTree,
        params: chex.ArrayTree,
        mask: chex.ArrayTree,
        key: chex.PRNGKey,
        *,
        sparsity: float,
    ) -> chex.ArrayTree:
        return least_salient_removed(
            problem,
            examples,
            params,
            mask,
            key,
            sparsity=sparsity,
            num_batches=settings.num_batches,
        )

    def remove(
        params: chex.ArrayTree,
        mask: chex.ArrayTree,
        number: int,
        key: chex.PRNGKey,
        watch: phases.Stopwatch,
    ) -> Removal:
        target = round_sparsity(sparsity, number, settings.rounds)
        before = masks.sparsity(mask)
        mask = watch(least_salient, problem.train, params, mask, key, sparsity=target)
        return Removal(params, mask, int(masks.sparsity(mask) > before))

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
    piecewise linear in every single parameter, as with ReLU and max-pooling, apart
    from kinks; weights that a convolution shares are taken together, which LeCun's
    backward recursion does not do.
    """

    def logits_by(params: chex.ArrayTree) -> chex.Array:
        _, aux = problem.loss(params, batch)
        return jnp.asarray(aux.logits, jnp.float32)

    logits, pull_back = jax.vjp(logits_by, params)
    p = jax.nn.softmax(logits)
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

    def scores(batch: Any, key: chex.PRNGKey) -> chex.ArrayTree:
        return saliency.obd(
            lambda params, batch: problem.loss(params, batch)[0],
            params,
            batch,
            key=key,
            num_samples=1,
        )

    def diagonal(batch: Any, key: chex.PRNGKey) -> chex.ArrayTree:
        return gauss_newton_diagonal(problem, params, batch, key)

    _, aux = jax.eval_shape(problem.loss, params, problem.example_batch())
    mean = phases.mean_over_batches(
        problem,
        scores if aux.logits is None else diagonal,
        examples,
        key=key,
        num_batches=num_batches,
    )
    if aux.logits is not None:
        mean = jax.tree.map(lambda h, w: h * w**2 / 2, mean, params)
    never = jnp.finfo(jnp.float32).min
    scored = jax.tree.map(lambda keep, s: jnp.where(keep, s, never), mask, mean)
    return masks.global_topk(scored, sparsity, problem.prunable)
