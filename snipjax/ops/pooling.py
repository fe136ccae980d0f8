"""Pooling by tiles on the CPU, with the values and gradients of `flax.linen`."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from snipjax.ops.support import needs_xla
from snipjax.ops.window import Padding


def max_pool(
    inputs: chex.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> chex.Array:
    r"""Takes the maximum over windows, as `flax.linen.max_pool` does.

    .. math:: y_{n p c} = \max_k x_{n, s p + k, c}

    over the offsets :math:`k` in the window at position :math:`p`, with stride
    :math:`s`.

    The gradient goes to the first maximum of a window in row-major order. A NaN counts
    as the maximum.

    Args:
      inputs: images ``(..., *spatial, channels)``, of any real dtype.
      window_shape: d integers, the window's size in pixels.
      strides: d integers, the distance between windows; 1 by default.
      padding: "SAME", "VALID", or d pairs (low, high) of padding with -inf.

    Returns:
      The maxima ``(..., *windows, channels)``, in the dtype of `inputs`.

    Example:
      >>> max_pool(jnp.ones((8, 32, 32, 64)), (2, 2), (2, 2)).shape
      (8, 16, 16, 64)
    """
    return _pool(nn.max_pool, _tile_maxima, inputs, window_shape, strides, padding)


def avg_pool(
    inputs: chex.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> chex.Array:
    r"""Takes the mean over windows, as `flax.linen.avg_pool` does.

    .. math:: y_{n p c} = \frac{1}{|W|} \sum_{k \in W} x_{n, s p + k, c}

    over the offsets :math:`k` in the window :math:`W` at position :math:`p`, with
    stride :math:`s`.

    Args:
      inputs: images ``(..., *spatial, channels)``, of any floating dtype.
      window_shape: d integers, the window's size in pixels.
      strides: d integers, the distance between windows; 1 by default.
      padding: "SAME", "VALID", or d pairs (low, high) of padding with 0.

    Returns:
      The means ``(..., *windows, channels)``, in the dtype of `inputs`.

    Example:
      >>> avg_pool(jnp.ones((8, 4, 4, 64)), (4, 4)).shape
      (8, 1, 1, 64)
    """
    return _pool(nn.avg_pool, _tile_means, inputs, window_shape, strides, padding)


def _pool(
    plain: Callable,
    tiled: Callable,
    inputs: chex.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: Padding,
) -> chex.Array:
    window_shape = tuple(window_shape)
    rank = len(window_shape)
    strides = tuple(strides or (1,) * rank)
    spatial = inputs.shape[-1 - rank : -1]
    is_tiling = (
        not needs_xla(inputs)
        and strides == window_shape
        and len(spatial) == rank
        and all(s % w == 0 for s, w in zip(spatial, window_shape))
        and (isinstance(padding, str) or not any(itertools.chain(*padding)))
    )
    plain = functools.partial(
        plain, window_shape=window_shape, strides=strides, padding=padding
    )
    if not is_tiling:
        return plain(inputs)
    jax.eval_shape(plain, inputs)  # raises what Flax raises
    tiled = functools.partial(tiled, window_shape=window_shape)
    return lax.platform_dependent(inputs, cpu=tiled, default=plain)


def _tiles(inputs: chex.Array, window_shape: tuple[int, ...]) -> chex.Array:
    """Returns inputs (..., s, c) as (..., s / w, w, c), for each spatial dimension."""
    rank = len(window_shape)
    *batch, channels = inputs.shape
    batch, spatial = batch[: len(batch) - rank], batch[len(batch) - rank :]
    tiles = [(s // w, w) for s, w in zip(spatial, window_shape, strict=True)]
    return inputs.reshape(*batch, *itertools.chain(*tiles), channels)


def _within_tile(rank: int) -> tuple[int, ...]:
    # Axes of the tiles, counted from the last, that run over the entries of a tile.
    return tuple(range(-2 * rank, 0, 2))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _tile_maxima(inputs: chex.Array, window_shape: tuple[int, ...]) -> chex.Array:
    maximum, *entries = _tile_entries(inputs, window_shape)
    for entry in entries:
        maximum = jnp.where(_is_at_least(maximum, entry), maximum, entry)
    return maximum


@_tile_maxima.defjvp
def _tile_maxima_jvp(
    window_shape: tuple[int, ...], primals: tuple[Any], tangents: tuple[Any]
) -> tuple[chex.Array, chex.Array]:
    # The gradient is a selection by the index of the first maximum: reverse mode
    # keeps nothing but these small integers.
    (inputs,), (tangent,) = primals, tangents
    maximum, *entries = _tile_entries(inputs, window_shape)
    winner = jnp.zeros(maximum.shape, jnp.int32)
    for index, entry in enumerate(entries, 1):
        is_first = _is_at_least(maximum, entry)
        winner = jnp.where(is_first, winner, index)
        maximum = jnp.where(is_first, maximum, entry)
    if len(entries) < 256:
        winner = winner.astype(jnp.uint8)
    tiles = _tiles(tangent, window_shape)
    axes = _within_tile(len(window_shape))
    numbers = jnp.arange(len(entries) + 1, dtype=winner.dtype).reshape(window_shape)
    numbers = jnp.expand_dims(numbers, tuple(set(range(-tiles.ndim, 0)) - set(axes)))
    chosen = jnp.expand_dims(winner, axes) == numbers
    out = jnp.sum(jnp.where(chosen, tiles, 0), axes, dtype=tangent.dtype)
    return _tile_maxima(inputs, window_shape), out


def _is_at_least(a: chex.Array, b: chex.Array) -> chex.Array:
    return (a >= b) | jnp.isnan(a)


def _tile_entries(
    inputs: chex.Array, window_shape: tuple[int, ...]
) -> list[chex.Array]:
    """Returns each entry of all tiles, in row-major order: arrays (..., s / w, c)."""
    entries = [_tiles(inputs, window_shape)]
    for axis in _within_tile(len(window_shape)):
        entries = [
            lax.index_in_dim(entry, k, axis, keepdims=True)
            for entry in entries
            for k in range(entry.shape[axis])
        ]
    return [entry.squeeze(_within_tile(len(window_shape))) for entry in entries]


def _tile_means(inputs: chex.Array, window_shape: tuple[int, ...]) -> chex.Array:
    tiles = _tiles(inputs, window_shape)
    return jnp.sum(tiles, _within_tile(len(window_shape)), dtype=inputs.dtype) / (
        math.prod(window_shape)
    )
