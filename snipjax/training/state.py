"""Batches, metrics and the state of training."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import optax


class Batch(NamedTuple):
    """Holds images and labels: a mini-batch, or a whole data set on the device.

    Attributes:
      images: array ``[n, height, width, channels]``, stored as uint8 and preprocessed
        to a floating-point dtype.
      labels: int32 array ``[n]``.

    Example:
      >>> batch = Batch(jnp.zeros((3, 8, 8, 1)), jnp.array([0, 1, 1]))
      >>> batch.images.shape, batch.labels.shape
      ((3, 8, 8, 1), (3,))
    """

    images: chex.Array  # [n, height, width, channels]
    labels: chex.Array  # int32 [n]


class Metrics(NamedTuple):
    r"""Holds means over examples: the loss, and the share misclassified.

    .. math:: loss = \frac{1}{n} \sum_{i=1}^n \ell(z_i, y_i), \qquad
              error = \frac{1}{n} \sum_{i=1}^n \mathbb{1}[\arg\max_k z_{ik} \ne y_i]

    for the logits :math:`z_i` and the label :math:`y_i` of each example.

    Attributes:
      loss: scalar; by default the cross entropy in nats.
      error: scalar in [0, 1].

    Example:
      >>> metrics = Metrics(loss=0.25, error=0.1)
      >>> f"{100 * metrics.error:.1f}% misclassified"
      '10.0% misclassified'
    """

    loss: chex.Array
    error: chex.Array


class TrainState(NamedTuple):
    """Holds all that training changes. The mask is in ``opt_state.mask``.

    Attributes:
      step: number of steps so far, an int32 scalar.
      params: the parameters, a pytree of floating-point arrays.
      batch_stats: the statistics of batch norms, ``{}`` without any.
      opt_state: the state of the optimizer.
      key: PRNG key, which stays; the randomness of a step comes from it and the step.

    Example:
      >>> variables = {"params": {"w": jnp.ones(2)}}
      >>> state = init_state(variables, optax.sgd(0.1), jax.random.key(0))
      >>> int(state.step), state.batch_stats
      (0, {})
    """

    step: chex.Array  # int32 scalar
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: optax.OptState
    key: chex.PRNGKey  # stays; the randomness of a step comes from it and the step


def init_state(
    variables: chex.ArrayTree,
    optimizer: optax.GradientTransformation,
    key: chex.PRNGKey,
) -> TrainState:
    """Returns the state before the first step of a network's Flax variables.

    Args:
      variables: ``{"params": params, ...}``, perhaps with ``"batch_stats"``.
      optimizer: the optimizer of the steps.
      key: PRNG key, which gives the order of the examples and augmentation.

    Returns:
      The state of step 0.

    Example:
      >>> variables = {"params": {"w": jnp.ones(2)}}
      >>> state = init_state(variables, optax.adam(0.1), jax.random.key(0))
      >>> state.opt_state[0].mu
      {'w': Array([0., 0.], dtype=float32)}
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        key=key,
    )
