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
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        x = flatten(x)
        x = nn.relu(dense(300)(x))
        x = nn.relu(dense(100)(x))
        return dense(self.num_classes)(x)


class LeNet5(nn.Module):
    """Applies two convolutions, linear as in Caffe; 431,080 parameters on MNIST."""

    num_classes: int
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=self.kernel_init)
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        x = max_pool(conv(20, (5, 5), padding="VALID")(x))
        x = max_pool(conv(50, (5, 5), padding="VALID")(x))
        x = flatten(x)
        x = nn.relu(dense(500)(x))
        return dense(self.num_classes)(x)
