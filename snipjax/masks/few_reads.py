"""The threshold of a selection on an accelerator, in few reads of the scores.

There, reading the scores takes longer than comparing each with several guesses. Every
read counts the keys at or above four: the interpolated one, one on each side of it, so
near that the k-th largest is likely between them, and the middle of the bracket, which
bounds the number of reads on any scores. The first guesses come from a sample. Ties
have a search of their own, so that indices are compared only where there are some.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from snipjax.masks import counting
from snipjax.masks.search import Limits, Search, Threshold, residual, start_of_ties

# The distance of neighboring guesses, in standard deviations of the k-th largest's
# place among as many evenly spread entries as the bracket holds.
_DEVIATIONS = 2.0

# From guesses to the number of entries that are kept with each as the threshold.
KeptCounts = Callable[[list[chex.Array]], list[chex.Array]]


def threshold(
    leaves: list[chex.Array],
    k: chex.Array,
    start: Search,
    limits: Limits | None,
    first: list[chex.Array] | None,
) -> Threshold:
    """Returns the threshold at which k entries are kept; ``first`` are four guesses."""
    dtype = jnp.result_type(*leaves)
    total = jnp.uint32(sum(leaf.size for leaf in leaves))

    def kept_counts(tests: counting.Tests) -> list[chex.Array]:
        counts = counting.count_each(tests, leaves)
        if limits is not None:
            counts = [jnp.clip(each, limits.least, limits.most) for each in counts]
        return [jnp.sum(each, dtype=jnp.uint32) for each in counts]

    def by_key(keys: list[chex.Array]) -> list[chex.Array]:
        intervals = [counting.pattern_interval(key, dtype) for key in keys]

        def tests(x: chex.Array, index: chex.Array) -> list[chex.Array]:
            pattern = counting.bit_pattern(x, dtype)
            return [pattern - begin <= length for begin, length in intervals]

        return kept_counts(tests)

    keys = _narrowed(start, k, by_key, residual, first)
    ties = start_of_ties(keys, total, k)
    is_tied = keys.at_low != k

    def end(value: chex.Array) -> chex.Array:
        return total - value.astype(jnp.uint32)

    def by_index(values: list[chex.Array]) -> list[chex.Array]:
        found = [Threshold(keys.low, end(value)) for value in values]
        return kept_counts(lambda x, i: [each.is_kept(x, i, dtype) for each in found])

    # Without ties, nothing is left of the bracket, and the loop does not begin.
    ties = ties._replace(high=jnp.where(is_tied, ties.high, ties.low))
    ties = _narrowed(ties, k, by_index, _difference, None)
    return Threshold(keys.low, jnp.where(is_tied, end(ties.low), total))


def first_guesses(
    sample: list[chex.Array], ranks: chex.Array, dtype: jnp.dtype
) -> list[chex.Array]:
    """Returns guesses from a sample: below the k-th largest, about it, and above.

    ``ranks`` are of the most likely one, and of the ones below and above.
    """
    keys = [counting.ordered_bits(leaf, dtype) for leaf in sample]
    levels = jnp.sort(jnp.concatenate(keys))
    middle, low, high = levels[levels.size - ranks.astype(jnp.int32)]
    return [low, middle, middle + 1, high]


def _narrowed(
    start: Search,
    k: chex.Array,
    kept_counts: KeptCounts,
    weight: Callable[[chex.Array, chex.Array], chex.Array],
    first: list[chex.Array] | None,
) -> Search:
    """Returns the search in which k entries are kept at low, or low and high touch."""

    def is_open(search: Search) -> chex.Array:
        return (search.at_low != k) & (search.high - search.low > 1)

    def narrowed(search: Search) -> Search:
        over, under = weight(search.at_low, k), weight(k, search.at_high)
        guesses = _guesses(search, over / (over + under))
        if first is not None:
            inside = [jnp.clip(x, search.low + 1, search.high - 1) for x in first]
            is_first = search.guesses == 0
            guesses = [jnp.where(is_first, x, g) for x, g in zip(inside, guesses)]
        for guess, count in zip(guesses, kept_counts(guesses)):
            search = _between(search, k, guess, count)
        return search._replace(guesses=search.guesses + 1)

    return jax.lax.while_loop(is_open, narrowed, start)


def _guesses(search: Search, share: chex.Array) -> list[chex.Array]:
    """Returns four values between low and high; ``share`` is the likely place."""
    width = search.high - search.low
    size = width.astype(jnp.float32)
    number = jnp.maximum(search.at_low - search.at_high, 1).astype(jnp.float32)
    deviation = size * jnp.sqrt(share * (1 - share) / number)
    step = jnp.clip((share * size).astype(width.dtype), 1, width - 1)
    aside = jnp.maximum((_DEVIATIONS * deviation).astype(width.dtype), 1)
    below = step - jnp.minimum(aside, step - 1)
    above = step + jnp.minimum(aside, width - 1 - step)
    return [search.low + each for each in (below, step, above, width // 2)]


def _between(
    search: Search, k: chex.Array, guess: chex.Array, count: chex.Array
) -> Search:
    is_inside = (search.low < guess) & (guess < search.high)
    is_low, is_high = is_inside & (count >= k), is_inside & (count < k)
    return search._replace(
        low=jnp.where(is_low, guess, search.low),
        high=jnp.where(is_high, guess, search.high),
        at_low=jnp.where(is_low, count, search.at_low),
        at_high=jnp.where(is_high, count, search.at_high),
    )


def _difference(count: chex.Array, k: chex.Array) -> chex.Array:
    # Ties are as likely anywhere.
    return (count - k).astype(jnp.float32)
