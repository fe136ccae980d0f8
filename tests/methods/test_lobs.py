"""Layer-wise optimal brain surgeon against NumPy's constrained least squares."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks
from snipjax.methods import LOBS, History, Outcome, lobs
from snipjax.methods.linear_sites import Network
from snipjax.methods.lobs import (
    layer_hessians,
    operate,
    output_bound,
    output_gains,
    outputs,
)
from snipjax.training import Metrics
from tests.methods import softmax_regression

KEY = jax.random.key(0)


class Small(nn.Module):
    """A chain of every kind of layer, one of them without a bias."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        x = nn.max_pool(nn.Conv(2, (2, 2), padding="VALID")(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(3, use_bias=False)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def small() -> tuple[Network, chex.ArrayTree, chex.Array]:
    images = jax.random.normal(jax.random.key(1), (6, 5, 5, 1))
    params = jax.jit(Small().init)(jax.random.key(2), images)["params"]

    def loss_fn(params: chex.ArrayTree, images: chex.Array) -> chex.Array:
        return jnp.sum(jax.nn.log_softmax(Small().apply({"params": params}, images)))

    return Network(loss_fn, params, images), params, images


def least_squares(inputs: int, units: int, kept: float) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    hessian = x.T @ x / len(x) + 0.1 * np.eye(inputs)
    mask = rng.uniform(size=(inputs, units)) < kept
    return hessian, rng.normal(size=(inputs, units)), mask


