"""Criteria of curvature against jax.hessian and brute force on small networks."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from snipjax import masks, saliency
from tests.conftest import flatten, nested_dict

pytestmark = pytest.mark.filterwarnings("error")

KEY = jax.random.key(0)
CRITERIA = {
    "obd": functools.partial(saliency.obd, key=KEY),
    "exact obd": functools.partial(saliency.obd, num_samples=None),
    "obs": saliency.obs,
    "obs per leaf": functools.partial(saliency.obs, per_leaf=True),
}
both = pytest.mark.parametrize(
    "criterion", [CRITERIA["obd"], CRITERIA["obs"]], ids=["obd", "obs"]
)
X = np.float32([[2, 1, 0], [1, 3, 1], [0, 1, 1]])


def hessian(loss_fn: saliency.LossFn, params: chex.ArrayTree, batch: Any) -> np.ndarray:
    """Of all parameters, in double precision, symmetric."""
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(np.float64, params))
        batch = jax.tree.map(np.float64, batch)
        matrix = np.asarray(
            jax.jit(jax.hessian(lambda flat: loss_fn(unravel(flat), batch)))(flat)
        )
    return (matrix + matrix.T) / 2


def quadratic(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
    """Half of w A w with A = x, whatever leaves make up w."""
    w = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return 0.5 * w @ x.astype(w.dtype) @ w


def diagonal_quadratic(params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
    return sum(
        jnp.sum(0.5 * v * w**2)
        for w, v in zip(jax.tree.leaves(params), jax.tree.leaves(x))
    )


def test_against_the_hessian() -> None:
    loss_fn, params, batch = nested_dict()
    matrix, w = hessian(loss_fn, params, batch), flatten(params).astype(np.float64)
    sizes = [x.size for x in jax.tree.leaves(params)]
    leaf = np.repeat(np.arange(len(sizes)), sizes)
    blocks = np.where(leaf[:, None] == leaf, matrix, 0.0)
    expected = {
        "exact obd": w**2 * np.diag(matrix) / 2,
        "obs": w**2 / (2 * np.diag(inverse(matrix, 0.01))),
        "obs per leaf": w**2 / (2 * np.diag(inverse(blocks, 0.01))),
    }
    for name, values in expected.items():
        damping = {} if name == "exact obd" else {"damping": 0.01}
        score = functools.partial(CRITERIA[name], loss_fn, **damping)
        scores = jax.jit(score)(params, batch)
        chex.assert_trees_all_equal_shapes(scores, params)
        assert {s.dtype for s in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
        np.testing.assert_allclose(
            flatten(scores), values, rtol=1e-3, atol=1e-5 * np.abs(values).max()
        )


def inverse(matrix: np.ndarray, damping: float) -> np.ndarray:
    """Of the matrix without its negative eigenvalues, damped."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors / (np.maximum(values, 0) + damping) @ vectors.T


def test_the_estimate_has_the_mean_and_variance_it_says() -> None:
    loss_fn, params, batch = nested_dict()
    matrix = hessian(loss_fn, params, batch)
    samples = 4000
    estimate = functools.partial(
        saliency.hessian_diagonal, loss_fn, key=KEY, num_samples=samples
    )
    diagonal = jax.jit(estimate)(params, batch)
    variance = (matrix**2).sum(axis=1) - np.diag(matrix) ** 2
    error = flatten(diagonal) - np.diag(matrix)
    assert np.all(np.abs(error) < 5 * np.sqrt(variance / samples) + 1e-5)
    # And is not better than that, as it would be if it were computed otherwise.
    normalized = error**2 / (variance / samples)
    assert 0.4 < normalized.mean() < 2.5


def test_the_estimate_is_exact_where_the_hessian_is_diagonal() -> None:
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
    x = {"a": np.float32([4, -5]), "b": np.float32([[6]])}
    obd = functools.partial(saliency.obd, diagonal_quadratic, key=KEY, num_samples=1)
    scores = jax.jit(obd)(params, x)
    # Negative where the curvature is.
    np.testing.assert_array_equal(flatten(scores), [2, -10, 27])


