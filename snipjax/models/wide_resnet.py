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
    """Applies a pre-activation block, ``shortcut + conv(relu(bn(conv(relu(bn(x))))))``.

    The shortcut is ``x``, or a 1x1 convolution of ``relu(bn(x))`` where the block
    changes the number of channels.
    """

    channels: int
    stride: int
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        conv = functools.partial(
            Conv, self.channels, dtype=self.dtype, kernel_init=self.kernel_init
        )

        activated = normalized(x, train, self.dtype)
        y = conv((3, 3), strides=self.stride)(activated)
        y = conv((3, 3))(normalized(y, train, self.dtype))
        if x.shape[-1] != self.channels:
            x = conv((1, 1), strides=self.stride, name="shortcut")(activated)
        return x + y


class WideResNet(nn.Module):
    """Applies WRN-d-k: groups of blocks of 16k, 32k and 64k channels, then a mean.

    ``d`` is ``6 * blocks + 4`` and ``k`` is ``width``. The second and third groups
    halve the image in their first block. ``kernel_init`` samples all kernels.
    """

    num_classes: int
    blocks: int = 2
    width: int = 8
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}

        x = Conv(16, (3, 3), **settings)(x)
        for group in range(3):
            for i in range(self.blocks):
                stride = 2 if group > 0 and i == 0 else 1
                channels = 16 * 2**group * self.width
                x = Block(channels, stride, **settings)(x, train)
        x = normalized(x, train, self.dtype)
        return Dense(self.num_classes, **settings)(mean_over_pixels(x))


wrn_16_8 = functools.partial(WideResNet, blocks=2, width=8)
wrn_16_10 = functools.partial(WideResNet, blocks=2, width=10)
wrn_22_8 = functools.partial(WideResNet, blocks=3, width=8)
wrn_22_2 = functools.partial(WideResNet, blocks=3, width=2)
