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
kinds = pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])


@kinds
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_flax_s_ties_included(
    kind: str, name: str, dtype: Any
) -> None:
    # Few different integers, so that most windows have several maxima.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (3, 6, 6, 4)), dtype)
    weight = normal(1, (4,))

    def value_and_gradient(pool: Callable) -> Any:
        def value(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = pool(x, **WINDOWS[name])
            return jnp.sum(jnp.sin(out) * weight).astype(jnp.float32), out

        return quickly_compiled(jax.value_and_grad(value, has_aux=True))(x)

    ours = value_and_gradient(getattr(ops, kind))
    tolerance = float(jnp.finfo(dtype).eps) * (1 if kind == "max_pool" else 4)
    assert_close(ours, value_and_gradient(getattr(nn, kind)), tolerance)


@kinds
def test_any_number_of_batch_dimensions(kind: str) -> None:
    x = normal(0, (2, 3, 6, 6, 4))
    ours, plain = getattr(ops, kind), getattr(nn, kind)
    for images in (x, x[0], x[0, 0]):
        assert_close(ours(images, (2, 2), (2, 2)), plain(images, (2, 2), (2, 2)))


def test_a_nan_is_the_maximum_and_of_equals_the_first() -> None:
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[-inf, -inf, 1.0, nan], [-inf, -inf, inf, 2.0]])[..., None]

    def pool(x: jax.Array) -> jax.Array:
        return ops.max_pool(x, (2, 2), (2, 2))

    np.testing.assert_array_equal(pool(x)[..., 0], [[-inf, nan]])
    gradient = jax.grad(lambda x: jnp.sum(pool(x)))(x)
    np.testing.assert_array_equal(gradient[..., 0], [[1, 0, 0, 1], [0, 0, 0, 0]])


@kinds
def test_transformations(kind: str) -> None:
    x, direction = normal(0, (2, 4, 4, 3)), normal(1, (2, 4, 4, 3))

    def results(pool: Callable) -> Any:
        def square(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(pool(x, (2, 2), (2, 2))))

        return (
            jax.jvp(square, (x,), (direction,)),
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
@kinds
def test_errors_are_flax_s(kind: str, window: Any) -> None:
    for pools in (ops, nn):
        with pytest.raises((AssertionError, RuntimeError)):
            getattr(pools, kind)(jnp.ones((2, 4, 4, 3)), *window)
