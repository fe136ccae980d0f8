"""GraSP against the Hessian, and against the norm of the gradient itself."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from snipjax import saliency
from tests.conftest import flatten, nested_dict
from tests.saliency.test_curvature import hessian

pytestmark = pytest.mark.filterwarnings("error")


def gradient(loss_fn: saliency.LossFn, params: chex.ArrayTree, batch: Any) -> Any:
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(np.float64, params))
        batch = jax.tree.map(np.float64, batch)
        return np.asarray(jax.jit(jax.grad(lambda w: loss_fn(unravel(w), batch)))(flat))


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient() -> None:
    loss_fn, params, batch = nested_dict()
    expected = flatten(params) * (
        hessian(loss_fn, params, batch) @ gradient(loss_fn, params, batch)
    )
    scores, absolute = (
        jax.jit(functools.partial(criterion, loss_fn))(params, batch)
        for criterion in (saliency.grasp, saliency.grasp_magnitude)
    )
    chex.assert_trees_all_equal_shapes(scores, params)
    assert {s.dtype for s in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(
        flatten(scores), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
    )
    np.testing.assert_allclose(flatten(absolute), np.abs(flatten(scores)), rtol=1e-5)


def test_a_connection_of_the_least_score_takes_least_of_the_gradients_norm() -> None:
    loss_fn, params, batch = nested_dict()
    flat, unravel = ravel_pytree(params)
    # Each connection a little weaker, one after the other; at last, none.
    weaker = np.vstack([flat * (1 - 1e-3 * np.eye(flat.size)), flat])

    def squared_norm(w: chex.Array) -> chex.Array:
        return jnp.sum(jax.grad(lambda w: loss_fn(unravel(w), batch))(w) ** 2)

    with jax.enable_x64(True):
        norms = np.asarray(jax.jit(jax.vmap(squared_norm))(np.float64(weaker)))
    changes = (norms[:-1] - norms[-1]) / 1e-3
    scores = jax.jit(functools.partial(saliency.grasp, loss_fn))(params, batch)
    np.testing.assert_allclose(
        -2 * flatten(scores), changes, rtol=0.02, atol=0.01 * np.abs(changes).max()
    )


def test_half_precision_params_have_float32_scores() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        assert params["w"].dtype == dtype
        return jnp.sum(x * params["w"].astype(jnp.float32) ** 2)

    for dtype in (jnp.bfloat16, jnp.float16):
        # 1 + u squared is 1 + 2u + u**2, which only float32 can hold.
        u = float(jnp.finfo(dtype).eps)
        grasp = jax.jit(functools.partial(saliency.grasp, loss_fn))
        scores = grasp({"w": np.array([1 + u, 1.0], dtype)}, np.ones(2, "f4"))["w"]
        assert scores.dtype == jnp.float32
        np.testing.assert_allclose(scores, [4 * (1 + u) ** 2, 4.0], rtol=1e-6)


def test_under_jit_and_vmap() -> None:
    def scores(w: chex.Array) -> chex.Array:
        return saliency.grasp(lambda p, x: jnp.sum(p["w"] ** 3), {"w": w}, None)["w"]

    ws = np.float32([[1, -2], [3, 0.5]])
    expected = 18 * ws**4  # w * 6 w * 3 w**2
    np.testing.assert_allclose(jax.jit(jax.vmap(scores))(ws), expected, rtol=1e-5)
