"""Fisher's diagonal against a loop, and expansions against the Hessian."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import pruning, saliency
from tests.conftest import flatten, nested_dict
from tests.saliency.test_curvature import hessian
from tests.saliency.test_grasp import gradient

pytestmark = pytest.mark.filterwarnings("error")


def squares(loss_fn: saliency.LossFn, params: chex.ArrayTree, batch: Any) -> np.ndarray:
    """The mean of squared gradients of one example after the other."""
    examples = [
        jax.tree.map(lambda x: x[i : i + 1], batch)  # noqa: B023
        for i in range(len(batch["x"]))
    ]
    return np.mean([gradient(loss_fn, params, one) ** 2 for one in examples], axis=0)


def test_fisher_is_the_mean_of_squared_gradients() -> None:
    loss_fn, params, batch = nested_dict()
    expected = squares(loss_fn, params, batch)
    diagonal, scores = (
        jax.jit(functools.partial(function, loss_fn))(params, batch)
        for function in (saliency.fisher_diagonal, saliency.fisher)
    )
    chex.assert_trees_all_equal_shapes(diagonal, params)
    assert {s.dtype for s in jax.tree.leaves(diagonal)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(flatten(diagonal), expected, rtol=1e-3, atol=1e-6)
    expected = flatten(params) ** 2 * expected / 2
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-3, atol=1e-6)


def test_taylor_is_the_expansion_by_the_hessian() -> None:
    loss_fn, params, batch = nested_dict()
    w, g = flatten(params), gradient(loss_fn, params, batch)
    exact = functools.partial(saliency.hessian_diagonal, num_samples=None)
    for criterion, d in (
        (
            functools.partial(saliency.taylor, diagonal=exact),
            np.diag(hessian(loss_fn, params, batch)),
        ),
        (saliency.taylor_fisher, squares(loss_fn, params, batch)),
    ):
        scores = jax.jit(functools.partial(criterion, loss_fn))(params, batch)
        np.testing.assert_allclose(
            flatten(scores), np.abs(w * g + w**2 * d / 2), rtol=1e-3, atol=1e-5
        )


def test_taylor_takes_hutchinsons_estimate_where_nothing_is_said() -> None:
    loss_fn, params, batch = nested_dict()
    key = jax.random.key(0)
    estimate, scores = (
        jax.jit(functools.partial(function, loss_fn, key=key))(params, batch)
        for function in (saliency.hessian_diagonal, saliency.taylor)
    )
    w, g = flatten(params), gradient(loss_fn, params, batch)
    expected = np.abs(w * g + w**2 * flatten(estimate) / 2)
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="has no key"):
        saliency.taylor(loss_fn, params, batch)


def test_the_memory_of_fisher_does_not_grow_with_the_batch() -> None:
    params = {"w": jnp.ones((200, 200))}

    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.mean(jnp.tanh(x @ params["w"]))

    def bytes_of(number: int) -> int:
        score = jax.jit(functools.partial(saliency.fisher_diagonal, loss_fn))
        program = score.lower(params, jnp.ones((number, 200))).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert bytes_of(64) < 1.2 * bytes_of(2)


def test_the_entries_of_several_batches_are_these() -> None:
    loss_fn, params, batch = nested_dict()
    batches = jax.tree.map(lambda x: np.stack([x, 2 * x, -x]), batch)
    scores, _ = pruning.score_and_mask(
        loss_fn, params, batches, 0.5, criterion=saliency.fisher, num_batches=3
    )
    each = [
        gradient(loss_fn, params, jax.tree.map(lambda x: x[i], batches)) ** 2  # noqa: B023
        for i in range(3)
    ]
    expected = flatten(params) ** 2 * np.mean(each, axis=0) / 2
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        ({"x": np.ones((4, 3)), "y": np.ones((3, 2))}, r"leaf 'y' has shape \(3, 2\)"),
        ({"x": np.float32(1)}, r"leaf 'x' has shape \(\)"),
        ({}, "batch has no arrays"),
    ],
)
def test_a_batch_without_a_common_leading_axis(batch: Any, problem: str) -> None:
    loss_fn, params, _ = nested_dict()
    with pytest.raises(ValueError, match=problem):
        saliency.fisher(loss_fn, params, batch)
