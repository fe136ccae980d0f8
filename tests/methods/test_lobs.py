"""Layer-wise optimal brain surgeon against NumPy's constrained least squares."""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import experiment, masks, models, training
from snipjax.methods import History, Outcome
from snipjax.methods.lobs import (
    inputs_of,
    layer_hessians,
    layers_of,
    lobs,
    operate,
    output_bound,
    output_gains,
    patches,
)
from tests.methods import softmax_regression

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")

KEY = jax.random.key(0)


class Small(nn.Module):
    """A chain of every kind of layer, one of them without a bias."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.max_pool(nn.Conv(2, (2, 2), padding="VALID")(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(3, use_bias=False)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


def small() -> tuple[Small, chex.ArrayTree, chex.Array]:
    images = jax.random.normal(jax.random.key(1), (6, 5, 5, 1))
    return Small(), Small().init(jax.random.key(2), images)["params"], images


class Tiny(nn.Module):
    """Compiles in no time."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def tiny(digits: experiment.Parts) -> tuple[experiment.Parts, Outcome]:
    """With a network that passes for trained."""
    digits = digits._replace(model=Tiny())
    images = digits.preprocess(digits.train.images[:1])
    params = Tiny().init(KEY, images)["params"]
    history = History(({"phase": "dense"},), steps=7, seconds=1.0)
    return digits, Outcome(params, masks.ones(params, digits.prunable), history)


def problem(inputs: int, units: int, kept: float) -> tuple[np.ndarray, ...]:
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


# Hessians.


@pytest.mark.slow
def test_the_hessian_is_that_of_half_the_squared_error_of_the_output() -> None:
    model, params, images = small()
    layers = layers_of(model, images)
    hessians = layer_hessians(model, layers, params, images)
    assert list(hessians) == [("Conv_0",), ("Dense_0",), ("Dense_1",)]
    _, state = model.apply(
        {"params": params}, images, capture_intermediates=True, mutable="intermediates"
    )
    outputs = state["intermediates"]
    conv_out = nn.max_pool(outputs["Conv_0"]["__call__"][0], (2, 2), (2, 2))
    inputs = {
        "Conv_0": images,
        "Dense_0": conv_out.reshape(6, -1),
        "Dense_1": nn.relu(outputs["Dense_0"]["__call__"][0]),
    }
    for (name,), hessian in hessians.items():

        def squared_error(column: chex.Array, name: str = name) -> chex.Array:
            """Of the first unit, by its weights: kernel, then bias."""
            layer = dict(params[name])
            shape = layer["kernel"].shape[:-1]
            size = math.prod(shape)
            kernel = column[:size].reshape(shape)
            layer["kernel"] = layer["kernel"].at[..., 0].set(kernel)
            if "bias" in layer:
                layer["bias"] = layer["bias"].at[0].set(column[size])
            module = layers[(name,)]
            z, changed = (
                module.apply({"params": p}, inputs[name]) for p in (params[name], layer)
            )
            return 0.5 * jnp.sum((changed - z) ** 2) / len(images)

        column = jnp.zeros(len(hessian))
        expected = jax.jit(jax.hessian(squared_error))(column)
        np.testing.assert_allclose(hessian, expected, rtol=1e-4, atol=1e-4)


LAYERS = {
    "valid": nn.Conv(4, (3, 2), padding="VALID"),
    "strided": nn.Conv(4, (3, 3), strides=2, padding="SAME", use_bias=False),
    "dilated": nn.Conv(4, (2, 3), padding=((1, 0), (2, 1)), kernel_dilation=(1, 2)),
    "circular": nn.Conv(4, (3, 3), padding="CIRCULAR"),
    "dense": nn.Dense(4),
    "dense without bias": nn.Dense(4, use_bias=False),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_is_a_product_with_its_patches(layer: nn.Dense | nn.Conv) -> None:
    @jax.jit
    def product_and_output(x: chex.Array) -> tuple[chex.Array, chex.Array]:
        params = layer.init(KEY, x)["params"]
        params = jax.tree.map(lambda w: jax.random.normal(KEY, w.shape), params)
        matrix = params["kernel"].reshape(-1, 4)
        if layer.use_bias:
            matrix = jnp.concatenate([matrix, params["bias"][None]])
        return patches(layer, x) @ matrix, layer.apply({"params": params}, x)

    product, output = product_and_output(jax.random.normal(KEY, (2, 5, 6, 3)))
    np.testing.assert_allclose(
        product.reshape(output.shape), output, rtol=1e-4, atol=1e-4
    )


def test_a_shared_layer_has_the_inputs_of_all_its_calls() -> None:
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
            layer = nn.Dense(3, use_bias=False)
            return layer(layer(x))

    x = jax.random.normal(KEY, (5, 3))
    params = Shared().init(KEY, x)["params"]
    inputs, logits = inputs_of(Shared(), layers_of(Shared(), x), params, x)
    both = inputs[("Dense_0",)]
    kernel = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(both, jnp.stack([x, x @ kernel], axis=1), rtol=1e-5)
    np.testing.assert_allclose(logits, x @ kernel @ kernel, rtol=1e-5)


# The operation.


@pytest.mark.parametrize("size", [12, 9])
def test_the_weights_left_are_the_constrained_least_squares(size: int) -> None:
    hessian, w, mask = problem(12, 20, kept=0.4)
    assert mask.sum(axis=0).max() <= 9
    mask[:, 0] = False  # and a unit may lose all
    result = operate(jnp.float32(hessian), jnp.float32(w), jnp.asarray(mask), size=size)
    for unit in range(20):
        keep, weights = mask[:, unit], np.asarray(result.weights[:, unit])
        expected = best(hessian, w[:, unit], keep)
        np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-3)
        assert not np.any(weights[~keep])
        assert not np.any(result.sensitivities[~keep, unit])


