"""Learning-compression: the projection, the multipliers, and both together."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks
from snipjax.methods import LC, lc
from snipjax.methods.lc import Augmented, penalized, projected
from tests.methods import softmax_regression

prunable = masks.weights_and_biases


def random_tree(seed: int) -> dict[str, chex.Array]:
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(2, 2)), jnp.float32),
        "b": jnp.asarray(3 * rng.normal(size=4), jnp.float32),
    }


def flat(tree: chex.ArrayTree) -> np.ndarray:
    return np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(tree)])


def test_the_projection_is_the_nearest_of_all_supports() -> None:
    weights, multipliers, mu, kappa = random_tree(1), random_tree(11), 0.7, 3
    project = jax.jit(projected, static_argnums=(2, 3, 4))
    theta, mask = project(weights, multipliers, mu, 1 - kappa / 8, prunable)
    point = flat(weights) - flat(multipliers) / mu

    def nearest_on(support: tuple[int, ...]) -> np.ndarray:
        candidate = np.zeros(8)
        candidate[list(support)] = point[list(support)]
        return candidate

    candidates = [nearest_on(s) for s in itertools.combinations(range(8), kappa)]
    best = min(candidates, key=lambda x: np.sum((x - point) ** 2))
    np.testing.assert_allclose(flat(theta), best, rtol=1e-5)
    np.testing.assert_array_equal(flat(mask), best != 0)


def test_prunable_leaves_get_the_gradient_of_the_penalty_and_others_none() -> None:
    weights, theta, multipliers = random_tree(0), random_tree(1), random_tree(2)
    mask = {"a": jnp.ones((2, 2), bool), "b": jnp.array(True)}
    grads, mu = random_tree(3), 0.3
    carry = Augmented(weights, None, theta, multipliers, mask, None, None)

    def penalty(weights: chex.ArrayTree) -> chex.Array:
        point = theta["a"] + multipliers["a"] / mu
        return mu / 2 * jnp.sum((weights["a"] - point) ** 2)

    expected = jax.tree.map(jnp.add, grads, jax.grad(penalty)(weights))
    chex.assert_trees_all_close(penalized(grads, carry, mu), expected, rtol=1e-5)


def test_learning_and_compression_step_by_step_under_a_growing_mu() -> None:
    problem = softmax_regression.problem(steps=4, learning_rate=0.4, weight_decay=0.3)
    settings = LC(
        iterations=3, learning=0.5, pull=0.8, growth=2.0, learning_rate=0.5, decays=0
    )
    start = softmax_regression.pretrained()
    params, mask, _ = lc(problem, 0.5, settings, start)

    def largest_two(weights: np.ndarray) -> np.ndarray:
        return np.where(np.abs(weights) > np.median(np.abs(weights)), weights, 0)

    weights, multipliers = softmax_regression.WEIGHTS, np.zeros((2, 2))
    theta = largest_two(weights)
    # The first mu is 0.8 / (0.2 * 2 steps); the last bears no rate of 0.2.
    for mu, rate in ((2.0, 0.2), (4.0, 0.2), (8.0, 1 / 8)):
        for _ in range(2):
            slope = softmax_regression.gradient(
                softmax_regression.cross_entropy, weights
            )
            slope = slope + 0.3 * weights  # that decay
            pulled = slope + mu * (weights - theta) - multipliers
            weights = weights - rate * pulled
        theta = largest_two(weights - multipliers / mu)
        multipliers = multipliers - mu * (weights - theta)
    np.testing.assert_allclose(params["w"], theta, atol=1e-5)
    np.testing.assert_array_equal(mask["w"], theta != 0)


def test_the_pull_is_measured_by_the_momentum() -> None:
    # mu = pull (1 - momentum) / (rate * steps), by which one step draws w to theta.
    problem = softmax_regression.problem(steps=1, learning_rate=0.4)
    settings = LC(iterations=1, learning=1.0, pull=2.0, learning_rate=1.0, decays=0)
    start = softmax_regression.pretrained()
    params, _, _ = lc(problem._replace(momentum=0.9), 0.5, settings, start)
    weights, mu = softmax_regression.WEIGHTS, 2.0 * (1 - 0.9) / 0.4
    theta = np.where(np.abs(weights) > np.median(np.abs(weights)), weights, 0)
    slope = softmax_regression.gradient(softmax_regression.cross_entropy, weights)
    moved = weights - min(0.4, 1 / mu) * (slope + mu * (weights - theta))
    found = np.asarray(params["w"])
    np.testing.assert_allclose(found, np.where(found, moved, 0), atol=1e-4)
