"""The k largest of many arrays, exactly, without sorting or concatenating them.

Floats are compared as unsigned integers of the same order, their keys. The k-th
largest key is bracketed, and the bracket narrowed by counting the keys at or above a
guess. Guesses are by interpolation, which takes few rounds on scores as they are; later
every fourth is by bisection, which bounds the rounds on any; the first two, where
arrays lie on one CPU, come from a small sample. Ties at the k-th largest are cut at a
flat index, which the same loop then brackets. On another single device, `few_reads` has
several guesses in each round. If every leaf keeps some of its own
largest in any case, its count is taken as that many at least.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import trees
from snipjax.masks import counting, few_reads
from snipjax.masks.search import (
    Limits,
    Search,
    Threshold,
    residual,
    start_of_keys,
    start_of_ties,
)

_SAMPLE = 2**16


class Hints(NamedTuple):
    first: chex.Array  # the keys to guess first
    number: chex.Array  # how many of them are of use
    levels: chex.Array  # the sample
    are_tied: chex.Array  # whether keys are equal, so that guesses should be of these


def largest(
    leaves: list[chex.Array], k: int, limits: Limits | None = None
) -> list[chex.Array]:
    """Returns masks of the ``k`` largest entries of all leaves together.

    Equal entries come in the order of their flat indices, counted on from leaf to leaf;
    -0.0 and 0.0 are equal. NaN has no place in the order: check before. A leaf counts
    within the limits, if any; its mask has all that is at or above the threshold.

    Example:
      >>> largest([jnp.array([3.0, 1.0]), jnp.array([2.0, 3.0])], 3)
      [Array([ True, False], dtype=bool), Array([ True,  True], dtype=bool)]
    """
    total = sum(leaf.size for leaf in leaves)
    if total >= 2**32:
        raise ValueError(
            f"{total:,} connections are more than 2**32 - 1, the most that can be "
            "counted; prune in groups, e.g. with masks.layerwise_topk"
        )
    if k in (0, total):
        return [jnp.full(leaf.shape, k == total) for leaf in leaves]
    leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
    stride = total // _SAMPLE
    size = sum(len(range(0, leaf.size, max(stride, 1))) for leaf in leaves)
    return _masks(
        leaves,
        np.uint32(k),
        _sample_ranks(size, k / total),
        limits,
        in_pieces=counting.is_on_one_cpu(leaves),
        is_alone=counting.is_on_one_device(leaves),
        stride=stride if total > 2 * _SAMPLE else None,
    )


def largest_of_all_and_each(
    leaves: list[chex.Array], k: int, minima: Sequence[int]
) -> list[chex.Array]:
    """Returns masks of ``k`` entries, among them some of the largest of every leaf.

    They are the ``minima[i]`` largest entries of leaf ``i`` for every ``i``, and the
    largest of the rest of all leaves together. ``k`` is at least ``sum(minima)``. Equal
    entries come in the order of their flat indices.

    Example:
      >>> leaves = [jnp.array([3.0, 4.0, 5.0]), jnp.array([1.0, 2.0])]
      >>> largest_of_all_and_each(leaves, 3, minima=[0, 1])
      [Array([False,  True,  True], dtype=bool), Array([False,  True], dtype=bool)]
    """
    if k == sum(minima):
        return [largest([leaf], least)[0] for leaf, least in zip(leaves, minima)]
    # Each leaf keeps its own largest, so many as of the largest of all, but at least
    # so many as it should: one threshold for all leaves, which is as high as the sum
    # of these counts lets it be, and a lower one for each leaf that it leaves short.
    sizes = [leaf.size for leaf in leaves]
    limits = Limits(np.array(minima, np.uint32), np.array(sizes, np.uint32))
    return [
        _with_own_largest(leaf, mask, least)
        for leaf, mask, least in zip(leaves, largest(leaves, k, limits), minima)
    ]


def _with_own_largest(leaf: chex.Array, mask: chex.Array, k: int) -> chex.Array:
    """Returns the mask, or a mask of the leaf's k largest where these are more."""
    if k == 0:
        return mask
    if trees.is_traced(mask):
        return jax.lax.cond(
            jnp.sum(mask, dtype=jnp.uint32) < k,
            lambda: largest([leaf], k)[0],
            lambda: mask,
        )
    return (
        largest([leaf], k)[0]
        if counting.counts(counting.is_true, [mask])[0] < k
        else mask
    )


def _sample_ranks(size: int, share: float) -> np.ndarray:
    """Returns the most likely rank in a sample of the k-th largest of all, and limits.

    The limits are three standard deviations above and below the expected rank.
    """
    rank = size * share
    margin = 3 * math.sqrt(rank * (1 - share)) + 1
    ranks = [round(rank), math.ceil(rank + margin), math.floor(rank - margin)]
    return np.clip(ranks, 1, max(size - 1, 1)).astype(np.uint32)


