"""Scaled evaluation against double precision, logarithms and float32 where it does."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from snipjax import ops
from snipjax._src import scaled

pytestmark = pytest.mark.filterwarnings("error")


def logarithm(x: scaled.Scaled) -> np.ndarray:
    """To base 2, in double precision."""
    with np.errstate(divide="ignore"):
        return np.log2(np.float64(x.value)) + np.float64(x.exponent)


def plain(x: scaled.Scaled) -> np.ndarray:
    return np.ldexp(np.float64(x.value), np.asarray(x.exponent))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sum and product": lambda x: (x + 3.0) * x - x / (1.0 + x),
    "powers": lambda x: x**3 + jnp.sqrt(x) + lax.rsqrt(x) + jnp.square(x),
    "layer norm": lambda x: (x - x.mean()) * lax.rsqrt(x.var() + 1e-5),
    "selections": lambda x: jnp.where(x > 0.5, x, 0.25 * x) + jnp.clip(x, 0.2, 0.7),
    "pieces": lambda x: jnp.concatenate([jnp.pad(x, ((1, 2), (0, 0))), x[::2], x[1:3]]),
    "indices": lambda x: x.at[0].set(2.0).at[1].add(x[2])[jnp.array([1, 0, 1])],
    "no products": lambda x: jnp.tanh(x) + jax.nn.gelu(x) + jax.nn.softmax(x),
    "order": lambda x: jnp.sort(x, axis=0) * jnp.argmax(x) + jnp.sign(x),
    "integers": lambda x: (10 * x).astype(jnp.int32) + jnp.arange(4),
    "a loop": lambda x: lax.fori_loop(0, 3, lambda i, y: y * x + i, x),
    "a scan": lambda x: lax.scan(
        lambda y, row: (y * row, (y.sum(), jnp.argmax(row))), x[0], x, reverse=True
    ),
    "calls": lambda x: jax.jit(jax.checkpoint(lambda y: jax.nn.relu(y - 0.5) * y))(x),
    "a branch": lambda x: lax.cond(x[0, 0] > 0, lambda y: y * 2, lambda y: y + 1, x),
    "constants": lambda x: x * jnp.exp(jnp.float32(1.0)),
    "a pytree": lambda x: {"a": (x, 2 * x), "b": jnp.float32(3)},
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_values_and_derivatives_are_those_of_the_function(function: Any) -> None:
    x = np.random.default_rng(0).uniform(0.1, 2, (3, 4)).astype(np.float32)

    def total(x: chex.Array) -> chex.Array:
        return sum(jnp.sum(1.0 * y) for y in jax.tree.leaves(function(x)))

    def scaled_total(x: chex.Array) -> chex.Array:
        result = scaled.evaluate(total)(x)
        return result.value * 2.0**result.exponent

    @jax.jit
    def both(x: chex.Array) -> Any:
        value = scaled.evaluate(function)(x)
        return value, function(x), jax.grad(scaled_total)(x), jax.grad(total)(x)

    value, expected, gradient, expected_gradient = both(x)
    actual = jax.tree.map(plain, value, is_leaf=lambda y: isinstance(y, scaled.Scaled))
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (jnp.float32, 1e-3),
        (jnp.float32, 1e3),
        (jnp.float16, 1e-3),
        (jnp.bfloat16, 1e3),
    ],
)
def test_a_product_of_many_factors(dtype: Any, factor: float) -> None:
    def product(x: chex.Array) -> chex.Array:
        for _ in range(40):
            x = x * factor
        return jnp.sum(x)

    x = np.array([1.0, 3.0], dtype)
    result = scaled.evaluate(product)(x)
    expected = 40 * np.log2(np.float64(dtype(factor))) + 2
    np.testing.assert_allclose(logarithm(result), expected, rtol=1e-2)
    log_value = lambda x: jnp.log(scaled.evaluate(product)(x).value)  # noqa: E731
    gradient = jax.grad(log_value)(x)
    np.testing.assert_allclose(np.float32(gradient), 0.25, rtol=1e-2)


def test_terms_far_apart_are_added_as_they_are() -> None:
    def total(x: chex.Array, small: chex.Array) -> chex.Array:
        large = x
        for _ in range(20):
            large = large * 1e5  # 1e100 in the end
            small = small * 1e-5
        return large + small, small + 0.0 * large, jnp.maximum(small, 0.0)

    results = scaled.evaluate(total)(jnp.float32(1), jnp.float32(1))
    np.testing.assert_allclose(
        [float(logarithm(x)) for x in results],
        np.log2(10) * np.array([100, -100, -100]),
        rtol=1e-6,
    )


@pytest.mark.parametrize("largest", [0.0, 1e-45, 4e-38, 1.0, 3.4e38])
def test_rescaling_is_exact_at_the_ends_of_the_range(largest: float) -> None:
    x = np.float32([largest, -largest / 3, 0])
    result = scaled.rescaled(scaled.Scaled(jnp.asarray(x), jnp.int32(0)))
    if largest > 1e-38:  # XLA takes subnormal numbers for zero
        np.testing.assert_array_equal(plain(result), x)
        assert 0.5 <= np.max(np.abs(result.value)) <= 4


def test_arrays_without_a_largest_number_stay() -> None:
    for x in (jnp.array([1e9, -jnp.inf]), jnp.zeros((0, 2))):
        result = scaled.rescaled(scaled.Scaled(x, jnp.int32(3)))
        np.testing.assert_array_equal(plain(result), 8 * np.float64(x))


def test_the_default_of_a_platform_is_taken() -> None:
    def convolution(x: chex.Array) -> chex.Array:
        kernels = jnp.ones((3, 3, 16, 16))
        layout = ("NHWC", "HWIO", "NHWC")
        return ops.conv_general_dilated(
            x, kernels, (1, 1), "SAME", dimension_numbers=layout
        )

    evaluated = jax.make_jaxpr(scaled.evaluate(convolution))(jnp.ones((1, 4, 4, 16)))
    names = [equation.primitive.name for equation in evaluated.eqns]
    assert "conv_general_dilated" in names
    assert "cond" not in names


def test_under_jit_and_vmap() -> None:
    xs = jnp.float32([1e-10, 1e10])
    results = jax.jit(jax.vmap(scaled.evaluate(lambda x: x**40 * x**40)))(xs)
    np.testing.assert_allclose(
        logarithm(results), np.log2(10) * np.array([-800, 800]), rtol=1e-5
    )
