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

from snipjax import experiment, masks, training
from snipjax import ops as fast
from snipjax.methods import Outcome
from snipjax.methods.sparse_vd import (
    Posterior,
    initial_posterior,
    kl_divergence,
    kl_from_log_alpha,
    log_alpha,
    noisy_outputs,
    objective,
    sparse_vd,
)
from tests.methods import softmax_regression


@pytest.mark.parametrize("log_alpha", [-8.0, -4.0, -1.0, 0.0, 1.0, 3.0, 6.0])
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


def test_kl_and_its_gradient_stay_finite_where_alpha_does_not() -> None:
    posterior = Posterior({"w": jnp.zeros(2)}, {"w": jnp.array([80.0, -80.0])})
    value, grads = jax.value_and_grad(kl_divergence)(posterior)
    chex.assert_tree_all_finite((value, grads))


def test_only_what_has_noise_has_a_kl_term() -> None:
    means = {"layer": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.ones(2)}}
    log_variances = {"layer": {"kernel": jnp.array([[0.5, -1.0]])}}
    expected = sum(
        kl_from_log_alpha(log_alpha(mean, log_variance))
        for mean, log_variance in ((1.0, 0.5), (2.0, -1.0))
    )
    actual = kl_divergence(Posterior(means, log_variances))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Dense(3), (2, 4)),
    "dense without bias": (nn.Dense(3, use_bias=False), (2, 4)),
    "convolution": (nn.Conv(2, (2, 2), padding="VALID"), (2, 3, 3, 2)),
    "strided convolution of the library": (
        nn.Conv(2, (3, 3), 2, conv_general_dilated=fast.conv_general_dilated),
        (1, 4, 4, 1),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_have_the_moments_of_drawn_weights(name: str) -> None:
    layer, shape = LAYERS[name]
    images = jax.random.normal(jax.random.key(0), shape)
    params = jax.jit(layer.init)(jax.random.key(1), images)["params"]
    keys = jax.random.split(jax.random.key(2), 8192)
    log_variances = jax.tree.map(
        lambda w: jax.random.uniform(keys[0], w.shape, minval=-3.0, maxval=0.0), params
    )

    @jax.vmap
    def with_drawn_weights(key: chex.PRNGKey) -> chex.Array:
        leaves, treedef = jax.tree.flatten(params)
        drawn = [
            w + jnp.exp(v / 2) * jax.random.normal(k, w.shape)
            for w, v, k in zip(
                leaves,
                jax.tree.leaves(log_variances),
                jax.random.split(key, len(leaves)),
            )
        ]
        return layer.apply({"params": treedef.unflatten(drawn)}, images)

    @jax.vmap
    def with_drawn_outputs(key: chex.PRNGKey) -> chex.Array:
        return noisy_outputs(layer, Posterior(params, log_variances), images, key)

    expected, actual = (
        jax.jit(with_drawn_weights)(keys),
        jax.jit(with_drawn_outputs)(keys),
    )
    std = jnp.std(expected, axis=0)
    error = jnp.abs(jnp.mean(actual, axis=0) - jnp.mean(expected, axis=0))
    assert jnp.max(error / std) < 0.06  # of 4 standard errors and more
    np.testing.assert_allclose(jnp.std(actual, axis=0), std, rtol=0.06)


class Network(nn.Module):
    """A convolution, and a dense layer that is shared."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x)).reshape(x.shape[0], -1)
        dense = nn.Dense(x.shape[1])
        return dense(nn.relu(dense(x)))


def test_every_example_and_key_has_noise_of_its_own() -> None:
    images = jnp.ones((2, 2, 2, 1))
    params = jax.jit(Network().init)(jax.random.key(0), images)["params"]
    posterior = initial_posterior(
        Network(), params, images, masks.weights_and_biases, -4.0
    )

    def total(posterior: Posterior, key: chex.PRNGKey) -> tuple[chex.Array, Any]:
        outputs = noisy_outputs(Network(), posterior, images, key)
        return jnp.sum(outputs**2), outputs

    gradient_and_outputs = jax.jit(jax.grad(total, has_aux=True))
    gradient, one = gradient_and_outputs(posterior, jax.random.key(0))
    _, other = gradient_and_outputs(posterior, jax.random.key(1))
    assert np.all(one != other) and np.all(one[0] != one[1])
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(leaf)


def test_without_noise_it_is_the_model() -> None:
    images = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
    params = jax.jit(Network().init)(jax.random.key(0), images)["params"]
    posterior = initial_posterior(Network(), params, images, masks.kernels, -60.0)
    assert set(posterior.log_variances["Dense_0"]) == {"kernel"}
    actual = jax.jit(noisy_outputs, static_argnums=0)(
        Network(), posterior, images, jax.random.key(0)
    )
    expected = jax.jit(Network().apply)({"params": params}, images)
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_the_objective_is_the_loss_under_noise_and_the_kl_term_by_its_factor() -> None:
    rng = np.random.default_rng(0)
    theta, log_variance = rng.normal(size=(3, 2)), rng.uniform(-3, 1, size=(3, 2))
    images, labels = rng.normal(size=(4, 3)), np.array([0, 1, 1, 0])
    posterior = Posterior({"kernel": theta}, {"kernel": log_variance})
    posterior, images = jax.tree.map(jnp.float32, (posterior, images))
    model, key = nn.Dense(2, use_bias=False), jax.random.key(0)

    @jax.jit
    def with_outputs(posterior: Posterior, batch: training.Batch) -> Any:
        outputs = noisy_outputs(model, posterior, batch.images, key)
        return objective(posterior, batch, key, model=model, kl_factor=0.3), outputs

    (total, metrics), outputs = with_outputs(posterior, training.Batch(images, labels))
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
    params, _, history = sparse_vd(
        softmax_regression.parts(steps=4),
        0.0,
        pretrained=softmax_regression.pretrained(),
        share=1.0,
        warm_up=0.5,
        learning_rate=0.2,
        initial_log_variance=-60.0,
    )
    weights = softmax_regression.WEIGHTS
    for beta, rate in ((1 / 3, 0.2), (2 / 3, 0.15), (1, 0.1), (1, 0.05)):
        slope = softmax_regression.gradient(softmax_regression.cross_entropy, weights)
        # With next to no noise the KL is log |theta| and a constant; N is 4.
        weights = weights - rate * (slope + beta / 4 / weights)
    np.testing.assert_allclose(params["Dense_0"]["kernel"], weights, atol=3e-4)
    assert history.prunes == 0


def test_what_is_of_no_dense_layer_nor_convolution_is_said() -> None:
    model, tokens = nn.Embed(3, 2), jnp.zeros((1,), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    with pytest.raises(
        ValueError, match=r"parameter 'embedding' is prunable.*nn\.Conv"
    ):
        initial_posterior(model, params, tokens, masks.kernels, -8.0)


def test_run_prunes_to_the_target(
    digits: experiment.Parts, pretrained: Outcome
) -> None:
    params, mask, history = sparse_vd(digits, 0.7, pretrained=pretrained, share=2.0)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(row.kept for row in masks.summary(mask)) == round(0.3 * total)
    for keep, w in zip(jax.tree.leaves(mask), jax.tree.leaves(params)):
        assert jnp.all(w[~keep] == 0)
    assert history.steps == 60 + 120
    assert history.prunes == 1
    rows = [row for row in history.rows if row["phase"] == "sparse_vd"]
    assert [row["step"] for row in rows] == [60, 120]
    assert rows[-1]["kept_by_rule"] <= rows[0]["kept_by_rule"] <= total
    assert min(row["test_error"] for row in rows) < 20


@pytest.mark.slow
def test_what_the_rule_prunes_beyond_the_target_stays_pruned(
    digits: experiment.Parts, pretrained: Outcome
) -> None:
    _, mask, history = sparse_vd(
        digits, 0.1, pretrained=pretrained, share=0.1, threshold=-5.0
    )
    (row,) = [row for row in history.rows if row["phase"] == "sparse_vd"]
    assert sum(row.kept for row in masks.summary(mask)) == row["kept_by_rule"]
    assert masks.sparsity(mask) > 0.1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("target", 1.0),
        ("share", 0.0),
        ("warm_up", 1.5),
        ("learning_rate", -1e-3),
        ("initial_log_variance", float("inf")),
        ("threshold", float("nan")),
    ],
)
def test_bad_hyperparameters_are_said(
    digits: experiment.Parts, argument: str, value: Any
) -> None:
    arguments = {"target": 0.5, argument: value}
    with pytest.raises(ValueError, match=rf"^{argument} is {value}"):
        sparse_vd(digits, **arguments)
