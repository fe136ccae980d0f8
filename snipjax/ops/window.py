"""The window of a convolution, and the images that it moves over."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]


class Window(NamedTuple):
    """Parameters of a convolution of (n, *spatial, i) by (*kernel, i / groups, o)."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: lax.PrecisionLike
    dtype: Any  # of the result


def dilated(shape: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Returns the spatial shape with ``dilation - 1`` zeros between its pixels."""
    return tuple((s - 1) * d + 1 for s, d in zip(shape, dilation, strict=True))


def padded(
    images: chex.Array, padding: Sequence[tuple[int, int]], dilation: Sequence[int]
) -> chex.Array:
    """Returns images (n, *spatial, i) dilated, then padded with zeros or cropped."""
    if all(pair == (0, 0) for pair in padding) and set(dilation) <= {1}:
        return images
    inner = [(*pair, d - 1) for pair, d in zip(padding, dilation, strict=True)]
    return lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
