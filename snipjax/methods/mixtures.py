r"""Mixtures of Gaussians, one of them at zero: the prior of soft weight-sharing.

.. math:: p(w) = \sum_{j=0}^J \pi_j N(w | \mu_j, \lambda_j^{-1}), \quad
   \mu_0 = 0, \quad \pi_0 \text{ fixed}

with a Gamma prior on every precision :math:`\lambda_j`.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Weights whose mixture is computed at a time, few enough to stay in the cache.
_PIECE = 2**13


class Mixture(NamedTuple):
    """Gaussians ``[components]``; the first is the zero component, of mean 0."""

    means: chex.Array
    log_precisions: chex.Array
    log_proportions: chex.Array


class Free(NamedTuple):
    """The trained part of a mixture.

    ``means`` and ``logits`` are ``[components - 1]``, without the zero component's; the
    softmax of the logits gives the proportions of the others. ``log_precisions`` are
    ``[components]``.
    """

    means: chex.Array
    log_precisions: chex.Array
    logits: chex.Array


def initial_mixture(
    weights: Iterable[chex.Array], num_components: int, std: float
) -> Free:
    """Returns components of equal proportions, evenly spread over the weights."""
    largest = max(jnp.max(jnp.abs(w)) for w in weights)
    return Free(
        means=jnp.linspace(-largest, largest, num_components - 1),
        log_precisions=jnp.full(num_components, -2 * math.log(std)),
        logits=jnp.zeros(num_components - 1),
    )


def with_zero_component(free: Free, zero_proportion: float) -> Mixture:
    """Returns the whole mixture for its trained part."""
    others = jax.nn.log_softmax(free.logits) + math.log1p(-zero_proportion)
    return Mixture(
        jnp.concatenate([jnp.zeros(1), free.means]),
        free.log_precisions,
        jnp.concatenate([jnp.full(1, math.log(zero_proportion)), others]),
    )


def log_joint(weights: chex.Array, mixture: Mixture) -> chex.Array:
    r"""Returns :math:`\log \pi_j N(w_i | \mu_j, \lambda_j^{-1})`.

    The result has the shape ``[components, *shape of the weights]``.
    """
    means, log_precisions, log_proportions = (
        jnp.expand_dims(x, tuple(range(1, 1 + jnp.ndim(weights)))) for x in mixture
    )
    scaled = jnp.exp(log_precisions) * jnp.square(weights - means)
    return log_proportions + (log_precisions - math.log(2 * math.pi) - scaled) / 2


def log_odds(weights: chex.Array, mixture: Mixture) -> chex.Array:
    """Returns the log odds of the likeliest other component against the zero one.

    A weight belongs to the zero component if its odds are not positive.
    """
    joint = log_joint(weights, mixture)
    return jnp.max(joint[1:], axis=0) - joint[0]


def negative_log_prior(weights: Iterable[chex.Array], mixture: Mixture) -> chex.Array:
    r"""Returns :math:`-\sum_i \log \sum_j \pi_j N(w_i | \mu_j, \lambda_j^{-1})`."""
    flat = jnp.concatenate([jnp.ravel(w) for w in weights])

    # Computed again in the backward pass, which costs less than to keep all of it.
    @jax.checkpoint
    def one(piece: chex.Array) -> chex.Array:
        joint = log_joint(piece, mixture)
        return -jnp.sum(jax.nn.logsumexp(joint, axis=0))

    whole = flat.size - flat.size % _PIECE
    pieces = jax.lax.map(one, flat[:whole].reshape(-1, _PIECE))
    return jnp.sum(pieces) + one(flat[whole:])


def negative_log_hyper_prior(
    mixture: Mixture, shapes: chex.Array, rates: chex.Array
) -> chex.Array:
    r"""Returns :math:`-\sum_j \log \mathrm{Gamma}(\lambda_j | a_j, b_j)`.

    Up to a constant: :math:`\sum_j (1 - a_j) \log \lambda_j + b_j \lambda_j`.
    """
    log_precisions = mixture.log_precisions
    return jnp.sum((1 - shapes) * log_precisions + rates * jnp.exp(log_precisions))
