"""A transformer that predicts the next token, in the form of GPT-2.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, after
Vaswani et al., "Attention Is All You Need", NIPS 2017.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from snipjax._src.types import LossFn
from snipjax.models.layers import Dense, rematerialized


class Config(NamedTuple):
    """Holds the sizes of a :class:`Transformer`.

    Attributes:
      vocab_size: number of different tokens.
      length: length of the longest sequence.
      width: number of features of a token.
      depth: number of blocks.
      heads: number of heads of each attention, which share the width.

    Example:
      >>> GPT2_SMALL._replace(depth=2)
      Config(vocab_size=50257, length=1024, width=768, depth=2, heads=12)
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int


GPT2_SMALL = Config(vocab_size=50257, length=1024, width=768, depth=12, heads=12)
"""The sizes of GPT-2, of 124 million parameters."""
GPT2_MEDIUM = Config(vocab_size=50257, length=1024, width=1024, depth=24, heads=16)
"""The sizes of GPT-2 medium, of 355 million parameters."""
GPT2_LARGE = Config(vocab_size=50257, length=1024, width=1280, depth=36, heads=20)
"""The sizes of GPT-2 large, of 774 million parameters."""
GPT2_XL = Config(vocab_size=50257, length=1024, width=1600, depth=48, heads=25)
"""The sizes of GPT-2 XL, of 1.56 billion parameters."""

# (query, key, value [batch, length, heads, units], is_causal=) -> the same shape.
Attention = Callable[..., chex.Array]

_normal = nn.initializers.normal(0.02)


class BlockSizes(NamedTuple):
    """Holds the sizes of a :class:`Block`.

    Attributes:
      heads: number of heads of the attention.
      head_units: number of units of each head.
      mlp_units: number of units of the hidden dense layer.

    Example:
      >>> sizes = BlockSizes(heads=2, head_units=4, mlp_units=32)
      >>> sizes.heads * sizes.head_units
      8
    """

    heads: int
    head_units: int
    mlp_units: int


