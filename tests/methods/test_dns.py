"""Dynamic network surgery: the rule of the mask, and gradients of hidden weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from snipjax import masks
from snipjax.methods import DNS, Problem, dns
from snipjax.methods.dns import (
    Surgery,
    loses_any,
    mean_and_scale,
    spliced,
    surgery_step,
    update_chance,
)
from snipjax.training import Metrics
from tests.methods import softmax_regression

prunable = masks.weights_and_biases


def test_a_hidden_connection_comes_back_above_b_only() -> None:
    # Of w = 1.0, kept, and two hidden ones; c is such that two remain.
    params = {"w": jnp.array([1.0, 1.2, 1.3])}
    mask = {"w": jnp.array([True, False, False])}
    mean, std = {"w": jnp.float32(0.0)}, {"w": jnp.float32(1.0)}
    kept = spliced(
        params, mask, mean, std, sparsity=1 / 3, prunable=prunable, lower=0.9, upper=1.1
    )
    # The quotients are 1.11, 1.09 and 1.18, so that b = 1.1 * 1.11 = 1.22 > 1.2.
    assert kept["w"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("sparsity", "lower", "upper"), [(0.25, 0.9, 1.1), (0.9, 0.9, 1.1), (0.6, 0.5, 1.4)]
)
def test_the_rule_is_the_papers_with_one_c_for_all_layers(
    sparsity: float, lower: float, upper: float
) -> None:
    rng = np.random.default_rng(3)
    params = {
        "a": jnp.asarray(rng.normal(size=40), jnp.float32),
        "b": jnp.asarray(5 * rng.normal(size=60), jnp.float32),
    }
    mask = {k: jnp.asarray(rng.random(x.shape) < 0.5) for k, x in params.items()}
    mean = {k: jnp.mean(jnp.abs(x)) for k, x in params.items()}
    std = {k: jnp.std(jnp.abs(x)) for k, x in params.items()}
    updated = spliced(
        params,
        mask,
        mean,
        std,
        sparsity=sparsity,
        prunable=prunable,
        lower=lower,
        upper=upper,
    )
    assert sum(x.sum() for x in updated.values()) == round(100 * (1 - sparsity))

    def by_equation(c: float) -> dict[str, np.ndarray]:
        rule = {}
        for name, w in params.items():
            size = np.abs(np.float64(w))
            middle = np.float64(mean[name]) + c * np.float64(std[name])
            t = np.where(size < lower * middle, False, np.asarray(mask[name]))
            rule[name] = np.where(size >= upper * middle, True, t)
        return rule

    # Some c makes the paper's equation give that very mask.
    assert any(
        all((by_equation(c)[k] == np.asarray(updated[k])).all() for k in params)
        for c in np.linspace(-3, 5, 4001)
    )


def test_thresholds_are_of_the_magnitudes_of_a_layer_by_hand() -> None:
    params = {
        "a": {"kernel": jnp.array([[1.0, -5.0]]), "bias": jnp.array([-3.0, 3.0])},
        "b": {"kernel": jnp.array([[-2.0], [4.0]])},
    }
    mean, scale = jax.jit(mean_and_scale)(params, masks.ones(params, prunable))
    # Of 1, 5, 3, 3, and of 2, 4: 4 and 2 connections.
    assert jax.tree.leaves(mean) == [3.0, 3.0, 3.0]
    expected = [np.sqrt(2) * np.log(5), np.sqrt(2) * np.log(5), np.log(3)]
    np.testing.assert_allclose(jax.tree.leaves(scale), expected, rtol=1e-6)


def test_updates_that_remove_are_told_from_those_that_only_splice() -> None:
    before = {"w": jnp.array([True, False]), "b": jnp.array(True)}
    for after, loses in (([1, 0], 0), ([1, 1], 0), ([0, 1], 1)):
        after = {**before, "w": jnp.array(after, bool)}
        assert int(loses_any(before, after)) == loses


def surgery(
    problem: Problem, mask: chex.ArrayTree, chance: float
) -> tuple[Surgery, Metrics]:
    """A step of gradient descent, whose update removes everything."""
    zero, optimizer = jnp.zeros((), jnp.int32), optax.sgd(1.0)
    params = problem.params
    return surgery_step(
        Surgery(params, optimizer.init(params), mask, zero, zero),
        problem.train,
        jax.random.key(0),
        problem=problem,
        optimizer=optimizer,
        chance=chance,
        operate=lambda params, mask: jax.tree.map(jnp.zeros_like, mask),
    )


def test_hidden_weights_follow_the_gradient_of_the_masked_network(
    regression: Problem,
) -> None:
    params = regression.params
    mask = jax.tree.map(
        lambda x: (jnp.arange(x.size) % 2 == 0).reshape(x.shape), params
    )
    carry, _ = surgery(regression, mask, chance=0.0)
    chex.assert_trees_all_equal(carry.mask, mask)
    flat, unflatten = ravel_pytree(masks.apply(mask, params))

    @jax.jit
    @jax.vmap
    def loss(flat: chex.Array) -> chex.Array:
        return regression.loss_fn(unflatten(flat), regression.train)

    steps = 1e-2 * jnp.eye(flat.size)
    expected = (loss(flat + steps) - loss(flat - steps)) / 2e-2
    actual, _ = ravel_pytree(jax.tree.map(jnp.subtract, params, carry.params))
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    assert (jnp.abs(actual)[~ravel_pytree(mask)[0]] > 1e-2).any()


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_the_mask_is_updated_by_chance_before_the_gradient(
    chance: float, regression: Problem
) -> None:
    ones = masks.ones(regression.params, prunable)
    carry, metrics = surgery(regression, ones, chance)
    is_updated = bool(chance)
    assert masks.sparsity(carry.mask) == float(is_updated)
    assert int(carry.prunes) == int(is_updated)
    assert int(carry.number) == 1
    # A network without weights predicts 0.
    nothing = float(jnp.mean(regression.train["y"] ** 2))
    assert (abs(float(metrics.loss) - nothing) < 1e-6) == is_updated


def test_updates_become_rare_as_the_power_of_a_share_of_the_steps() -> None:
    settings = DNS(gamma=3.0, power=2.0)
    chances = [update_chance(time, settings) for time in (0, 1 / 3, 1)]
    np.testing.assert_allclose(chances, [1, 1 / 4, 1 / 16], rtol=1e-5)


def test_within_wide_margins_nothing_changes_after_the_first_update() -> None:
    # Either margin of the paper would have connections change places here.
    settings = DNS(
        surgery=1.0, recovery=0.1, gamma=0.0, lower=0.3, upper=4.0, learning_rate=1.0
    )
    start = softmax_regression.pretrained()
    problem = softmax_regression.problem(steps=8)
    _, mask, history = dns(problem, 0.5, settings, start)
    assert history.prunes == 1
    expected = np.abs(softmax_regression.WEIGHTS) > 0.85
    np.testing.assert_array_equal(mask["w"], expected)
