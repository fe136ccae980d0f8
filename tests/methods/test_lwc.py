"""Learning weights and connections: each layer's threshold, and never again."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import experiment, masks
from snipjax.methods import Outcome, hyperparameters, layers
from snipjax.methods.lwc import lwc, weakest_removed
from tests.methods import softmax_regression

prunable = masks.weights_and_biases


def two_layers() -> dict[str, Any]:
    """Two alike, but for a factor of ten."""
    a = np.array([[1.0, -1.0], [3.0, -3.0]], np.float32)
    return {
        "a": {"kernel": jnp.asarray(a), "bias": jnp.array([0.5, -0.5])},
        "b": {"kernel": jnp.asarray(10 * a), "bias": jnp.array([5.0, -5.0])},
    }


def test_the_thresholds_are_the_quality_times_each_layers_deviation() -> None:
    params = two_layers()
    # With std(a) = sqrt(20.5 / 6) = 1.85 and std(b) ten times that, a quality between
    # 1 / 1.85 and 3 / 1.85 keeps the 3s and the 30s, though 10 > 3.
    mask = weakest_removed(
        params, masks.ones(params, prunable), sparsity=8 / 12, prunable=prunable
    )
    for layer in mask.values():
        assert layer["kernel"].tolist() == [[False, False], [True, True]]
        assert layer["bias"].tolist() == [False, False]


def test_the_quality_of_a_layer_grows_with_the_logarithm_of_its_size() -> None:
    few = np.array([1.0, -1.0, 0.0], np.float32)
    # Alike in deviation; of 15 and 3 weights, so that a threshold is twice the other.
    params = {"a": {"w": jnp.tile(1.9 * few, 5)}, "b": {"w": jnp.asarray(1.9 * few)}}
    params["a"]["w"] = params["a"]["w"].at[0].set(3.0)
    mask = weakest_removed(
        params, masks.ones(params, prunable), sparsity=15 / 18, prunable=prunable
    )
    # 3 / log 16 = 1.08 and 1.9 / log 4 = 1.37 times the deviations, about equal.
    assert mask["b"]["w"].tolist() == [True, True, False]
    assert np.flatnonzero(mask["a"]["w"]).tolist() == [0]


def test_mean_and_deviation_are_over_what_a_layer_keeps() -> None:
    params = two_layers()
    mask = masks.ones(params, prunable)
    mask["a"]["kernel"] = jnp.array([[True, True], [True, False]])
    mean, std = layers.mean_and_std(params, mask)
    kept = np.array([1.0, -1.0, 3.0, 0.5, -0.5])
    for leaf in ("kernel", "bias"):
        np.testing.assert_allclose(mean["a"][leaf], kept.mean(), rtol=1e-6)
        np.testing.assert_allclose(std["a"][leaf], kept.std(), rtol=1e-6)


def test_leaves_that_are_not_prunable_have_no_part_in_it() -> None:
    params = two_layers()
    params["a"]["bias"] = jnp.array([1000.0, 1000.0])
    _, std = layers.mean_and_std(params, masks.ones(params, masks.kernels))
    np.testing.assert_allclose(std["a"]["kernel"], 5**0.5, rtol=1e-6)


def test_a_layer_of_one_weight_or_none_has_a_threshold() -> None:
    params = {"a": {"w": jnp.array([2.0])}, "b": {"w": jnp.array([1.0])}}
    mask = {"a": {"w": jnp.array([True])}, "b": {"w": jnp.array([False])}}
    _, std = layers.mean_and_std(params, mask)
    assert float(std["a"]["w"]) == float(std["b"]["w"]) == 1.0


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_one_quality_for_all_layers_leaves_exactly_as_many(sparsity: float) -> None:
    rng = np.random.default_rng(0)
    params = {
        name: {"kernel": jnp.asarray(scale * rng.normal(size=(10, 10)), jnp.float32)}
        for name, scale in (("a", 0.1), ("b", 7.0))
    }
    mask = weakest_removed(
        params, masks.ones(params, prunable), sparsity=sparsity, prunable=prunable
    )
    kept, removed = [], []
    for name in params:
        quality = np.abs(params[name]["kernel"]) / np.std(params[name]["kernel"])
        keep = np.asarray(mask[name]["kernel"])
        kept, removed = [*kept, *quality[keep]], [*removed, *quality[~keep]]
    assert len(kept) == round(200 * (1 - sparsity))
    assert min(kept) > max(removed)


@pytest.mark.filterwarnings("ignore:no connection of")
def test_pruned_weights_stay_gone_however_large() -> None:
    params = two_layers()
    mask = masks.ones(params, prunable)
    mask["b"]["kernel"] = jnp.zeros((2, 2), bool)
    params["b"]["kernel"] = jnp.full((2, 2), 1e6)
    after = weakest_removed(params, mask, sparsity=0.5, prunable=prunable)
    assert not after["b"]["kernel"].any()
    assert masks.sparsity(after) == 0.5
    subset = jax.tree.map(lambda a, b: bool((a <= b).all()), after, mask)
    assert all(jax.tree.leaves(subset))


def test_a_round_starts_where_the_last_one_ended_step_by_step() -> None:
    params, mask, _ = lwc(
        softmax_regression.parts(steps=4, learning_rate=2.0),
        0.5,
        pretrained=softmax_regression.pretrained(),
        rounds=2,
        retraining=0.5,
        learning_rate=0.5,
        decays=0,
    )
    weights = softmax_regression.WEIGHTS
    for kept in (3, 2):  # of four, as 4 / sqrt(2) is nearly 3
        keep = np.abs(weights) >= np.sort(np.abs(weights), axis=None)[-kept]
        weights = np.where(keep, weights, 0)
        for _ in range(2):
            slope = softmax_regression.gradient(
                softmax_regression.cross_entropy, weights
            )
            weights = np.where(keep, weights - slope, 0)
    np.testing.assert_allclose(params["Dense_0"]["kernel"], weights, atol=1e-5)
    np.testing.assert_array_equal(mask["Dense_0"]["kernel"], keep)


def test_rounds_of_pruning_and_retraining_on_digits(
    digits: experiment.Parts, pretrained: Outcome, prunable_count: int
) -> None:
    params, mask, history = lwc(
        digits, 0.9, pretrained=pretrained, rounds=2, retraining=0.5
    )
    assert sum(row.kept for row in masks.summary(mask)) == round(0.1 * prunable_count)
    chex.assert_trees_all_equal(params, masks.apply(mask, params))
    assert history.prunes == 2
    assert history.steps == 60 + 2 * 30
    assert history.seconds > pretrained.history.seconds
    rows = history.rows
    assert [row["phase"] for row in rows] == ["dense", "retrain 1", "retrain 2"]
    np.testing.assert_allclose(
        [row["sparsity"] for row in rows], [0, 1 - 0.1**0.5, 0.9], atol=1e-4
    )
    assert rows[-1]["val_error"] < 30


def test_its_hyperparameters() -> None:
    assert set(hyperparameters(lwc)) == {
        "rounds",
        "retraining",
        "learning_rate",
        "decays",
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"target": 1.0}, "target is 1.0"),
        ({"rounds": 0}, "rounds is 0; it must be an integer"),
        ({"rounds": 2.5}, "rounds is 2.5; it must be an integer"),
        ({"retraining": 0.0}, "retraining is 0.0; it must be a share"),
        ({"retraining": float("nan")}, "retraining is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be a share"),
        ({"decays": -1}, "decays is -1; it must be an integer"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        lwc(None, **{"target": 0.9, **arguments})
