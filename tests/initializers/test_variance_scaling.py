"""Initializers have the variances, bounds and distributions of their formulas."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from snipjax import initializers

# Shape and fans: a convolution's fans are times its receptive field.
DENSE = ((400, 600), 400, 600)
CONV = ((5, 5, 30, 50), 25 * 30, 25 * 50)

VARIANCES: dict[str, Callable[[int, int], float]] = {
    "random_normal": lambda fan_in, fan_out: 0.05**2,
    "truncated_normal": lambda fan_in, fan_out: (
        0.05**2 * scipy.stats.truncnorm(-2, 2).var()
    ),
    "xavier": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "fan_in": lambda fan_in, fan_out: 1 / fan_in,
    "heuristic_uniform": lambda fan_in, fan_out: 1 / (3 * fan_in),
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
}
KINDS = {
    "random_normal": scipy.stats.norm(),
    "heuristic_uniform": scipy.stats.uniform(-1, 2),
    "glorot_uniform": scipy.stats.uniform(-1, 2),
}
BOUNDS: dict[str, Callable[[int, int], float]] = {
    "truncated_normal": lambda fan_in, fan_out: 2 * 0.05,
    "heuristic_uniform": lambda fan_in, fan_out: 1 / np.sqrt(fan_in),
    "glorot_uniform": lambda fan_in, fan_out: np.sqrt(6) / np.sqrt(fan_in + fan_out),
}


@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_variance_bounds_and_kind_of_distribution(name: str) -> None:
    for shape, fan_in, fan_out in (DENSE, CONV):
        w = np.asarray(initializers.INITIALIZERS[name](jax.random.key(0), shape))
        assert w.shape == shape
        np.testing.assert_allclose(w.var(), VARIANCES[name](fan_in, fan_out), rtol=0.02)
        assert abs(w.mean()) < 0.01 * w.std()
        if name in BOUNDS:
            bound = BOUNDS[name](fan_in, fan_out)
            assert 0.99 * bound < np.abs(w).max() <= bound * (1 + 1e-6)
    kind = KINDS.get(name, scipy.stats.truncnorm(-2, 2))
    scaled = w.ravel() * kind.std() / w.std()
    assert scipy.stats.kstest(scaled, kind.cdf).pvalue > 0.01


@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_signature_is_that_of_jax(name: str) -> None:
    initializer = initializers.INITIALIZERS[name]
    assert initializer(jax.random.key(0), (3, 4), jnp.bfloat16).dtype == jnp.bfloat16
    assert initializer(jax.random.key(0), (3, 4)).dtype == jnp.float32


def test_scaled_variances_need_two_dimensions() -> None:
    with pytest.raises(ValueError):
        initializers.he(jax.random.key(0), (3,))
