"""The k largest of some candidates, for a k that only the device knows."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snipjax._src import trees
from snipjax.masks import counting, search, selection


def largest_among(
    leaves: list[chex.Array], candidates: list[chex.Array], k: chex.Array
) -> list[chex.Array]:
    """Returns masks of the ``k`` largest of those entries that are candidates.

    ``k`` is at most the number of candidates, an unsigned integer that may be traced.
    Equal entries come in the order of their flat indices.

    Example:
      >>> x, candidates = jnp.array([5.0, 1.0, 3.0]), jnp.array([False, True, True])
      >>> largest_among([x], [candidates], jnp.uint32(1))
      [Array([False, False,  True], dtype=bool)]
    """
    leaves = [
        jnp.where(is_candidate, _finite_below(jax.lax.stop_gradient(leaf)), -jnp.inf)
        for leaf, is_candidate in zip(leaves, candidates)
    ]
    start = _start_among(leaves, candidates, k)
    in_pieces = counting.is_on_one_cpu(leaves)
    found = selection.threshold(leaves, k, start, in_pieces=in_pieces)
    dtype = jnp.result_type(*leaves)
    return [
        found.is_kept(leaf, index, dtype) & (k > 0)
        for leaf, index in zip(leaves, counting.flat_indices(leaves))
    ]


def _finite_below(x: chex.Array) -> chex.Array:
    """Returns scores of which none is -inf, as entries that are no candidates have."""
    # By a selection, since a maximum may take subnormal numbers for zero.
    return jnp.where(jnp.isneginf(x), jnp.finfo(x.dtype).min, x)


def _start_among(
    leaves: list[chex.Array], candidates: list[chex.Array], k: chex.Array
) -> search.Search:
    # Mostly the k-th largest is above zero. The bracket is then of positive candidates,
    # and so narrow that it takes few rounds.
    dtype = jnp.result_type(*leaves)
    tiny = jnp.finfo(dtype).tiny
    key = functools.partial(counting.ordered_bits, dtype=dtype)
    zero = key(jnp.zeros((), dtype))

    def count(is_counted: Callable[[chex.Array], chex.Array]) -> chex.Array:
        counts = [
            jnp.sum(is_candidate & is_counted(leaf), dtype=jnp.uint32)
            for leaf, is_candidate in zip(leaves, candidates)
        ]
        return functools.reduce(jnp.add, counts)

    def least(leaf: chex.Array, is_candidate: chex.Array) -> chex.Array:
        return jnp.min(jnp.where(is_candidate & (leaf >= tiny), leaf, jnp.inf))

    total, normal = count(lambda x: True), count(lambda x: x >= tiny)
    lows = jnp.stack(list(map(least, leaves, candidates))).astype(dtype)
    most = jnp.max(jnp.stack([jnp.max(leaf).astype(dtype) for leaf in leaves]))
    most = key(jnp.maximum(most, tiny))

    def above_zero() -> tuple[chex.Array, ...]:
        none = trees.placed_like(jnp.zeros_like(k), normal)
        return key(jnp.min(lows)), most, normal, none

    def about_zero() -> tuple[chex.Array, ...]:
        # Keys are compared, since comparing floats may take subnormal ones for zero.
        above, not_below = (
            count(lambda x: key(x) > zero),
            count(lambda x: key(x) >= zero),
        )
        lowest = key(jnp.full((), -jnp.inf, dtype)) + 1
        ends = lowest, zero - 1, total, not_below
        ends = _choose(not_below >= k, (zero, zero, not_below, above), ends)
        return _choose(above >= k, (zero + 1, most, above, jnp.zeros_like(k)), ends)

    low, high, at_low, at_high = jax.lax.cond(normal >= k, above_zero, about_zero)
    return search.search_between(low, high, at_low, at_high, k)


def _choose(condition: chex.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(functools.partial(jnp.where, condition), new, old)