@pytest.mark.parametrize("kept", [0.5, 1.1])
def test_a_sensitivity_is_what_removing_one_more_costs(kept: float) -> None:
    hessian, w, mask = problem(8, 5, kept=kept)
    size = None if mask.all() else 8
    result = operate(jnp.float32(hessian), jnp.float32(w), jnp.asarray(mask), size=size)
    for unit in range(5):
        now = best(hessian, w[:, unit], mask[:, unit])
        for q in np.flatnonzero(mask[:, unit]):
            keep = mask[:, unit].copy()
            keep[q] = False
            # What is added to the error of before; the two are orthogonal.
            then = best(hessian, w[:, unit], keep)
            added = cost(hessian, then - w[:, unit]) - cost(hessian, now - w[:, unit])
            assert added == pytest.approx(cost(hessian, then - now), rel=1e-3)
            sensitivity = float(result.sensitivities[q, unit])
            assert sensitivity == pytest.approx(added, rel=1e-2, abs=1e-4)


def test_one_by_one_or_at_once_the_weights_are_the_same() -> None:
    hessian, w, _ = problem(6, 1, kept=1.1)
    hessian, w = jnp.float32(hessian), jnp.float32(w)
    keep, updated = jnp.ones((6, 1), bool), w
    for q in (4, 1, 3):
        # Optimal brain surgeon's own formula, on what is left.
        left = np.flatnonzero(keep[:, 0])
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        at = int(np.flatnonzero(left == q)[0])
        change = -updated[q, 0] / inverse[at, at] * inverse[:, at]
        updated = updated.at[left, 0].add(change)
        keep = keep.at[q, 0].set(False)
    at_once = operate(hessian, w, keep, size=3).weights
    np.testing.assert_allclose(at_once, updated, rtol=1e-3, atol=1e-4)


def test_the_gain_is_the_mean_square_of_the_jacobian() -> None:
    model, params, images = small()
    layers = layers_of(model, images)
    _, state = model.apply(
        {"params": params}, images, capture_intermediates=True, mutable="intermediates"
    )
    conv, hidden = (
        state["intermediates"][name]["__call__"][0] for name in ("Conv_0", "Dense_0")
    )

    def after_hidden(z: chex.Array) -> chex.Array:
        return nn.Dense(3).apply({"params": params["Dense_1"]}, nn.relu(z))

    def after_conv(z: chex.Array) -> chex.Array:
        z = nn.max_pool(z, (2, 2), (2, 2)).reshape(-1)
        return after_hidden(z @ params["Dense_0"]["kernel"])

    def mean_square(function: Any, z: chex.Array) -> float:
        jacobians = jax.vmap(jax.jacobian(function))(z)
        return float(jnp.sum(jacobians**2) / z.size)

    gains = jax.vmap(lambda key: output_gains(model, layers, params, images, key))(
        jax.random.split(KEY, 4000)
    )
    assert np.all(np.asarray(gains[("Dense_1",)]) == 1.0)
    for path, expected in {
        ("Dense_0",): mean_square(after_hidden, hidden),
        ("Conv_0",): mean_square(after_conv, conv),
    }.items():
        assert float(gains[path].mean()) == pytest.approx(expected, rel=0.05)


# Bounds.


