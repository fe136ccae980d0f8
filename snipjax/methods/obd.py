"""Optimal brain damage: a trained network loses what its curvature says it can.

LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from snipjax import masks, training
from snipjax.experiment import Parts
from snipjax.methods import fitting, reference


def obd(
    parts: Parts,
    target: float,
    *,
    pretrained: fitting.Outcome | None = None,
    rounds: int = 4,
    retraining: float = 0.25,
    learning_rate: float = 0.1,
    decays: int = 2,
    num_batches: int = 500,
) -> fitting.Outcome:
    r"""Prunes a trained network by optimal brain damage and retrains it, in rounds.

    A round estimates the diagonal ``h`` of the Gauss-Newton matrix of the loss on the
    training set (:func:`gauss_newton_diagonal`), removes for good the connections of
    the least :math:`h_j w_j^2 / 2` of all layers together, and trains what is left.
    The density of the rounds shrinks geometrically to its target.

    Args:
      parts: of :func:`snipjax.experiment.assemble`.
      target: sparsity to reach, of weights and biases together as configured.
      pretrained: of :func:`snipjax.methods.dense`, which is trained if left out.
      rounds: of pruning and retraining.
      retraining: steps of a round, as a share of those of dense training.
      learning_rate: of retraining, as a share of that of dense training.
      decays: of the learning rate in each round.
      num_batches: of training examples, that the diagonal is the mean over.

    Returns:
      The parameters of the last round's evaluation with the least error on
      validation, the mask, and the history.

    Raises:
      ValueError: if the target is outside [0, 1), another argument is out of range,
        or the network has batch norm.

    Example:
      >>> params, mask, history = obd(parts, 0.92)  # doctest: +SKIP

    LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989, section 2.3.
    """
    fitting.check_target(target)
    fitting.check_count("rounds", rounds)
    fitting.check_count("num_batches", num_batches)
    fitting.check_share("retraining", retraining)
    fitting.check_schedule(learning_rate, decays)
    pretrained = reference.dense(parts, pretrained=pretrained)
    params, mask = pretrained.params, masks.ones(pretrained.params, parts.prunable)
    num_steps = fitting.share_of(parts, retraining)
    histories = [pretrained.history]
    for done in range(1, rounds + 1):
        sparsity = fitting.round_sparsity(target, done, rounds)
        remove = functools.partial(
            least_salient_removed, parts, sparsity=sparsity, num_batches=num_batches
        )
        before = masks.sparsity(mask)
        key = fitting.phase_key(parts, 2 * done - 1)
        mask, seconds = fitting.timed(remove, params, mask, key)
        masks.warn_if_disconnected(mask)
        fitted = fitting.fit_sparse(
            parts,
            params,
            mask,
            num_steps=num_steps,
            optimizer=fitting.phase_optimizer(
                parts, num_steps, learning_rate=learning_rate, decays=decays
            ),
            key=fitting.phase_key(parts, 2 * done),
            phase=f"retrain {done}",
        )
        params = fitted.params
        is_pruned = int(masks.sparsity(mask) > before)
        histories += [fitting.pruning_history(seconds, is_pruned), fitted.history]
    return fitting.Outcome(params, mask, fitting.joined(*histories))


def gauss_newton_diagonal(
    model: nn.Module, params: chex.ArrayTree, images: chex.Array, key: chex.PRNGKey
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

    Args:
      model: a network of :mod:`snipjax.models`, without batch norm.
      params: of the model.
      images: ``[n, ...]`` as the model takes them; the matrix has no need of labels.
      key: PRNG key of the signs.

    Returns:
      A pytree like ``params``.

    Example:
      >>> model = snipjax.models.create("lenet_300_100", num_classes=2)
      >>> images = jnp.ones((3, 2, 2, 1))
      >>> params = model.init(jax.random.key(0), images)["params"]
      >>> h = gauss_newton_diagonal(model, params, images, jax.random.key(1))
      >>> h["Dense_2"]["kernel"].shape
      (100, 2)
    """

    def logits_of(params: chex.ArrayTree) -> chex.Array:
        logits = model.apply({"params": params}, images, train=False)
        return logits.astype(jnp.float32)

    logits, pull_back = jax.vjp(logits_of, params)
    p = jax.nn.softmax(logits)
    signed = jnp.sqrt(p) * jax.random.rademacher(key, p.shape, p.dtype)
    signed -= p * jnp.sum(signed, axis=-1, keepdims=True)
    (gradient,) = pull_back(signed / jnp.sqrt(len(p)))
    return jax.tree.map(jnp.square, gradient)


def least_salient_removed(
    parts: Parts,
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    key: chex.PRNGKey,
    *,
    sparsity: float,
    num_batches: int,
) -> chex.ArrayTree:
    """Returns the mask without the connections that the loss will miss least.

    Args:
      parts: of the experiment; the training examples are its.
      params: of a trained network.
      mask: what is left of them, at least as much as is to remain.
      key: PRNG key of the estimate: order of the examples, and signs.
      sparsity: to reach, exactly.
      num_batches: that the diagonal is the mean over.

    Returns:
      A mask that keeps nothing which ``mask`` does not.
    """
    params = masks.apply(mask, params)

    def add(
        total: chex.ArrayTree, batch: training.Batch, key: chex.PRNGKey
    ) -> tuple[chex.ArrayTree, None]:
        more = gauss_newton_diagonal(parts.model, params, batch.images, key)
        return jax.tree.map(jnp.add, total, more), None

    total, _ = training.over_batches(
        add,
        jax.tree.map(jnp.zeros_like, params),
        parts.train,
        start=0,
        key=key,
        num_steps=num_batches,
        batch_size=parts.config.train.batch_size,
        preprocess=parts.preprocess,
    )

    def saliency(keep: chex.Array, h: chex.Array, w: chex.Array) -> chex.Array:
        return jnp.where(keep, h / num_batches * w**2 / 2, -1.0)

    scores = jax.tree.map(saliency, mask, total, params)
    return masks.global_topk(scores, sparsity, parts.prunable)
