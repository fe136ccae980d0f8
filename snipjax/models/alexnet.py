"""AlexNet for 32x32 images: strides in place of pooling, and batch normalization.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012, as Lee et al., ICLR 2019, made it smaller for CIFAR-10.
"""

import functools

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax.initializers import fan_in
from snipjax.models.layers import Conv, Dense, flatten, normalized

# Kernel size and channels of each convolution.
_CONVOLUTIONS = ((11, 96), (5, 256), (3, 384), (3, 384), (3, 256))


class AlexNet(nn.Module):
    """Applies five convolutions of stride 2, then three dense layers.

    The two hidden dense layers have ``1024 * width`` units. For CIFAR-10 there are
    5,070,218 weights and biases with ``width=1``, and 8,490,378 with ``width=2``.
    ``kernel_init`` samples all kernels.
    """

    num_classes: int
    width: int = 1
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        conv = functools.partial(
            Conv, strides=2, dtype=self.dtype, kernel_init=self.kernel_init
        )
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        for size, channels in _CONVOLUTIONS:
            x = normalized(conv(channels, (size, size))(x), train, self.dtype)
        x = flatten(x)
        for _ in range(2):
            x = normalized(dense(1024 * self.width)(x), train, self.dtype)
        return dense(self.num_classes)(x)


alexnet_s = functools.partial(AlexNet, width=1)
alexnet_b = functools.partial(AlexNet, width=2)
