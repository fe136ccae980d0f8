"""Spearman's rank correlation between many samples, one sample in memory at a time."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np


class RankSums(NamedTuple):
    """Sums over samples of standardized ranks, and of their squared norms."""

    ranks: chex.Array | float = 0.0  # [n], or 0 of no sample
    squares: chex.Array | float = 0.0


def add(sums: RankSums, values: chex.Array) -> RankSums:
    """Returns the sums with one more sample of values ``[n]``."""
    ranks = _standardized_ranks(values)
    return RankSums(sums.ranks + ranks, sums.squares + jnp.sum(ranks**2))


def mean_correlation(sums: RankSums, samples: int) -> np.float32:
    """Returns the mean of Spearman's correlation over all pairs of samples.

    The correlation of two samples is the product of their standardized ranks. Over all
    ordered pairs, products add up to the squared norm of the sum of ranks, less the
    squared norm of each. The mean is NaN of a single sample, or where a sample is not
    finite or constant.
    """
    if samples < 2:
        return np.float32(np.nan)
    products = jnp.sum(sums.ranks**2) - sums.squares
    return np.float32(products / (samples * (samples - 1)))


# Compiled by itself, once for samples of equal size: sorts are slow to compile.
@jax.jit
def _standardized_ranks(values: chex.Array) -> chex.Array:
    """Returns ranks of ``values [n]``, of mean 0 and norm 1; equals share one."""
    order = jnp.argsort(values)
    ascending = values[order]
    index = jnp.arange(values.size)
    differs = ascending[1:] != ascending[:-1]
    edge = jnp.ones(1, jnp.bool_)
    first = jax.lax.cummax(jnp.where(jnp.append(edge, differs), index, 0))
    last = jax.lax.cummin(
        jnp.where(jnp.append(differs, edge), index, values.size), reverse=True
    )
    # The mean of ranks 0..n-1 is (n - 1) / 2, with ties as without.
    ranks = (first + last - (values.size - 1)) / (2 * values.size)
    centered = jnp.zeros(values.size).at[order].set(ranks)
    standardized = centered / jnp.linalg.norm(centered)
    return jnp.where(jnp.isfinite(jnp.sum(values)), standardized, jnp.nan)
