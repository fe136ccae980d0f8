"""Learning weights and connections: each layer's threshold, and never again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snipjax import masks
from snipjax.methods import LWC, layers, lwc
from snipjax.methods.lwc import weakest_removed
from tests.methods import softmax_regression

prunable = masks.weights_and_biases


def two_layers() -> dict[str, Any]:
    """Two alike, but for a factor of ten."""
    a = np.array([[1.0, -1.0], [3.0, -3.0]], np.float32)
    return {
        "a": {"kernel": jnp.asarray(a), "bias": jnp.array([0.5, -0.5])},
        "b": {"kernel": jnp.asarray(10 * a), "bias": jnp.array([5.0, -5.0])},
    }


def removed(params: Any, sparsity: float, mask: Any = None) -> Any:
    mask = masks.ones(params, prunable) if mask is None else mask
    remove = jax.jit(weakest_removed, static_argnames=("sparsity", "prunable"))
    return remove(params, mask, sparsity=sparsity, prunable=prunable)


def test_the_quality_of_a_layer_grows_with_the_logarithm_of_its_size() -> None:
    few = np.array([1.0, -1.0, 0.0], np.float32)
    # Alike in deviation; of 15 and 3 weights, so that a threshold is twice the other.
    params = {"a": {"w": jnp.tile(1.9 * few, 5)}, "b": {"w": jnp.asarray(1.9 * few)}}
    params["a"]["w"] = params["a"]["w"].at[0].set(3.0)
    mask = removed(params, 16 / 18)
    # 3 / log 16 = 1.08 is less than 1.9 / log 4 = 1.37, though 3 is more than 1.9.
    assert mask["b"]["w"].tolist() == [True, True, False]
    assert not mask["a"]["w"].any()


def test_mean_and_deviation_are_over_what_a_layer_keeps() -> None:
    params = two_layers()
    mask = masks.ones(params, prunable)
    mask["a"]["kernel"] = jnp.array([[True, True], [True, False]])
    mean, std = layers.mean_and_std(params, mask)
    kept = np.array([1.0, -1.0, 3.0, 0.5, -0.5])
    for leaf in ("kernel", "bias"):
        np.testing.assert_allclose(mean["a"][leaf], kept.mean(), rtol=1e-6)
        np.testing.assert_allclose(std["a"][leaf], kept.std(), rtol=1e-6)
    # A bias that is not prunable has no part in it.
    _, std = layers.mean_and_std(params, masks.ones(params, masks.kernels))
    np.testing.assert_allclose(std["a"]["kernel"], 5**0.5, rtol=1e-6)
    # A layer that keeps one weight or none has a threshold all the same.
    params = {"a": {"w": jnp.array([2.0])}, "b": {"w": jnp.array([1.0])}}
    mask = {"a": {"w": jnp.array([True])}, "b": {"w": jnp.array([False])}}
    _, std = layers.mean_and_std(params, mask)
    assert float(std["a"]["w"]) == float(std["b"]["w"]) == 1.0


def test_one_quality_for_all_layers_leaves_exactly_as_many() -> None:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (10, 10), "bias": (10,)}
    params = {
        layer: {
            name: np.float32(scale * rng.normal(size=shape))
            for name, shape in shapes.items()
        }
        for layer, scale in (("a", 0.1), ("b", 7.0))
    }
    mask = removed(params, 0.9)
    kept, gone = [], []
    for layer in params:
        weights = np.concatenate([params[layer][name].ravel() for name in shapes])
        keep = np.concatenate([np.ravel(mask[layer][name]) for name in shapes])
        quality = np.abs(weights) / np.std(weights)
        kept, gone = [*kept, *quality[keep]], [*gone, *quality[~keep]]
    assert len(kept) == 22
    assert min(kept) > max(gone)


def test_pruned_weights_stay_gone_however_large() -> None:
    params = two_layers()
    mask = masks.ones(params, prunable)
    mask["b"]["kernel"] = jnp.zeros((2, 2), bool)
    params["b"]["kernel"] = jnp.full((2, 2), 1e6)
    after = removed(params, 0.5, mask)
    assert not after["b"]["kernel"].any()
    assert masks.sparsity(after) == 0.5


def test_a_round_starts_where_the_last_one_ended_step_by_step() -> None:
    params, mask, _ = lwc(
        softmax_regression.problem(steps=4, learning_rate=2.0),
        0.5,
        LWC(rounds=2, retraining=0.5, learning_rate=0.5, decays=0),
        softmax_regression.pretrained(),
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
    np.testing.assert_allclose(params["w"], weights, atol=1e-5)
    np.testing.assert_array_equal(mask["w"], keep)
