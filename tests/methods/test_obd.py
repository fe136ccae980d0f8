"""Optimal brain damage: its curvature against jax.hessian, and a miniature run."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from snipjax import masks
from snipjax.methods import Aux
from snipjax.methods.obd import gauss_newton_diagonal, least_salient_removed
from tests.methods import softmax_regression

KEY = jax.random.key(0)


class Small(nn.Module):
    """ReLU, max-pooling, and a weight that is used at several positions."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        x = nn.max_pool(nn.Conv(2, (2, 2), padding="VALID")(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(3)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


def test_the_diagonal_is_the_hessians_of_a_piecewise_linear_network() -> None:
    batch = (
        jax.random.normal(jax.random.key(1), (4, 5, 5, 1)),
        jnp.array([0, 1, 2, 1]),
    )
    params = jax.jit(Small().init)(jax.random.key(2), batch[0])["params"]

    def loss_fn(params: chex.ArrayTree, batch: Any) -> tuple[chex.Array, Aux]:
        logits = Small().apply({"params": params}, batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return jnp.mean(losses), Aux(logits=logits)

    problem = softmax_regression.problem(steps=1)._replace(loss_fn=loss_fn)
    flat, unravel = ravel_pytree(params)
    matrix = jax.jit(jax.hessian(lambda w: loss_fn(unravel(w), batch)[0]))(flat)
    expected = np.diag(matrix)
    samples = 2_000

    @jax.jit
    def moments(keys: chex.PRNGKey) -> tuple[chex.Array, chex.Array]:
        def one(key: chex.PRNGKey) -> chex.Array:
            return ravel_pytree(gauss_newton_diagonal(problem, params, batch, key))[0]

        estimates = jax.lax.map(one, keys, batch_size=500)
        return estimates.mean(axis=0), estimates.std(axis=0)

    mean, std = moments(jax.random.split(KEY, samples))
    assert np.all(np.asarray(mean) >= 0)
    assert np.all(np.abs(mean - expected) <= 5 * std / np.sqrt(samples) + 1e-6)
    # The variance of the signs is at most twice the square of the mean.
    assert np.all(np.asarray(std) <= 1.1 * np.sqrt(2) * expected + 1e-6)


@pytest.mark.parametrize("has_logits", [True, False])
def test_what_is_kept_is_a_matter_of_weights_and_curvature(has_logits: bool) -> None:
    # Of one example the diagonal is h = x^2, up to a factor, and h w^2 is 0.25, 1 in
    # the first row and 2.25, 0.81 in the second. The first would keep its row by w^2
    # alone, and the second by h.
    problem = softmax_regression.problem(steps=1)._replace(
        batch_size=1, train=(jnp.array([[0.5, 3.0]]), jnp.array([0]))
    )
    if not has_logits:
        # A loss with no off-diagonal curvature, whose Hessian is found exactly.
        def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
            return jnp.sum(batch[0].reshape(2, 1) ** 2 * params["w"] ** 2)

        problem = problem._replace(loss_fn=loss_fn)
    params = softmax_regression.params(np.array([[1.0, -2.0], [0.5, 0.3]]))
    kept = least_salient_removed(
        problem,
        problem.train,
        params,
        masks.ones(params, masks.kernels),
        KEY,
        sparsity=0.5,
        num_batches=1,
    )
    np.testing.assert_array_equal(kept["w"], [[False, True], [True, False]])


def test_what_is_pruned_stays_so_if_the_curvature_is_negative() -> None:
    def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return -100 * jnp.sum(params["w"] ** 2)

    problem = softmax_regression.problem(steps=1)._replace(loss_fn=loss_fn)
    params = softmax_regression.params(np.array([[1.0, -2.0], [5.0, 3.0]]))
    mask = {"w": jnp.array([[True, True], [False, True]])}
    kept = least_salient_removed(
        problem, problem.train, params, mask, KEY, sparsity=0.25, num_batches=2
    )
    np.testing.assert_array_equal(kept["w"], mask["w"])
