"""Learning weights and connections: magnitude pruning with each layer's threshold.

A round removes the connections below a threshold and trains what is left; what is
removed stays so. The threshold of a layer is a quality parameter times the standard
deviation of its weights. The paper chooses the quality of each layer by its
sensitivity, less for smaller layers; here it is proportional to the logarithm of the
layer's size, and as large as leaves the connections that the round is to have. With
one quality for all layers, the first of LeNet-5-Caffe kept 38 of its 500 weights at
91.7%, where the paper keeps 66%.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from snipjax import masks
from snipjax.experiment import Parts
from snipjax.methods import fitting, layers, reference


def lwc(
    parts: Parts,
    target: float,
    *,
    pretrained: fitting.Outcome | None = None,
    rounds: int = 4,
    retraining: float = 0.25,
    learning_rate: float = 0.1,
    decays: int = 2,
) -> fitting.Outcome:
    """Prunes by magnitude and retrains, in rounds.

    In every round, of the connections w that are left in a layer, those with::

        |w| <= quality * log(1 + size(layer)) * std(layer)

    are removed, for good. The density of the rounds shrinks geometrically to its
    target; the quality of a round is that with which exactly as many connections
    remain. What a round is judged best by validation is where the next one starts.

    Args:
      parts: of :func:`snipjax.experiment.assemble`.
      target: sparsity to reach, of weights and biases together as configured.
      pretrained: of :func:`snipjax.methods.dense`, which is trained if left out.
      rounds: of pruning and retraining.
      retraining: steps of a round, as a share of those of dense training.
      learning_rate: of retraining, as a share of that of dense training; a tenth in
        the paper.
      decays: of the learning rate in each round.

    Returns:
      The parameters of the last round's evaluation with the least error on
      validation, the mask, and the history.

    Raises:
      ValueError: if the target is outside [0, 1), another argument is out of range,
        or the network has batch norm.

    Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient
    Neural Networks", NeurIPS 2015.
    """
    fitting.check_target(target)
    fitting.check_count("rounds", rounds)
    fitting.check_share("retraining", retraining)
    fitting.check_schedule(learning_rate, decays)
    pretrained = reference.dense(parts, pretrained=pretrained)
    params, mask = pretrained.params, masks.ones(pretrained.params, parts.prunable)
    num_steps = fitting.share_of(parts, retraining)
    histories = [pretrained.history]
    for done in range(1, rounds + 1):
        sparsity = fitting.round_sparsity(target, done, rounds)
        prune = functools.partial(
            weakest_removed, sparsity=sparsity, prunable=parts.prunable
        )
        before = masks.sparsity(mask)
        mask, seconds = fitting.timed(prune, params, mask)
        masks.warn_if_disconnected(mask)
        fitted = fitting.fit_sparse(
            parts,
            params,
            mask,
            num_steps=num_steps,
            optimizer=fitting.phase_optimizer(
                parts, num_steps, learning_rate=learning_rate, decays=decays
            ),
            key=fitting.phase_key(parts, done),
            phase=f"retrain {done}",
        )
        params = fitted.params
        is_pruned = int(masks.sparsity(mask) > before)
        histories += [fitting.pruning_history(seconds, is_pruned), fitted.history]
    return fitting.Outcome(params, mask, fitting.joined(*histories))


def weakest_removed(
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    *,
    sparsity: float,
    prunable: masks.Prunable,
) -> chex.ArrayTree:
    """Returns the mask without the weights smallest against their layer's threshold.

    Args:
      params: pytree of float arrays.
      mask: what is left of them, at least as much as is to remain.
      sparsity: to reach, exactly.
      prunable: predicate ``(key_path, leaf) -> bool``, that of the mask.

    Returns:
      A mask that keeps nothing which ``mask`` does not.

    Example:
      >>> params = {"a": {"w": jnp.array([3.0, -1.0])}, "b": {"w": jnp.array([9.0])}}
      >>> prunable = masks.weights_and_biases
      >>> kept = weakest_removed(
      ...     params, masks.ones(params, prunable), sparsity=1 / 3, prunable=prunable)
      >>> kept["a"]["w"].tolist(), kept["b"]["w"].tolist()  # the std of "a" is 2
      ([True, False], [True])
    """
    _, std = layers.mean_and_std(params, mask)
    thresholds = jax.tree.map(jnp.multiply, layers.log_size(mask), std)
    scores = jax.tree.map(
        lambda keep, w, threshold: jnp.where(keep, jnp.abs(w) / threshold, -1.0),
        mask,
        params,
        thresholds,
    )
    return masks.global_topk(scores, sparsity, prunable)
