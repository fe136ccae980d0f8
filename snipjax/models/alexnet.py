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

_KERNEL_SIZES = (11, 5, 3, 3, 3)


class AlexNet(nn.Module):
    r"""Applies five convolutions of stride 2, then three dense layers.

    .. math:: h \leftarrow \mathrm{ReLU}(\mathrm{BN}(W_l * h + b_l))

    for every layer but the last. For CIFAR-10 there are 5,070,218 weights and biases
    with hidden dense layers of 1024 units, and 8,490,378 with 2048. It takes images
    ``[batch, height, width, channels]`` and returns logits ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      channels: numbers of channels of the five convolutions.
      dense_units: numbers of units of the hidden dense layers.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.

    Example:
      >>> model, image = AlexNet(num_classes=10), jnp.zeros((1, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> variables["params"]["Conv_0"]["kernel"].shape
      (11, 11, 3, 96)
    """

    num_classes: int
    channels: tuple[int, ...] = (96, 256, 384, 384, 256)
    dense_units: tuple[int, ...] = (1024, 1024)
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        conv = functools.partial(
            Conv, strides=2, dtype=self.dtype, kernel_init=self.kernel_init
        )
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        for size, channels in zip(_KERNEL_SIZES, self.channels):
            x = normalized(conv(channels, (size, size))(x), train, self.dtype)
        x = flatten(x)
        for units in self.dense_units:
            x = normalized(dense(units)(x), train, self.dtype)
        return dense(self.num_classes)(x)


alexnet_s = functools.partial(AlexNet, dense_units=(1024, 1024))
alexnet_b = functools.partial(AlexNet, dense_units=(2048, 2048))
