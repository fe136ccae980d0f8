"""Convolution that is fast on every platform.

`conv_general_dilated` has the signature and the values of
`jax.lax.conv_general_dilated`, and goes wherever Flax lets one choose the convolution::

    from snipjax import ops

    y = nn.Conv(64, (3, 3), conv_general_dilated=ops.conv_general_dilated)(x)
    y = ops.max_pool(y, (2, 2), (2, 2))

GPU and TPU run `lax`'s function, and so do arrays whose types say how they are sharded:
in meshes of `AxisType.Explicit`, and inside `jax.shard_map` unless its `check_vma` is
off. An exception are kernels of few channels under a `jax.vmap` whose axis is named
`support.SIDE_BY_SIDE`, as in networks of several seeds: see `_FEW_CHANNELS`.
On the CPU, XLA's convolution leaves most of the machine idle: in weight gradients
of large feature maps, in feature maps smaller than the kernel, and everywhere inside
`lax.scan`. There a convolution becomes matrix products, a few images at a time so that
the unfolded images stay in the cache (`python -m benchmarks.convolution` prints the
measurements behind the choices made here).

Forward and reverse mode work any number of times, in any order: the products are plain
JAX operations, and each derivative is written so that its transpose, which reverse mode
runs, is a product of the fast kind too.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from snipjax.ops import patches, winograd
from snipjax.ops.support import are_side_by_side, needs_xla
from snipjax.ops.window import Padding, Window, dilated, padded

# Under `jax.vmap` of kernels, XLA makes one convolution of as many groups as there are
# networks. A GPU is slow at groups of fewer channels, and fast at batches of products.
_FEW_CHANNELS = 64


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
    r"""Convolves images with kernels, as `jax.lax.conv_general_dilated` does.

    .. math:: y_{n p o} = \sum_{k, i} x_{n, s p + d k, i} \, w_{k i o}

    for images `lhs` :math:`x`, kernels `rhs` :math:`w`, stride :math:`s` and dilation
    :math:`d`, over offsets :math:`k` in the kernel and channels :math:`i`, on images
    padded and dilated first. Values agree with `lax` to the rounding of the dtype. The
    rounding of 3x3 kernels of many channels (Winograd's products) is relative to the
    largest entries, not to each, and infinite inputs may give NaN there where `lax`
    gives an infinity. Works under `jit`, `vmap`, `scan`, and all derivatives.

    Args:
      lhs: images, of rank 2 + d, in any floating dtype.
      rhs: kernels, of the rank and dtype of `lhs`.
      window_strides: d integers.
      padding: "SAME", "SAME_LOWER", "VALID" or d pairs (low, high).
      lhs_dilation: d integers, the spacing of the images' pixels; 1 by default.
      rhs_dilation: d integers, the spacing of the kernel's; 1 by default.
      dimension_numbers: names of the dimensions, as `lax` takes them: `None` for
        ("NCHW", "OIHW", "NCHW"); Flax passes ("NHWC", "HWIO", "NHWC").
      feature_group_count: number of groups of channels that do not mix.
      batch_group_count: number of groups of images; `lax` runs any other than 1.
      precision: precision of the matrix products, as `lax` takes it.
      preferred_element_type: dtype of the sums and of the result.
      out_sharding: sharding of the result (Flax NNX passes it); `lax` runs any other
        than `None`.

    Returns:
      The convolved images, in the layout `dimension_numbers` asks for.

    Raises:
      TypeError, ValueError: the errors of `lax.conv_general_dilated`.

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
        or needs_xla(lhs, rhs)
        or 0 in out.shape
    )
    if is_plain:
        return plain(lhs, rhs)

    spec = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    image = [lhs.shape[d] for d in spec.lhs_spec[2:]]
    kernel = [rhs.shape[d] for d in spec.rhs_spec[2:]]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            dilated(image, lhs_dilation),
            dilated(kernel, rhs_dilation),
            window_strides,
            padding,
        )
    window = Window(
        strides=tuple(map(int, window_strides)),
        padding=tuple((int(low), int(high)) for low, high in padding),
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        groups=feature_group_count,
        precision=tuple(precision) if isinstance(precision, list) else precision,
        dtype=out.dtype,
    )
    kernel += [rhs.shape[spec.rhs_spec[1]], rhs.shape[spec.rhs_spec[0]]]
    if not winograd.is_suitable(window, image, kernel) and patches.are_too_large(
        window, image, kernel, lhs.dtype
    ):
        return plain(lhs, rhs)

    def by_products(lhs: chex.Array, rhs: chex.Array) -> chex.Array:
        batch, feature, *spatial = spec.lhs_spec
        images = lhs.transpose(batch, *spatial, feature)
        feature_out, feature_in, *spatial = spec.rhs_spec
        kernels = rhs.transpose(*spatial, feature_in, feature_out)
        batch, feature, *spatial = spec.out_spec
        order = (batch, *spatial, feature)
        inverse = tuple(order.index(axis) for axis in range(len(order)))
        return _convolve_once(window, images, kernels).transpose(inverse)

    has_few_channels = kernel[-2] < _FEW_CHANNELS
    if are_side_by_side() and has_few_channels and set(kernel[:-2]) != {1}:
        return by_products(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=by_products, default=plain)


