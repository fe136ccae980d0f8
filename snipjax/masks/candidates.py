"""The k largest of some candidates, for a k that only the device knows."""

import functools

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
    # Mostly the k-th largest is above zero, and the bracket without negative floats.
    dtype = jnp.result_type(*leaves)
    tiny = jnp.finfo(dtype).tiny
    key = functools.partial(counting.ordered_bits, dtype=dtype)
    total = sum(jnp.sum(each, dtype=jnp.uint32) for each in candidates)
    normal = sum(jnp.sum(leaf >= tiny, dtype=jnp.uint32) for leaf in leaves)
    most = jnp.max(jnp.stack([jnp.max(leaf).astype(dtype) for leaf in leaves]))
    least = key(jnp.full((), -jnp.inf, dtype)) + 1
    is_above_zero = normal >= k
    return search.search_between(
        jnp.where(is_above_zero, key(jnp.full((), tiny, dtype)), least),
        key(jnp.maximum(most, tiny)),
        jnp.where(is_above_zero, normal, total),
        trees.placed_like(jnp.zeros_like(k), normal),
        k,
    )
