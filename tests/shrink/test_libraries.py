"""Smaller networks of other libraries: Equinox, Flax NNX and Haiku.

Each has a depthwise convolution, attention and an LSTM, as the library writes them.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from snipjax import shrink
from tests.shrink.networks import Network, check_same, noise

IMAGES = noise((2, 4, 4, 2))


def check(apply_fn: Any, params: Any) -> None:
    """Checks that the units are found, and that any half of them can go."""
    params = jax.tree.map(lambda w: w + 0.1 * noise(w.shape) ** 2, params)
    network = Network(apply_fn, params, IMAGES)
    units = shrink.units(*network)
    assert not units.unknown
    # Channels, tokens' features, heads and the state of the LSTM.
    assert {6, 8, 4, 5} <= {layer.size for layer in units.layers}
    check_same(network)


@pytest.mark.slow
def test_flax_nnx() -> None:
    rngs = nnx.Rngs(0)

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
            self.depthwise = nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs)
            self.mix = nnx.Linear(6, 8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=4, in_features=8, decode=False, rngs=rngs
            )
            self.loop = nnx.RNN(nnx.OptimizedLSTMCell(8, 5, rngs=rngs))
            self.head = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x: chex.Array) -> chex.Array:
            y = self.depthwise(nnx.relu(self.conv(x)))
            y = self.attention(self.mix(y.reshape(2, 16, 6)))
            return self.head(
                self.loop(y, initial_carry=(jnp.zeros((2, 5)),) * 2)[:, -1]
            )

    graph, params, rest = nnx.split(Net(), nnx.Param, ...)
    check(lambda params, x: nnx.merge(graph, params, rest)(x), params)


@pytest.mark.slow
def test_equinox() -> None:
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 6)
    net = {
        "conv": eqx.nn.Conv2d(2, 6, 3, padding=1, key=keys[0]),
        "depthwise": eqx.nn.Conv2d(6, 6, 3, padding=1, groups=6, key=keys[1]),
        "mix": eqx.nn.Linear(6, 8, key=keys[2]),
        "attention": eqx.nn.MultiheadAttention(4, 8, key=keys[3]),
        "cell": eqx.nn.LSTMCell(8, 5, key=keys[4]),
        "head": eqx.nn.Linear(5, 3, key=keys[5]),
    }
    params, static = eqx.partition(net, eqx.is_array)

    def apply_fn(params: Any, images: chex.Array) -> chex.Array:
        net = eqx.combine(params, static)

        def one(x: chex.Array) -> chex.Array:
            y = net["depthwise"](jax.nn.relu(net["conv"](x.transpose(2, 0, 1))))
            y = jax.vmap(net["mix"])(y.reshape(6, 16).T)
            state = (jnp.zeros(5), jnp.zeros(5))
            for token in net["attention"](y, y, y)[:3]:
                state = net["cell"](token, state)
            return net["head"](state[0])

        return jax.vmap(one)(images)

    check(apply_fn, params)


@pytest.mark.slow
def test_haiku() -> None:
    hk = pytest.importorskip("haiku")

    def net(x: chex.Array) -> chex.Array:
        y = hk.DepthwiseConv2D(1, 3)(jax.nn.relu(hk.Conv2D(6, 3)(x)))
        y = hk.Linear(8)(y.reshape(2, 16, 6))
        init = hk.initializers.VarianceScaling(1.0)
        y = hk.MultiHeadAttention(4, 2, w_init=init, model_size=8)(y, y, y)
        core = hk.LSTM(5)
        y, _ = hk.dynamic_unroll(core, y, core.initial_state(2), time_major=False)
        return hk.Linear(3)(y[:, -1])

    network = hk.without_apply_rng(hk.transform(net))
    check(network.apply, network.init(jax.random.key(0), IMAGES))
