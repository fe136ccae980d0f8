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
    """Sizes of a :class:`Transformer`."""

    vocab_size: int
    length: int  # of the longest sequence
    width: int
    depth: int
    heads: int


GPT2_SMALL = Config(vocab_size=50257, length=1024, width=768, depth=12, heads=12)
GPT2_MEDIUM = Config(vocab_size=50257, length=1024, width=1024, depth=24, heads=16)
GPT2_LARGE = Config(vocab_size=50257, length=1024, width=1280, depth=36, heads=20)
GPT2_XL = Config(vocab_size=50257, length=1024, width=1600, depth=48, heads=25)

# (query, key, value [batch, length, heads, units], is_causal=) -> the same shape.
Attention = Callable[..., chex.Array]

_normal = nn.initializers.normal(0.02)


class BlockSizes(NamedTuple):
    """Sizes of a :class:`Block`."""

    heads: int
    head_units: int
    mlp_units: int


def block_sizes(width: int, depth: int, heads: int) -> tuple[BlockSizes, ...]:
    """Returns the standard sizes of blocks, whose heads share the width.

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
    """Adds attention, then two dense layers, each of a normalized input.

    ::

        x = x + W_o attention(W_q n, W_k n, W_v n),  n = norm(x)
        x = x + W_2 activation(W_1 norm(x))

    on ``[batch, length, width]``, with biases. Attention has heads of ``n`` units, each
    ``softmax(q k^T / sqrt(n)) v``; with ``is_causal``, a position attends to itself and
    earlier ones. Softmax and the statistics of the norms are float32. ``residual_init``
    samples ``W_o`` and ``W_2``, ``kernel_init`` the other kernels.
    ``attention`` takes the arguments of ``jax.nn.dot_product_attention``.
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
    """Returns a layer norm whose variance is not a difference of large numbers."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, **settings)


class Transformer(nn.Module):
    """Predicts the next token from embeddings, causal blocks and a norm.

    ``model.apply(variables, tokens)`` takes integers ``[batch, length]`` and returns
    logits ``[batch, length, vocab_size]`` of the token after each. Logits are products
    with the embeddings of the tokens, which are thus used twice.

    ``dtype`` is the dtype of the computation, ``param_dtype`` of the parameters.
    ``remat`` is a policy of ``jax.checkpoint_policies`` for each block: values that it
    does not save are recomputed for the gradient. ``kernel_init`` samples kernels;
    kernels that add to the residual stream are divided by ``sqrt(2 * depth)``, so that
    its variance does not grow with the depth. ``blocks``, if given, has the sizes of
    each block; otherwise heads share the width.

    ``attention`` takes the arguments of ``jax.nn.dot_product_attention``. On a GPU, in
    half precision, ``functools.partial(jax.nn.dot_product_attention,
    implementation="cudnn")`` is fused; it has no forward mode.
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
    """Returns ``(params, tokens) -> loss``, the cross entropy of each next token.

    .. math:: -\\frac{1}{n (t - 1)} \\sum_{i=1}^{n} \\sum_{j=2}^{t}
              \\log p(x_{ij} | x_{i1}, \\dots, x_{i,j-1})

    in nats, a float32 scalar, where the tokens ``x`` are integers ``[n, t]`` with ``t``
    of at least 2: the model sees the first ``t - 1`` and predicts the last ``t - 1``.

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
