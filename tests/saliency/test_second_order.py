"""Criteria of curvature against jax.hessian and brute force on small networks."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Network, batch_of, nested_dict
from jax.flatten_util import ravel_pytree

from snipjax import masks, pruning, saliency
from snipjax.saliency import second_order

pytestmark = pytest.mark.filterwarnings("error")

HALF = [jnp.bfloat16, jnp.float16]
KEY = jax.random.key(0)
CRITERIA = {
    "obd": saliency.obd(KEY),
    "exact obd": saliency.obd(KEY, num_samples=None),
    "obs": saliency.obs(),
    "obs per leaf": saliency.obs(per_leaf=True),
}
every_criterion = pytest.mark.parametrize(
    "criterion", CRITERIA.values(), ids=CRITERIA.keys()
)
both = pytest.mark.parametrize(
    "criterion", [CRITERIA["obd"], CRITERIA["obs"]], ids=["obd", "obs"]
)
X = np.float32([[2, 1, 0], [1, 3, 1], [0, 1, 1]])


def flatten(tree: chex.ArrayTree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


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


def stacked(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


# What they are.


@pytest.mark.slow
def test_against_the_hessian_on_every_kind_of_pytree(network: Network) -> None:
    loss_fn, params, batch = network
    matrix, w = hessian(loss_fn, params, batch), flatten(params).astype(np.float64)
    sizes = [x.size for x in jax.tree.leaves(params)]
    leaf = np.repeat(np.arange(len(sizes)), sizes)
    block_diagonal = np.where(leaf[:, None] == leaf, matrix, 0.0)
    damping = 0.01
    expected = {
        saliency.obd(KEY, num_samples=None): w**2 * np.diag(matrix) / 2,
        saliency.obs(damping=damping): w**2 / (2 * np.diag(inverse(matrix, damping))),
        saliency.obs(damping=damping, per_leaf=True): w**2
        / (2 * np.diag(inverse(block_diagonal, damping))),
    }
    for criterion, values in expected.items():
        scores = criterion(loss_fn, params, batch)
        chex.assert_trees_all_equal_structs(scores, params)
        for score, param in zip(jax.tree.leaves(scores), jax.tree.leaves(params)):
            assert score.dtype == jnp.float32
            assert score.shape == param.shape
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
    diagonal = second_order.hessian_diagonal(
        loss_fn, params, batch, key=KEY, num_samples=samples
    )
    variance = (matrix**2).sum(axis=1) - np.diag(matrix) ** 2
    error = flatten(diagonal) - np.diag(matrix)
    assert np.all(np.abs(error) < 5 * np.sqrt(variance / samples) + 1e-5)
    # And is not better than that, as it would be if it were computed otherwise.
    normalized = error**2 / (variance / samples)
    assert 0.4 < normalized.mean() < 2.5


def test_the_estimate_is_exact_where_the_hessian_is_diagonal() -> None:
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
    x = {"a": np.float32([4, 5]), "b": np.float32([[6]])}
    scores = saliency.obd(KEY, num_samples=1)(diagonal_quadratic, params, x)
    np.testing.assert_array_equal(flatten(scores), [2, 10, 27])


def test_negative_curvature_gives_a_negative_score() -> None:
    scores = saliency.obd(KEY)(diagonal_quadratic, [jnp.array([2.0])], [-3.0])
    np.testing.assert_array_equal(flatten(scores), [-6.0])


def test_the_surgeon_finds_what_removal_costs_if_the_others_make_up_for_it() -> None:
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
    w = flatten(params).astype(np.float64)
    scores = flatten(saliency.obs(damping=1e-7)(quadratic, params, X))
    expected = np.zeros(3)
    for q in range(3):
        rest = np.delete(np.arange(3), q)
        # Minimise over the changes of the others, that of q being -w_q.
        change = np.zeros(3)
        change[q] = -w[q]
        change[rest] = np.linalg.solve(X[np.ix_(rest, rest)], X[rest, q] * w[q])
        expected[q] = 0.5 * change @ X @ change
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_without_interaction_the_surgeon_agrees_with_brain_damage() -> None:
    params, x = [jnp.array([1.0, 2.0, -3.0])], [np.float32([4, 1, 2])]
    surgeon = saliency.obs(damping=1e-7)(diagonal_quadratic, params, x)
    damage = saliency.obd(KEY)(diagonal_quadratic, params, x)
    np.testing.assert_allclose(surgeon[0], damage[0], rtol=1e-5)


@both
def test_a_zero_weight_has_no_saliency(criterion: Any) -> None:
    scores = criterion(quadratic, {"w": jnp.array([0.0, 1.0, 2.0])}, X)["w"]
    assert scores[0] == 0.0
    assert np.all(np.asarray(scores[1:]) != 0.0)


@every_criterion
def test_odd_leaves(criterion: Any) -> None:
    scores = criterion(quadratic, {"a": jnp.ones((0, 3)), "b": jnp.ones(3)}, X)
    assert scores["a"].shape == (0, 3)
    assert criterion(quadratic, [2.0, np.float64(6), np.float32(1)], X)[0].shape == ()
    scores = criterion(lambda params, batch: 1.5, {"w": jnp.ones(2)}, None)
    assert np.abs(scores["w"]).max() < 1e-3
    assert criterion(lambda params, batch: 1.5, {}, None) == {}


# Numbers.


@both
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_params_have_float32_scores(criterion: Any, dtype: Any) -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        assert params["w"].dtype == dtype
        return quadratic(params, x)

    # 1 + u squared is 1 + 2u + u**2, which only float32 can hold.
    u = float(jnp.finfo(dtype).eps)
    scores = criterion(loss_fn, {"w": jnp.array([1 + u, 1, 2], dtype)}, X)["w"]
    single = criterion(quadratic, {"w": jnp.array([1 + u, 1, 2], jnp.float32)}, X)["w"]
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, single, rtol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_batches_add_up_in_float32(dtype: Any) -> None:
    params = [jnp.ones(4, dtype)]
    x = np.random.default_rng(0).normal(1, 1, size=(256, 4)).astype(dtype)
    expected = 0.5 * x.astype(np.float64).mean(axis=0)
    criterion = saliency.obd(KEY, num_samples=1)

    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return diagonal_quadratic(params, [x])

    np.testing.assert_allclose(
        criterion(loss_fn, params, iter(x))[0], expected, rtol=1e-5
    )
    stack = criterion(saliency.MeanLoss(loss_fn), params, x)
    np.testing.assert_allclose(stack[0], expected, rtol=1e-5)


@both
def test_double_precision_params_have_float32_scores(criterion: Any) -> None:
    with jax.enable_x64(True):
        scores = criterion(quadratic, {"w": jnp.array([1.0, 3.0, 2.0])}, X)
        assert scores["w"].dtype == jnp.float32


# Several batches.


@pytest.mark.parametrize("name", ["exact obd", "obs", "obs per leaf"])
def test_batches_one_by_one_are_one_large_batch(name: str) -> None:
    loss_fn, params, _ = nested_dict()
    batches = [batch_of(5, seed) for seed in range(3)]
    large = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    expected = CRITERIA[name](loss_fn, params, large)
    for scores in (
        CRITERIA[name](loss_fn, params, iter(batches)),
        CRITERIA[name](saliency.MeanLoss(loss_fn), params, stacked(batches)),
    ):
        chex.assert_trees_all_close(scores, expected, rtol=1e-3, atol=1e-5)


@both
def test_an_iterator_and_a_stack_of_the_same_batches_agree(criterion: Any) -> None:
    loss_fn, params, _ = nested_dict()
    batches = [batch_of(5, seed) for seed in range(3)]
    one_by_one = criterion(loss_fn, params, iter(batches))
    along_axis = criterion(saliency.MeanLoss(loss_fn), params, stacked(batches))
    chex.assert_trees_all_close(one_by_one, along_axis, rtol=1e-3, atol=1e-5)


def test_every_batch_has_its_own_signs_and_a_single_one_those_of_the_first() -> None:
    params, criterion = {"w": jnp.array([1.0, -2.0, 1.0])}, saliency.obd(KEY)
    once = criterion(quadratic, params, X)["w"]
    np.testing.assert_array_equal(criterion(quadratic, params, iter([X]))["w"], once)
    twice = criterion(quadratic, params, iter([X, X]))["w"]
    assert np.abs(once - twice).max() > 1e-3


# Transformations.


@both
def test_under_jit_and_vmap(criterion: Any) -> None:
    ws = np.float32([[1, -3, 1], [2, 2, 0.5]])

    def scores_of(w: chex.Array) -> chex.Array:
        return criterion(quadratic, {"w": w}, X)["w"]

    expected = np.stack([scores_of(w) for w in ws])
    np.testing.assert_allclose(jax.jit(scores_of)(ws[0]), expected[0], rtol=1e-4)
    np.testing.assert_allclose(jax.vmap(scores_of)(ws), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.vmap(scores_of))(ws), expected, rtol=1e-4)


def test_vmap_over_keys() -> None:
    params = {"w": jnp.array([1.0, -2.0, 1.0])}

    def scores_of(key: chex.PRNGKey) -> chex.Array:
        return saliency.obd(key)(quadratic, params, X)["w"]

    scores = jax.vmap(scores_of)(jax.random.split(KEY, 3))
    assert len(np.unique(scores[:, 0])) > 1
    old_style = saliency.obd(jax.random.PRNGKey(0))(quadratic, params, X)["w"]
    np.testing.assert_array_equal(old_style, scores_of(KEY))


@both
def test_a_loss_that_closes_over_a_traced_value(criterion: Any) -> None:
    def scores_of(x: chex.Array) -> chex.Array:
        return criterion(lambda p, _: quadratic(p, x), {"w": jnp.ones(3)}, 0.0)["w"]

    expected = criterion(quadratic, {"w": jnp.ones(3)}, X)["w"]
    np.testing.assert_allclose(jax.jit(scores_of)(X), expected, rtol=1e-5)


@both
def test_the_same_loss_function_is_traced_once(criterion: Any) -> None:
    traces = []

    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        traces.append(1)
        return quadratic(params, x)

    for scale in (1.0, 2.0, 3.0):
        criterion(loss_fn, {"w": jnp.full(3, scale)}, X)
    assert len(traces) == 1


def test_loss_functions_are_let_go_in_the_end() -> None:
    class Data:
        value = 2.0

    def use_once() -> weakref.ref:
        data = Data()
        criterion = saliency.obd(KEY, num_samples=1)
        jax.eval_shape(
            lambda w: criterion(lambda p, x: quadratic(p, x) * data.value, [w], X),
            jnp.ones(3),
        )
        return weakref.ref(data)

    references = [use_once() for _ in range(40)]
    gc.collect()
    assert sum(r() is not None for r in references) <= 20


@both
def test_params_and_batch_are_not_donated(criterion: Any) -> None:
    params, batch = {"w": jnp.ones(3)}, jnp.asarray(X)
    criterion(quadratic, params, iter([batch, batch]))
    assert not params["w"].is_deleted()
    assert not batch.is_deleted()


# In pruning.


@both
@pytest.mark.parametrize("num_batches", [None, 2])
def test_as_a_criterion_of_pruning(criterion: Any, num_batches: int | None) -> None:
    loss_fn, params, batch = nested_dict()
    if num_batches:
        batch = stacked([batch, batch_of(5, 1)])
    pruned, mask = pruning.prune(
        loss_fn,
        params,
        batch,
        0.5,
        criterion=criterion,
        num_batches=num_batches,
        rounds=2,
    )
    assert masks.sparsity(mask) == 0.5
    chex.assert_trees_all_equal(pruned, masks.apply(mask, params))


# What bad input gets.


@both
def test_what_is_no_array_batch_or_loss(criterion: Any) -> None:
    params = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"leaf 'steps' has dtype int32.*split"):
        criterion(quadratic, {"steps": jnp.arange(3), **params}, X)
    with pytest.raises(ValueError, match=r"an array of shape \(3,\), not a scalar"):
        criterion(lambda params, x: params["w"], params, X)
    with pytest.raises(ValueError, match="loss_fn returned a tuple"):
        criterion(lambda params, x: (quadratic(params, x), 1), params, X)
    with pytest.raises(ValueError, match="not a scalar"):
        criterion(saliency.MeanLoss(lambda p, x: p["w"]), params, X[None])
    with pytest.raises(ValueError, match=r"yields nothing.*at least one batch"):
        criterion(quadratic, params, iter([]))

    class Loader:
        def __iter__(self) -> Iterator[chex.Array]:
            return iter([X])

    with pytest.raises(ValueError, match=r"is a Loader, not an array.*iter\(loader\)"):
        criterion(quadratic, params, Loader())

    class Loss:
        __hash__ = None

        def __call__(self, params: chex.ArrayTree, batch: Any) -> chex.Array:
            return quadratic(params, batch)

    with pytest.raises(ValueError, match=r"Loss, is not hashable.*wrap it"):
        criterion(Loss(), params, X)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: saliency.obd(KEY, num_samples=0), "num_samples is 0.*at least 1"),
        (lambda: saliency.obd(KEY, num_samples=1.5), "num_samples is 1.5"),
        (lambda: saliency.obd(KEY, num_samples=True), "num_samples is True"),
        (lambda: saliency.obs(damping=0.0), "damping is 0.0; it must be a positive"),
        (lambda: saliency.obs(damping=float("nan")), "damping is nan"),
        (lambda: saliency.obs(damping=float("inf")), "damping is inf"),
        (lambda: saliency.obs(max_size=0), "max_size is 0"),
    ],
)
def test_hyperparameters_out_of_range(make: Callable, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


def test_a_hessian_that_is_too_large_names_the_leaf_and_the_remedy() -> None:
    params = {"a": jnp.ones(2), "kernel": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"8 parameters.*'kernel'.*per_leaf=True"):
        saliency.obs(max_size=7)(None, params, None)
    with pytest.raises(ValueError, match=r"'kernel' has 6 .*saliency.obd.*max_size"):
        saliency.obs(max_size=5, per_leaf=True)(None, params, None)


def test_a_curvature_that_is_not_finite_is_named_by_selection() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.sum(params["a"] ** 2) + jnp.sum(x * params["b"] ** 2)

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    for criterion in (saliency.obd(KEY), saliency.obs(per_leaf=True)):
        with pytest.raises(ValueError, match="saliency is not finite in b; the loss"):
            pruning.prune(
                loss_fn,
                params,
                jnp.array([1.0, jnp.nan]),
                0.5,
                criterion=criterion,
                prunable=masks.weights_and_biases,
            )


def test_they_load_no_framework() -> None:
    script = """
import sys
from snipjax.saliency import obd, obs
heavy = {"flax", "tensorflow_datasets", "orbax", "matplotlib", "tensorflow", "optax"}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    repository = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], cwd=repository, check=True)
