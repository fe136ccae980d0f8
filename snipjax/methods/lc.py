"""Learning-compression: pruning as a constraint, by an augmented Lagrangian.

Learning trains weights w that are drawn to a sparse network theta; compression takes
theta to be the sparse network nearest to them. As the force grows, both meet.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks, training
from snipjax.experiment import Parts
from snipjax.methods import fitting, reference
from snipjax.methods.dns import loses_any


class Augmented(NamedTuple):
    """What training changes."""

    weights: chex.ArrayTree
    opt_state: optax.OptState
    theta: chex.ArrayTree
    multipliers: chex.ArrayTree
    mask: chex.ArrayTree  # where theta is not zero
    number: chex.Array  # int32, of the step
    prunes: chex.Array  # int32, how many C steps removed a connection


def lc(
    parts: Parts,
    target: float,
    *,
    pretrained: fitting.Outcome | None = None,
    iterations: int = 40,
    learning: float = 0.03,
    pull: float = 0.16,
    growth: float = 1.1,
    learning_rate: float = 0.5,
    decays: int = 1,
) -> fitting.Outcome:
    """Minimizes the loss subject to the number of weights that are not zero.

    Learning (L) and compression (C) alternate, with ``mu`` growing by ``growth``::

        L: w <- argmin loss(w) + mu / 2 ||w - theta - lambda / mu||^2, by SGD
        C: theta <- the kappa largest of w - lambda / mu, of all layers; 0 elsewhere
           lambda <- lambda - mu (w - theta)

    It begins with ``lambda = 0`` and the largest pretrained weights as theta, which
    is the network that is evaluated.

    Args:
      parts: of :func:`snipjax.experiment.assemble`.
      target: sparsity to reach, of weights and biases together as configured.
      pretrained: of :func:`snipjax.methods.dense`, which is trained if left out.
      iterations: how often L and C are done.
      learning: steps of each L, as a share of those of dense training.
      pull: how far the first L is drawn: its mu times its learning rate times its
        steps, over 1 - momentum. Given so, it suits a training of any length.
      growth: what mu is multiplied by after each iteration.
      learning_rate: of the first L, as a share of that of dense training; at most
        1 / mu is taken, as the paper advises.
      decays: how often it is multiplied by the configured factor, in all.

    Returns:
      Theta at the evaluation with the least error on validation, its mask, and the
      history.

    Raises:
      ValueError: if the target is outside [0, 1), another argument is out of range,
        or the network has batch norm.

    Carreira-Perpinan, Idelbayev, "Learning-Compression Algorithms for Neural Net
    Pruning", CVPR 2018.
    """
    fitting.check_target(target)
    fitting.require(
        isinstance(iterations, int) and iterations >= 1,
        "iterations",
        iterations,
        "an integer of at least 1, e.g. 40",
    )
    fitting.check_share("learning", learning)
    fitting.require(0 < pull < jnp.inf, "pull", pull, "above 0, e.g. 0.16")
    fitting.require(1 <= growth < jnp.inf, "growth", growth, "at least 1, e.g. 1.1")
    fitting.check_schedule(learning_rate, decays)
    pretrained = reference.dense(parts, pretrained=pretrained)
    config, steps_of_l = parts.config.train, fitting.share_of(parts, learning)
    num_steps = iterations * steps_of_l
    first_rate = learning_rate * config.learning_rate
    first_mu = pull * (1 - config.momentum) / (first_rate * steps_of_l)

    def mu_at(number: chex.Array) -> chex.Array:
        return first_mu * growth ** (number // steps_of_l).astype(jnp.float32)

    def rate_at(number: chex.Array) -> chex.Array:
        decayed = config.decay_factor ** (number * (decays + 1) // num_steps)
        return jnp.minimum(first_rate * decayed, 1 / mu_at(number))

    weights = pretrained.params
    decayed = jax.tree_util.tree_map_with_path(masks.weights_and_biases, weights)
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.sgd(rate_at, config.momentum),
    )

    def compress(carry: Augmented) -> Augmented:
        mu = mu_at(carry.number - 1)  # that of the L step just done
        theta, mask = projected(
            carry.weights, carry.multipliers, mu, target, parts.prunable
        )
        return carry._replace(
            theta=theta,
            mask=mask,
            multipliers=updated(carry.multipliers, carry.weights, theta, mu),
            prunes=carry.prunes + loses_any(carry.mask, mask),
        )

    def step(
        carry: Augmented, batch: training.Batch, key: chex.PRNGKey
    ) -> tuple[Augmented, training.Metrics]:
        del key
        weights = carry.weights
        grads, metrics = fitting.gradient(parts, weights, batch)
        grads = penalized(grads, carry, mu_at(carry.number))
        updates, opt_state = optimizer.update(grads, carry.opt_state, weights)
        carry = carry._replace(
            weights=optax.apply_updates(weights, updates),
            opt_state=opt_state,
            number=carry.number + 1,
        )
        is_last_of_l = carry.number % steps_of_l == 0
        return jax.lax.cond(is_last_of_l, compress, lambda x: x, carry), metrics

    (theta, mask), seconds = fitting.timed(
        lambda w: projected(
            w, jax.tree.map(jnp.zeros_like, w), 1.0, target, parts.prunable
        ),
        weights,
    )
    removed = int(masks.sparsity(mask) > 0)
    carry = Augmented(
        weights=weights,
        opt_state=optimizer.init(weights),
        theta=theta,
        multipliers=jax.tree.map(jnp.zeros_like, weights),
        mask=mask,
        number=jnp.zeros((), jnp.int32),
        prunes=jnp.zeros((), jnp.int32),
    )
    fitted = fitting.fit(
        parts,
        step,
        carry,
        num_steps=num_steps,
        deployed=lambda carry: (carry.theta, carry.mask),
        key=fitting.phase_key(parts, 1),
        phase="learning-compression",
    )
    masks.warn_if_disconnected(fitted.mask)
    history = fitting.joined(
        pretrained.history,
        fitting.pruning_history(seconds, removed + int(fitted.carry.prunes)),
        fitted.history,
    )
    return fitting.Outcome(fitted.params, fitted.mask, history)


def penalized(
    grads: chex.ArrayTree, carry: Augmented, mu: chex.Numeric
) -> chex.ArrayTree:
    """Returns the gradient of the loss with that of the penalty added: L step.

    The penalty is ``mu / 2 ||w - theta - lambda / mu||^2``, over the leaves that are
    prunable; the others are free.

    Args:
      grads: of the loss at w.
      carry: w, theta and lambda.
      mu: the penalty's factor.

    Returns:
      A pytree like ``grads``.
    """
    # Minus the penalty's gradient is what lambda becomes.
    force = updated(carry.multipliers, carry.weights, carry.theta, mu)
    return jax.tree.map(
        lambda keep, g, f: g - f if jnp.ndim(keep) else g, carry.mask, grads, force
    )


def projected(
    weights: chex.ArrayTree,
    multipliers: chex.ArrayTree,
    mu: chex.Numeric,
    sparsity: float,
    prunable: masks.Prunable,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns the sparse network nearest to ``weights - multipliers / mu``: C step.

    Of all networks with as many weights that are not zero, it has the least squared
    distance: it keeps the largest in magnitude, whatever their layer.

    Args:
      weights: w.
      multipliers: lambda, a pytree like it.
      mu: the penalty's factor.
      sparsity: of the result.
      prunable: predicate ``(key_path, leaf) -> bool``.

    Returns:
      ``(theta, mask)``.

    Example:
      >>> weights, multipliers = {"w": jnp.array([3.0, -2.0])}, {"w": jnp.zeros(2)}
      >>> theta, _ = projected(
      ...     weights, multipliers, 1.0, 0.5, masks.weights_and_biases)
      >>> theta["w"].tolist()
      [3.0, 0.0]
    """
    shifted = jax.tree.map(lambda w, m: w - m / mu, weights, multipliers)
    mask = masks.global_topk(jax.tree.map(jnp.abs, shifted), sparsity, prunable)
    return masks.apply(mask, shifted), mask


def updated(
    multipliers: chex.ArrayTree,
    weights: chex.ArrayTree,
    theta: chex.ArrayTree,
    mu: chex.Numeric,
) -> chex.ArrayTree:
    """Returns ``lambda - mu (w - theta)``, the multipliers after a C step.

    Example:
      >>> multipliers, weights, theta = map(jnp.asarray, ([1.0], [3.0], [2.0]))
      >>> updated(multipliers, weights, theta, 2.0).tolist()
      [-1.0]
    """
    return jax.tree.map(lambda m, w, t: m - mu * (w - t), multipliers, weights, theta)
