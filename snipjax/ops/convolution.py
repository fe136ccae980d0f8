"""Convolution and pooling that are fast on every platform.

`conv_general_dilated` has the signature and the values of
`jax.lax.conv_general_dilated`, and goes wherever Flax lets one choose the
convolution; `max_pool` and `avg_pool` have those of `flax.linen`:

    from snipjax import ops as fast

    y = nn.Conv(64, (3, 3), conv_general_dilated=fast.conv_general_dilated)(x)
    y = fast.max_pool(y, (2, 2), (2, 2))

On GPU and TPU they are the functions they replace, and so they are for arrays whose
types say how they are sharded: in meshes of `AxisType.Explicit`, and inside
`jax.shard_map` unless its `check_vma` is off. On the CPU, XLA's convolution leaves most
of the machine idle: in weight gradients of large feature maps, in feature maps smaller
than the kernel, and everywhere inside `lax.scan`. There a convolution becomes matrix
products, a few images at a time so that what is unfolded stays in the cache (`python -m
benchmarks.convolution` prints the measurements behind the choices made here).

Forward and reverse mode, any number of times, in any order: the products are
plain JAX operations, and each derivative is written so that its transpose, which
is what reverse mode runs, is a product of the fast kind too.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

Pairs = tuple[tuple[int, int], ...]
Padding = str | Sequence[tuple[int, int]]

# A chunk of images unfolds into at most so many bytes of patches, or so many tiles.
_PATCH_BYTES = 8 * 2**20
_TILES = 1024
# One image that unfolds into more than so many times _PATCH_BYTES is lax's: the scratch
# memory of large kernels would grow with the kernel, whatever the chunk.
_MOST_CHUNKS_OF_AN_IMAGE = 4
# Fewer channels than this do not repay the additions of Winograd's transforms.
_WINOGRAD_CHANNELS = 16


def conv_general_dilated(
    lhs: chex.Array,
    rhs: chex.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> chex.Array:
    """Convolves images with kernels, as `jax.lax.conv_general_dilated` does.

        out[n, p, o] = sum_{k, i} lhs[n, stride * p + dilation * k, i] rhs[k, i, o]

    over positions `p`, offsets `k` in the kernel and channels `i`, on images
    padded and dilated first. Values agree with `lax` to the rounding of the
    dtype; that of 3x3 kernels of many channels (Winograd's products) is relative to
    the largest entries, not to each, and infinite inputs may give NaN there where
    `lax` gives an infinity. Works under `jit`, `vmap`, `scan`, and all derivatives.

    Args:
      lhs: images, of rank 2 + d, in any floating dtype.
      rhs: kernels, of the rank and dtype of `lhs`.
      window_strides: d integers.
      padding: "SAME", "SAME_LOWER", "VALID" or d pairs (low, high).
      lhs_dilation: d integers, the spacing of the images' pixels; 1 by default.
      rhs_dilation: d integers, the spacing of the kernel's; 1 by default.
      dimension_numbers: which dimension is which, as `lax` takes it: `None` for
        ("NCHW", "OIHW", "NCHW"); Flax passes ("NHWC", "HWIO", "NHWC").
      feature_group_count: groups of channels that do not mix.
      batch_group_count: groups of images; other than 1, this is `lax`.
      precision: of the matrix products, as `lax` takes it.
      preferred_element_type: dtype to accumulate in and return.
      out_sharding: the result's sharding (Flax NNX passes it); other than
        `None`, this is `lax`.

    Returns:
      The convolved images, in the layout `dimension_numbers` asks for.

    Raises:
      TypeError, ValueError: what `lax.conv_general_dilated` raises.

    Example:
      >>> images, kernels = jnp.ones((8, 32, 32, 3)), jnp.ones((3, 3, 3, 64))
      >>> layout = ("NHWC", "HWIO", "NHWC")
      >>> conv_general_dilated(
      ...     images, kernels, (1, 1), "SAME", dimension_numbers=layout
      ... ).shape
      (8, 32, 32, 64)
    """
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    out = jax.eval_shape(plain, lhs, rhs)  # raises what lax raises
    rank = lhs.ndim - 2
    lhs_dilation, rhs_dilation = (
        (1,) * rank if dilation is None else tuple(map(int, dilation))
        for dilation in (lhs_dilation, rhs_dilation)
    )
    is_plain = (
        batch_group_count != 1
        or out_sharding is not None
        or {len(lhs_dilation), len(rhs_dilation)} != {rank}
        or any(not jnp.issubdtype(x.dtype, jnp.floating) for x in (lhs, rhs, out))
        or _is_left_to_xla(lhs, rhs)
        or 0 in out.shape
    )
    if is_plain:
        return plain(lhs, rhs)

    spec = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    image = [lhs.shape[d] for d in spec.lhs_spec[2:]]
    kernel = [rhs.shape[d] for d in spec.rhs_spec[2:]]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            _dilated(image, lhs_dilation),
            _dilated(kernel, rhs_dilation),
            window_strides,
            padding,
        )
    window = _Window(
        strides=tuple(map(int, window_strides)),
        padding=tuple((int(low), int(high)) for low, high in padding),
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        groups=feature_group_count,
        precision=tuple(precision) if isinstance(precision, list) else precision,
        dtype=out.dtype,
    )
    kernel += [rhs.shape[spec.rhs_spec[1]], rhs.shape[spec.rhs_spec[0]]]
    if _is_too_large(window, image, kernel, lhs.dtype):
        return plain(lhs, rhs)

    def by_products(lhs: chex.Array, rhs: chex.Array) -> chex.Array:
        batch, feature, *spatial = spec.lhs_spec
        images = lhs.transpose(batch, *spatial, feature)
        feature_out, feature_in, *spatial = spec.rhs_spec
        kernels = rhs.transpose(*spatial, feature_in, feature_out)
        batch, feature, *spatial = spec.out_spec
        order = (batch, *spatial, feature)
        return _convolve_once(window, images, kernels).transpose(_inverse(order))

    return lax.platform_dependent(lhs, rhs, cpu=by_products, default=plain)


def max_pool(
    inputs: chex.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> chex.Array:
    """Takes the maximum over windows, as `flax.linen.max_pool` does.

        out[n, p, c] = max_k inputs[n, stride * p + k, c]

    Where several entries of a window are its maximum, the gradient goes to the
    first of them in row-major order; a NaN counts as the maximum.

    Args:
      inputs: images (..., *spatial, channels), of any real dtype.
      window_shape: d integers, the window's size.
      strides: d integers, from window to window; 1 by default.
      padding: "SAME", "VALID", or d pairs (low, high) of padding with -inf.

    Returns:
      The maxima (..., *windows, channels), in the dtype of `inputs`.

    Raises:
      ValueError: if `strides` or `padding` do not fit `window_shape`, or
        `inputs` has too few dimensions.

    Example:
      >>> max_pool(jnp.ones((8, 32, 32, 64)), (2, 2), (2, 2)).shape
      (8, 16, 16, 64)
    """
    return _pool(_plain_max_pool, _tile_maxima, inputs, window_shape, strides, padding)


def avg_pool(
    inputs: chex.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> chex.Array:
    """Takes the mean over windows, as `flax.linen.avg_pool` does.

        out[n, p, c] = sum_k inputs[n, stride * p + k, c] / size of the window

    Args:
      inputs: images (..., *spatial, channels), of any floating dtype.
      window_shape: d integers, the window's size.
      strides: d integers, from window to window; 1 by default.
      padding: "SAME", "VALID", or d pairs (low, high) of padding with 0.
      count_include_pad: whether padding counts in the window's size.

    Returns:
      The means (..., *windows, channels), in the dtype of `inputs`.

    Raises:
      ValueError: as `max_pool`.

    Example:
      >>> avg_pool(jnp.ones((8, 4, 4, 64)), (4, 4)).shape
      (8, 1, 1, 64)
    """
    plain = functools.partial(_plain_avg_pool, count_include_pad=count_include_pad)
    return _pool(plain, _tile_means, inputs, window_shape, strides, padding)


def _is_left_to_xla(*arrays: chex.Array) -> bool:
    """Whether arrays are of a dtype, shape or mesh that only XLA's functions take.

    These are floats of 8 bits, symbolic or empty shapes, and meshes where the types
    of arrays say how they are sharded, which products and loops would have to repeat.
    """
    types = [jax.typeof(x) for x in arrays]
    axes = itertools.chain(*(x.sharding.mesh.axis_types for x in types))
    return (
        any(not isinstance(size, int) for x in arrays for size in x.shape)
        or any(0 in x.shape for x in arrays)
        or any(_is_small_float(x.dtype) for x in arrays)
        or any(map(_is_partitioned, types))
        or jax.sharding.AxisType.Explicit in axes
        or any(_varies(x) for x in types)
    )


def _is_partitioned(array: jax.core.ShapedArray) -> bool:
    """Whether XLA may split an array, which it cannot where a product reshapes it."""
    axes = zip(array.sharding.mesh.axis_types, array.sharding.mesh.axis_sizes)
    return any(kind == jax.sharding.AxisType.Auto and size > 1 for kind, size in axes)


def _varies(type_: Any) -> bool:
    """Whether `shard_map` knows an array to differ between devices."""
    manual = getattr(type_, "manual_axis_type", None)  # `vma` in earlier JAX
    return bool(type_.vma if manual is None else manual.varying)


def _is_small_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16


# ---------------------------------------------------------------- convolution


class _Window(NamedTuple):
    """What a convolution of (n, *spatial, i) by (*kernel, i / groups, o) is told."""

    strides: tuple[int, ...]
    padding: Pairs
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: lax.PrecisionLike
    dtype: Any


def _products(window: _Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    padded = _padded(images, window.padding, window.lhs_dilation)
    if _is_winograd(window, images.shape[1:-1], kernels.shape):
        return _winograd(window, padded, kernels)
    return _patch_products(window, padded, kernels)


_convolve = jax.custom_jvp(_products, nondiff_argnums=(0,))


def _convolve_jvp(
    window: _Window, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[chex.Array, chex.Array]:
    # A convolution is bilinear: d(x * w) = dx * w + x * dw. A term that is zero is
    # left out, such as the one of the first layer's images.
    (images, kernels), (d_images, d_kernels) = primals, tangents
    out = _convolve(window, images, kernels)
    terms = []
    if not _is_zero(d_images):
        terms.append(_by_images(window, d_images, kernels))
    if not _is_zero(d_kernels):
        terms.append(_by_kernels(window, images, d_kernels))
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


_convolve.defjvp(_convolve_jvp, symbolic_zeros=True)
# Layers alike in every shape are traced once.
_convolve_once = jax.jit(_convolve, static_argnums=0)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _by_images(window: _Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    """The convolution, as the transpose of its gradient by the images.

    Reverse mode transposes it again, and so runs that gradient as written: as a
    convolution of the output's gradient by the mirrored kernels, where there is one
    that unfolds little more than the convolution itself.
    """
    out = jax.eval_shape(functools.partial(_products, window), images, kernels)
    mirrored = _mirrored_window(window, kernels.shape, images.dtype)
    unfolded = math.prod(out.shape[:-1]) * images.shape[-1]
    mirrored_unfolded = math.prod(images.shape[:-1]) * out.shape[-1]
    is_mirrored = set(window.strides) == {1} and (
        _is_winograd(mirrored, out.shape[1:-1], kernels.shape)
        or mirrored_unfolded <= 2 * unfolded
    )
    if not is_mirrored:
        return _products(window, images, kernels)
    kernels = _mirrored_kernels(kernels, window.groups)
    transpose = jax.linear_transpose(lambda g: _products(mirrored, g, kernels), out)
    return transpose(images)[0]


def _by_kernels(window: _Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    """The convolution, in the form whose transpose by the kernels is fast."""
    if not _is_winograd(window, images.shape[1:-1], kernels.shape):
        return _products(window, images, kernels)
    out = jax.eval_shape(functools.partial(_products, window), images, kernels)

    # What the gradient unfolds is computed again, which is cheaper than to keep it.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def transpose(images: chex.Array, kernels: chex.Array) -> chex.Array:
        padded = _padded(images, window.padding, window.lhs_dilation)
        return jax.linear_transpose(
            lambda g: _winograd_kernel_gradient(window, padded, g, kernels.dtype), out
        )(kernels)[0]

    return transpose(images, kernels)


def _mirrored_window(window: _Window, kernels: Sequence[int], dtype: Any) -> _Window:
    extent = _dilated(kernels[:-2], window.rhs_dilation)
    padding = tuple(
        (size - 1 - low, size - 1 - high)
        for size, (low, high) in zip(extent, window.padding, strict=True)
    )
    return window._replace(
        strides=window.lhs_dilation,
        padding=padding,
        lhs_dilation=window.strides,
        dtype=dtype,
    )


def _mirrored_kernels(kernels: chex.Array, groups: int) -> chex.Array:
    """Kernels (*kernel, i, g * o) turned round, as (*kernel, o, g * i)."""
    *shape, i, o = kernels.shape
    mirrored = jnp.flip(kernels, tuple(range(len(shape))))
    grouped = mirrored.reshape(*shape, i, groups, o // groups)
    return jnp.moveaxis(grouped, -1, -3).reshape(*shape, o // groups, i * groups)


# Patches: the pixels under the kernel, unfolded for each output. Dilated kernels have
# them too: by itself lax's convolution can take a third of the time there, but inside
# `lax.scan`, where training runs, it takes twenty times as long, and nothing tells
# here which of the two it is.


def _is_too_large(
    window: _Window, image: Sequence[int], kernels: Sequence[int], dtype: Any
) -> bool:
    """Whether the patches of a single image are more than to unfold at once."""
    *kernel, channels, _ = kernels
    if math.prod(kernel) == 1 or _is_winograd(window, image, kernels):
        return False
    _, patches = jax.eval_shape(
        lambda x: _patches(
            window, _padded(x, window.padding, window.lhs_dilation), kernel
        ),
        jax.ShapeDtypeStruct((1, *image, channels * window.groups), dtype),
    )
    most = _MOST_CHUNKS_OF_AN_IMAGE * _PATCH_BYTES
    return patches.size * patches.dtype.itemsize > most


def _patch_products(
    window: _Window, images: chex.Array, kernels: chex.Array
) -> chex.Array:
    """Products of patches (pixels, kernel * i) by kernels (kernel * i, o)."""
    *kernel, i, o = kernels.shape
    groups = window.groups
    matrix = kernels.reshape(-1, i, groups, o // groups)
    matrix = matrix.transpose(2, 0, 1, 3).reshape(groups, -1, o // groups)

    def products(images: chex.Array, matrix: chex.Array) -> chex.Array:
        out, patches = _patches(window, images, kernel)
        product = _dot(window, patches, matrix, (2, 1)).astype(window.dtype)
        return product.transpose(1, 0, 2).reshape(-1, *out, o)

    chunk = _patch_chunk(window, images, kernel)
    return _map_chunks(products, chunk, images, matrix)


def _patches(
    window: _Window, images: chex.Array, kernel: Sequence[int]
) -> tuple[tuple[int, ...], chex.Array]:
    """The output's spatial shape, and patches (groups, n * out, kernel * i)."""
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


def _patch_chunk(window: _Window, images: chex.Array, kernel: Sequence[int]) -> int:
    """How many images to unfold at a time; kernels of one entry unfold nothing."""
    if math.prod(kernel) == 1:
        return images.shape[0]
    _, patches = jax.eval_shape(lambda x: _patches(window, x, kernel), images)
    return _PATCH_BYTES * images.shape[0] // (patches.size * patches.dtype.itemsize)


# Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, 2016, arXiv:1509.09308):
# a tile of 2x2 outputs is A^T [(G w G^T) . (B^T x B)] A for the tile of 4x4 inputs
# under it, where `.` multiplies entry by entry and sums over channels. That is 16
# matrix products for 4 outputs, instead of 36.


def _is_winograd(window: _Window, image: Sequence[int], kernels: Sequence[int]) -> bool:
    return (
        tuple(kernels[:-2]) == (3, 3)
        and min(kernels[-2:]) >= _WINOGRAD_CHANNELS
        and window.groups == 1
        and set(window.strides + window.rhs_dilation) == {1}
        and not _is_any_row_idle(window, image, kernels)
    )


def _is_any_row_idle(
    window: _Window, image: Sequence[int], kernels: Sequence[int]
) -> bool:
    """Whether a row or column of an undilated kernel meets padding only.

    Its gradient is zero, and Winograd's would be a rounding error, which a saliency
    would rank. A row moves over as many pixels as there are outputs.
    """
    for size, kernel, (low, high), dilation in zip(
        image, kernels, window.padding, window.lhs_dilation
    ):
        extent = (size - 1) * dilation + 1
        outputs = extent + low + high - kernel + 1
        pixels = range(low, low + extent, dilation)
        rows = (range(start, start + outputs) for start in range(kernel))
        if any(not set(row) & set(pixels) for row in rows):
            return True
    return False


def _winograd(window: _Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    *_, i, o = kernels.shape
    height, width = (size - 2 for size in images.shape[1:-1])
    images = _even(images)
    matrix = _filter_matrix(kernels.dtype)
    filters = (matrix @ kernels.reshape(9, -1).astype(matrix.dtype)).reshape(16, i, o)

    def products(images: chex.Array, filters: chex.Array) -> chex.Array:
        product = _dot(window, _input_tiles(images), filters, (2, 1))
        tiles = (images.shape[1] // 2 - 1, images.shape[2] // 2 - 1)
        outputs = _output_image(product.reshape(4, 4, -1, *tiles, o))
        return outputs.astype(window.dtype)

    chunk = _TILES // (-(-height // 2) * -(-width // 2))
    out = _map_chunks(products, chunk, images, filters)
    return out[:, :height, :width]


def _winograd_kernel_gradient(
    window: _Window, images: chex.Array, gradient: chex.Array, dtype: Any
) -> chex.Array:
    height, width = gradient.shape[1:-1]

    def products(images: chex.Array, gradient: chex.Array) -> chex.Array:
        return _dot(window, _input_tiles(images), _gradient_tiles(gradient), (1, 1))

    chunk = _TILES // (-(-height // 2) * -(-width // 2))
    filters = _sum_chunks(products, chunk, _even(images), _even(gradient))
    *_, i, o = filters.shape
    kernels = _filter_matrix(filters.dtype).T @ filters.reshape(16, -1)
    return kernels.reshape(3, 3, i, o).astype(dtype)


def _even(images: chex.Array) -> chex.Array:
    """Images padded to an even height and width."""
    return _padded(images, [(0, size % 2) for size in images.shape[1:-1]], (1, 1))


def _filter_matrix(dtype: Any) -> chex.Array:
    """The transform of kernels of 9 entries into filters of 16: G (x) G."""
    rows = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    transform = jnp.array(rows, _accumulator(dtype))
    return jnp.kron(transform, transform)


def _input_tiles(images: chex.Array) -> chex.Array:
    """B^T x B of padded images (n, 2 h + 2, 2 w + 2, i): (16, n * h * w, i)."""

    def transform(x: list[chex.Array]) -> list[chex.Array]:
        return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]

    images = images.astype(_accumulator(images.dtype))
    rows = jnp.stack(transform(_every_other(images, 4, 1)))
    tiles = jnp.stack(transform(_every_other(rows, 4, 3)), 1)
    return tiles.reshape(16, -1, images.shape[-1])


def _gradient_tiles(gradient: chex.Array) -> chex.Array:
    """A g A^T of gradients (n, 2 h, 2 w, o): (16, n * h * w, o)."""

    def transform(g: list[chex.Array]) -> list[chex.Array]:
        return [g[0], g[0] + g[1], g[0] - g[1], -g[1]]

    gradient = gradient.astype(_accumulator(gradient.dtype))
    rows = jnp.stack(transform(_every_other(gradient, 2, 1)))
    tiles = jnp.stack(transform(_every_other(rows, 2, 3)), 1)
    return tiles.reshape(16, -1, gradient.shape[-1])


def _output_image(products: chex.Array) -> chex.Array:
    """A^T m A of products (4, 4, n, h, w, o): images (n, 2 h, 2 w, o)."""

    def transform(m: chex.Array) -> list[chex.Array]:
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

    rows = [jnp.stack(transform(row), 3) for row in transform(products)]
    pixels = jnp.stack(rows, 2)  # (n, h, 2, w, 2, o)
    n, h, _, w, _, o = pixels.shape
    return pixels.reshape(n, 2 * h, 2 * w, o)


def _every_other(x: chex.Array, count: int, axis: int) -> list[chex.Array]:
    """Every other slice of x along the axis, from each of `count` starts."""
    stop = x.shape[axis] - count + 1
    return [lax.slice_in_dim(x, start, start + stop, 2, axis) for start in range(count)]


# Chunks of images, and what else both forms need.


def _map_chunks(
    function: Callable[[chex.Array, chex.Array], chex.Array],
    chunk: int,
    images: chex.Array,
    weights: chex.Array,
) -> chex.Array:
    """`function(images, weights)`, for `chunk` images at a time or so."""
    function = jax.checkpoint(function, prevent_cse=False)
    chunks, rest = _chunks(images, chunk)
    if chunks is None:
        return function(rest, weights)
    out = lax.map(lambda images: function(images, weights), chunks)
    out = out.reshape(-1, *out.shape[2:])
    return out if rest is None else jnp.concatenate([out, function(rest, weights)])


def _sum_chunks(
    function: Callable[[chex.Array, chex.Array], chex.Array],
    chunk: int,
    images: chex.Array,
    gradient: chex.Array,
) -> chex.Array:
    """The sum of `function(images, gradient)` over chunks of both."""
    function = jax.checkpoint(function, prevent_cse=False)
    (chunks, rest), (chunks_g, rest_g) = (_chunks(x, chunk) for x in (images, gradient))
    if chunks is None:
        return function(rest, rest_g)
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
    """Images as chunks of at most `limit`, and the rest; None for what is empty."""
    n, limit = images.shape[0], max(1, limit)
    if n <= limit:
        return None, images
    divisor = next(d for d in range(limit, 0, -1) if n % d == 0)
    chunk = divisor if 2 * divisor >= limit else limit
    whole = n - n % chunk
    chunks = images[:whole].reshape(-1, chunk, *images.shape[1:])
    return chunks, images[whole:] if whole < n else None


def _dot(
    window: _Window, a: chex.Array, b: chex.Array, contracted: tuple[int, int]
) -> chex.Array:
    """Products of the matrices in a and b, accumulated in float32 or more."""
    dtype = a.dtype if a.dtype == b.dtype else _accumulator(a.dtype, b.dtype)
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contracted[0],), (contracted[1],)), ((0,), (0,))),
        precision=window.precision,
        preferred_element_type=_accumulator(dtype, window.dtype),
    )


