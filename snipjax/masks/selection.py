"""The k largest of many arrays, exactly, without sorting or concatenating them.

Floats are compared as unsigned integers of the same order, their keys. The k-th
largest key is bracketed, and the bracket narrowed by counting the keys at or above a
guess: a sum over every leaf, which takes no memory to speak of and becomes an
all-reduce of one number on sharded arrays. Guesses are by interpolation, which takes
few rounds on scores as they are; later every fourth is by bisection, which bounds the
rounds on any; the first two, where arrays lie on one CPU, come from a small sample.
Ties at the k-th largest are cut at a flat index found the same way. Where every leaf
keeps some of its own largest in any case, its count is taken as that many at least.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from snipjax._src import trees

# From entries, their flat indices and a guess to whether each is at or above it.
IsCounted = Callable[[chex.Array, chex.Array, chex.Array], chex.Array]
# How many entries of each leaf are counted, uint32 [leaves].
Count = Callable[[IsCounted, list[chex.Array], chex.Array], chex.Array]

_PIECE = 255 * 2**13  # entries counted at a time, few enough to stay in the cache
_SAMPLE = 2**16


class Bracket(NamedTuple):
    """Two values, and how many are at or above each; unsigned integer scalars."""

    low: chex.Array  # at least k are
    high: chex.Array  # less than k are
    at_low: chex.Array
    at_high: chex.Array
    # The float32 residuals that the next guess weighs low and high by, which side the
    # last guess replaced, and the number of guesses.
    over: chex.Array
    under: chex.Array
    last_was_low: chex.Array
    guesses: chex.Array


class Limits(NamedTuple):
    """Between what the count of each leaf is taken to be; uint32 [leaves]."""

    least: chex.Array
    most: chex.Array


def largest(leaves: list[chex.Array], k: int) -> list[chex.Array]:
    """Returns masks of the ``k`` largest entries of all leaves together.

    Of equal entries, those of lower flat index, counted on from leaf to leaf, come
    first; -0.0 and 0.0 are equal. NaN has no place in the order: check before.

    Args:
      leaves: arrays of floats, not empty.
      k: how many, from 0 to the number of entries.

    Returns:
      Bool arrays of the leaves' shapes.

    Raises:
      ValueError: if there are 2**32 entries or more.

    Example:
      >>> largest([jnp.array([3.0, 1.0]), jnp.array([2.0, 3.0])], 3)
      [Array([ True, False], dtype=bool), Array([ True,  True], dtype=bool)]
    """
    return _largest(leaves, k)


def largest_of_all_and_each(
    leaves: list[chex.Array], k: int, of_each: Sequence[int]
) -> list[chex.Array]:
    """Returns masks of ``k`` entries, among them some of the largest of every leaf.

    They are the ``of_each[i]`` largest entries of leaf ``i`` for every ``i``, and the
    largest of what is left of all leaves together. Ties are as for :func:`largest`.

    Args:
      leaves: arrays of floats, not empty.
      k: how many, from ``sum(of_each)`` to the number of entries.
      of_each: for each leaf, from 0 to its number of entries.

    Returns:
      Bool arrays of the leaves' shapes.

    Raises:
      ValueError: if there are 2**32 entries or more.

    Example:
      >>> leaves = [jnp.array([3.0, 4.0, 5.0]), jnp.array([1.0, 2.0])]
      >>> largest_of_all_and_each(leaves, 3, of_each=[0, 1])
      [Array([False,  True,  True], dtype=bool), Array([False,  True], dtype=bool)]
    """
    if k == sum(of_each):
        return [
            mask
            for leaf, least in zip(leaves, of_each)
            for mask in largest([leaf], least)
        ]
    if not any(of_each):
        return largest(leaves, k)
    # Each leaf keeps its own largest, so many as of the largest of all, but at least
    # so many as it should: one threshold for all leaves, which is as high as the sum
    # of these counts lets it be, and a lower one for each leaf that it leaves short.
    sizes = [leaf.size for leaf in leaves]
    limits = Limits(jnp.array(of_each, jnp.uint32), jnp.array(sizes, jnp.uint32))
    return [
        _with_own_largest(leaf, mask, least)
        for leaf, mask, least in zip(leaves, _largest(leaves, k, limits), of_each)
    ]


def counts(masks: list[chex.Array]) -> list[chex.Array]:
    """Returns how many entries of each bool array are true, as uint32 scalars.

    Example:
      >>> counts([jnp.array([True, False]), jnp.array([True, True])])
      [Array(1, dtype=uint32), Array(2, dtype=uint32)]
    """
    return [_count_true(mask, count=_count_for(mask)) for mask in masks]


def _largest(
    leaves: list[chex.Array], k: int, limits: Limits | None = None
) -> list[chex.Array]:
    """Masks of what is at or above a threshold, that together count as k.

    A leaf counts within the limits, if any; its mask has what is at or above.
    """
    total = sum(leaf.size for leaf in leaves)
    if total >= 2**32:
        raise ValueError(
            f"{total:,} connections are more than 2**32 - 1, the most that can be "
            "counted; prune in groups, e.g. with masks.layerwise_topk"
        )
    if k in (0, total):
        return [jnp.full(leaf.shape, k == total) for leaf in leaves]
    k = jnp.uint32(k)
    leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
    bracket = _key_bracket(leaves, k, limits)
    if _is_on_one_cpu(leaves) and total > 2 * _SAMPLE:
        bracket = _narrowed_by_a_sample(leaves, bracket, k, limits)
    keys = _search(_narrow_keys, (leaves,), bracket, k, limits)
    if trees.is_traced(keys):
        return jax.lax.cond(
            keys.at_low == k,
            lambda: _at_least(leaves, keys.low),
            lambda: _without_late_ties(leaves, keys, k, limits),
        )
    if keys.at_low == k:
        return _at_least(leaves, keys.low)
    return _without_late_ties(leaves, keys, k, limits)


def _with_own_largest(leaf: chex.Array, mask: chex.Array, k: int) -> chex.Array:
    """The mask, or that of the leaf's own k largest where these are more."""
    (count,) = counts([mask])
    if trees.is_traced(count):
        return jax.lax.cond(count < k, lambda: largest([leaf], k)[0], lambda: mask)
    return largest([leaf], k)[0] if count < k else mask


