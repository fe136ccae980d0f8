"""Convolution of 3x3 kernels by Winograd's minimal filtering F(2x2, 3x3).

A tile of 2x2 outputs is A^T [(G w G^T) . (B^T x B)] A for the tile of 4x4 inputs under
it, where `.` multiplies entry by entry and sums over channels: 16 matrix products for 4
outputs, instead of 36 (Lavin and Gray, 2016, arXiv:1509.09308).
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax.numpy as jnp
from jax import lax

from snipjax.ops import chunks
from snipjax.ops.window import Window, dilated, padded

# Fewer channels do not repay the additions of the transforms.
CHANNELS = 16
# A chunk of images has at most so many tiles.
TILES = 1024


def is_suitable(window: Window, image: Sequence[int], kernels: Sequence[int]) -> bool:
    """Returns whether Winograd's products compute a convolution, and pay.

    ``image`` is a spatial shape without padding, ``kernels`` (*kernel, i / groups, o).
    """
    return (
        tuple(kernels[:-2]) == (3, 3)
        and min(kernels[-2:]) >= CHANNELS
        and window.groups == 1
        and set(window.strides + window.rhs_dilation) == {1}
        and not _is_any_row_idle(window, image, kernels)
    )


def products(window: Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    """Returns the convolution of padded images by 3x3 kernels.

    Images (n, height + 2, width + 2, i) and kernels (3, 3, i, o) give images
    (n, height, width, o).
    """
    *_, i, o = kernels.shape
    height, width = (size - 2 for size in images.shape[1:-1])
    matrix = _filter_matrix(kernels.dtype)
    filters = (matrix @ kernels.reshape(9, -1).astype(matrix.dtype)).reshape(16, i, o)

    def chunk_products(images: chex.Array, filters: chex.Array) -> chex.Array:
        product = _dot(window, _input_tiles(images), filters, (2, 1))
        tiles = (images.shape[1] // 2 - 1, images.shape[2] // 2 - 1)
        outputs = _output_image(product.reshape(4, 4, -1, *tiles, o))
        return outputs.astype(window.dtype)

    limit = _chunk_limit(height, width)
    out = chunks.map_chunks(chunk_products, limit, _even(images), filters)
    return out[:, :height, :width]


def kernel_gradient(
    window: Window, images: chex.Array, gradient: chex.Array, dtype: Any
) -> chex.Array:
    """Returns the gradient (3, 3, i, o) of the convolution by its kernels.

    Images are padded, (n, height + 2, width + 2, i); ``gradient``, by the output, is
    (n, height, width, o).
    """

    def chunk_products(images: chex.Array, gradient: chex.Array) -> chex.Array:
        tiles = _input_tiles(images), _gradient_tiles(gradient)
        return _dot(window, *tiles, (1, 1))

    limit = _chunk_limit(*gradient.shape[1:-1])
    filters = chunks.sum_chunks(chunk_products, limit, _even(images), _even(gradient))
    *_, i, o = filters.shape
    kernels = _filter_matrix(filters.dtype).T @ filters.reshape(16, -1)
    return kernels.reshape(3, 3, i, o).astype(dtype)


def _is_any_row_idle(
    window: Window, image: Sequence[int], kernels: Sequence[int]
) -> bool:
    # The gradient of a row or column of a kernel that meets padding only is zero;
    # Winograd's would be a rounding error, which a saliency would rank. A row moves
    # over as many pixels as there are outputs.
    for extent, kernel, (low, high), dilation in zip(
        dilated(image, window.lhs_dilation),
        kernels,
        window.padding,
        window.lhs_dilation,
    ):
        outputs = extent + low + high - kernel + 1
        pixels = range(low, low + extent, dilation)
        rows = (range(start, start + outputs) for start in range(kernel))
        if any(not set(row) & set(pixels) for row in rows):
            return True
    return False


def _chunk_limit(height: int, width: int) -> int:
    return TILES // (-(-height // 2) * -(-width // 2))


def _dot(
    window: Window, a: chex.Array, b: chex.Array, contracted: tuple[int, int]
) -> chex.Array:
    return chunks.dot(a, b, contracted, precision=window.precision, dtype=window.dtype)


def _even(images: chex.Array) -> chex.Array:
    return padded(images, [(0, size % 2) for size in images.shape[1:-1]], (1, 1))


def _filter_matrix(dtype: Any) -> chex.Array:
    """Returns the transform of kernels of 9 entries into filters of 16, G (x) G."""
    rows = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    transform = jnp.array(rows, chunks.accumulator(dtype))
    return jnp.kron(transform, transform)


def _input_tiles(images: chex.Array) -> chex.Array:
    """Returns B^T x B of padded images (n, 2 h + 2, 2 w + 2, i): (16, n * h * w, i)."""

    def transform(x: list[chex.Array]) -> list[chex.Array]:
        return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]

    images = images.astype(chunks.accumulator(images.dtype))
    rows = jnp.stack(transform(_every_other(images, 4, 1)))
    tiles = jnp.stack(transform(_every_other(rows, 4, 3)), 1)
    return tiles.reshape(16, -1, images.shape[-1])


def _gradient_tiles(gradient: chex.Array) -> chex.Array:
    """Returns A g A^T of gradients (n, 2 h, 2 w, o): (16, n * h * w, o)."""

    def transform(g: list[chex.Array]) -> list[chex.Array]:
        return [g[0], g[0] + g[1], g[0] - g[1], -g[1]]

    gradient = gradient.astype(chunks.accumulator(gradient.dtype))
    rows = jnp.stack(transform(_every_other(gradient, 2, 1)))
    tiles = jnp.stack(transform(_every_other(rows, 2, 3)), 1)
    return tiles.reshape(16, -1, gradient.shape[-1])


def _output_image(products: chex.Array) -> chex.Array:
    """Returns A^T m A of products (4, 4, n, h, w, o): images (n, 2 h, 2 w, o)."""

    def transform(m: chex.Array) -> list[chex.Array]:
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

    rows = [jnp.stack(transform(row), 3) for row in transform(products)]
    pixels = jnp.stack(rows, 2)  # (n, h, 2, w, 2, o)
    n, h, _, w, _, o = pixels.shape
    return pixels.reshape(n, 2 * h, 2 * w, o)


def _every_other(x: chex.Array, count: int, axis: int) -> list[chex.Array]:
    """Returns every other slice of x along the axis, from each of `count` starts."""
    stop = x.shape[axis] - count + 1
    return [lax.slice_in_dim(x, start, start + stop, 2, axis) for start in range(count)]
