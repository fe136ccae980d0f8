"""The paper's optimizer against NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snipjax import training


def test_is_sgd_with_momentum_weight_decay_and_steps() -> None:
    rng = np.random.default_rng(0)
    start = {
        "Dense_0": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
        "BatchNorm_0": {"scale": rng.normal(size=3), "bias": rng.normal(size=3)},
    }
    gradients = [
        jax.tree.map(lambda x: rng.normal(size=x.shape), start) for _ in range(7)
    ]
    schedule = optax.exponential_decay(0.1, 3, 0.1, staircase=True)
    optimizer = training.sgd(schedule, momentum=0.9, weight_decay=5e-4)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(
            jax.tree.map(jnp.asarray, grads), state, params
        )
        params = jax.tree.map(jnp.add, params, updates)

    def plain(path: Any, value: np.ndarray, *gradients: np.ndarray) -> np.ndarray:
        decay = 5e-4 if path[0].key == "Dense_0" else 0.0
        velocity = np.zeros_like(value)
        for step, gradient in enumerate(gradients):
            velocity = 0.9 * velocity + gradient + decay * value
            value = value - 0.1 * 0.1 ** (step // 3) * velocity
        return value

    expected = jax.tree_util.tree_map_with_path(plain, start, *gradients)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        params,
        expected,
    )
