"""Pools of snipjax.ops agree with Flax's."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import ops
from tests.ops.agreement import assert_close, normal, quickly_compiled

POOLS = "max_pool", "avg_pool"
WINDOWS = {
    "tiles": {"window_shape": (2, 2), "strides": (2, 2)},
    "uneven tiles": {"window_shape": (2, 3), "strides": (2, 3), "padding": "SAME"},
    "zero padding": {
        "window_shape": (3, 1),
        "strides": (3, 1),
        "padding": ((0, 0), (0, 0)),
    },
    "overlapping": {"window_shape": (3, 3), "strides": (2, 2)},
    "padded": {"window_shape": (2, 2), "strides": (2, 2), "padding": ((1, 1), (1, 1))},
    "cut off": {"window_shape": (4, 4), "strides": (4, 4)},
    "no strides": {"window_shape": (2, 2)},
}


def check(x: jax.Array, tolerance: float = 1e-5, **window: Any) -> None:
    """Compares values and gradients of both pools with Flax's."""

    def values(pools: Any) -> Callable:
        def loss(x: jax.Array) -> tuple[jax.Array, Any]:
            out = [getattr(pools, kind)(x, **window) for kind in POOLS]
            weight = jnp.arange(1, out[0].size + 1).reshape(out[0].shape)
            total = jnp.sum(weight * (jnp.sin(out[0]) + 2 * jnp.sin(out[1])))
            return total.astype(jnp.float32), out

        return quickly_compiled(jax.value_and_grad(loss, has_aux=True))

    (_, ours), gradient = values(ops)(x)
    (_, plain), expected = values(nn)(x)
    assert_close((ours, gradient), (plain, expected), tolerance)


@pytest.mark.parametrize("name", WINDOWS)
def test_values_and_gradients_are_flax_s_ties_included(name: str) -> None:
    # Few different integers, so that most windows have several maxima.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (3, 6, 6, 4)), jnp.float32)
    check(x, **WINDOWS[name])


def test_half_precision_agrees_but_for_rounding() -> None:
    tolerance = 4 * float(jnp.finfo(jnp.bfloat16).eps)
    check(normal(0, (3, 6, 6, 4), jnp.bfloat16), tolerance, **WINDOWS["tiles"])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_dimensions(batch: tuple[int, ...]) -> None:
    check(normal(0, (*batch, 6, 6, 4)), **WINDOWS["tiles"])


def test_a_nan_is_the_maximum_and_of_equals_the_first() -> None:
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[-inf, -inf, 1.0, nan], [-inf, -inf, inf, 2.0]])[..., None]

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        maxima = ops.max_pool(x, (2, 2), (2, 2))
        return jnp.sum(maxima), maxima

    gradient, maxima = jax.jit(jax.grad(total, has_aux=True))(x)
    np.testing.assert_array_equal(maxima[..., 0], [[-inf, nan]])
    np.testing.assert_array_equal(gradient[..., 0], [[1, 0, 0, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize("kind", POOLS)
def test_transformations(kind: str) -> None:
    x, direction = normal(0, (2, 4, 4, 3)), normal(1, (2, 4, 4, 3))

    def results(pool: Callable) -> Any:
        def square(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(pool(x, (2, 2), (2, 2))))

        return (
            jax.vmap(jax.grad(square))(jnp.stack([x, -x])),
            jax.grad(jax.checkpoint(square))(x),
            jax.grad(lambda x: jnp.vdot(jax.grad(square)(x), direction))(x),
        )

    ours, plain = (
        quickly_compiled(lambda pool=pool: results(pool))()
        for pool in (getattr(ops, kind), getattr(nn, kind))
    )
    assert_close(ours, plain)


@pytest.mark.parametrize(
    "window",
    [
        ((2, 2), (2,)),
        ((2, 2), (2, 2), ((0, 0),)),
        ((2, 2, 2, 2), (2, 2, 2, 2)),
        ((2, 2), (2, 2), "FOO"),
    ],
)
def test_errors_are_flax_s(window: Any) -> None:
    for pools in (ops, nn):
        with pytest.raises((AssertionError, RuntimeError)):
            pools.max_pool(jnp.ones((2, 4, 4, 3)), *window)