def _without_late_ties(
    leaves: list[chex.Array], keys: Bracket, k: chex.Array, limits: Limits | None
) -> list[chex.Array]:
    """Masks where the k-th largest key, ``keys.low``, is there more often than wanted.

    The surplus of ties is what lies at or above a flat index.
    """
    surplus = keys.at_low - k
    if limits is None and not trees.is_traced((leaves, keys)):
        return _before(leaves, keys.low, _end_of_ties_by_leaf(leaves, keys, surplus))
    if limits is not None:
        # A leaf has no more ties to lose than it has more than its least count.
        found = _count_keys(leaves, keys.low, count=_count_for(leaves))
        spare = jnp.maximum(found, limits.least) - limits.least
        limits = Limits(jnp.zeros_like(spare), spare)
    return _before(leaves, keys.low, _end_of_ties(leaves, keys, surplus, limits))


def _end_of_ties(
    leaves: list[chex.Array], keys: Bracket, surplus: chex.Array, limits: Limits | None
) -> chex.Array:
    """The flat index at or above which as many ties lie as there are too many."""
    total = sum(leaf.size for leaf in leaves)
    bracket = _bracket(
        jnp.uint32(0), jnp.uint32(total), keys.at_low - keys.at_high, surplus
    )
    return _search(_narrow_indices, (leaves, keys.low), bracket, surplus, limits).low


def _end_of_ties_by_leaf(
    leaves: list[chex.Array], keys: Bracket, surplus: chex.Array
) -> chex.Array:
    """The same, counting from the last leaf on and searching in one leaf only."""
    dtype, offset = _dtype(leaves), sum(leaf.size for leaf in leaves)
    for leaf in reversed(leaves):
        leaf = leaf.astype(dtype)
        offset -= leaf.size
        ties = _count_equal(leaf, keys.low, count=_count_for(leaf))
        if ties >= surplus:
            break
        surplus -= ties
    bracket = _bracket(jnp.uint32(0), jnp.uint32(leaf.size), ties, surplus)
    within = _search(_narrow_indices, ([leaf], keys.low), bracket, surplus)
    return offset + within.low


