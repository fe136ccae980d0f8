"""Random arrays, and the comparison of results with XLA's."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> chex.Array:
    # Drawn by NumPy, since jax.random compiles for each shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Compares relative to the largest entry, as rounding of sums is."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


def quickly_compiled(function: Callable) -> Callable:
    """Compiles without optimizations, which take most of a test's time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def hlo(function: Callable, platform: str, *args: chex.Array) -> str:
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()
