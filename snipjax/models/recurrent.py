"""Recurrent networks that read an image row by row, as in Lee et al., ICLR 2019.

Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Cho et al., "Learning
Phrase Representations using RNN Encoder-Decoder", EMNLP 2014.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from snipjax.initializers import fan_in
from snipjax.models.layers import Dense


class LSTMCell(nn.RNNCellBase):
    r"""Updates a long short-term memory whose forget gate starts open.

    .. math:: (i, j, f, o) &= [x, h] W + b \\
              c' &= \sigma(f + 1) \, c + \sigma(i) \tanh(j) \\
              h' &= \sigma(o) \tanh(c')

    One kernel holds the four gates; its fan-in is the size of input and state together.
    The 1 is a constant, not a parameter (Jozefowicz et al., ICML 2015): without it a
    new network forgets half of its state at each row, the first rows hardly reach the
    loss, and SNIP prunes nearly all connections of the state.

    The carry is ``(c, h)``, both ``[batch, units]``; ``x`` is ``[batch, features]``.

    Attributes:
      units: number of units.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of the kernel.

    Example:
      >>> cell, x = LSTMCell(units=4), jnp.zeros((1, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> variables = jax.eval_shape(cell.init, jax.random.key(0), carry, x)
      >>> variables["params"]["gates"]["kernel"].shape
      (7, 16)
    """

    units: int
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(
        self, carry: tuple[chex.Array, chex.Array], x: chex.Array
    ) -> tuple[tuple[chex.Array, chex.Array], chex.Array]:
        c, h = carry
        gates = Dense(
            4 * self.units,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="gates",
        )(jnp.concatenate([x, h], axis=-1))
        i, j, f, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f + 1.0) * c + nn.sigmoid(i) * nn.tanh(j)
        h = nn.sigmoid(o) * nn.tanh(c)
        return (c, h), h

    @nn.nowrap
    def initialize_carry(
        self, rng: chex.PRNGKey, input_shape: tuple[int, ...]
    ) -> tuple[chex.Array, chex.Array]:
        zeros = jnp.zeros((*input_shape[:-1], self.units), self.dtype)
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        return 1


class GRUCell(nn.RNNCellBase):
    r"""Updates a gated recurrent unit whose gates start open.

    .. math:: (r, z) &= \sigma([x, h] W + b) \\
              n &= \tanh([x, r h] W' + b') \\
              h' &= z h + (1 - z) n

    The bias :math:`b` starts at 1, so that the state is kept at first, and :math:`b'`
    at 0. Both are parameters, and ranked by criteria like all others.

    The carry is ``h``, ``[batch, units]``; ``x`` is ``[batch, features]``.

    Attributes:
      units: number of units.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of the kernels.

    Example:
      >>> cell, x = GRUCell(units=4), jnp.zeros((1, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> variables = jax.eval_shape(cell.init, jax.random.key(0), carry, x)
      >>> variables["params"]["gates"]["kernel"].shape
      (7, 8)
    """

    units: int
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(
        self, carry: chex.Array, x: chex.Array
    ) -> tuple[chex.Array, chex.Array]:
        h = carry
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        gates = Dense(
            2 * self.units,
            bias_init=nn.initializers.ones,
            name="gates",
            **settings,
        )(jnp.concatenate([x, h], axis=-1))
        r, z = jnp.split(nn.sigmoid(gates), 2, axis=-1)
        candidate = Dense(self.units, name="candidate", **settings)(
            jnp.concatenate([x, r * h], axis=-1)
        )
        h = z * h + (1 - z) * nn.tanh(candidate)
        return h, h

    @nn.nowrap
    def initialize_carry(
        self, rng: chex.PRNGKey, input_shape: tuple[int, ...]
    ) -> chex.Array:
        return jnp.zeros((*input_shape[:-1], self.units), self.dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1


class Recurrent(nn.Module):
    r"""Applies a dense layer to each row, a recurrent layer, and a dense layer.

    .. math:: s_t = cell(s_{t-1}, W x_t + b), \qquad z = V h_T + c

    Row :math:`t` of the image, :math:`x_t`, has ``width * channels`` numbers;
    :math:`h_T` is the output of the cell after the last row. It takes images
    ``[batch, height, width, channels]`` and returns logits ``[batch, num_classes]``.

    Attributes:
      num_classes: number of logits.
      cell: :class:`LSTMCell`, :class:`GRUCell` or a class like them.
      units: number of units of the cell.
      row_units: number of units of the dense layer of rows, by default ``units``.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initializer ``(key, shape, dtype) -> array`` of all kernels, the
        cell's too.

    Example:
      >>> model, image = Recurrent(10, cell=GRUCell, units=8), jnp.zeros((1, 4, 4, 1))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> variables["params"]["cell"]["candidate"]["kernel"].shape
      (16, 8)
    """

    num_classes: int
    cell: Callable[..., nn.RNNCellBase] = LSTMCell
    units: int = 128
    row_units: int | None = None
    dtype: chex.ArrayDType = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}

        rows = x.reshape(*x.shape[:2], -1)
        rows = Dense(self.row_units or self.units, **settings)(rows)
        outputs: Any = nn.RNN(self.cell(self.units, name="cell", **settings))(rows)
        return Dense(self.num_classes, **settings)(outputs[:, -1])


lstm_s = functools.partial(Recurrent, cell=LSTMCell, units=128)
lstm_b = functools.partial(Recurrent, cell=LSTMCell, units=256)
gru_s = functools.partial(Recurrent, cell=GRUCell, units=128)
gru_b = functools.partial(Recurrent, cell=GRUCell, units=256)