@functools.partial(jax.jit, static_argnames=("in_pieces", "is_alone", "stride"))
def _masks(
    leaves: list[chex.Array],
    k: chex.Array,
    sample_ranks: chex.Array,
    limits: Limits | None,
    *,
    in_pieces: bool,
    is_alone: bool,
    stride: int | None,
) -> list[chex.Array]:
    dtype, sample = jnp.result_type(*leaves), None
    if is_alone and stride:
        # A leaf of fewer entries than the stride gives its first.
        sample = [leaf.ravel()[::stride] for leaf in leaves]
    if is_alone and not in_pieces:
        first = None
        if sample is not None:
            first = few_reads.first_guesses(sample, sample_ranks, dtype)
        start = start_of_keys(leaves, k, limits)
        found = few_reads.threshold(leaves, k, start, limits, first)
    else:
        hints = _hints(sample, sample_ranks) if sample else None
        start = start_of_keys(leaves, k, limits)
        found = threshold(leaves, k, start, limits, hints, in_pieces=in_pieces)
    return [
        found.is_kept(leaf, index, dtype)
        for leaf, index in zip(leaves, counting.flat_indices(leaves))
    ]


def threshold(
    leaves: list[chex.Array],
    k: chex.Array,
    start: Search,
    limits: Limits | None = None,
    hints: Hints | None = None,
    *,
    in_pieces: bool,
) -> Threshold:
    """Returns the threshold at which k entries are kept; hints are first guesses."""
    total = jnp.uint32(sum(leaf.size for leaf in leaves))

    def kept_count(threshold: Threshold) -> chex.Array:
        counts = counting.count(
            lambda x, index: threshold.is_kept(x, index, jnp.result_type(*leaves)),
            leaves,
            in_pieces=in_pieces,
        )
        if limits is not None:
            counts = jnp.clip(counts, limits.least, limits.most)
        return jnp.sum(counts, dtype=jnp.uint32)

    def threshold_at(search: Search, value: chex.Array) -> Threshold:
        return Threshold(
            key=jnp.where(search.in_ties, search.key, value),
            end=jnp.where(search.in_ties, total - value.astype(jnp.uint32), total),
        )

    def is_open(search: Search) -> chex.Array:
        is_narrow = search.high - search.low <= 1
        return (search.at_low != k) & ~(search.in_ties & is_narrow)

    def narrowed(search: Search) -> Search:
        guess = _guess(search)
        if hints is not None:
            guess = jnp.where(search.in_ties, guess, _hinted(hints, search, guess))
        count = kept_count(threshold_at(search, guess))
        search = _narrow(search, k, guess, count)
        is_turn = ~search.in_ties & (search.high - search.low <= 1)
        is_turn &= search.at_low != k
        ties = start_of_ties(search, total, k)
        return jax.tree.map(lambda t, s: jnp.where(is_turn, t, s), ties, search)

    found = jax.lax.while_loop(is_open, narrowed, start)
    return threshold_at(found, found.low)


def _hints(sample: list[chex.Array], ranks: chex.Array) -> Hints:
    middle, low, high = jax.lax.map(
        lambda rank: (
            threshold(
                sample, rank, start_of_keys(sample, rank, None), in_pieces=False
            ).key
        ),
        ranks,
    )
    dtype = jnp.result_type(*sample)
    levels = jnp.concatenate([counting.ordered_bits(leaf, dtype) for leaf in sample])
    are_tied = jnp.sum(levels == middle) > 1
    return Hints(
        jnp.where(are_tied, jnp.stack([middle, middle]), jnp.stack([low, high])),
        jnp.where(are_tied, 1, 2),
        levels,
        are_tied,
    )


def _hinted(hints: Hints, search: Search, guess: chex.Array) -> chex.Array:
    """Returns a guess between low and high, by the sample where that helps."""
    low, high, levels = search.low, search.high, hints.levels
    above = jnp.min(jnp.where(levels >= guess, levels, high))
    below = jnp.max(jnp.where(levels < guess, levels, low))
    level = jnp.where(above < high, above, jnp.where(below > low, below, guess))
    # This ends the search at a k-th largest that many scores are equal to.
    level = jnp.where(jnp.any(levels == low), low + 1, level)
    first = hints.first[jnp.minimum(search.guesses, 1)]
    guess = jnp.where(hints.are_tied, level, guess)
    guess = jnp.where(search.guesses < hints.number, first, guess)
    return jnp.clip(guess, low + 1, high - 1)


def _narrow(
    search: Search, k: chex.Array, guess: chex.Array, count: chex.Array
) -> Search:
    is_low = count >= k
    # The Illinois rule: an end that stays twice loses half of its weight, or
    # interpolation would creep up to it from one side.
    stays_again = is_low == search.last_was_low
    less = jnp.where(stays_again & (search.guesses > 0), 0.5, 1.0)
    over, under = residual(count, k), residual(k, count)
    over = jnp.where(search.in_ties, (count - k).astype(jnp.float32), over)
    under = jnp.where(search.in_ties, (k - count).astype(jnp.float32), under)
    return search._replace(
        low=jnp.where(is_low, guess, search.low),
        high=jnp.where(is_low, search.high, guess),
        at_low=jnp.where(is_low, count, search.at_low),
        at_high=jnp.where(is_low, search.at_high, count),
        over=jnp.where(is_low, over, less * search.over),
        under=jnp.where(is_low, less * search.under, under),
        last_was_low=is_low,
        guesses=search.guesses + 1,
    )


def _guess(search: Search) -> chex.Array:
    """Returns a value strictly between low and high."""
    width = search.high - search.low
    share = search.over / (search.over + search.under)
    interpolated = (share * width.astype(jnp.float32)).astype(width.dtype)
    bisect = (search.guesses % 4 == 3) & (search.guesses > 7)
    step = jnp.where(bisect, width // 2, interpolated)
    return search.low + jnp.clip(step, 1, width - 1)
