"""Sparse variational dropout against integrals, and weights drawn one by one."""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import integrate, special

from snipjax import masks
from snipjax.methods import SparseVD, sparse_vd
from snipjax.methods.linear_sites import Network
from snipjax.methods.sparse_vd import (
    Posterior,
    initial_posterior,
    kl_divergence,
    kl_from_log_alpha,
    log_alpha,
    noisy_loss,
    objective,
)
from tests.methods import softmax_regression


@pytest.mark.parametrize("log_alpha", [-8.0, -1.0, 0.0, 3.0])
def test_kl_is_that_of_the_log_uniform_prior_up_to_a_constant(
    log_alpha: float,
) -> None:
    std = np.exp(log_alpha / 2)

    def integrand(z: float) -> float:  # of E log |1 + std z|, z standard normal
        return np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * np.log(abs(1 + std * z))

    pole = -1 / std
    cuts = sorted({-12.0, np.clip(pole, -12.0, 12.0), 12.0})
    expected_log = sum(
        integrate.quad(integrand, a, b, limit=200)[0]
        for a, b in itertools.pairwise(cuts)
    )
    # E log |z|, so that it goes to 0 with rising alpha.
    constant = (np.euler_gamma + np.log(2)) / 2
    exact = -log_alpha / 2 + expected_log + constant
    assert abs(float(kl_from_log_alpha(jnp.float32(log_alpha))) - exact) < 0.015


def test_the_kl_term_is_the_sum_over_leaves_with_noise_and_stays_finite() -> None:
    means = {"layer": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.ones(2)}}
    posterior = Posterior(means, {"layer/kernel": jnp.array([[0.5, -1.0]])})
    terms = [kl_from_log_alpha(log_alpha(*pair)) for pair in ((1.0, 0.5), (2.0, -1.0))]
    np.testing.assert_allclose(kl_divergence(posterior), sum(terms), rtol=1e-6)
    extreme = Posterior({"w": jnp.zeros(2)}, {"w": jnp.array([80.0, -80.0])})
    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(kl_divergence))(extreme))


def test_outputs_have_the_moments_of_drawn_weights() -> None:
    layer = nn.Conv(2, (2, 2), feature_group_count=2)
    images = jax.random.normal(jax.random.key(0), (2, 2, 2, 2))
    params = jax.jit(layer.init)(jax.random.key(1), images)["params"]
    keys = jax.random.split(jax.random.key(2), 8192)
    network = Network(lambda p, x: layer.apply({"params": p}, x), params, images)
    log_variances = {
        name: jax.random.uniform(keys[0], w.shape, minval=-3.0, maxval=0.0)
        for name, w in params.items()
    }

    @jax.vmap
    def with_drawn_weights(key: chex.PRNGKey) -> chex.Array:
        drawn = {
            name: w + jnp.exp(log_variances[name] / 2) * jax.random.normal(k, w.shape)
            for (name, w), k in zip(params.items(), jax.random.split(key, len(params)))
        }
        return layer.apply({"params": drawn}, images)

    @jax.vmap
    def with_drawn_outputs(key: chex.PRNGKey) -> chex.Array:
        return noisy_loss(network, Posterior(params, log_variances), images, key)

    expected = np.asarray(jax.jit(with_drawn_weights)(keys))
    actual = np.asarray(jax.jit(with_drawn_outputs)(keys))
    std = expected.std(axis=0)
    error = np.abs(actual.mean(axis=0) - expected.mean(axis=0))
    assert np.max(error / std) < 0.06  # of 4 standard errors and more
    np.testing.assert_allclose(actual.std(axis=0), std, rtol=0.06)


