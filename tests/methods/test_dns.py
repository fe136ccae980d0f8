"""Dynamic network surgery: the rule of the mask, and gradients of hidden weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks
from snipjax.methods import DNS, dns
from snipjax.methods.dns import mean_and_scale, spliced, update_chance
from tests.methods import softmax_regression

prunable = masks.weights_and_biases


@pytest.mark.parametrize(
    ("sparsity", "lower", "upper"), [(0.9, 0.9, 1.1), (0.6, 0.5, 1.4)]
)
def test_the_rule_is_the_papers_with_one_c_for_all_layers(
    sparsity: float, lower: float, upper: float
) -> None:
    rng = np.random.default_rng(3)
    params = {"a": rng.normal(size=40), "b": 5 * rng.normal(size=60)}
    mask = {name: rng.random(w.shape) < 0.5 for name, w in params.items()}
    mean = {name: np.mean(np.abs(w)) for name, w in params.items()}
    std = {name: np.std(np.abs(w)) for name, w in params.items()}
    updated = spliced(
        *jax.tree.map(jnp.asarray, (mean, std, params, mask)),
        sparsity=sparsity,
        prunable=prunable,
        lower=lower,
        upper=upper,
    )
    assert sum(x.sum() for x in updated.values()) == round(100 * (1 - sparsity))

    def by_equation(name: str, c: float) -> np.ndarray:
        size, middle = np.abs(params[name]), mean[name] + c * std[name]
        t = np.where(size < lower * middle, False, mask[name])
        return np.where(size >= upper * middle, True, t)

    # Some c makes the paper's equation give that very mask.
    assert any(
        all(np.array_equal(by_equation(name, c), updated[name]) for name in params)
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


def test_updates_become_rare_as_the_power_of_a_share_of_the_steps() -> None:
    settings = DNS(gamma=3.0, power=2.0)
    chances = [update_chance(time, settings) for time in (0, 1 / 3, 1)]
    np.testing.assert_allclose(chances, [1, 1 / 4, 1 / 16], rtol=1e-5)


START = np.array([[1.0, -0.9], [-0.5, 0.2]])


# The mask changes at any step, by chance at the first alone, or within no wide margins.
@pytest.mark.parametrize(
    ("gamma", "lower", "upper", "is_updated"),
    [(0.0, 1.0, 1.0, True), (1e9, 1.0, 1.0, False), (0.0, 0.1, 9.0, False)],
)
def test_hidden_weights_follow_the_gradient_of_the_masked_network(
    gamma: float, lower: float, upper: float, is_updated: bool
) -> None:
    """Two steps of surgery and one of recovery, against NumPy."""
    settings = DNS(
        surgery=2.0,
        recovery=1.0,
        gamma=gamma,
        lower=lower,
        upper=upper,
        learning_rate=1.0,
    )
    problem = softmax_regression.problem(steps=1, learning_rate=6.0)
    start = softmax_regression.pretrained(START)
    params, mask, history = dns(problem, 0.5, settings, start)

    def kept(weights: np.ndarray) -> np.ndarray:
        return np.abs(weights) >= np.sort(np.abs(weights), axis=None)[-2]

    slope = functools.partial(
        softmax_regression.gradient, softmax_regression.cross_entropy
    )
    weights, keep = START, kept(START)
    for rate in (6.0, 0.6):
        weights = weights - rate * slope(np.where(keep, weights, 0))
        if is_updated and rate == 6.0:
            keep = kept(weights)
    assert np.any(keep != kept(START)) == is_updated
    weights = np.where(keep, weights, 0)
    weights = np.where(keep, weights - 6.0 * slope(weights), 0)
    np.testing.assert_allclose(params["w"], weights, atol=1e-4)
    np.testing.assert_array_equal(mask["w"], keep)
    assert history.prunes == 1 + is_updated
