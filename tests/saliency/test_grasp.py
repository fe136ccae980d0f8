"""GraSP against the Hessian, and against the norm of the gradient itself."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from snipjax import masks, saliency
from tests.conftest import Network, flatten, nested_dict
from tests.saliency.test_curvature import hessian

pytestmark = pytest.mark.filterwarnings("error")


def gradient(loss_fn: saliency.LossFn, params: chex.ArrayTree, batch: Any) -> Any:
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(np.float64, params))
        batch = jax.tree.map(np.float64, batch)
        return np.asarray(jax.grad(lambda w: loss_fn(unravel(w), batch))(flat))


@pytest.mark.parametrize("network", [nested_dict], ids=["nested dict"], indirect=True)
def test_grasp_is_the_weight_times_the_hessian_times_the_gradient(
    network: Network,
) -> None:
    loss_fn, params, batch = network
    expected = flatten(params) * (
        hessian(loss_fn, params, batch) @ gradient(loss_fn, params, batch)
    )
    scores = saliency.grasp(loss_fn, params, batch)
    chex.assert_trees_all_equal_shapes(scores, params)
    assert {s.dtype for s in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(
        flatten(scores), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
    )
    absolute = saliency.grasp_magnitude(loss_fn, params, batch)
    np.testing.assert_array_equal(flatten(absolute), np.abs(flatten(scores)))


def test_a_connection_of_the_least_score_takes_least_of_the_gradients_norm() -> None:
    loss_fn, params, batch = nested_dict()
    flat, unravel = ravel_pytree(params)

    def squared_norm(w: np.ndarray) -> float:
        return float((gradient(loss_fn, unravel(jnp.asarray(w)), batch) ** 2).sum())

    # Each connection a little weaker, one after the other.
    changes = []
    for j in range(flat.size):
        weaker = np.array(flat)
        weaker[j] *= 1 - 1e-3
        changes.append((squared_norm(weaker) - squared_norm(np.array(flat))) / 1e-3)
    scores = flatten(saliency.grasp(loss_fn, params, batch))
    np.testing.assert_allclose(
        -2 * scores, changes, rtol=0.02, atol=0.01 * np.abs(changes).max()
    )
    mask = masks.global_topk(
        saliency.grasp(loss_fn, params, batch), 0.5, masks.weights_and_biases
    )
    kept = flatten(mask)
    assert np.asarray(changes)[kept].max() <= np.asarray(changes)[~kept].min() + 0.1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_params_have_float32_scores(dtype: Any) -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        assert params["w"].dtype == dtype
        return jnp.sum(x * params["w"].astype(jnp.float32) ** 2)

    # 1 + u squared is 1 + 2u + u**2, which only float32 can hold.
    u = float(jnp.finfo(dtype).eps)
    params = {"w": jnp.array([1 + u, 1.0], dtype)}
    scores = saliency.grasp(loss_fn, params, jnp.ones(2))["w"]
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, np.float32([4 * (1 + u) ** 2, 4.0]), rtol=1e-6)


def test_a_temperature_belongs_to_the_loss() -> None:
    logits = np.float32([[2.0, -1.0, 0.5]])

    def loss_fn(params: chex.ArrayTree, temperature: chex.Array) -> chex.Array:
        scaled = params["w"] * logits / temperature
        return -jnp.mean(jax.nn.log_softmax(scaled)[:, 0])

    params = {"w": jnp.float32([1.0, 2.0, 3.0])}
    hot = saliency.grasp(loss_fn, params, jnp.float32(200.0))["w"]
    expected = flatten(params) * (
        hessian(loss_fn, params, 200.0) @ gradient(loss_fn, params, 200.0)
    )
    np.testing.assert_allclose(hot, expected, rtol=1e-3)


def test_under_jit_and_vmap() -> None:
    def scores(w: chex.Array) -> chex.Array:
        return saliency.grasp(lambda p, x: jnp.sum(p["w"] ** 3), {"w": w}, None)["w"]

    ws = np.float32([[1, -2], [3, 0.5]])
    expected = 18 * ws**4  # w * 6 w * 3 w**2
    np.testing.assert_allclose(jax.jit(jax.vmap(scores))(ws), expected, rtol=1e-5)
