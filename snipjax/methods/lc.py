"""Learning-compression: pruning as a constraint, by an augmented Lagrangian."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snipjax import masks
from snipjax.methods import phases
from snipjax.methods.dense import start
from snipjax.methods.dns import loses_any
from snipjax.methods.problem import History, Outcome, Problem, joined
from snipjax.methods.settings import Settings, bounded
from snipjax.training import Metrics


@dataclasses.dataclass(frozen=True)
class LC(Settings):
    """Holds the hyperparameters of :func:`lc`.

    Attributes:
      iterations: number of L steps, each with a C step after it.
      learning: steps of each L, as a share of dense training's.
      pull: mu of the first L times its learning rate times its steps, over
        1 - momentum. So it suits a training of any length.
      growth: factor of mu after each iteration.
      learning_rate: learning rate of the first L, as a share of dense training's; at
        most 1 / mu is taken, as the paper advises.
      decays: number of decays of the learning rate, in all.

    Example:
      >>> settings = LC(iterations=20)
      >>> settings.iterations, settings.learning
      (20, 0.03)
    """

    iterations: int = 40
    learning: float = 0.03
    pull: float = 0.16
    growth: float = bounded(1.1, least=1)
    learning_rate: float = 0.5
    decays: int = bounded(1, least=0)


class Augmented(NamedTuple):
    """The carry of training: weights w, sparse network theta and multipliers lambda.

    ``mask`` is true where theta may not be zero. ``prunes`` counts the C steps that
    removed a connection.
    """

    weights: chex.ArrayTree
    opt_state: optax.OptState
    theta: chex.ArrayTree
    multipliers: chex.ArrayTree
    mask: chex.ArrayTree
    number: chex.Array
    prunes: chex.Array


def lc(
    problem: Problem,
    sparsity: float,
    settings: LC = LC(),
    pretrained: Outcome | None = None,
) -> Outcome:
    r"""Minimizes the loss subject to the number of weights that are not zero.

    Learning (L) and compression (C) alternate, with :math:`\mu` growing by ``growth``:

    .. math:: \mathrm{L:} \quad & w \leftarrow \arg\min_w L(w) + \frac{\mu}{2}
              \lVert w - \theta - \lambda / \mu \rVert^2, \text{ by SGD} \\
              \mathrm{C:} \quad & \theta \leftarrow
              \text{the } \kappa \text{ largest of } w - \lambda / \mu
              \text{ of all layers, 0 elsewhere} \\
              & \lambda \leftarrow \lambda - \mu (w - \theta)

    It begins with :math:`\lambda = 0` and the largest pretrained weights as
    :math:`\theta`, which is the network that is evaluated and returned.

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

        settings = methods.LC(iterations=20)
        params, mask, history = methods.lc(problem, 0.95, settings)

    Carreira-Perpinan, Idelbayev, "Learning-Compression Algorithms for Neural Net
    Pruning", CVPR 2018.
    """
    pretrained = start(problem, sparsity, pretrained)
    steps_of_l = problem.share(settings.learning)
    num_steps = settings.iterations * steps_of_l
    first_rate = settings.learning_rate * problem.learning_rate
    first_mu = settings.pull * (1 - problem.momentum) / (first_rate * steps_of_l)

    def mu_at(number: chex.Array) -> chex.Array:
        return first_mu * settings.growth ** (number // steps_of_l).astype(jnp.float32)

    def rate_at(number: chex.Array) -> chex.Array:
        decays = number * (settings.decays + 1) // num_steps
        decayed = problem.decay_factor**decays
        return jnp.minimum(first_rate * decayed, 1 / mu_at(number))

    optimizer = problem.optimizer(rate_at)
    project = functools.partial(projected, sparsity=sparsity, prunable=problem.prunable)

    def compress(carry: Augmented) -> Augmented:
        mu = mu_at(carry.number - 1)  # of the L step before
        theta, mask = project(carry.weights, carry.multipliers, mu)
        return carry._replace(
            theta=theta,
            mask=mask,
            multipliers=updated(carry.multipliers, carry.weights, theta, mu),
            prunes=carry.prunes + loses_any(carry.mask, mask),
        )

    def step(
        carry: Augmented, batch: Any, key: chex.PRNGKey
    ) -> tuple[Augmented, Metrics]:
        del key
        weights = carry.weights
        grads, metrics = problem.gradient(weights, batch)
        grads = penalized(grads, carry, mu_at(carry.number))
        updates, opt_state = optimizer.update(grads, carry.opt_state, weights)
        carry = carry._replace(
            weights=optax.apply_updates(weights, updates),
            opt_state=opt_state,
            number=carry.number + 1,
        )
        is_last_of_l = carry.number % steps_of_l == 0
        return jax.lax.cond(is_last_of_l, compress, lambda x: x, carry), metrics

    weights, watch = pretrained.params, phases.Stopwatch()
    zeros, zero = jax.tree.map(jnp.zeros_like, weights), jnp.zeros((), jnp.int32)
    theta, mask = watch(project, weights, zeros, mu=1.0)
    phase = phases.Phase(problem, step, lambda carry: (carry.theta, carry.mask))
    fitted = phase(
        Augmented(weights, optimizer.init(weights), theta, zeros, mask, zero, zero),
        num_steps=num_steps,
        key=problem.phase_key(1),
        name="learning-compression",
    )
    masks.warn_if_disconnected(fitted.mask)
    prunes = int(masks.sparsity(mask) > 0) + int(fitted.carry.prunes)
    removed = History(prunes=prunes, seconds=watch.seconds)
    history = joined(pretrained.history, removed, fitted.history)
    return Outcome(fitted.params, fitted.mask, history)


def penalized(
    grads: chex.ArrayTree, carry: Augmented, mu: chex.Numeric
) -> chex.ArrayTree:
    """Returns the gradient of an L step, with the penalty on the prunable leaves.

    The penalty is ``mu / 2 ||w - theta - lambda / mu||^2``.
    """
    # Minus the penalty's gradient is the next lambda.
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
    """Returns the sparse network nearest to ``weights - multipliers / mu``: a C step.

    The nearest in squared distance keeps the largest in magnitude, whatever the layer.
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
    """Returns ``lambda - mu (w - theta)``, the multipliers after a C step."""
    return jax.tree.map(lambda m, w, t: m - mu * (w - t), multipliers, weights, theta)
