"""Smaller networks of other libraries: Equinox, Flax NNX and Haiku.

Each has a skip connection, a concatenation, a depthwise convolution, attention and an
LSTM.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from snipjax import shrink
from tests.shrink.networks import Network, check_same, noise, random_mask

IMAGES = noise((2, 4, 4, 2))


@pytest.mark.slow
def test_flax_nnx() -> None:
    rngs = nnx.Rngs(0)

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
            self.skip = nnx.Conv(6, 6, (1, 1), rngs=rngs)
            self.depthwise = nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs)
            self.mix = nnx.Linear(12, 8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=4, in_features=8, decode=False, rngs=rngs
            )
            self.loop = nnx.RNN(nnx.OptimizedLSTMCell(8, 6, rngs=rngs))
            self.head = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x: chex.Array) -> chex.Array:
            y = nnx.relu(self.norm(self.conv(x)))
            y = y + nnx.gelu(self.skip(y))
            y = jnp.concatenate([y, self.depthwise(y)], -1)
            y = self.mix(y.reshape(y.shape[0], -1, 12))
            state = (jnp.zeros((y.shape[0], 6)),) * 2
            y = self.loop(self.attention(y), initial_carry=state)
            return self.head(y[:, -1])

    graph, params, rest = nnx.split(Net(), (nnx.Param, nnx.BatchStat), ...)

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        return nnx.merge(graph, params, rest)(x)

    check(apply_fn, params, channels=6, width=8, heads=4, state=6)


@pytest.mark.slow
def test_equinox() -> None:
    eqx = pytest.importorskip("equinox")
    keys = iter(jax.random.split(jax.random.key(0), 9))

    class Net(eqx.Module):
        conv: Any
        skip: Any
        depthwise: Any
        mix: Any
        attention: Any
        cell: Any
        head: Any

        def __init__(self) -> None:
            self.conv = eqx.nn.Conv2d(2, 6, 3, padding=1, key=next(keys))
            self.skip = eqx.nn.Conv2d(6, 6, 1, key=next(keys))
            self.depthwise = eqx.nn.Conv2d(6, 6, 3, padding=1, groups=6, key=next(keys))
            self.mix = eqx.nn.Linear(12, 8, key=next(keys))
            self.attention = eqx.nn.MultiheadAttention(4, 8, key=next(keys))
            self.cell = eqx.nn.LSTMCell(8, 6, key=next(keys))
            self.head = eqx.nn.Linear(6, 3, key=next(keys))

        def __call__(self, x: chex.Array) -> chex.Array:
            y = jax.nn.relu(self.conv(x.transpose(2, 0, 1)))
            y = y + jax.nn.gelu(self.skip(y))
            y = jnp.concatenate([y, self.depthwise(y)])
            y = jax.vmap(self.mix)(y.reshape(12, -1).T)
            y = self.attention(y, y, y)
            start = (jnp.zeros(6), jnp.zeros(6))
            step = lambda state, token: (self.cell(token, state), None)  # noqa: E731
            return self.head(jax.lax.scan(step, start, y)[0][0])

    params, static = eqx.partition(Net(), eqx.is_array)

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        return jax.vmap(eqx.combine(params, static))(x)

    check(apply_fn, params, channels=6, width=8, heads=4, state=6)


@pytest.mark.slow
def test_haiku() -> None:
    hk = pytest.importorskip("haiku")

    def net(x: chex.Array) -> chex.Array:
        y = jax.nn.relu(hk.Conv2D(6, 3)(x))
        y = y + jax.nn.gelu(hk.Conv2D(6, 1)(y))
        y = jnp.concatenate([y, hk.DepthwiseConv2D(1, 3)(y)], -1)
        y = hk.Linear(8)(y.reshape(y.shape[0], -1, 12))
        attention = hk.MultiHeadAttention(
            4, 2, w_init=hk.initializers.VarianceScaling(1.0), model_size=8
        )
        core = hk.LSTM(6)
        y, _ = hk.dynamic_unroll(
            core, attention(y, y, y), core.initial_state(x.shape[0]), time_major=False
        )
        return hk.Linear(3)(y[:, -1])

    network = hk.without_apply_rng(hk.transform(net))
    params = network.init(jax.random.key(0), IMAGES)
    check(network.apply, params, channels=6, width=8, heads=4, state=6)


def check(apply_fn: Any, params: Any, **sizes: int) -> None:
    """Checks that the units are found, and that any half of them can go."""
    params = jax.tree.map(lambda w: w + 0.1 * noise(w.shape) ** 2, params)
    network = Network(apply_fn, params, IMAGES)
    units = shrink.units(*network)
    found = [layer.size for layer in units.layers]
    assert not units.unknown
    assert all(size in found for size in sizes.values()), found
    check_same(network, random_mask(units))
