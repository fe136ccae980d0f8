"""Residual networks, for ImageNet and for 32x32 images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. A bottleneck
strides in its 3x3 convolution, as in the networks that are called v1.5 (Goyal et al.,
"Accurate, Large Minibatch SGD", 2017), and padding is equal on both sides. The networks
for 32x32 images have projections (option B) where a shortcut changes its shape, as in
Frankle and Carbin's open_lth and Tanaka et al., NeurIPS 2020; with zero padding (option
A), ResNet-20, 32 and 56 would have the sizes that He et al. give for CIFAR-10.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax import ops
from snipjax.initializers import fan_in
from snipjax.models import layers
from snipjax.models.layers import Dense, mean_over_pixels, normalized


class Block(nn.Module):
    r"""Applies convolutions with batch norm and ReLU, and adds a shortcut.

    .. math:: y = \sigma(s + \mathrm{BN}(W_2 * \sigma(\mathrm{BN}(W_1 * x))))

    with two 3x3 convolutions and :math:`\sigma = \mathrm{ReLU}`, or as a bottleneck

    .. math:: y = \sigma(s + \mathrm{BN}(W_3 * \sigma(\mathrm{BN}(W_2 *
              \sigma(\mathrm{BN}(W_1 * x))))))

    with 1x1, 3x3 and 1x1 ones. The shortcut :math:`s` is :math:`x`, or with
    ``has_projection`` a 1x1 convolution with batch norm. It takes and returns
    ``[batch, height, width, channels]``.

    Attributes:
      channels: numbers of channels of the two or three convolutions.
      stride: stride of the first 3x3 convolution, and of the projection.
      has_projection: whether the shortcut is a convolution.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.

    Example:
      >>> block = Block(channels=(2, 2, 8), stride=2, has_projection=True)
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
        conv = functools.partial(_conv, dtype=self.dtype, kernel_init=self.kernel_init)
        norm = functools.partial(
            layers.BatchNorm, use_running_average=not train, dtype=self.dtype
        )

        *first, inner, outer = self.channels
        y = x
        for channels in first:
            y = nn.relu(norm()(conv(channels, 1)(y)))
        y = nn.relu(norm()(conv(inner, 3, self.stride)(y)))
        # The scale of the last batch norm starts at one. At zero, which trains well, no
        # connection of the block would have any saliency.
        y = norm()(conv(outer, 1 if first else 3)(y))
        if self.has_projection:
            x = conv(outer, 1, self.stride, name="shortcut")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


def _conv(channels: int, size: int, stride: int = 1, **settings: Any) -> nn.Module:
    # Without a bias: the batch norm behind it has one.
    return layers.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        **settings,
    )


class ResNet(nn.Module):
    r"""Applies a convolution, groups of blocks, a mean over pixels, and a dense layer.

    The first convolution, 7x7 of stride 2, and a max-pool make the image four times
    smaller. The first block of every group but the first halves the image. Group
    :math:`g = 0, 1, \dots` has

    .. math:: 2^g \cdot width

    channels, and four times as many in the last convolution of a bottleneck. It takes
    images ``[batch, height, width, channels]`` and returns logits
    ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      blocks: number of blocks of each group.
      is_bottleneck: whether blocks have three convolutions in place of two.
      width: number of channels of the first group.
      is_for_small_images: whether the first convolution is 3x3 of stride 1, without a
        max-pool.
      channels: if given, the widths of the first convolution and of each block's.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.
      remat: policy of ``jax.checkpoint_policies`` for each block: values that it does
        not save are recomputed for the gradient.

    Example:
      >>> model = ResNet(10, blocks=(1, 1), width=4, is_for_small_images=True)
      >>> image = jnp.zeros((1, 8, 8, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sorted(variables["params"])[-2:]
      ['group_0_block_0', 'group_1_block_0']
    """

    num_classes: int
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    is_bottleneck: bool = False
    width: int = 64
    is_for_small_images: bool = False
    channels: tuple[tuple[int, ...], ...] | None = None
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in
    remat: Callable[..., bool] | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        block = layers.rematerialized(Block, self.remat, static_argnums=(2,))

        channels = iter(self.channels or self._standard_channels())
        (first,) = next(channels)
        size, stride = (3, 1) if self.is_for_small_images else (7, 2)
        x = _conv(first, size, stride, **settings)(x)
        x = normalized(x, train, self.dtype)
        if not self.is_for_small_images:
            x = ops.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for group, blocks in enumerate(self.blocks):
            for i in range(blocks):
                x = block(
                    next(channels),
                    stride=2 if group > 0 and i == 0 else 1,
                    has_projection=i == 0 and (group > 0 or self.is_bottleneck),
                    name=f"group_{group}_block_{i}",
                    **settings,
                )(x, train)
        return Dense(self.num_classes, **settings)(mean_over_pixels(x))

    def _standard_channels(self) -> list[tuple[int, ...]]:
        channels: list[tuple[int, ...]] = [(self.width,)]
        for group, blocks in enumerate(self.blocks):
            n = 2**group * self.width
            channels += blocks * [(n, n, 4 * n) if self.is_bottleneck else (n, n)]
        return channels


resnet_18 = functools.partial(ResNet, blocks=(2, 2, 2, 2))
resnet_50 = functools.partial(ResNet, blocks=(3, 4, 6, 3), is_bottleneck=True)

_for_small_images = functools.partial(ResNet, is_for_small_images=True)
resnet_18_cifar = functools.partial(_for_small_images, blocks=(2, 2, 2, 2))
resnet_20 = functools.partial(_for_small_images, blocks=(3, 3, 3), width=16)
resnet_32 = functools.partial(_for_small_images, blocks=(5, 5, 5), width=16)
resnet_56 = functools.partial(_for_small_images, blocks=(9, 9, 9), width=16)
