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
    r"""Applies dense layers of 300, 100 and 10 units; 266,610 parameters on MNIST.

    .. math:: h_l = \mathrm{ReLU}(W_l h_{l-1} + b_l), \qquad z = W_3 h_2 + b_3

    for the pixels :math:`h_0`. It takes images ``[batch, height, width, channels]`` and
    returns logits ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      dense_units: numbers of units of the hidden layers.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.

    Example:
      >>> model = LeNet300(num_classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> sum(x.size for x in jax.tree.leaves(variables))
      266610
    """

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
    r"""Applies two convolutions, linear as in Caffe; 431,080 parameters on MNIST.

    .. math:: h_l = \mathrm{maxpool}(W_l * h_{l-1} + b_l), \qquad
              z = W_4 \, \mathrm{ReLU}(W_3 h_2 + b_3) + b_4

    for the image :math:`h_0`. It takes images ``[batch, height, width, channels]`` and
    returns logits ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      channels: numbers of channels of the convolutions.
      dense_units: numbers of units of the hidden dense layers.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.

    Example:
      >>> model, image = LeNet5(num_classes=10), jnp.zeros((1, 28, 28, 1))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(x.size for x in jax.tree.leaves(variables))
      431080
    """

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
