"""The state of a search for the k-th largest key, and the threshold that it finds."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from snipjax.masks import counting


class Search(NamedTuple):
    """A search for the k-th largest key, and then for where its ties are cut.

    A bracket of keys is in order of the keys. A bracket of ties is in order of the
    number of entries before the end that are cut off.
    """

    # Two values, and how many entries are kept if each is the threshold: at least k,
    # and less than k. Unsigned integer scalars.
    low: chex.Array
    high: chex.Array
    at_low: chex.Array
    at_high: chex.Array
    # The float32 residuals that the next guess weighs low and high by, which side the
    # last guess replaced, and the number of guesses.
    over: chex.Array
    under: chex.Array
    last_was_low: chex.Array
    guesses: chex.Array
    # Whether ties are searched, and their key.
    in_ties: chex.Array
    key: chex.Array


class Threshold(NamedTuple):
    """Kept are larger keys, and equal ones with a flat index below the end."""

    key: chex.Array
    end: chex.Array

    def is_kept(self, x: chex.Array, index: chex.Array, dtype: jnp.dtype) -> chex.Array:
        # Bit patterns of floats at or above a key are one interval: two operations for
        # each entry, where its key would take five.
        is_late = index >= self.end
        first, length = counting.pattern_interval(self.key, dtype)
        late_first, late_length = counting.pattern_interval(self.key + 1, dtype)
        pattern = counting.bit_pattern(x, dtype)
        return pattern - jnp.where(is_late, late_first, first) <= jnp.where(
            is_late, late_length, length
        )


class Limits(NamedTuple):
    """The least and the most that each leaf's count is taken to be, uint32 [leaves]."""

    least: chex.Array
    most: chex.Array


def start_of_keys(
    leaves: list[chex.Array], k: chex.Array, limits: Limits | None
) -> Search:
    """Returns the search between the least and the largest key."""
    # Reduces floats, which XLA does several times faster than keys, but it takes
    # subnormal ones for zero. A NaN, which only traced scores can have here, leaves
    # the bracket at full width.
    dtype = jnp.result_type(*leaves)
    tiny = jnp.finfo(dtype).tiny
    least = jnp.min(jnp.stack([jnp.min(leaf.astype(dtype)) for leaf in leaves]))
    most = jnp.max(jnp.stack([jnp.max(leaf.astype(dtype)) for leaf in leaves]))
    low = counting.ordered_bits(jnp.minimum(least, -tiny), dtype)
    high = counting.ordered_bits(jnp.maximum(most, tiny), dtype)
    low = jnp.where(jnp.isnan(least), jnp.zeros_like(low), low)
    high = jnp.where(jnp.isnan(most), jnp.full_like(high, 2**32 - 2), high)
    # A zero that varies over devices as the scores do, for shard_map.
    zero = (low ^ low).astype(jnp.uint32)
    at_low = jnp.uint32(sum(leaf.size for leaf in leaves)) + zero
    at_high = zero if limits is None else zero + jnp.sum(limits.least)
    return search_between(low, high, at_low, at_high, k)


def search_between(
    low: chex.Array,
    high: chex.Array,
    at_low: chex.Array,
    at_high: chex.Array,
    k: chex.Array,
) -> Search:
    """Returns the search between two keys, of which the higher may be the largest."""
    zero = (low ^ low).astype(jnp.uint32)
    return Search(
        low,
        high + 1,
        at_low,
        at_high,
        over=residual(at_low, k),
        under=residual(k, at_high),
        last_was_low=zero > 0,
        guesses=zero,
        in_ties=zero > 0,
        key=low,
    )


def start_of_ties(search: Search, total: chex.Array, k: chex.Array) -> Search:
    """Returns the search for where the ties at the lower key are cut."""
    return search._replace(
        low=jnp.zeros_like(search.low),
        high=total.astype(search.high.dtype),
        over=(search.at_low - k).astype(jnp.float32),
        under=(k - search.at_high).astype(jnp.float32),
        last_was_low=search.in_ties,
        guesses=jnp.zeros_like(search.guesses),
        in_ties=~search.in_ties,
        key=search.low,
    )


def residual(count: chex.Array, k: chex.Array) -> chex.Array:
    """Returns how far a count is from k, as a guess weighs it."""
    # Roots, because counts fall steeply towards the largest keys. On
    # distributions of scores they took fewer rounds than counts and logarithms.
    return jnp.sqrt(count.astype(jnp.float32)) - jnp.sqrt(k.astype(jnp.float32))