def test_the_surgeon_finds_what_removal_costs_if_the_others_make_up_for_it() -> None:
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
    w = flatten(params).astype(np.float64)
    obs = functools.partial(saliency.obs, quadratic, damping=1e-7)
    scores = flatten(jax.jit(obs)(params, X))
    expected = np.zeros(3)
    for q in range(3):
        rest = np.delete(np.arange(3), q)
        # Minimize over the changes of the others, while q changes by -w_q.
        change = np.zeros(3)
        change[q] = -w[q]
        change[rest] = np.linalg.solve(X[np.ix_(rest, rest)], X[rest, q] * w[q])
        expected[q] = 0.5 * change @ X @ change
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA.keys())
def test_odd_leaves(criterion: Any) -> None:
    params = [np.ones((0, 3), "f4"), 2.0, np.zeros(2, "f4")]

    @jax.jit
    def scores_of() -> Any:
        return (
            criterion(quadratic, params, X),
            criterion(lambda params, batch: 1.5, {"w": np.ones(2, "f4")}, None),
            criterion(lambda params, batch: 1.5, {}, None),
        )

    scores, constant, nothing = scores_of()
    assert [s.shape for s in scores] == [(0, 3), (), (2,)]
    np.testing.assert_array_equal(scores[2], 0.0)
    assert np.abs(constant["w"]).max() < 1e-3
    assert nothing == {}


@both
def test_other_precisions_have_float32_scores(criterion: Any) -> None:
    def scores_of(dtype: Any) -> chex.Array:
        def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
            assert params["w"].dtype == dtype
            return quadratic(params, x)

        # 1 + u squared is 1 + 2u + u**2, which only float32 can hold.
        w = np.array([1 + u, 1, 2], dtype)
        return jax.jit(lambda w: criterion(loss_fn, {"w": w}, X)["w"])(w)

    for dtype in (jnp.bfloat16, jnp.float16):
        u = float(jnp.finfo(dtype).eps)
        scores = scores_of(dtype)
        assert scores.dtype == jnp.float32
        np.testing.assert_allclose(scores, scores_of(jnp.float32), rtol=1e-6)
    with jax.enable_x64(True):
        assert scores_of(jnp.float64).dtype == jnp.float32


# Transformations.


def test_over_networks_batches_and_keys() -> None:
    ws = np.float32([[1, -3, 1], [2, 2, 0.5]])

    def scores_of(w: chex.Array, x: chex.Array, key: chex.PRNGKey) -> Any:
        obd, obs = (
            criterion(lambda p, _: quadratic(p, x), {"w": w}, 0, key=key)["w"]
            for criterion in (saliency.obd, saliency.obs)
        )
        return obd, obs

    xs, keys = np.stack([X, 2 * X]), jax.random.split(KEY)
    together = jax.jit(jax.vmap(scores_of))(ws, xs, keys)
    scores = jax.jit(scores_of)
    for i in range(2):
        alone = scores(ws[i], xs[i], keys[i])
        for actual, expected in zip(together, alone):
            np.testing.assert_allclose(actual[i], expected, rtol=1e-4)
    other = scores(ws[0], xs[0], keys[1])[0]
    assert not np.allclose(other, together[0][0])


# Bad input.


@pytest.mark.parametrize(
    ("criterion", "settings", "problem"),
    [
        (saliency.obd, {"num_samples": 0}, "num_samples is 0.*at least 1"),
        (saliency.obd, {"num_samples": 1.5}, "num_samples is 1.5"),
        (saliency.obd, {"key": None}, "has no key"),
        (saliency.obs, {"damping": 0.0}, "damping is 0.0; it must be a positive"),
        (saliency.obs, {"damping": float("nan")}, "damping is nan"),
        (saliency.obs, {"damping": float("inf")}, "damping is inf"),
        (saliency.obs, {"max_size": 0}, "max_size is 0"),
        (saliency.obs, {"max_size": 7}, r"8 parameters.*'kernel'.*per_leaf=True"),
        (
            saliency.obs,
            {"max_size": 5, "per_leaf": True},
            r"'kernel' has 6 .*saliency.obd.*max_size",
        ),
    ],
)
def test_hyperparameters_out_of_range(
    criterion: Any, settings: dict[str, Any], problem: str
) -> None:
    params = {"a": jnp.ones(2), "kernel": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=problem):
        criterion(diagonal_quadratic, params, [1.0, 1.0], **{"key": KEY, **settings})


def test_a_curvature_that_is_not_finite_is_named_by_selection() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.sum(params["a"] ** 2) + jnp.sum(x * params["b"] ** 2)

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    for criterion in (CRITERIA["obd"], CRITERIA["obs per leaf"]):
        score = jax.jit(functools.partial(criterion, loss_fn))
        scores = score(params, np.float32([1.0, np.nan]))
        with pytest.raises(ValueError, match="saliency is not finite in b; the loss"):
            masks.global_topk(scores, 0.5, masks.weights_and_biases)
