"""VGG networks for 32x32 images, with batch normalization.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", ICLR 2015, with the small dense layers used on CIFAR-10. ``vgg_11_bn``,
``vgg_16_bn`` and ``vgg_19_bn`` have the form of the lottery ticket and pruning at
initialization literature: one dense layer, behind a mean over pixels in place of the
last max-pool (Frankle and Carbin's open_lth; Tanaka et al., NeurIPS 2020).
"""

import functools

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax.initializers import fan_in
from snipjax.models.layers import (
    Conv,
    Dense,
    flatten,
    max_pool,
    mean_over_pixels,
    normalized,
)

_Blocks = tuple[tuple[tuple[int, int], ...], ...]


def _blocks(*kernel_sizes: tuple[int, ...]) -> _Blocks:
    """Returns kernel size and channels of each convolution, block by block."""
    return tuple(
        tuple((size, channels) for size in sizes)
        for sizes, channels in zip(kernel_sizes, (64, 128, 256, 512, 512))
    )


_BLOCKS_C = _blocks((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))
_BLOCKS_D = _blocks((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
_BLOCKS_11 = _blocks((3,), (3,), (3, 3), (3, 3), (3, 3))
_BLOCKS_19 = _blocks((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3))


class VGG(nn.Module):
    r"""Applies five blocks of convolutions and a max-pool, then dense layers.

    .. math:: h \leftarrow \mathrm{ReLU}(\mathrm{BN}(W_l * h + b_l))

    for every layer but the last. It takes images ``[batch, height, width, channels]``
    and returns logits ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      blocks: kernel size and channels of each convolution, block by block.
      dense_units: numbers of units of the hidden dense layers.
      ends_in_mean: whether a mean over all pixels takes the place of the last max-pool.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.

    Example:
      >>> model = VGG(num_classes=10, blocks=(((3, 8),), ((3, 16),)), dense_units=(32,))
      >>> image = jnp.zeros((1, 8, 8, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> variables["params"]["Conv_1"]["kernel"].shape
      (3, 3, 8, 16)
    """

    num_classes: int
    blocks: _Blocks = _BLOCKS_D
    dense_units: tuple[int, ...] = (512, 512)
    ends_in_mean: bool = False
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=self.kernel_init)
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)

        for number, block in enumerate(self.blocks, start=1):
            for size, channels in block:
                x = normalized(conv(channels, (size, size))(x), train, self.dtype)
            if self.ends_in_mean and number == len(self.blocks):
                x = mean_over_pixels(x)
            else:
                x = max_pool(x)
        x = flatten(x)
        for units in self.dense_units:
            x = normalized(dense(units)(x), train, self.dtype)
        return dense(self.num_classes)(x)


vgg_c = functools.partial(VGG, blocks=_BLOCKS_C)
vgg_d = functools.partial(VGG, blocks=_BLOCKS_D)
vgg_like = functools.partial(VGG, blocks=_BLOCKS_D, dense_units=(512,))

_with_one_dense_layer = functools.partial(VGG, dense_units=(), ends_in_mean=True)
vgg_11_bn = functools.partial(_with_one_dense_layer, blocks=_BLOCKS_11)
vgg_16_bn = functools.partial(_with_one_dense_layer, blocks=_BLOCKS_D)
vgg_19_bn = functools.partial(_with_one_dense_layer, blocks=_BLOCKS_19)