def block_sizes(width: int, depth: int, heads: int) -> tuple[BlockSizes, ...]:
    r"""Returns the standard sizes of blocks, whose heads share the width.

    .. math:: head\_units = \frac{width}{heads}, \qquad mlp\_units = 4 \cdot width

    Args:
      width: number of features of a token.
      depth: number of blocks.
      heads: number of heads of each attention, which divides the width.

    Returns:
      A tuple of ``depth`` sizes.

    Raises:
      ValueError: if ``heads`` does not divide ``width``.

    Example:
      >>> block_sizes(width=8, depth=1, heads=2)
      (BlockSizes(heads=2, head_units=4, mlp_units=32),)
    """
    if width % heads:
        raise ValueError(
            f"heads is {heads}, which does not divide the width {width}; all heads "
            "have as many units"
        )
    return depth * (BlockSizes(heads, width // heads, 4 * width),)


class Block(nn.Module):
    r"""Adds attention, then two dense layers, each of a normalized input.

    .. math:: x &\leftarrow x + W_o \, \mathrm{attention}(W_q n, W_k n, W_v n), \qquad
              n = \mathrm{norm}(x) \\
              x &\leftarrow x + W_2 \, activation(W_1 \, \mathrm{norm}(x))

    on ``[batch, length, width]``, with biases. Attention has heads of :math:`d` units,
    each :math:`\mathrm{softmax}(q k^T / \sqrt{d}) v`. Softmax and the statistics of the
    norms are float32.

    Attributes:
      sizes: the numbers of heads and units.
      is_causal: whether a position attends to itself and earlier ones only.
      activation: function of the hidden units.
      epsilon: epsilon of the norms.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of the other kernels.
      residual_init: initializer of :math:`W_o` and :math:`W_2`.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.

    Example:
      >>> init = nn.initializers.normal(0.02)
      >>> block = Block(BlockSizes(2, 4, 16), True, nn.gelu, 1e-5, init, init)
      >>> shapes = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 5, 8)))
      >>> shapes["params"]["mlp_in"]["kernel"].shape
      (8, 16)
    """

    sizes: BlockSizes
    is_causal: bool
    activation: Callable[[chex.Array], chex.Array]
    epsilon: float  # of the norms
    kernel_init: nn.initializers.Initializer
    residual_init: nn.initializers.Initializer
    dtype: chex.ArrayDType = jnp.float32
    param_dtype: chex.ArrayDType = jnp.float32
    attention: Attention = jax.nn.dot_product_attention

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        width = x.shape[-1]
        heads, head_units, mlp_units = self.sizes
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = functools.partial(Dense, kernel_init=self.kernel_init, **dtypes)
        residual = functools.partial(
            Dense, width, kernel_init=self.residual_init, **dtypes
        )
        norm = functools.partial(layer_norm, self.epsilon, **dtypes)

        y = norm(name="attention_norm")(x)
        query, key, value = (
            dense(heads * head_units, name=name)(y).reshape(
                *x.shape[:-1], heads, head_units
            )
            for name in ("query", "key", "value")
        )
        y = self.attention(query, key, value, is_causal=self.is_causal)
        x = x + residual(name="attention_out")(y.reshape(*x.shape[:-1], -1))

        y = self.activation(dense(mlp_units, name="mlp_in")(norm(name="mlp_norm")(x)))
        return x + residual(name="mlp_out")(y)


def layer_norm(epsilon: float, **settings: Any) -> nn.LayerNorm:
    r"""Returns a layer norm whose variance is not a difference of large numbers.

    .. math:: y = \frac{x - \mu}{\sqrt{\frac{1}{d} \sum_i (x_i - \mu)^2 + \epsilon}}
              \odot scale + bias, \qquad \mu = \frac{1}{d} \sum_i x_i

    over the last axis, of :math:`d` features.

    Args:
      epsilon: number added to the variance.
      **settings: other fields of ``flax.linen.LayerNorm``, e.g. ``name`` and ``dtype``.

    Returns:
      A Flax module from ``[..., features]`` to the same shape.

    Example:
      >>> norm = layer_norm(1e-6)
      >>> variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
      >>> norm.apply(variables, jnp.array([1.0, 3.0])).round(4)
      Array([-1.,  1.], dtype=float32)
    """
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, **settings)


class Transformer(nn.Module):
    r"""Predicts the next token from embeddings, causal blocks and a norm.

    .. math:: x_0 = E[tokens] + positions, \quad x_l = block_l(x_{l-1}), \quad
              z = \mathrm{norm}(x_L) E^T

    It takes integers ``[batch, length]`` and returns logits
    ``[batch, length, vocab_size]`` of the token after each. Logits are products with
    the embeddings :math:`E` of the tokens, which are thus used twice. Kernels that add
    to the residual stream are divided by :math:`\sqrt{2 \cdot depth}`, so that its
    variance does not grow with the depth.

    Attributes:
      config: the sizes.
      blocks: if given, the sizes of each block; otherwise heads share the width.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels.
      remat: policy of ``jax.checkpoint_policies`` for each block: values that it does
        not save are recomputed for the gradient.

    Raises:
      ValueError: if a sequence is longer than the config's length.

    Example:
      >>> model = Transformer(Config(vocab_size=8, length=4, width=6, depth=1, heads=2))
      >>> tokens = jnp.array([[1, 5, 2]])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
      >>> jax.eval_shape(model.apply, variables, tokens).shape
      (1, 3, 8)
    """

    config: Config
    blocks: tuple[BlockSizes, ...] | None = None
    dtype: chex.ArrayDType = jnp.float32
    param_dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = _normal
    remat: Callable[..., bool] | None = None
    attention: Attention = jax.nn.dot_product_attention

    @nn.compact
    def __call__(self, tokens: chex.Array) -> chex.Array:
        vocab_size, longest, width, depth, heads = self.config
        length = tokens.shape[-1]
        if length > longest:
            raise ValueError(
                f"the sequences have {length} tokens, but the model has positions for "
                f"{longest}; cut them, or choose a Config of that length"
            )
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        embed = nn.Embed(
            vocab_size, width, embedding_init=_normal, name="tokens", **dtypes
        )
        positions = self.param(
            "positions", nn.initializers.normal(0.01), (longest, width),
            self.param_dtype,
        )  # fmt: skip
        block = rematerialized(Block, self.remat)

        x = embed(tokens) + positions[:length].astype(self.dtype)
        for i, sizes in enumerate(self.blocks or block_sizes(width, depth, heads)):
            x = block(
                sizes,
                is_causal=True,
                activation=nn.gelu,
                epsilon=1e-5,
                kernel_init=self.kernel_init,
                residual_init=_divided(self.kernel_init, math.sqrt(2 * depth)),
                attention=self.attention,
                name=f"block_{i}",
                **dtypes,
            )(x)
        return embed.attend(layer_norm(1e-5, name="final_norm", **dtypes)(x))


def next_token_loss(model: nn.Module) -> LossFn:
    r"""Returns ``(params, tokens) -> loss``, the cross entropy of each next token.

    .. math:: -\frac{1}{n (t - 1)} \sum_{i=1}^{n} \sum_{j=2}^{t}
              \log p(x_{ij} | x_{i1}, \dots, x_{i,j-1})

    in nats. The model sees the first ``t - 1`` tokens and predicts the last ``t - 1``.

    Args:
      model: a Flax module, called as ``model.apply(variables, tokens)``, which returns
        logits ``[n, t - 1, vocab_size]``.

    Returns:
      A loss ``(params, tokens) -> float32 scalar`` of integers ``[n, t]``, with ``t``
      of at least 2.

    Example:
      >>> model = Transformer(Config(vocab_size=8, length=4, width=6, depth=1, heads=2))
      >>> tokens = jnp.array([[1, 5, 2, 7, 3]])
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), tokens[:, :-1])
      >>> params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes["params"])
      >>> loss = jax.jit(next_token_loss(model))(params, tokens)
      >>> round(float(loss), 4)  # log 8, of logits that are 0
      2.0794
    """

    def loss_fn(params: chex.ArrayTree, tokens: chex.Array) -> chex.Array:
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise ValueError(
                f"tokens have shape {tokens.shape}; pass integers [batch, length] with "
                "a length of at least 2: all but the last token predict the next one"
            )
        logits: Any = model.apply({"params": params}, tokens[:, :-1])
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), tokens[:, 1:]
            )
        )

    return loss_fn


def _divided(
    init: nn.initializers.Initializer, divisor: float
) -> nn.initializers.Initializer:
    return lambda key, shape, dtype: init(key, shape, dtype) / divisor