def _narrowed_by_a_sample(
    leaves: list[chex.Array], bracket: Bracket, k: chex.Array, limits: Limits | None
) -> Bracket:
    """Narrows by two guesses, between which the k-th largest nearly always is.

    They are keys of a sample, three standard deviations of its rank above and below.
    """
    total = sum(leaf.size for leaf in leaves)
    sample = _sample(leaves, total // _SAMPLE)
    size = sum(leaf.size for leaf in sample)
    rank = size * int(k) / total
    margin = 3 * math.sqrt(rank * (1 - rank / size)) + 1
    for wanted in (math.ceil(rank + margin), math.floor(rank - margin)):
        if 1 <= wanted < size:
            wanted = jnp.uint32(wanted)
            found = _search(
                _narrow_keys, (sample,), _key_bracket(sample, wanted), wanted
            )
            bracket = _narrow_keys(
                leaves, bracket, k, limits, found.low, count=_count_in_pieces
            )
    return bracket


@functools.partial(jax.jit, static_argnums=1)
def _sample(leaves: list[chex.Array], stride: int) -> list[chex.Array]:
    # Of a leaf of fewer entries than the stride, the first.
    return [leaf.ravel()[::stride] for leaf in leaves]


def _search(
    narrow: Callable[..., Bracket],
    data: tuple,
    bracket: Bracket,
    k: chex.Array,
    limits: Limits | None = None,
) -> Bracket:
    """Narrows until exactly k are at or above ``low``, or ``high`` is next to it."""
    if trees.is_traced((data, bracket)):

        def narrowed(bracket: Bracket) -> Bracket:
            # Or XLA would take the keys out of the loop, and have those of all leaves.
            constant, bracket = jax.lax.optimization_barrier((data, bracket))
            return narrow(*constant, bracket, k, limits, count=_count)

        return jax.lax.while_loop(lambda b: ~_is_found(b, k), narrowed, bracket)
    # From the host, the arrays need not be copied into a loop's state.
    count = _count_for(data)
    while not _is_found(bracket, k):
        bracket = narrow(*data, bracket, k, limits, count=count)
    return bracket


def _count_for(data: chex.ArrayTree) -> Count:
    return _count_in_pieces if _is_on_one_cpu(data) else _count


def _is_on_one_cpu(tree: chex.ArrayTree) -> bool:
    if trees.is_traced(tree):
        return False
    devices = set().union(*(leaf.devices() for leaf in jax.tree.leaves(tree)))
    return len(devices) == 1 and devices.pop().platform == "cpu"


@jax.jit
def _is_found(bracket: Bracket, k: chex.Array) -> chex.Array:
    return (bracket.at_low == k) | (bracket.high - bracket.low <= 1)


@jax.jit
def _key_bracket(
    leaves: list[chex.Array], k: chex.Array, limits: Limits | None = None
) -> Bracket:
    # Of floats, which XLA reduces several times faster than their keys; but it takes
    # subnormal ones for zero. A NaN, of which traced scores cannot be cleared, leaves
    # the bracket as wide as it can be.
    dtype = _dtype(leaves)
    tiny = jnp.finfo(dtype).tiny
    least = jnp.min(jnp.stack([jnp.min(leaf.astype(dtype)) for leaf in leaves]))
    most = jnp.max(jnp.stack([jnp.max(leaf.astype(dtype)) for leaf in leaves]))
    low = _ordered_bits(jnp.minimum(least, -tiny), dtype)
    high = _ordered_bits(jnp.maximum(most, tiny), dtype)
    low = jnp.where(jnp.isnan(least), jnp.uint32(0), low)
    high = jnp.where(jnp.isnan(most), jnp.uint32(2**32 - 2), high)
    total = jnp.uint32(sum(leaf.size for leaf in leaves))
    none = jnp.uint32(0) if limits is None else jnp.sum(limits.least)
    return _bracket(low, high + 1, total, k, at_high=none)


def _bracket(
    low: chex.Array,
    high: chex.Array,
    at_low: chex.Array,
    k: chex.Array,
    at_high: chex.Numeric = 0,
) -> Bracket:
    """The bracket to start from: all are at or above low, none at or above high."""
    at_high = jnp.uint32(at_high)
    return Bracket(
        low,
        high,
        at_low,
        at_high,
        over=_residual(at_low, k),
        under=_residual(k, at_high),
        last_was_low=jnp.array(False),
        guesses=jnp.uint32(0),
    )


@functools.partial(jax.jit, static_argnames="count")
def _narrow_keys(
    leaves: list[chex.Array],
    bracket: Bracket,
    k: chex.Array,
    limits: Limits | None = None,
    guess: chex.Array | None = None,
    *,
    count: Count,
) -> Bracket:
    dtype = _dtype(leaves)

    def is_counted(x: chex.Array, index: chex.Array, guess: chex.Array) -> chex.Array:
        return _ordered_bits(x, dtype) >= guess

    guess = (
        _guess(bracket) if guess is None else jnp.clip(guess, bracket.low, bracket.high)
    )
    count_at_least = functools.partial(count, is_counted, leaves)
    return _narrow(count_at_least, bracket, k, limits, guess)


@functools.partial(jax.jit, static_argnames="count")
def _narrow_indices(
    leaves: list[chex.Array],
    key: chex.Array,
    bracket: Bracket,
    k: chex.Array,
    limits: Limits | None = None,
    *,
    count: Count,
) -> Bracket:
    dtype = _dtype(leaves)

    def is_counted(x: chex.Array, index: chex.Array, guess: chex.Array) -> chex.Array:
        return (_ordered_bits(x, dtype) == key) & (index >= guess)

    count_at_least = functools.partial(count, is_counted, leaves)
    return _narrow(count_at_least, bracket, k, limits, _guess(bracket))


@functools.partial(jax.jit, static_argnames="count")
def _count_keys(
    leaves: list[chex.Array], key: chex.Array, *, count: Count
) -> chex.Array:
    """How many keys of each leaf are at or above one."""
    dtype = _dtype(leaves)

    def is_counted(x: chex.Array, _: chex.Array, guess: chex.Array) -> chex.Array:
        return _ordered_bits(x, dtype) >= guess

    return count(is_counted, leaves, key)


@functools.partial(jax.jit, static_argnames="count")
def _count_equal(leaf: chex.Array, key: chex.Array, *, count: Count) -> chex.Array:
    def is_counted(x: chex.Array, _: chex.Array, guess: chex.Array) -> chex.Array:
        return _ordered_bits(x, x.dtype) == guess

    return count(is_counted, [leaf], key)[0]


@functools.partial(jax.jit, static_argnames="count")
def _count_true(mask: chex.Array, *, count: Count) -> chex.Array:
    def is_counted(x: chex.Array, _: chex.Array, __: chex.Array) -> chex.Array:
        return x

    return count(is_counted, [mask], jnp.uint32(0))[0]


@jax.jit
def _at_least(leaves: list[chex.Array], key: chex.Array) -> list[chex.Array]:
    return [_ordered_bits(leaf, _dtype(leaves)) >= key for leaf in leaves]


@jax.jit
def _before(
    leaves: list[chex.Array], key: chex.Array, end: chex.Array
) -> list[chex.Array]:
    def before(leaf: chex.Array, index: chex.Array) -> chex.Array:
        keys = _ordered_bits(leaf, _dtype(leaves))
        return (keys > key) | ((keys == key) & (index < end))

    return [before(leaf, index) for leaf, index in zip(leaves, _flat_indices(leaves))]


def _narrow(
    count_at_least: Callable[[chex.Array], chex.Array],
    bracket: Bracket,
    k: chex.Array,
    limits: Limits | None,
    guess: chex.Array,
) -> Bracket:
    count = count_at_least(guess)
    if limits is not None:
        count = jnp.clip(count, limits.least, limits.most)
    count = jnp.sum(count, dtype=jnp.uint32)
    is_low = count >= k
    # The Illinois rule: an end that stays twice loses half of its weight, or
    # interpolation would creep up to it from one side.
    stays_again = is_low == bracket.last_was_low
    less = jnp.where(stays_again & (bracket.guesses > 0), 0.5, 1.0)
    return Bracket(
        low=jnp.where(is_low, guess, bracket.low),
        high=jnp.where(is_low, bracket.high, guess),
        at_low=jnp.where(is_low, count, bracket.at_low),
        at_high=jnp.where(is_low, bracket.at_high, count),
        over=jnp.where(is_low, _residual(count, k), less * bracket.over),
        under=jnp.where(is_low, less * bracket.under, _residual(k, count)),
        last_was_low=is_low,
        guesses=bracket.guesses + 1,
    )


def _guess(bracket: Bracket) -> chex.Array:
    """A value strictly between low and high."""
    width = bracket.high - bracket.low
    share = bracket.over / (bracket.over + bracket.under)
    interpolated = (share * width.astype(jnp.float32)).astype(width.dtype)
    bisect = (bracket.guesses % 4 == 3) & (bracket.guesses > 7)
    step = jnp.where(bisect, width // 2, interpolated)
    return bracket.low + jnp.clip(step, 1, width - 1)


def _residual(count: chex.Array, k: chex.Array) -> chex.Array:
    # Roots, because counts fall steeply towards the largest keys. Of what was tried on
    # distributions of scores (counts, roots, logarithms), they took the fewest rounds.
    return jnp.sqrt(count.astype(jnp.float32)) - jnp.sqrt(k.astype(jnp.float32))


def _dtype(leaves: list[chex.Array]) -> jnp.dtype:
    return jnp.result_type(*leaves)


def _ordered_bits(x: chex.Array, dtype: jnp.dtype) -> chex.Array:
    """Unsigned integers in the order of the floats; -0.0 and 0.0 are the same."""
    bits = dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{bits}")
    sign = jnp.array(2 ** (bits - 1), unsigned)
    pattern = jax.lax.bitcast_convert_type(x.astype(dtype), unsigned)
    # A negative float's magnitude bits m become sign - m, a positive's sign + m.
    keys = jnp.where(pattern >= sign, -pattern, pattern | sign)
    return keys.astype(jnp.promote_types(unsigned, jnp.uint32))


def _count(
    is_counted: IsCounted, leaves: list[chex.Array], guess: chex.Array
) -> chex.Array:
    # Of a one that XLA does not know, or it would take the indices out of a loop.
    guess, one = jax.lax.optimization_barrier((guess, jnp.uint32(1)))
    return jnp.stack(
        [
            jnp.sum(is_counted(leaf, index, guess), dtype=jnp.uint32)
            for leaf, index in zip(leaves, _flat_indices(leaves, one))
        ]
    )


def _count_in_pieces(
    is_counted: IsCounted, leaves: list[chex.Array], guess: chex.Array
) -> chex.Array:
    """The same where XLA writes out what it adds up, as it does on the CPU.

    It is written as bytes, which add up as far as 255, and a piece at a time.
    """
    totals, offset = [], 0
    for leaf in leaves:
        count = functools.partial(_count_piece, is_counted, leaf.ravel(), guess, offset)
        pieces, rest = divmod(leaf.size, _PIECE)
        total = count(leaf.size - rest, rest)
        if pieces:  # a loop, for written out one by one they take minutes to compile
            total = jax.lax.fori_loop(
                0,
                pieces,
                lambda i, total, count=count: total + count(i * _PIECE, _PIECE),
                total,
            )
        # Adds nothing: it has a leaf wait for the one before, and take its memory.
        guess += (total > leaf.size).astype(guess.dtype)
        totals.append(total)
        offset += leaf.size
    return jnp.stack(totals)


def _count_piece(
    is_counted: IsCounted,
    flat: chex.Array,
    guess: chex.Array,
    offset: int,
    start: chex.Numeric,
    size: int,
) -> chex.Array:
    piece = jax.lax.dynamic_slice(flat, (start,), (size,))
    first = jnp.uint32(offset) + jnp.asarray(start, jnp.uint32)
    index = first + jnp.arange(size, dtype=jnp.uint32)
    return _sum_of_bytes(is_counted(piece, index, guess))


def _sum_of_bytes(condition: chex.Array) -> chex.Array:
    length = condition.size // 255
    table = condition[: 255 * length].reshape(255, length).astype(jnp.uint8)
    columns = jnp.sum(table, axis=0, dtype=jnp.uint8)
    return sum(
        jnp.sum(x, dtype=jnp.uint32) for x in (columns, condition[255 * length :])
    )


def _flat_indices(leaves: list[chex.Array], one: chex.Numeric = 1) -> list[chex.Array]:
    """Row-major index of every entry, counted on from leaf to leaf (uint32)."""
    offset, indices = 0, []
    for leaf in leaves:
        index = jnp.full(leaf.shape, offset, jnp.uint32)
        stride = leaf.size
        for axis, size in enumerate(leaf.shape):
            stride //= size
            iota = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            index += iota * (jnp.uint32(stride) * one)
        indices.append(index)
        offset += leaf.size
    return indices
