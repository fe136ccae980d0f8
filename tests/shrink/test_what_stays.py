"""Units that look dead by a mask of single connections, but change outputs.

Each function has one layer of units. A mask prunes one way through which a unit gets
its values or passes them on, and another way is left.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

from snipjax import shrink
from tests.shrink.networks import Network, check_same, noise

X = noise((3, 4), 9)
SHAPES = {"w": (4, 5), "b": (5,), "c": (5,), "u": (4, 5), "s": (5, 5), "o": (5, 2)}
PARAMS = {name: noise(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}


def check(
    function: Callable[..., Any], names: str, first: str, is_removed: bool = False
) -> None:
    """Checks a mask that prunes a unit in all parameters of ``first``."""
    params = {name: PARAMS[name] for name in names}
    mask = {name: jnp.ones(leaf.shape, bool) for name, leaf in params.items()}
    for name in first:
        mask[name] = mask[name].at[..., 1].set(False)
    if is_removed:
        assert check_same(Network(function, params, X), mask)["w"].shape == (4, 4)
    else:
        removed = shrink.removed(shrink.units(function, params, X), mask)
        chex.assert_trees_all_equal_shapes(removed.params(params), params)


def test_sums_of_parameters_make_a_unit_by_each() -> None:
    def biases(p: Any, x: chex.Array) -> chex.Array:
        return jnp.tanh(x @ p["w"] + (p["b"] + p["c"])) @ p["o"]

    check(biases, "wbco", "wb")
    check(biases, "wbco", "wc")
    check(biases, "wbco", "wbc", is_removed=True)

    def kernels(p: Any, x: chex.Array) -> chex.Array:
        return jnp.tanh(x @ (p["u"] + p["w"])) @ p["o"]

    check(kernels, "wuo", "u")
    check(kernels, "wuo", "uw", is_removed=True)


def test_kernels_times_constants_make_units() -> None:
    pattern = jnp.arange(20.0).reshape(4, 5) % 3

    def apply_fn(p: Any, x: chex.Array) -> chex.Array:
        return jnp.tanh(x @ (pattern * p["w"]) + jnp.ones(5) * p["b"]) @ p["o"]

    check(apply_fn, "wbo", "b")
    check(apply_fn, "wbo", "w")
    check(apply_fn, "wbo", "wb", is_removed=True)


def test_a_branch_and_a_learned_first_state_make_units() -> None:
    def branch(p: Any, x: chex.Array) -> chex.Array:
        bias = jax.lax.cond(x[0, 0] > 9, lambda: p["c"], lambda: p["b"])
        return jnp.tanh(x @ p["w"] + bias) @ p["o"]

    check(branch, "wbco", "wc")

    def loop(p: Any, x: chex.Array) -> chex.Array:
        def step(h: chex.Array, token: chex.Array) -> tuple[chex.Array, None]:
            return jnp.tanh(h @ p["s"] + token @ p["w"]), None

        return jax.lax.scan(step, p["b"], x)[0] @ p["o"]

    check(loop, "wbso", "ws")
    check(loop, "wbso", "wsb", is_removed=True)


def test_a_vector_of_weights_and_biases_makes_units_too() -> None:
    def apply_fn(p: Any, x: chex.Array) -> chex.Array:
        return jnp.tanh(x @ p["w"] + p["p"][5:]) @ p["p"][:5]

    params = {"w": PARAMS["w"], "p": noise((10,))}
    mask = {"w": jnp.ones((4, 5), bool).at[:, 1].set(False), "p": jnp.array(True)}
    removed = shrink.removed(shrink.units(apply_fn, params, X), mask)
    assert removed.params(params)["w"].shape == (4, 5)


def by_norm(p: Any, x: chex.Array) -> chex.Array:
    kernel = p["o"] / jnp.sqrt(jnp.sum(p["o"] ** 2, 0) + 0.1)
    return jnp.tanh(x @ p["w"]) @ kernel


def by_products(p: Any, x: chex.Array) -> chex.Array:
    norm = jnp.sum((p["b"] @ p["o"]) ** 2)
    return jnp.tanh(x @ p["w"]) @ (p["o"] / (0.1 + norm))


@pytest.mark.parametrize("function", [by_norm, by_products])
def test_rows_of_a_unit_without_inputs_count_in_a_norm(function: Any) -> None:
    names = "wo" if function is by_norm else "wbo"
    check(function, names, "w")
    params = {name: PARAMS[name] for name in names}
    small = check_same(Network(function, params, X))
    assert small["w"].shape == (4, 3)


def test_single_positions_that_an_operation_takes_stay() -> None:
    def apply_fn(p: Any, x: chex.Array) -> chex.Array:
        y = jnp.tanh(x @ p["w"]) * p["b"][3]
        ones = y[:, :1].reshape(3), y[:, 1], jnp.broadcast_to(y[:, 2:3], (3, 2))[:, 0]
        return y @ p["o"] + jnp.stack(ones, 1).sum(1, keepdims=True)

    params = {name: PARAMS[name] for name in "wbo"}
    network = Network(apply_fn, params, X)
    (layer, *rest) = [x for x in shrink.units(*network).layers if "b" not in x.name]
    assert layer.size == 2 and not rest
    assert check_same(network)["w"].shape == (4, 4)

    def spread(p: Any, x: chex.Array) -> chex.Array:
        y = jnp.tanh(x @ p["w"])
        return y @ p["o"] + y[:, 4:]

    (layer,) = shrink.units(spread, {"w": PARAMS["w"], "o": PARAMS["o"]}, X).layers
    assert layer.members[0].positions.tolist() == [[0], [1], [2], [3]]


def test_a_sum_of_exponentials_of_zeros_stays() -> None:
    def apply_fn(p: Any, x: chex.Array) -> chex.Array:
        return jnp.sum(jax.lax.cumlogsumexp(x @ p["w"], axis=0), -1)

    assert not shrink.units(apply_fn, {"w": PARAMS["w"]}, X).layers


def test_a_key_of_the_function_is_a_constant() -> None:
    key = jax.random.key(3)

    def apply_fn(p: Any, x: chex.Array) -> chex.Array:
        y = jnp.tanh(x @ p["w"])
        return (y * jax.random.bernoulli(key, 0.5, y.shape)) @ p["o"]

    small = check_same(Network(apply_fn, {"w": PARAMS["w"], "o": PARAMS["o"]}, X))
    assert small["w"].shape == (4, 3)


def test_a_counter_of_a_loop_is_no_number() -> None:
    def apply_fn(p: Any, x: chex.Array) -> chex.Array:
        def step(i: chex.Array, token: chex.Array) -> tuple[chex.Array, chex.Array]:
            return i + 1, jnp.sum(jnp.maximum(token @ p["w"], i))

        return jax.lax.scan(step, 0.0, x)[1]

    assert not shrink.units(apply_fn, {"w": PARAMS["w"]}, X).layers
