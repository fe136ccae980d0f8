"""The LeNets of the pruning literature.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998. The
convolutional network has the form of Caffe's example.
"""

import functools

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax.initializers import fan_in
from snipjax.models.layers import Conv, Dense, flatten, max_pool


class LeNet300(nn.Module):
    """Applies dense layers of 300, 100 and 10 units; 266,610 parameters on MNIST."""

    num_classes: int
    dense_units: tuple[int, ...] = (300, 100)
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        x = flatten(x)
        for units in self.dense_units:
            x = nn.relu(dense(units)(x))
        return dense(self.num_classes)(x)


class LeNet5(nn.Module):
    """Applies two convolutions, linear as in Caffe; 431,080 parameters on MNIST."""

    num_classes: int
    channels: tuple[int, ...] = (20, 50)
    dense_units: tuple[int, ...] = (500,)
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=self.kernel_init)
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        for channels in self.channels:
            x = max_pool(conv(channels, (5, 5), padding="VALID")(x))
        x = flatten(x)
        for units in self.dense_units:
            x = nn.relu(dense(units)(x))
        return dense(self.num_classes)(x)
