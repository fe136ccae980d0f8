"""Wide residual networks for 32x32 images.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016. Every convolution has a
bias, the 1x1 convolutions of shortcuts included: without biases, the counts of Lee et
al., ICLR 2019, would be 855k for WRN-16-10 and 857k for WRN-22-8, not 856k and 858k.
"""

import functools

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax.initializers import fan_in
from snipjax.models.layers import Conv, Dense, mean_over_pixels, normalized


class Block(nn.Module):
    r"""Applies a pre-activation block of two convolutions, and adds a shortcut.

    .. math:: y = s + W_2 * a(W_1 * a(x)), \qquad a(x) = \mathrm{ReLU}(\mathrm{BN}(x))

    with biases. The shortcut :math:`s` is :math:`x`, or with ``has_projection`` a 1x1
    convolution of :math:`a(x)`. It takes and returns
    ``[batch, height, width, channels]``.

    Attributes:
      channels: numbers of channels of the two 3x3 convolutions.
      stride: stride of the first convolution and of the projection.
      has_projection: whether the shortcut is a convolution.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.

    Example:
      >>> block = Block(channels=(4, 8), stride=2, has_projection=True)
      >>> init = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
      >>> init["params"]["shortcut"]["kernel"].shape
      (1, 1, 4, 8)
    """

    channels: tuple[int, ...]
    stride: int
    has_projection: bool
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=self.kernel_init)

        inner, outer = self.channels
        activated = normalized(x, train, self.dtype)
        y = conv(inner, (3, 3), strides=self.stride)(activated)
        y = conv(outer, (3, 3))(normalized(y, train, self.dtype))
        if self.has_projection:
            x = conv(outer, (1, 1), strides=self.stride, name="shortcut")(activated)
        return x + y


class WideResNet(nn.Module):
    r"""Applies WRN-d-k: groups of blocks of 16k, 32k and 64k channels, then a mean.

    .. math:: d = 6 \cdot blocks + 4, \qquad k = width

    The second and third groups halve the image in their first block. It takes images
    ``[batch, height, width, channels]`` and returns logits ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      blocks: number of blocks in each group.
      width: factor of all numbers of channels.
      channels: if given, the widths of the first convolution and of each block's.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.

    Example:
      >>> model, image = WideResNet(10, blocks=1, width=2), jnp.zeros((1, 8, 8, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> variables["params"]["Dense_0"]["kernel"].shape
      (128, 10)
    """

    num_classes: int
    blocks: int = 2
    width: int = 8
    channels: tuple[tuple[int, ...], ...] | None = None
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}

        channels = iter(self.channels or self._standard_channels())
        (first,) = next(channels)
        x = Conv(first, (3, 3), **settings)(x)
        for group in range(3):
            for i in range(self.blocks):
                stride = 2 if group > 0 and i == 0 else 1
                has_projection = i == 0 and (group > 0 or self.width > 1)
                x = Block(next(channels), stride, has_projection, **settings)(x, train)
        x = normalized(x, train, self.dtype)
        return Dense(self.num_classes, **settings)(mean_over_pixels(x))

    def _standard_channels(self) -> list[tuple[int, ...]]:
        channels: list[tuple[int, ...]] = [(16,)]
        for group in range(3):
            n = 16 * 2**group * self.width
            channels += self.blocks * [(n, n)]
        return channels


wrn_16_8 = functools.partial(WideResNet, blocks=2, width=8)
wrn_16_10 = functools.partial(WideResNet, blocks=2, width=10)
wrn_22_8 = functools.partial(WideResNet, blocks=3, width=8)
wrn_22_2 = functools.partial(WideResNet, blocks=3, width=2)
