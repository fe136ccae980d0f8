"""Dynamic network surgery: the rule of the mask, and gradients of hidden weights."""

import importlib
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import experiment, masks, training
from snipjax.methods import Outcome, layers
from snipjax.methods.dns import (
    Surgery,
    dns,
    loses_any,
    mean_and_scale,
    spliced,
    surgery_step,
)
from tests.methods import softmax_regression

prunable = masks.weights_and_biases


class Tiny(nn.Module):
    """Two inputs, two hidden units, two classes."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        hidden = jnp.tanh(nn.Dense(2)(x.reshape(len(x), -1)))
        return nn.Dense(2)(hidden)


def tiny() -> tuple[experiment.Parts, chex.ArrayTree, training.Batch]:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(6, 1, 2, 1)), jnp.float32)
    batch = training.Batch(images, jnp.asarray(rng.integers(2, size=6)))
    model = Tiny()
    params = model.init(jax.random.key(1), images, train=True)["params"]
    parts = experiment.Parts(None, model, *[None] * 7)
    return parts, params, batch


def alternating(params: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(
        lambda x: (jnp.arange(x.size) % 2 == 0).reshape(x.shape), params
    )


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
    found = [
        c
        for c in np.linspace(-3, 5, 4001)
        if all((by_equation(c)[k] == np.asarray(updated[k])).all() for k in params)
    ]
    assert found


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


def test_the_c_of_a_layer_grows_with_the_logarithm_of_its_size() -> None:
    mask = {
        "a": {"kernel": jnp.zeros((3, 2), bool), "bias": jnp.ones(1, bool)},
        "b": {"kernel": jnp.ones((8, 7), bool), "bias": jnp.ones(7, bool)},
        "c": {"kernel": jnp.ones((2, 2), bool), "bias": jnp.array(True)},
    }
    # Of 7, 63 and 4 connections, whatever is left of them; one bias is not prunable.
    sizes = layers.log_size(mask)
    for layer, expected in (("a", 8), ("b", 64), ("c", 5)):
        for leaf in sizes[layer].values():
            np.testing.assert_allclose(leaf, np.log(expected), rtol=1e-6)


def test_updates_that_remove_are_told_from_those_that_only_splice() -> None:
    before = {"w": jnp.array([True, False]), "b": jnp.array(True)}
    assert int(loses_any(before, before)) == 0
    assert int(loses_any(before, {**before, "w": jnp.array([True, True])})) == 0
    assert int(loses_any(before, {**before, "w": jnp.array([False, True])})) == 1


def test_hidden_weights_follow_the_gradient_of_the_masked_network() -> None:
    parts, params, batch = tiny()
    mask, optimizer = alternating(params), optax.sgd(1.0)
    zero = jnp.zeros((), jnp.int32)
    carry, _ = surgery_step(
        Surgery(params, optimizer.init(params), mask, zero, zero),
        batch,
        jax.random.key(0),
        parts=parts,
        optimizer=optimizer,
        chance=lambda number: 0.0 * number,
        operate=lambda params, mask: mask,
    )
    gradient = jax.tree.map(jnp.subtract, params, carry.params)
    chex.assert_trees_all_equal(carry.mask, mask)

    loss = jax.jit(training.batch_loss(parts.model, {}))
    flat, unflatten = jax.flatten_util.ravel_pytree(masks.apply(mask, params))
    expected = np.array(
        [
            (
                loss(unflatten(flat.at[i].add(1e-2)), batch)
                - loss(unflatten(flat.at[i].add(-1e-2)), batch)
            )
            / 2e-2
            for i in range(flat.size)
        ]
    )
    actual = np.asarray(jax.flatten_util.ravel_pytree(gradient)[0])
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    hidden = ~np.asarray(jax.flatten_util.ravel_pytree(mask)[0])
    assert (np.abs(actual[hidden]) > 1e-3).any()


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_the_mask_is_updated_by_chance_before_the_gradient(chance: float) -> None:
    parts, params, batch = tiny()
    optimizer = optax.sgd(1.0)
    zero = jnp.zeros((), jnp.int32)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params)
    ones = masks.ones(params, prunable)
    carry, metrics = surgery_step(
        Surgery(params, optimizer.init(params), ones, zero, zero),
        batch,
        jax.random.key(0),
        parts=parts,
        optimizer=optimizer,
        chance=lambda number: chance + 0.0 * number,
        operate=lambda params, mask: none,
    )
    is_updated = bool(chance)
    assert masks.sparsity(carry.mask) == float(is_updated)
    assert int(carry.prunes) == int(is_updated)
    assert int(carry.number) == 1
    # Of a network without weights the loss is log 2.
    assert (abs(float(metrics.loss) - np.log(2)) < 1e-6) == is_updated


def test_within_wide_margins_nothing_changes_after_the_first_update() -> None:
    # Either margin of the paper would have connections change places here.
    _, mask, history = dns(
        softmax_regression.parts(steps=8),
        0.5,
        pretrained=softmax_regression.pretrained(),
        surgery=1.0,
        recovery=0.1,
        gamma=0.0,
        lower=0.3,
        upper=4.0,
        learning_rate=1.0,
    )
    assert history.prunes == 1
    expected = np.abs(softmax_regression.WEIGHTS) > 0.85
    np.testing.assert_array_equal(mask["Dense_0"]["kernel"], expected)


def test_updates_become_rare_as_the_power_of_a_share_of_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chances = []

    def listened(
        carry: Surgery, batch: training.Batch, key: chex.PRNGKey, **others: Any
    ) -> tuple[Surgery, training.Metrics]:
        chances.append(others["chance"])
        return carry, training.Metrics(jnp.float32(0), jnp.float32(0))

    # Of the module, whose name the package gives to the function.
    module = importlib.import_module("snipjax.methods.dns")
    monkeypatch.setattr(module, "surgery_step", listened)
    dns(
        softmax_regression.parts(steps=16),
        0.5,
        pretrained=softmax_regression.pretrained(),
        surgery=0.5,
        recovery=0.1,
        gamma=3.0,
        power=2.0,
    )
    # (1 + 3 t)^-2 at the beginning, a third and the end of eight steps.
    found = [float(chances[0](jnp.float32(number))) for number in (0, 8 / 3, 8)]
    np.testing.assert_allclose(found, [1, 1 / 4, 1 / 16], rtol=1e-5)


def test_surgery_and_recovery_on_digits(
    digits: experiment.Parts, pretrained: Outcome, prunable_count: int
) -> None:
    params, mask, history = dns(
        digits, 0.9, pretrained=pretrained, surgery=1.0, recovery=0.5, gamma=20.0
    )
    assert sum(row.kept for row in masks.summary(mask)) == round(0.1 * prunable_count)
    chex.assert_trees_all_equal(params, masks.apply(mask, params))
    # The first update always happens, and later ones ever less often.
    assert 1 <= history.prunes < 40
    assert history.steps == 60 + 60 + 30
    rows = history.rows
    assert [row["phase"] for row in rows] == ["dense", "surgery", "recovery"]
    assert rows[1]["sparsity"] == rows[2]["sparsity"] == masks.sparsity(mask)
    assert rows[-1]["val_error"] < 30


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"target": -0.1}, "target is -0.1"),
        ({"surgery": 0.0}, "surgery is 0.0; it must be a share"),
        ({"recovery": -1.0}, "recovery is -1.0; it must be a share"),
        ({"gamma": -1.0}, "gamma is -1.0; it must be at least 0"),
        ({"power": float("inf")}, "power is inf; it must be at least 0"),
        ({"lower": 0.0}, "lower is 0.0; it must be above 0"),
        ({"upper": 0.8}, "upper is 0.8; it must be at least lower, 0.9"),
        ({"upper": float("nan")}, "upper is nan; it must be at least lower"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1; it must be a share"),
        ({"decays": 0.5}, "decays is 0.5; it must be an integer"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        dns(None, **{"target": 0.9, **arguments})
