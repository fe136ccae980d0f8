"""Matrix products of a few images at a time, so that operands stay in the cache."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

Function = Callable[[chex.Array, chex.Array], chex.Array]


def map_chunks(
    function: Function, limit: int, images: chex.Array, weights: chex.Array
) -> chex.Array:
    """Returns ``function(images, weights)``, computed on chunks of the images.

    Images, and the results that ``function`` makes of each, lie along axis 0.
    """
    function = jax.checkpoint(function, prevent_cse=False)
    chunks, rest = _chunks(images, limit)
    if chunks is None:
        return function(images, weights)
    out = lax.map(lambda images: function(images, weights), chunks)
    out = out.reshape(-1, *out.shape[2:])
    return out if rest is None else jnp.concatenate([out, function(rest, weights)])


def sum_chunks(
    function: Function, limit: int, images: chex.Array, gradient: chex.Array
) -> chex.Array:
    """Returns ``function(images, gradient)``, added up over chunks of both arguments.

    ``function`` is a sum over images, which lie along axis 0.
    """
    function = jax.checkpoint(function, prevent_cse=False)
    (chunks, rest), (chunks_g, rest_g) = (_chunks(x, limit) for x in (images, gradient))
    if chunks is None or chunks_g is None:
        return function(images, gradient)
    if rest is None:
        shape = jax.eval_shape(function, chunks[0], chunks_g[0])
        total = jnp.zeros(shape.shape, shape.dtype)
    else:
        total = function(rest, rest_g)

    def add(total: chex.Array, pair: tuple[Any, Any]) -> tuple[chex.Array, None]:
        return total + function(*pair), None

    return lax.scan(add, total, (chunks, chunks_g))[0]


def _chunks(
    images: chex.Array, limit: int
) -> tuple[chex.Array | None, chex.Array | None]:
    """Returns chunks of at most ``limit`` images, and the rest, None where empty."""
    n, limit = images.shape[0], max(1, limit)
    if n <= limit:
        return None, images
    divisor = next(d for d in range(limit, 0, -1) if n % d == 0)
    chunk = divisor if 2 * divisor >= limit else limit
    whole = n - n % chunk
    chunks = images[:whole].reshape(-1, chunk, *images.shape[1:])
    return chunks, images[whole:] if whole < n else None


def dot(
    a: chex.Array,
    b: chex.Array,
    contracted: tuple[int, int],
    *,
    precision: lax.PrecisionLike,
    dtype: Any,
) -> chex.Array:
    """Returns products of the matrices in ``a`` and ``b``, of shape ``[batch, ...]``.

    ``contracted`` are the axes, one of each, that are summed over. ``dtype`` is the
    convolution's; sums are in it, or in float32 if that is wider.
    """
    operand = a.dtype if a.dtype == b.dtype else accumulator(a.dtype, b.dtype)
    return lax.dot_general(
        a.astype(operand),
        b.astype(operand),
        (((contracted[0],), (contracted[1],)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=accumulator(operand, dtype),
    )


def accumulator(*dtypes: Any) -> Any:
    """Returns float32, or the widest of the dtypes if it is wider."""
    # `jnp.promote_types` raises an error where promotion is strict.
    dtypes = (jnp.float32, *dtypes)
    return max(map(jnp.dtype, dtypes), key=lambda dtype: dtype.itemsize)