def _accumulator(*dtypes: Any) -> Any:
    """float32, or a wider one of the dtypes; `jnp.promote_types` may be strict."""
    dtypes = (jnp.float32, *dtypes)
    return max(map(jnp.dtype, dtypes), key=lambda dtype: dtype.itemsize)


def _dilated(shape: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    return tuple((s - 1) * d + 1 for s, d in zip(shape, dilation, strict=True))


def _padded(
    images: chex.Array, padding: Sequence[tuple[int, int]], dilation: Sequence[int]
) -> chex.Array:
    if all(pair == (0, 0) for pair in padding) and set(dilation) <= {1}:
        return images
    inner = [(*pair, d - 1) for pair, d in zip(padding, dilation, strict=True)]
    return lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


# -------------------------------------------------------------------- pooling


def _pool(
    plain: Callable,
    tiled: Callable,
    inputs: chex.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: Padding,
) -> chex.Array:
    """Pools by tiles of the reshaped input where the windows tile it."""
    window_shape = tuple(window_shape)
    rank = len(window_shape)
    strides = tuple(strides or (1,) * rank)
    if len(strides) != rank:
        raise ValueError(
            f"strides {strides} must have as many entries as the window {window_shape}"
        )
    if inputs.ndim < rank + 1:
        raise ValueError(
            f"a window of {rank} dimensions needs inputs (..., *spatial, channels) "
            f"of {rank + 1} or more; these have shape {inputs.shape}"
        )
    if not isinstance(padding, str):
        padding = tuple(map(tuple, padding))
        if [len(pair) for pair in padding] != [2] * rank:
            raise ValueError(
                f"padding {padding} must be a pair (low, high) for each entry of "
                f"the window {window_shape}"
            )
    spatial = inputs.shape[-1 - rank : -1]
    is_tiling = (
        not _is_left_to_xla(inputs)
        and strides == window_shape
        and all(s % w == 0 for s, w in zip(spatial, window_shape, strict=True))
        and (isinstance(padding, str) or set(itertools.chain(*padding)) == {0})
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
    """Inputs (..., s, c) as (..., s / w, w, c), for each spatial dimension."""
    rank = len(window_shape)
    *batch, channels = inputs.shape
    batch, spatial = batch[: len(batch) - rank], batch[len(batch) - rank :]
    tiles = [(s // w, w) for s, w in zip(spatial, window_shape, strict=True)]
    return inputs.reshape(*batch, *itertools.chain(*tiles), channels)


def _within_tile(rank: int) -> tuple[int, ...]:
    """Axes, from the last, that `_tiles` puts inside a tile."""
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
    """Each entry of all tiles, in row-major order: arrays (..., s / w, c)."""
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


def _reduce_window(
    inputs: chex.Array,
    initial: float,
    reduce: Callable,
    window_shape: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Padding,
) -> chex.Array:
    batch = (1,) * (inputs.ndim - len(window_shape) - 1)
    if not isinstance(padding, str):
        padding = (*((0, 0) for _ in batch), *padding, (0, 0))
    return lax.reduce_window(
        inputs, initial, reduce, (*batch, *window_shape, 1), (*batch, *strides, 1),
        padding,
    )  # fmt: skip


def _plain_max_pool(inputs: chex.Array, **window: Any) -> chex.Array:
    return _reduce_window(inputs, -jnp.inf, lax.max, **window)


def _plain_avg_pool(
    inputs: chex.Array, count_include_pad: bool = True, **window: Any
) -> chex.Array:
    total = _reduce_window(inputs, 0.0, lax.add, **window)
    if count_include_pad:
        return total / math.prod(window["window_shape"])
    ones = jnp.ones((*inputs.shape[:-1], 1), inputs.dtype)
    return total / _reduce_window(ones, 0.0, lax.add, **window)