def test_the_bound_of_the_output_holds() -> None:
    model, params, images = small()
    layers = layers_of(model, images)
    logits = model.apply({"params": params}, images)
    hessians = layer_hessians(model, layers, params, images)
    for seed in range(10):
        keys = iter(jax.random.split(jax.random.key(seed), 8))
        pruned = jax.tree.map(
            lambda w: w * jax.random.bernoulli(next(keys), 0.5, w.shape),  # noqa: B023
            params,
        )
        bounds = {}
        for (name,), hessian in hessians.items():
            change = jax.tree.map(jnp.subtract, pruned[name], params[name])
            rows = [change["kernel"].reshape(-1, change["kernel"].shape[-1])]
            rows += [change["bias"][None]] if "bias" in change else []
            d = jnp.concatenate(rows)
            bounds[(name,)] = jnp.sqrt(jnp.sum(d * (hessian @ d)))
        change = model.apply({"params": pruned}, images) - logits
        error = jnp.sqrt(jnp.mean(jnp.sum(change**2, axis=-1)))
        bound = output_bound(layers, pruned, bounds)
        assert 0 < error <= bound
    only_last = {path: jnp.zeros(()) for path in layers} | {("Dense_1",): 0.5}
    assert output_bound(layers, params, only_last) == 0.5


# The method.


def test_a_miniature_run(digits: experiment.Parts) -> None:
    digits, pretrained = tiny(digits)
    outcome = lobs(
        digits, 0.9, pretrained=pretrained, rounds=2, num_batches=5, block=0.6
    )
    total = sum(x.size for x in jax.tree.leaves(outcome.params))
    kept = sum(int(x.sum()) for x in jax.tree.leaves(outcome.mask))
    assert kept == masks.kept_count(total, 0.9)
    chex.assert_trees_all_equal(
        outcome.params, masks.apply(outcome.mask, outcome.params)
    )
    history = outcome.history
    rows = history.rows[len(pretrained.history.rows) :]
    phases = ["prune 1", "retrain 1", "prune 2", "retrain 2"]
    assert [row["phase"] for row in rows] == phases
    assert rows[1]["sparsity"] == pytest.approx(1 - 0.1**0.5, abs=1e-3)
    assert history.prunes == 4  # two blocks of 60% in each round
    assert history.steps == pretrained.history.steps + 2 * 15
    assert history.seconds > pretrained.history.seconds
    names = ["layer_{}/Dense_0", "layer_{}/Dense_1", "output_{}"]
    for row in (rows[0], rows[2]):
        for name in names:
            assert 0 < row[name.format("error")] <= row[name.format("bound")]


def test_the_update_is_the_least_squares_solution_without_the_cheapest_weight() -> None:
    outcome = lobs(
        softmax_regression.parts(steps=1),
        0.25,
        pretrained=softmax_regression.pretrained(),
        rounds=1,
        num_batches=1,
        damping=1e-6,
        learning_rate=1e-9,  # what is left as pruning left it
    )
    images, weights = softmax_regression.IMAGES, softmax_regression.WEIGHTS
    found = []
    for gone, unit in np.ndindex(weights.shape):
        kept, best = 1 - gone, np.zeros(2)
        wanted = images @ weights[:, unit]
        best[kept] = images[:, kept] @ wanted / (images[:, kept] @ images[:, kept])
        cost = np.sum((images @ best - wanted) ** 2)
        changed = weights.copy()
        changed[:, unit] = best
        found.append((cost, changed))
    cost, expected = min(found, key=lambda pair: pair[0])
    np.testing.assert_allclose(outcome.params["Dense_0"]["kernel"], expected, atol=1e-4)
    # Over the four examples; of one layer, whose outputs are the logits.
    row, _ = outcome.history.rows
    for name in ("output_error", "layer_error/Dense_0"):
        assert row[name] == pytest.approx((cost / 4) ** 0.5, rel=1e-3)


