"""A regression in plain JAX, and its dense training, which every method starts from."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks
from snipjax.methods import Outcome, Problem, dense
from snipjax.training import Metrics


class Affine(NamedTuple):
    """As Equinox has it: a weight ``[outputs, inputs]`` for one example."""

    weight: chex.Array
    bias: chex.Array


@pytest.fixture(scope="session")
def regression() -> Problem:
    """Of a line's noisy samples, where most of the inputs are of no use."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6)).astype(np.float32)
    y = np.tanh(x[:, 0] - x[:, 1]).astype(np.float32)
    data = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    params = {
        "layers": [
            Affine(
                jnp.asarray(0.5 * rng.normal(size=(8, 6)), jnp.float32), jnp.zeros(8)
            ),
            jnp.asarray(0.5 * rng.normal(size=(8, 1)), jnp.float32),
        ],
        "scale": jnp.ones(()),
    }

    @jax.jit
    def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
        first, second = params["layers"]

        def one(x: chex.Array) -> chex.Array:
            hidden = jnp.tanh(first.weight @ x + first.bias)
            return params["scale"] * (hidden @ second)[0]

        return jnp.mean((jax.vmap(one)(batch["x"]) - batch["y"]) ** 2)

    def evaluate(params: chex.ArrayTree) -> dict[str, Metrics]:
        loss = loss_fn(params, data)
        return {"val": Metrics(loss, loss)}

    return Problem(
        loss_fn,
        params,
        data,
        evaluate,
        optax.sgd,
        learning_rate=0.1,
        steps=80,
        decay_every=80,
        decay_factor=0.1,
        eval_every=20,
        batch_size=32,
        prunable=masks.weights_and_biases,
        key=jax.random.key(0),
    )


@pytest.fixture(scope="session")
def trained(regression: Problem) -> Outcome:
    return dense(regression)
