"""Vision transformers.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021. The sizes Ti and S come
from Touvron et al., "Training data-efficient image transformers & distillation through
attention", ICML 2021.
"""

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from snipjax.initializers import fan_in
from snipjax.models.layers import Conv, Dense, rematerialized
from snipjax.models.transformer import (
    Attention,
    Block,
    BlockSizes,
    block_sizes,
    layer_norm,
)

_exact_gelu = functools.partial(nn.gelu, approximate=False)


class ViT(nn.Module):
    r"""Applies transformer blocks to patches of an image and a class token.

    .. math:: x_0 = [token, E p_1, \dots, E p_n] + positions, \quad
              x_l = block_l(x_{l-1}), \quad z = W \, \mathrm{norm}(x_L)_0

    One kernel :math:`E` turns each patch of ``patch`` x ``patch`` pixels into a token.
    Positions are learned, for as many patches as the image given to ``init`` has. There
    is no dropout: ``train`` changes nothing. It takes images
    ``[batch, height, width, channels]`` and returns logits ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      width: number of features of a token.
      depth: number of blocks.
      heads: number of heads of each attention, which share the width.
      patch: height and width of a patch in pixels.
      blocks: if given, the sizes of each block.
      epsilon: epsilon of the layer norms; weights in Hugging Face's layout need 1e-12.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.
      remat: policy of ``jax.checkpoint_policies`` for each block: values that it does
        not save are recomputed for the gradient.

    Raises:
      ValueError: if the image is not made of whole patches.

    Example:
      >>> model = ViT(num_classes=3, width=6, depth=1, heads=2, patch=4)
      >>> image = jnp.zeros((1, 8, 8, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> variables["params"]["positions"].shape  # four patches and the class token
      (5, 6)
    """

    num_classes: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    blocks: tuple[BlockSizes, ...] | None = None
    epsilon: float = 1e-6
    dtype: chex.ArrayDType = jnp.float32
    param_dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in
    remat: Callable[..., bool] | None = None
    attention: Attention = jax.nn.dot_product_attention

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        batch, height, width, _ = x.shape
        if height % self.patch or width % self.patch or 0 in (height, width):
            raise ValueError(
                f"images of {height}x{width} pixels are not made of patches of "
                f"{self.patch}x{self.patch}; resize or pad them to a multiple"
            )
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        settings = {"kernel_init": self.kernel_init, **dtypes}
        block = rematerialized(Block, self.remat)

        size = (self.patch, self.patch)
        x = Conv(self.width, size, size, "VALID", name="patches", **settings)(x)
        x = x.reshape(batch, -1, self.width)
        # A vector is no kernel, so that pruning leaves the class token alone.
        token = self.param(
            "class_token", nn.initializers.zeros, (self.width,), self.param_dtype
        )
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), x.shape[1:], self.param_dtype
        )
        x = x + positions.astype(self.dtype)
        blocks = self.blocks or block_sizes(self.width, self.depth, self.heads)
        for i, sizes in enumerate(blocks):
            x = block(
                sizes,
                is_causal=False,
                activation=_exact_gelu,
                epsilon=self.epsilon,
                residual_init=self.kernel_init,
                attention=self.attention,
                name=f"block_{i}",
                **settings,
            )(x)
        x = layer_norm(self.epsilon, name="final_norm", **dtypes)(x[:, 0])
        return Dense(self.num_classes, name="classifier", **settings)(x)


vit_ti_16 = functools.partial(ViT, width=192, heads=3)
vit_s_16 = functools.partial(ViT, width=384, heads=6)
vit_b_16 = functools.partial(ViT, width=768, heads=12)