class Chain(nn.Module):
    """Outputs are images times two matrices."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Dense(2, use_bias=False)(x.reshape(len(x), -1))
        return nn.Dense(1, use_bias=False)(x)


def test_costs_in_a_layers_output_count_as_much_as_the_next_enlarges_them() -> None:
    # Small weights and then large ones: without gains the first layer would go first.
    images = softmax_regression.IMAGES
    first = 0.01 * np.array([[1.0, -0.9], [0.8, 0.7]])
    second = np.array([[30.0], [100.0]])
    params = {
        "Dense_0": {"kernel": jnp.asarray(first, jnp.float32)},
        "Dense_1": {"kernel": jnp.asarray(second, jnp.float32)},
    }
    # With one class there is no loss, so that retraining changes nothing.
    parts = softmax_regression.parts(steps=1)
    examples = training.Batch(parts.train.images, jnp.zeros(4, jnp.int32))
    outcome = lobs(
        parts._replace(
            model=Chain(), train=examples, validation=examples, test=examples
        ),
        1 / 6,
        pretrained=Outcome(params, masks.ones(params, masks.kernels), History()),
        rounds=1,
        num_batches=1,
        damping=1e-6,
    )

    def costs(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of each weight's removal, with the other of its unit at its best."""
        found = np.zeros(weights.shape)
        for gone, unit in np.ndindex(weights.shape):
            x, wanted = inputs[:, 1 - gone], inputs @ weights[:, unit]
            error = wanted - x * (x @ wanted) / (x @ x)
            found[gone, unit] = 0.5 * np.mean(error**2)
        return found

    in_first, in_second = costs(images, first), costs(images @ first, second)
    assert in_first.min() < in_second.min()
    # The logit is the second layer's output, and has the hidden units' weights for
    # its derivatives in them.
    in_first = in_first * np.mean(second**2)
    assert in_second.min() < in_first.min()
    np.testing.assert_array_equal(outcome.mask["Dense_0"]["kernel"], np.ones((2, 2)))
    np.testing.assert_array_equal(
        outcome.mask["Dense_1"]["kernel"], in_second > in_second.min()
    )


@pytest.mark.slow
def test_what_is_pruned_is_not_a_matter_of_the_layers_scales(
    digits: experiment.Parts,
) -> None:
    """ReLU passes a factor on, by which the next layer's weights may be divided."""
    digits, pretrained = tiny(digits)

    def kept_of_the_first_layer(factor: float) -> int:
        params = {
            "Dense_0": jax.tree.map(lambda w: w * factor, pretrained.params["Dense_0"]),
            "Dense_1": {
                "kernel": pretrained.params["Dense_1"]["kernel"] / factor,
                "bias": pretrained.params["Dense_1"]["bias"],
            },
        }
        outcome = lobs(
            digits,
            0.9,
            pretrained=pretrained._replace(params=params),
            rounds=1,
            num_batches=2,
            block=0.95,
        )
        return int(outcome.mask["Dense_0"]["kernel"].sum())

    assert kept_of_the_first_layer(10.0) == pytest.approx(
        kept_of_the_first_layer(1.0), rel=0.05
    )


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"target": 1.0}, "target is 1.0"),
        ({"rounds": 0}, "rounds is 0; it must be an integer of at least 1"),
        ({"num_batches": 1.5}, "num_batches is 1.5"),
        ({"retraining": 0.0}, "retraining is 0.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"decays": -1}, "decays is -1"),
        ({"block": 0.0}, "block is 0.0; it must be a share between 0 and 1"),
        ({"block": 1.0}, "block is 1.0"),
        ({"damping": 0.0}, "damping is 0.0; it must be a positive number"),
    ],
)
def test_hyperparameters_out_of_range(
    digits: experiment.Parts, wrong: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        lobs(digits, **{"target": 0.9, **wrong})


def test_a_convolution_in_groups() -> None:
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
            return nn.Conv(4, (2, 2), feature_group_count=2)(x)

    with pytest.raises(ValueError, match="'Conv_0' has feature_group_count 2"):
        layers_of(Grouped(), jnp.zeros((1, 4, 4, 2)))


def test_something_prunable_that_is_in_no_such_layer(
    digits: experiment.Parts,
) -> None:
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
            gain = self.param("gain", nn.initializers.ones, (10,))
            return gain * nn.Dense(10)(x.reshape(x.shape[0], -1))

    params = Scaled().init(KEY, digits.preprocess(digits.train.images[:1]))["params"]
    mask = masks.ones(params, digits.prunable)
    with pytest.raises(ValueError, match="'gain' is prunable, but belongs to no"):
        lobs(
            digits._replace(model=Scaled()),
            0.5,
            pretrained=Outcome(params, mask, None),
        )


def test_layers_of_a_convolutional_network() -> None:
    model = models.create("lenet_5_caffe", num_classes=10)
    images = jnp.zeros((2, 28, 28, 1))

    def shapes_of(key: chex.PRNGKey) -> list[chex.Array]:
        params = model.init(key, images)["params"]
        inputs, _ = inputs_of(model, layers_of(model, images), params, images)
        return list(inputs.values())

    assert [x.shape for x in jax.eval_shape(shapes_of, KEY)] == [
        (2, 576, 26),
        (2, 64, 501),
        (2, 1, 801),
        (2, 1, 501),
    ]
