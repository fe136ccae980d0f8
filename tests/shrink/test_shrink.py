"""Smaller networks, against the masked ones."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks, ops, shrink
from snipjax.models import vgg
from tests.shrink.networks import (
    NETWORKS,
    Network,
    check_close,
    check_same,
    from_module,
    network_of,
    noise,
    random_mask,
    units_of,
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", NETWORKS)
def test_many_masks(name: str, seed: int) -> None:
    check_same(network_of(name), random_mask(units_of(name), seed=seed))


def hand_written(params: Any, x: chex.Array) -> chex.Array:
    """A skip, a concatenation, a depthwise convolution, attention and a loop."""
    layout = ("NHWC", "HWIO", "NHWC")
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=layout,
    )
    y = jax.nn.sigmoid(convolve(x, params["conv"]) + params["bias"])
    y = y + jax.nn.softplus(convolve(y, params["skip"]))
    z = convolve(y, params["depthwise"], feature_group_count=6)
    y = jnp.concatenate([y, z], axis=-1)
    tokens = y.reshape(y.shape[0], -1, y.shape[-1])
    query, key, value = (
        jnp.einsum("ntc,chd->nthd", tokens, params[name])
        for name in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", query, key))
    tokens = jnp.einsum("nhts,nshd->nthd", weights, value)
    tokens = jnp.einsum("nthd,hdc->ntc", tokens, params["out"])

    def step(state: Any, token: chex.Array) -> tuple[Any, None]:
        c, h = state
        gates = token @ params["w"] + h @ params["u"] + params["b"]
        i, j, f, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
        return (c, jax.nn.sigmoid(o) * jnp.tanh(c)), None

    zeros = jnp.zeros((x.shape[0], 5))
    (_, h), _ = jax.lax.scan(step, (zeros, zeros), tokens.swapaxes(0, 1))
    return h @ params["head"]


SHAPES = {
    "conv": (3, 3, 2, 6),
    "bias": (6,),
    "skip": (1, 1, 6, 6),
    "depthwise": (3, 3, 1, 12),
    "query": (18, 4, 3),
    "key": (18, 4, 3),
    "value": (18, 4, 3),
    "out": (4, 3, 8),
    "w": (8, 20),
    "u": (5, 20),
    "b": (20,),
    "head": (5, 3),
}


def test_a_function_of_ones_own() -> None:
    params = {k: noise(s, i) / 2 for i, (k, s) in enumerate(SHAPES.items())}
    network = Network(hand_written, params, noise((2, 4, 4, 2)))
    units = shrink.units(*network)
    assert not units.unknown
    # Channels with their two results in the depthwise convolution, the width of tokens,
    # heads, parts of heads in queries and keys, in values, and the state.
    assert sorted(layer.size for layer in units.layers) == [3, 3, 4, 5, 6, 8]
    small = check_same(network)
    assert small["depthwise"].shape == (3, 3, 1, 6)


def test_the_same_is_mapped_compiled_and_takes_any_batch() -> None:
    network = network_of("lenet_300_100")
    mask = random_mask(units_of("lenet_300_100"))
    small_apply, small_params = shrink.shrink(
        network.apply_fn, network.params, mask, network.inputs
    )
    x = noise((3, 5, 4, 4, 1), seed=1)
    masked = masks.apply(mask, network.params)
    expected = jax.jit(network.apply_fn)(masked, x.reshape(15, 4, 4, 1))
    found = jax.vmap(jax.jit(small_apply), (None, 0))(small_params, x)
    check_close(found, expected.reshape(3, 5, -1))


def test_the_state_of_a_layer_whose_name_ends_like_anothers() -> None:
    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        for layer in (params["block"]["dense"], params["dense"]):
            x = jnp.tanh(x @ layer["w"])
        return x @ params["out"]

    square = noise((4, 4))
    params = {"block": {"dense": {"w": square}}, "dense": {"w": square}}
    params["out"] = noise((4, 2))
    units = shrink.units(apply_fn, params, noise((3, 4)))
    removed = shrink.removed(units, random_mask(units))
    state = optax.TraceState(jax.tree.map(lambda w: w + 1, params))
    chex.assert_trees_all_equal(removed.state(state).trace, removed.params(state.trace))


def test_training_with_batch_statistics_and_momentum() -> None:
    module = vgg.VGG(3, (((3, 4), (1, 4)), ((3, 6),)), (5,))
    network = from_module(module, noise((2, 8, 8, 3)))
    units = shrink.units(*network)
    mask = random_mask(units)
    removed = shrink.removed(units, mask)
    whole = masks.apply(mask, network.params)
    optimizer = optax.adam(1e-2)

    def train(variables: Any, x: chex.Array) -> Any:
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    def step(apply_fn: Any, variables: Any, state: Any) -> tuple[Any, Any, Any]:
        def loss_fn(params: Any) -> tuple[chex.Array, Any]:
            logits, updates = apply_fn({**variables, "params": params}, network.inputs)
            return jnp.sum(logits**2), updates

        grads, updates = jax.grad(loss_fn, has_aux=True)(variables["params"])
        changes, state = optimizer.update(grads, state)
        params = optax.apply_updates(variables["params"], changes)
        return {"params": params, **updates}, state, grads

    state = optimizer.init(whole["params"])
    small_step = jax.jit(functools.partial(step, removed.function(train)))
    found = small_step(removed.params(whole), removed.state(state))
    expected = jax.jit(functools.partial(step, train))(whole, state)
    # Not the gradient of pruned entries; Adam would move them.
    check = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
    jax.tree.map(
        check, found[2], removed.params({**whole, "params": expected[2]})["params"]
    )
    jax.tree.map(
        check, found[0]["batch_stats"], removed.params(expected[0])["batch_stats"]
    )
    assert found[1][0].mu["Conv_0"]["kernel"].shape == (3, 3, 3, 2)


def test_dead_units_of_single_connections_go_without_a_change() -> None:
    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        y = jnp.tanh(x @ params["u"])
        z = jax.nn.sigmoid(y @ params["v"])
        return z @ params["w"]

    params = {"u": noise((3, 4)), "v": noise((4, 5), 1), "w": noise((5, 2), 2)}
    mask = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    mask["u"] = mask["u"].at[:, 0].set(False)  # nothing in
    mask["w"] = mask["w"].at[1].set(False)  # nothing out
    mask["v"] = mask["v"].at[2, :].set(False).at[2, 1].set(True)  # to the one without
    mask["v"] = mask["v"].at[:, 4].set(False)  # nothing in, but sigmoid(0) is 1/2
    small = check_same(Network(apply_fn, params, noise((6, 3))), mask)
    assert small["v"].shape == (2, 4)


def test_weights_that_are_used_twice_make_units_too() -> None:
    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        return jnp.tanh(x @ params["w"] + params["b"]) @ params["w"].T

    params = {"b": noise((4,)), "w": noise((3, 4))}
    mask = {"b": jnp.zeros(4, bool), "w": jnp.ones((3, 4), bool).at[:, 1].set(False)}
    small = check_same(Network(apply_fn, params, noise((6, 3))), mask)
    assert small["w"].shape == (3, 3)


def test_own_derivatives_stay() -> None:
    @jax.custom_jvp
    def straight_through(x: chex.Array) -> chex.Array:
        return jnp.round(x)

    straight_through.defjvp(
        lambda primals, tangents: (jnp.round(primals[0]), tangents[0])
    )

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        return straight_through(3 * x @ params["v"]) @ params["w"]

    params = {"v": noise((3, 4)), "w": noise((4, 2), 1)}
    check_same(Network(apply_fn, params, noise((6, 3))))


def test_own_gradients_stay() -> None:
    @jax.custom_vjp
    def scaled(x: chex.Array, factor: chex.Array) -> chex.Array:
        return x * factor

    def forward(x: chex.Array, factor: chex.Array) -> tuple[chex.Array, Any]:
        return scaled(x, factor), (jnp.tanh(x), factor)

    # The gradient is that of another function.
    scaled.defvjp(forward, lambda kept, g: (3 * g * kept[0], kept[1] * g))

    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        return scaled(x @ params["v"], params["factor"]) @ params["w"]

    params = {"v": noise((3, 4)), "w": noise((4, 2), 1), "factor": noise((6, 4), 2)}
    check_same(Network(apply_fn, params, noise((6, 3))))


def test_convolution_and_pooling_of_the_library_stay_fast_ones() -> None:
    def apply_fn(params: Any, x: chex.Array) -> chex.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        y = ops.conv_general_dilated(
            x, params["v"], (1, 1), "SAME", dimension_numbers=layout
        )
        y = ops.max_pool(jnp.maximum(y, 0), (2, 2), (2, 2))
        return y.reshape(y.shape[0], -1) @ params["w"]

    params = {"v": noise((3, 3, 2, 4)), "w": noise((64, 3), 1)}
    network = Network(apply_fn, params, noise((2, 8, 8, 2)))
    mask = random_mask(shrink.units(*network))
    small_apply, small_params = shrink.shrink(*network[:2], mask, network.inputs)
    assert small_params["v"].shape == (3, 3, 2, 2)
    if jax.default_backend() == "cpu":
        text = jax.jit(small_apply).lower(small_params, network.inputs).as_text()
        assert "convolution" not in text


def test_a_layer_without_units_is_an_error() -> None:
    network = network_of("lenet_300_100")
    mask = random_mask(units_of("lenet_300_100"), share=1.0)
    with pytest.raises(ValueError, match="no unit of 'params/Dense_0/kernel'"):
        shrink.shrink(*network[:2], mask, network.inputs)


def test_parameters_that_are_one_array_and_cast_ones() -> None:
    def apply_fn(w: chex.Array, x: chex.Array) -> chex.Array:
        return jnp.tanh(x @ w) @ w.T

    w, x = noise((3, 4)), noise((2, 3), 1)
    mask = jnp.ones((3, 4), bool).at[:, 1].set(False)
    removed = shrink.removed(shrink.units(apply_fn, w, x), mask)
    state = removed.state(optax.adam(0.1).init(w))
    assert state[0].mu.shape == (3, 3) and state[0].count.shape == ()
    small, half = removed.params(w), jnp.bfloat16
    y = removed.function(apply_fn)(small.astype(half), x.astype(half))
    assert y.dtype == half
    assert (y == apply_fn(small.astype(half), x.astype(half))).all()