def best(hessian: np.ndarray, w: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The least squares of a root of the Hessian, over what is kept."""
    root = np.linalg.cholesky(hessian).T
    solution = np.zeros_like(w)
    solution[keep] = np.linalg.lstsq(root[:, keep], root @ w, rcond=None)[0]
    return solution


def cost(hessian: np.ndarray, change: np.ndarray) -> float:
    return 0.5 * change @ hessian @ change


def test_a_shared_layer_has_the_inputs_of_all_its_calls() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.sum(x @ params["w"] @ params["w"])

    params = {"w": jax.random.normal(KEY, (3, 3))}
    x = jax.random.normal(jax.random.key(1), (5, 3))
    (hessian,) = layer_hessians(Network(loss_fn, params, x), params, x)
    y = x @ params["w"]
    np.testing.assert_allclose(hessian, (x.T @ x + y.T @ y) / 5, rtol=1e-5)


def test_gains_and_outputs_of_a_network_of_two_heads() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        hidden = x @ params["a"]
        return jnp.sum(hidden @ params["b"]) + jnp.sum(hidden @ params["c"])

    x = jnp.ones((5, 2))
    params = {
        "a": jnp.ones((2, 2)),
        "b": jnp.array([[3.0], [1.0]]),
        "c": jnp.array([[1.0], [4.0]]),
    }
    network = Network(loss_fn, params, x)
    first, second = outputs(network, params, x)
    np.testing.assert_array_equal(
        np.stack([first, second]), [[[8.0]] * 5, [[10.0]] * 5]
    )
    gains = jax.jit(jax.vmap(lambda key: output_gains(network, params, x, key)))
    of_hidden, *of_heads = map(np.asarray, gains(jax.random.split(KEY, 2000)))
    # Of the squares of the Jacobian of two outputs, by two hidden units.
    assert of_hidden.mean() == pytest.approx((9 + 1 + 1 + 16) / 2, rel=0.05)
    assert np.all(np.stack(of_heads) == 1.0)


@pytest.mark.parametrize(("kept", "size"), [(0.4, 9), (1.1, None)])
def test_weights_are_least_squares_and_sensitivities_the_costs_of_one_less(
    kept: float, size: int | None
) -> None:
    hessian, w, mask = least_squares(12, 6, kept=kept)
    if size is not None:
        assert mask.sum(axis=0).max() <= 9
        mask[:, 0] = False  # and a unit may lose all
    result = operate(jnp.float32(hessian), jnp.float32(w), jnp.asarray(mask), size=size)
    for unit in range(6):
        keep, before = mask[:, unit], w[:, unit]
        now = best(hessian, before, keep)
        np.testing.assert_allclose(result.weights[:, unit], now, rtol=1e-3, atol=1e-3)
        assert not np.any(np.asarray(result.sensitivities)[~keep, unit])
        for q in np.flatnonzero(keep):
            # Added to the error of before; the two are orthogonal.
            then = best(hessian, before, keep & (np.arange(12) != q))
            added = cost(hessian, then - before) - cost(hessian, now - before)
            assert added == pytest.approx(cost(hessian, then - now), rel=1e-3)
            sensitivity = float(result.sensitivities[q, unit])
            assert sensitivity == pytest.approx(added, rel=1e-2, abs=1e-4)


def test_the_bound_of_the_output_holds(small: Any) -> None:
    network, params, images = small
    hessians = jax.jit(lambda p: layer_hessians(network, p, images))(params)
    output = jax.jit(lambda params: outputs(network, params, images)[0])

    @jax.jit
    def bound(pruned: chex.ArrayTree) -> chex.Array:
        bounds = []
        for layer, hessian in zip(network.layers, hessians):
            d = layer.matrix(pruned) - layer.matrix(params)
            bounds.append(jnp.sqrt(jnp.sum(d * (hessian @ d))))
        return output_bound(network.layers, pruned, bounds)

    rng = np.random.default_rng(0)
    for _ in range(10):
        pruned = jax.tree.map(lambda w: w * (rng.random(w.shape) < 0.5), params)
        change = np.square(output(pruned) - output(params))
        assert 0 < np.sqrt(np.mean(np.sum(change, axis=-1))) <= bound(pruned)
    only_last = [jnp.zeros(()), jnp.zeros(()), 0.5]
    assert output_bound(network.layers, params, only_last) == 0.5


def test_the_update_is_the_least_squares_solution_without_the_cheapest_weight() -> None:
    settings = LOBS(
        rounds=1,
        num_batches=1,
        damping=1e-6,
        learning_rate=1e-9,  # the weights stay as pruning left them
    )
    problem = softmax_regression.problem(steps=1)
    params, _, history = lobs(problem, 0.25, settings, softmax_regression.pretrained())
    images, weights = softmax_regression.IMAGES, softmax_regression.WEIGHTS
    found = []
    for gone, unit in np.ndindex(weights.shape):
        kept, best = 1 - gone, np.zeros(2)
        before = images @ weights[:, unit]
        best[kept] = images[:, kept] @ before / (images[:, kept] @ images[:, kept])
        changed = weights.copy()
        changed[:, unit] = best
        found.append((np.sum((images @ best - before) ** 2), changed))
    cost, expected = min(found, key=lambda pair: pair[0])
    np.testing.assert_allclose(params["w"], expected, atol=1e-4)
    # Over the four examples; of one layer, whose outputs are the logits.
    row, _ = history.rows
    for name in ("output_error", "layer_error/w"):
        assert row[name] == pytest.approx((cost / 4) ** 0.5, rel=1e-3)


def test_costs_in_a_layers_output_count_as_much_as_the_next_enlarges_them() -> None:
    # Small weights and then large ones: without gains the first layer would go first.
    images = softmax_regression.IMAGES
    first = 0.01 * np.array([[1.0, -0.9], [0.8, 0.7]])
    second = np.array([[30.0], [100.0]])
    params = {
        "first": jnp.asarray(first, jnp.float32),
        "second": jnp.asarray(second, jnp.float32),
    }

    # Retraining changes nothing.
    def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return 0.0 * jnp.sum(batch[0] @ params["first"] @ params["second"])

    zero = jnp.zeros(())
    problem = softmax_regression.problem(steps=1)._replace(
        loss_fn=loss_fn,
        params=params,
        evaluate=lambda params: {"val": Metrics(zero, zero)},
    )
    start = Outcome(params, masks.ones(params, masks.kernels), History())
    settings = LOBS(rounds=1, num_batches=1, damping=1e-6)
    _, mask, _ = lobs(problem, 1 / 6, settings, start)

    def costs(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of each weight's removal, with the other of its unit at its best."""
        found = np.zeros(weights.shape)
        for gone, unit in np.ndindex(weights.shape):
            x, before = inputs[:, 1 - gone], inputs @ weights[:, unit]
            error = before - x * (x @ before) / (x @ x)
            found[gone, unit] = 0.5 * np.mean(error**2)
        return found

    in_first, in_second = costs(images, first), costs(images @ first, second)
    assert in_first.min() < in_second.min()
    # The output is the second layer's, and has the hidden units' weights for its
    # derivatives in them.
    in_first = in_first * np.mean(second**2)
    assert in_second.min() < in_first.min()
    np.testing.assert_array_equal(mask["first"], np.ones((2, 2)))
    np.testing.assert_array_equal(mask["second"], in_second > in_second.min())


CONV = nn.Conv(4, (2, 2), feature_group_count=2)
IMAGES = jnp.zeros((4, 3, 3, 2))


@pytest.mark.parametrize(
    ("loss_fn", "params", "train", "problem"),
    [
        (
            lambda params, x: jnp.sum(CONV.apply({"params": params}, x)),
            jax.eval_shape(CONV.init, KEY, IMAGES)["params"],
            IMAGES,
            "'kernel' has 2 groups",
        ),
        (
            lambda params, x: jnp.sum(params["gain"] * (x @ params["w"])),
            {"gain": jnp.ones(2), "w": jnp.ones((2, 2))},
            jnp.zeros((4, 2)),
            "'gain' is prunable, .* it has no Hessian",
        ),
    ],
)
def test_a_convolution_in_groups_and_a_gain_are_refused(
    loss_fn: Any, params: Any, train: Any, problem: str
) -> None:
    given = softmax_regression.problem(steps=1)._replace(
        loss_fn=loss_fn, params=params, train=train, prunable=lambda path, leaf: True
    )
    with pytest.raises(ValueError, match=problem):
        lobs(given, 0.5)
