"""Convolution by patches: the pixels under the kernel, unfolded for each output.

Dilated kernels have patches too. By itself, XLA's convolution is faster there, but
inside `lax.scan`, where training runs, it is far slower, and nothing at trace time
tells the two apart.
"""

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from snipjax.ops import chunks
from snipjax.ops.window import Window, padded

# A chunk of images unfolds into at most so many bytes.
PATCH_BYTES = 8 * 2**20
# The patches of one image, in units of PATCH_BYTES, that are still unfolded at once.
MOST_CHUNKS_OF_AN_IMAGE = 4


def products(window: Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    """Returns the convolution of padded images, by products of patches and kernels.

    Images (n, *spatial, i) and kernels (*kernel, i / groups, o) give (n, *out, o).
    """
    *kernel, i, o = kernels.shape
    groups = window.groups
    matrix = kernels.reshape(-1, i, groups, o // groups)
    matrix = matrix.transpose(2, 0, 1, 3).reshape(groups, -1, o // groups)

    def chunk_products(images: chex.Array, matrix: chex.Array) -> chex.Array:
        out, patches = _patches(window, images, kernel)
        product = chunks.dot(
            patches,
            matrix,
            (2, 1),
            precision=window.precision,
            dtype=window.dtype,
        ).astype(window.dtype)
        return product.transpose(1, 0, 2).reshape(-1, *out, o)

    n = images.shape[0]
    # Kernels of one entry unfold nothing.
    is_unfolded = math.prod(kernel) > 1
    limit = PATCH_BYTES * n // _num_bytes(window, images, kernel) if is_unfolded else n
    return chunks.map_chunks(chunk_products, limit, images, matrix)


def are_too_large(
    window: Window, image: Sequence[int], kernels: Sequence[int], dtype: Any
) -> bool:
    """Returns whether the patches of a single image are too large to unfold at once.

    The scratch memory of large kernels grows with the kernel, however few the images.
    ``image`` is a spatial shape without padding, ``kernels`` (*kernel, i / groups, o).
    """
    *kernel, channels, _ = kernels
    if math.prod(kernel) == 1:
        return False
    shape = jax.ShapeDtypeStruct((1, *image, channels * window.groups), dtype)
    images = jax.eval_shape(
        lambda x: padded(x, window.padding, window.lhs_dilation), shape
    )
    return _num_bytes(window, images, kernel) > MOST_CHUNKS_OF_AN_IMAGE * PATCH_BYTES


def _num_bytes(window: Window, images: chex.Array, kernel: Sequence[int]) -> int:
    _, patches = jax.eval_shape(lambda x: _patches(window, x, kernel), images)
    return patches.size * patches.dtype.itemsize


def _patches(
    window: Window, images: chex.Array, kernel: Sequence[int]
) -> tuple[tuple[int, ...], chex.Array]:
    """Returns the output's spatial shape, and patches (groups, n * out, kernel * i)."""
    rank = len(kernel)
    patches = images
    for axis in reversed(range(rank)):  # (n, *image, c) to (n, *out, *kernel, c)
        stride, dilation = window.strides[axis], window.rhs_dilation[axis]
        last = images.shape[1 + axis] - (kernel[axis] - 1) * dilation - 1
        shifted = [
            lax.slice_in_dim(patches, start, start + last + 1, stride, 1 + axis)
            for start in range(0, kernel[axis] * dilation, dilation)
        ]
        patches = jnp.stack(shifted, 1 + rank)
    out = patches.shape[1 : 1 + rank]
    groups = window.groups
    patches = patches.reshape(-1, math.prod(kernel), groups, images.shape[-1] // groups)
    patches = patches.transpose(2, 0, 1, 3)
    return out, patches.reshape(*patches.shape[:2], -1)
