"""Batches, metrics and the state of training."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import optax


class Batch(NamedTuple):
    """Images and labels: a mini-batch, or a whole data set on the device."""

    images: chex.Array  # [n, height, width, channels]
    labels: chex.Array  # int32 [n]


class Metrics(NamedTuple):
    """Means over examples: cross entropy in nats, and the share misclassified."""

    loss: chex.Array
    error: chex.Array


class TrainState(NamedTuple):
    """All that training changes. The mask is in ``opt_state.mask``."""

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

    The key gives the order of the examples and augmentation.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        key=key,
    )