def shared(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
    """A layer that is called twice."""
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    return hidden @ params["w"] + params["b"]


SHARED = {"w": jax.random.normal(jax.random.key(3), (4, 4)), "b": jnp.ones(4)}


def test_every_example_call_and_key_has_noise_of_its_own() -> None:
    x = jnp.ones((2, 4))
    mask = masks.ones(SHARED, masks.weights_and_biases)
    posterior = initial_posterior(SHARED, mask, -4.0)
    network = Network(shared, SHARED, x)

    @jax.jit
    def gradient_and_outputs(key: chex.PRNGKey) -> Any:
        def total(posterior: Posterior) -> tuple[chex.Array, chex.Array]:
            outputs = noisy_loss(network, posterior, x, key)
            return jnp.sum(outputs**2), outputs

        return jax.grad(total, has_aux=True)(posterior)

    gradient, one = gradient_and_outputs(jax.random.key(0))
    _, other = gradient_and_outputs(jax.random.key(1))
    assert np.all(one != other) and np.all(one[0] != one[1])
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(leaf)

    # With weights of zero, both calls have nothing but their noise.
    only_biases = Posterior(jax.tree.map(jnp.zeros_like, SHARED), {"b": jnp.zeros(4)})

    def listened(params: chex.ArrayTree, x: chex.Array) -> list[chex.Array]:
        return [x @ params["w"] + params["b"], x @ params["w"] + params["b"]]

    noise = noisy_loss(Network(listened, SHARED, x), only_biases, x, jax.random.key(0))
    assert np.all(noise[0] != noise[1])


def test_the_objective_is_the_loss_under_noise_and_the_kl_term_by_its_factor() -> None:
    rng = np.random.default_rng(0)
    theta, log_variance = rng.normal(size=(3, 2)), rng.uniform(-3, 1, size=(3, 2))
    images, labels = rng.normal(size=(4, 3)), np.array([0, 1, 1, 0])
    posterior = Posterior({"w": theta}, {"w": log_variance})
    posterior, images = jax.tree.map(jnp.float32, (posterior, images))
    loss_fn, key = softmax_regression.problem(steps=1).loss_fn, jax.random.key(0)

    @jax.jit
    def with_logits(posterior: Posterior, batch: Any) -> Any:
        network = Network(loss_fn, posterior.means, batch)
        _, aux = noisy_loss(network, posterior, batch, key)
        found = objective(posterior, batch, key, network=network, kl_factor=0.3)
        return found, aux.logits

    (total, metrics), outputs = with_logits(posterior, (images, labels))
    log_shares = special.log_softmax(np.float64(outputs), axis=1)
    loss = -log_shares[np.arange(4), labels].mean()
    alpha = np.exp(log_variance) / theta**2
    kl = 0.63576 * (1 - special.expit(1.87320 + 1.48695 * np.log(alpha)))
    kl += np.log(1 + 1 / alpha) / 2
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.error, np.mean(log_shares.argmax(1) != labels))
    np.testing.assert_allclose(total, loss + 0.3 * kl.sum(), rtol=1e-5)


def test_steps_go_down_the_objective_as_the_kl_term_warms_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optax, "adam", optax.sgd)
    settings = SparseVD(
        share=1.0, warm_up=0.5, learning_rate=0.2, initial_log_variance=-60.0
    )
    problem = softmax_regression.problem(steps=4)
    start = softmax_regression.pretrained()
    params, _, history = sparse_vd(problem, 0.0, settings, start)
    weights = softmax_regression.WEIGHTS
    for beta, rate in ((1 / 3, 0.2), (2 / 3, 0.15), (1, 0.1), (1, 0.05)):
        slope = softmax_regression.gradient(softmax_regression.cross_entropy, weights)
        # With next to no noise the KL is log |theta| and a constant; N is 4.
        weights = weights - rate * (slope + beta / 4 / weights)
    np.testing.assert_allclose(params["w"], weights, atol=3e-4)
    assert history.prunes == 0


def test_an_embedding_has_no_noise_and_is_named() -> None:
    problem = softmax_regression.problem(steps=1)._replace(
        loss_fn=lambda params, batch: jnp.sum(params["table"][batch[1]]),
        params={"table": jnp.ones((3, 2))},
    )
    with pytest.raises(ValueError, match="'table' is prunable, but used by 'gather'"):
        sparse_vd(problem, 0.5)


def test_the_rule_prunes_beyond_the_target() -> None:
    # log alpha is -10 - log w^2: below the threshold only of the largest, 1.0.
    settings = SparseVD(learning_rate=1e-9, threshold=-9.9)
    problem = softmax_regression.problem(steps=1)
    start = softmax_regression.pretrained()
    params, mask, history = sparse_vd(problem, 0.25, settings, start)
    (row,) = history.rows
    assert row["kept_by_rule"] == 1 and row["sparsity"] == 0.75
    np.testing.assert_array_equal(mask["w"], [[True, False], [False, False]])
    np.testing.assert_allclose(params["w"], [[1.0, 0.0], [0.0, 0.0]], atol=1e-6)
