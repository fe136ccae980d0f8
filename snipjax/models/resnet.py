"""Residual networks in the form for ImageNet.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. A bottleneck
strides in its 3x3 convolution, as in the networks that are called v1.5 (Goyal et al.,
"Accurate, Large Minibatch SGD", 2017), and padding is equal on both sides.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax import ops
from snipjax.models import layers
from snipjax.models.layers import Dense, flatten, normalized, variance_scaling


def _conv(channels: int, size: int, stride: int, **settings: Any) -> nn.Module:
    # Without a bias: the batch norm behind it has one.
    return layers.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        **settings,
    )


class BasicBlock(nn.Module):
    """Applies two 3x3 convolutions of ``channels`` channels, and adds a shortcut.

        relu(shortcut + bn(conv3(relu(bn(conv3(x))))))

    The shortcut is ``x``, or ``bn(conv1(x))`` where the block changes its shape.
    """

    channels: int
    stride: int
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = variance_scaling

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}

        y = _conv(self.channels, 3, self.stride, **settings)(x)
        y = normalized(y, train, self.dtype)
        y = _conv(self.channels, 3, 1, **settings)(y)
        return _added(self, x, y, train)


class Bottleneck(nn.Module):
    """Applies 1x1, 3x3 and 1x1 convolutions, and adds a shortcut.

        relu(shortcut + bn(conv1(relu(bn(conv3(relu(bn(conv1(x)))))))))

    The last convolution, and so the block, has ``4 * channels`` channels. The shortcut
    is ``x``, or ``bn(conv1(x))`` where the block changes its shape.
    """

    channels: int
    stride: int
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = variance_scaling

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}

        y = _conv(self.channels, 1, 1, **settings)(x)
        y = normalized(y, train, self.dtype)
        y = _conv(self.channels, 3, self.stride, **settings)(y)
        y = normalized(y, train, self.dtype)
        y = _conv(4 * self.channels, 1, 1, **settings)(y)
        return _added(self, x, y, train)


def _added(
    block: BasicBlock | Bottleneck, x: chex.Array, y: chex.Array, train: bool
) -> chex.Array:
    """Returns ``relu(shortcut + bn(y))``, within the ``__call__`` of a block."""
    # The scale of the batch norm starts at one. At zero, which trains well, no
    # connection of the block would have any saliency.
    norm = functools.partial(
        layers.BatchNorm, use_running_average=not train, dtype=block.dtype
    )
    y = norm()(y)
    if x.shape != y.shape:
        x = _conv(
            y.shape[-1],
            1,
            block.stride,
            dtype=block.dtype,
            kernel_init=block.kernel_init,
            name="shortcut",
        )(x)
        x = norm(name="shortcut_norm")(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
    """Applies a 7x7 convolution, groups of blocks, a mean over pixels, a dense layer.

    The first convolution and a max-pool make the image four times smaller, and the
    first block of every group but the first halves it. The first group has ``width``
    channels, each other one twice as many as the group before it. ``remat`` is a policy
    of ``jax.checkpoint_policies`` for each block: values that it does not save are
    recomputed for the gradient. ``kernel_init`` samples all kernels.
    """

    num_classes: int
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    width: int = 64
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = variance_scaling
    remat: Callable[..., bool] | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        block = layers.rematerialized(self.block, self.remat, static_argnums=(2,))

        x = _conv(self.width, 7, 2, **settings)(x)
        x = normalized(x, train, self.dtype)
        x = ops.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for group, blocks in enumerate(self.blocks):
            for i in range(blocks):
                stride = 2 if group > 0 and i == 0 else 1
                name = f"group_{group}_block_{i}"
                x = block(2**group * self.width, stride, **settings, name=name)(
                    x, train
                )
        x = flatten(ops.avg_pool(x, x.shape[1:3]))
        return Dense(self.num_classes, **settings)(x)


resnet_18 = functools.partial(ResNet, blocks=(2, 2, 2, 2), block=BasicBlock)
resnet_50 = functools.partial(ResNet, blocks=(3, 4, 6, 3), block=Bottleneck)