def _products(window: Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    padded_images = padded(images, window.padding, window.lhs_dilation)
    if winograd.is_suitable(window, images.shape[1:-1], kernels.shape):
        return winograd.products(window, padded_images, kernels)
    return patches.products(window, padded_images, kernels)


_convolve = jax.custom_jvp(_products, nondiff_argnums=(0,))


def _convolve_jvp(
    window: Window, primals: tuple[Any, Any], tangents: tuple[Any, Any]
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


def _by_images(window: Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    """Returns the convolution, as the transpose of its gradient by the images.

    Reverse mode transposes it again, and so runs that gradient as written: as a
    convolution of the output's gradient by the mirrored kernels, where there is one
    that unfolds little more than the convolution itself.
    """
    out = jax.eval_shape(functools.partial(_products, window), images, kernels)
    mirrored = _mirrored_window(window, kernels.shape, images.dtype)
    unfolded = math.prod(out.shape[:-1]) * images.shape[-1]
    mirrored_unfolded = math.prod(images.shape[:-1]) * out.shape[-1]
    is_mirrored = set(window.strides) == {1} and (
        winograd.is_suitable(mirrored, out.shape[1:-1], kernels.shape)
        or mirrored_unfolded <= 2 * unfolded
    )
    if not is_mirrored:
        return _products(window, images, kernels)
    kernels = _mirrored_kernels(kernels, window.groups)
    transpose = jax.linear_transpose(lambda g: _products(mirrored, g, kernels), out)
    return transpose(images)[0]


def _by_kernels(window: Window, images: chex.Array, kernels: chex.Array) -> chex.Array:
    """Returns the convolution, in the form whose transpose by the kernels is fast."""
    if not winograd.is_suitable(window, images.shape[1:-1], kernels.shape):
        return _products(window, images, kernels)
    out = jax.eval_shape(functools.partial(_products, window), images, kernels)

    # To unfold the images again for the gradient is cheaper than to keep them.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def transpose(images: chex.Array, kernels: chex.Array) -> chex.Array:
        padded_images = padded(images, window.padding, window.lhs_dilation)
        return jax.linear_transpose(
            lambda g: winograd.kernel_gradient(window, padded_images, g, kernels.dtype),
            out,
        )(kernels)[0]

    return transpose(images, kernels)


def _mirrored_window(window: Window, kernels: Sequence[int], dtype: Any) -> Window:
    extent = dilated(kernels[:-2], window.rhs_dilation)
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
    """Returns kernels (*kernel, i, g * o) turned round, as (*kernel, o, g * i)."""
    *shape, i, o = kernels.shape
    mirrored = jnp.flip(kernels, tuple(range(len(shape))))
    grouped = mirrored.reshape(*shape, i, groups, o // groups)
    return jnp.moveaxis(grouped, -1, -3).reshape(*shape, o // groups, i * groups)
