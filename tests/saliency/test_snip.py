"""Scores of SNIP against finite differences and closed forms."""

import functools
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import saliency
from tests.conftest import Network, flatten, nested_dict

pytestmark = pytest.mark.filterwarnings("error")

HALF = [jnp.bfloat16, jnp.float16]


def linear(params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
    """A loss whose derivative in connection c_j is w_j * x_j."""
    return sum(
        jnp.sum(w * v) for w, v in zip(jax.tree.leaves(params), jax.tree.leaves(x))
    )


def central_differences(
    loss_of_flat: Callable[[np.ndarray], Any], flat: np.ndarray
) -> np.ndarray:
    """The derivative in each connection: the loss at c_j = 1 + eps and 1 - eps."""
    eps = 1e-5
    derivative = np.zeros_like(flat)
    for j in range(flat.size):
        more, less = flat.copy(), flat.copy()
        more[j] *= 1 + eps
        less[j] *= 1 - eps
        derivative[j] = (loss_of_flat(more) - loss_of_flat(less)) / (2 * eps)
    return derivative


def unflatten(flat: chex.Array, like: chex.ArrayTree) -> chex.ArrayTree:
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    pieces = zip(jnp.split(flat, ends), leaves)
    return jax.tree.unflatten(treedef, [p.reshape(x.shape) for p, x in pieces])


# The sensitivity itself.


def test_snip_is_the_finite_difference_in_each_connection_in_numpy() -> None:
    loss_fn, params, batch = nested_dict()
    kernel, bias = params["hidden"]["kernel"], params["hidden"]["bias"]

    def loss_of_flat(flat: np.ndarray) -> np.float64:
        b, w, v = np.split(flat, [bias.size, bias.size + kernel.size])
        hidden = np.tanh(batch["x"].astype(np.float64) @ w.reshape(3, 4) + b)
        return np.mean((hidden @ v.reshape(4, 2) - batch["y"]) ** 2)

    derivative = central_differences(loss_of_flat, flatten(params).astype(np.float64))
    scores = saliency.snip(loss_fn, params, batch)
    expected = np.abs(derivative) / np.abs(derivative).sum()
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-4, atol=1e-7)
    signed = saliency.sensitivity(loss_fn, params, batch)
    np.testing.assert_allclose(flatten(signed), derivative, rtol=1e-4, atol=1e-6)


def test_snip_is_the_finite_difference_on_every_kind_of_pytree(
    network: Network,
) -> None:
    loss_fn, params, batch = network
    scores = saliency.snip(loss_fn, params, batch)
    chex.assert_trees_all_equal_shapes(scores, params)
    assert {s.dtype for s in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    assert flatten(scores).min() >= 0
    with jax.enable_x64(True):
        batch = jax.tree.map(np.float64, batch)
        loss_of_flat = jax.jit(lambda flat: loss_fn(unflatten(flat, params), batch))
        flat = flatten(params).astype(np.float64)
        magnitude = np.abs(central_differences(loss_of_flat, flat))
    np.testing.assert_allclose(
        flatten(scores), magnitude / magnitude.sum(), rtol=2e-4, atol=1e-7
    )


def test_a_shared_weight_adds_up_its_uses() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.sum(params["w"] * x) + 2 * jnp.sum(params["w"])

    signed = saliency.sensitivity(loss_fn, {"w": jnp.array([2.0, -1.0])}, 3.0)
    np.testing.assert_array_equal(signed["w"], [10.0, -5.0])


@pytest.mark.parametrize(
    ("params", "x", "expected"),
    [
        ([np.float32([0, 1])], [np.array([9, 1])], [0, 1]),  # a weight of zero
        ([np.ones((1, 2), "f4"), np.ones(1, "f4")], [np.zeros((1, 2)), 0], [0, 0, 0]),
        (
            [np.ones((0, 3), "f4"), np.ones(2, "f4")],
            [1.0, np.array([1, 3])],
            [0.25, 0.75],
        ),
        ([2.0, np.float64(6)], [1.0, 1.0], [0.25, 0.75]),  # numbers
        ([np.full(4, 3e38, "f4")], [1.0], [0.25] * 4),  # a sum that would overflow
        ([np.float32([1e-37, 3e-37])], [1.0], [0.25, 0.75]),
    ],
)
def test_scores_at_the_edges(params: Any, x: Any, expected: list[float]) -> None:
    scores = saliency.snip(linear, params, x)
    chex.assert_trees_all_equal_shapes(scores, jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-5)


def test_a_loss_without_parameters_gives_zeros() -> None:
    scores = saliency.snip(lambda params, batch: 1.5, {"w": jnp.ones(2)}, None)
    np.testing.assert_array_equal(scores["w"], [0.0, 0.0])


def test_non_finite_derivatives_stay_where_they_are() -> None:
    x = [np.array([1.0, np.nan, np.inf, -np.inf])]
    (scores,) = saliency.snip(linear, [jnp.array([1.0, 2.0, 3.0, 4.0])], x)
    np.testing.assert_array_equal(np.isfinite(scores), [True, False, False, False])


def test_a_million_equal_scores_sum_to_one() -> None:
    params = {"w": jnp.ones((1000, 1000))}
    scores = saliency.snip(linear, params, params)["w"]
    np.testing.assert_allclose(np.float64(scores).sum(), 1, rtol=1e-5)


# Precision.


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_params_have_float32_scores(dtype: Any) -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
        assert params["half"].dtype == dtype
        assert params["single"].dtype == jnp.float32
        return linear(params, x)

    # 1 + u squared is 1 + 2u + u**2, which only float32 can hold.
    u = float(jnp.finfo(dtype).eps)
    params = {"half": jnp.array([1 + u, 1.0], dtype), "single": jnp.ones(2)}
    signed = saliency.sensitivity(loss_fn, params, params)
    assert signed["half"].dtype == signed["single"].dtype == jnp.float32
    np.testing.assert_array_equal(signed["half"], np.float32([(1 + u) ** 2, 1.0]))


def test_a_half_precision_network_scores_as_in_float32(network: Network) -> None:
    loss_fn, params, batch = network
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    same = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    expected = flatten(saliency.snip(loss_fn, same, batch))
    scores = flatten(saliency.snip(loss_fn, half, batch))
    np.testing.assert_allclose(scores, expected, atol=0.05 * expected.max())


def test_double_precision_params_have_float32_scores() -> None:
    with jax.enable_x64(True):
        scores = saliency.snip(linear, {"w": jnp.array([1.0, 3.0])}, {"w": np.ones(2)})
        assert scores["w"].dtype == jnp.float32
        np.testing.assert_array_equal(scores["w"], [0.25, 0.75])


# Memory.


def deep(params: list[chex.Array], x: chex.Array) -> chex.Array:
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(x.astype(jnp.float32))


def square_layers(dtype: Any, count: int = 12, size: int = 128) -> list[chex.Array]:
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(k, (size, size), dtype) / size**0.5 for k in keys]


def extra_bytes(function: Callable, *args: Any, donated: int = 0) -> float:
    """The memory of a program beyond its arguments, less those it may overwrite."""
    memory = function.lower(*args).compile().memory_analysis()
    assert memory.alias_size_in_bytes == donated
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - donated


def test_scoring_takes_no_more_memory_than_a_training_step() -> None:
    params, x = square_layers(jnp.float32), jnp.ones((2, 128))
    size = sum(w.nbytes for w in params)
    score = jax.jit(functools.partial(saliency.snip, deep))
    # Beyond the gradient, which becomes the scores, nothing of the size of params.
    assert extra_bytes(score, params, x) < 1.3 * size

    def step(
        params: list[chex.Array], momentum: list[chex.Array], x: chex.Array
    ) -> Any:
        gradient = jax.grad(deep)(params, x)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        return jax.tree.map(lambda w, m: w - 0.1 * m, params, momentum), momentum

    training = jax.jit(step, donate_argnums=(0, 1))
    beyond_params = size + extra_bytes(training, params, params, x, donated=2 * size)
    assert extra_bytes(score, params, x) < 1.1 * beyond_params


def test_scores_held_in_bfloat16_are_the_float32_ones_rounded() -> None:
    params, x = square_layers(jnp.bfloat16, count=3), jnp.ones((2, 128), jnp.bfloat16)
    half = functools.partial(saliency.snip, deep, dtype=jnp.bfloat16)
    scores, expected = half(params, x), saliency.snip(deep, params, x)
    for actual, wide in zip(scores, expected):
        assert (actual.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
        # Rounded twice, by half a unit in the 8th bit; and the sum is of the rounded.
        np.testing.assert_allclose(np.float64(actual), np.float64(wide), rtol=2**-7)
    assert abs(sum(np.float64(s).sum() for s in scores) - 1) < 1e-3
    memory = jax.jit(half).lower(params, x).compile().memory_analysis()
    assert memory.output_size_in_bytes < 2.1 * sum(w.size for w in params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.int32, jnp.float64])
def test_scores_of_another_dtype(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype is .*, in which scores cannot be"):
        saliency.snip(linear, {"w": jnp.ones(2)}, {"w": jnp.ones(2)}, dtype=dtype)


@pytest.mark.parametrize(
    "policy", [None, jax.checkpoint_policies.dots_with_no_batch_dims_saveable]
)
def test_a_loss_that_computes_layers_again_has_the_same_scores(policy: Any) -> None:
    def layer(x: chex.Array, w: chex.Array) -> chex.Array:
        return jnp.tanh(x @ w)

    def again(params: list[chex.Array], x: chex.Array) -> chex.Array:
        for w in params:
            x = jax.checkpoint(layer, policy=policy)(x, w)
        return jnp.mean(x)

    params, x = square_layers(jnp.float32, count=3, size=16), jnp.ones((4, 16))
    expected = saliency.snip(deep, params, x)
    scores = saliency.snip(again, params, x)
    chex.assert_trees_all_close(scores, expected, rtol=1e-4, atol=1e-7)


# Transformations.


class TransformationsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_snip(self) -> None:
        snip = self.variant(functools.partial(saliency.snip, linear))
        scores = snip({"w": jnp.array([1.0, -3.0])}, {"w": jnp.ones(2)})
        np.testing.assert_array_equal(scores["w"], [0.25, 0.75])

    @chex.variants(with_jit=True, without_jit=True)
    def test_vmap_over_networks(self) -> None:
        snip = self.variant(jax.vmap(functools.partial(saliency.snip, linear)))
        w = np.float32([[1, -3], [2, 2], [5, 0]])
        scores = snip({"w": w}, {"w": np.ones((3, 2), np.float32)})
        expected = np.abs(w) / np.abs(w).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(scores["w"], expected, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_loss_that_closes_over_a_traced_value(self) -> None:
        def scores_of(x: chex.Array) -> chex.Array:
            return saliency.snip(
                lambda params, _: linear(params, {"w": x}), {"w": jnp.ones(2)}, 0.0
            )["w"]

        scores = self.variant(jax.vmap(scores_of))(jnp.array([[1.0, 3.0], [4.0, 4.0]]))
        np.testing.assert_array_equal(scores, [[0.25, 0.75], [0.5, 0.5]])

    @chex.variants(with_jit=True, without_jit=True)
    def test_random_keys_in_a_batch(self) -> None:
        def noisy(params: chex.ArrayTree, key: chex.PRNGKey) -> chex.Array:
            return jnp.sum(params["w"] * jax.random.normal(key, (2,)))

        signed = self.variant(functools.partial(saliency.sensitivity, noisy))(
            {"w": jnp.ones(2)}, jax.random.key(5)
        )
        expected = jax.random.normal(jax.random.key(5), (2,))
        np.testing.assert_allclose(signed["w"], expected, rtol=1e-6)


def test_snip_is_differentiable() -> None:
    def first_score(w: chex.Array) -> chex.Array:
        return saliency.snip(linear, {"w": w}, {"w": jnp.ones(2)})["w"][0]

    # d/dw of w0 / (w0 + w1) at (1, 3).
    gradient = jax.grad(first_score)(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(gradient, [3 / 16, -1 / 16], rtol=1e-5)


# Nothing of the loss is kept.


def test_a_method_of_an_object_that_changed_has_the_new_scores() -> None:
    class Task:
        weights = np.float32([1, 0])

        def loss(self, params: chex.ArrayTree, batch: None) -> chex.Array:
            return jnp.sum(self.weights * params["w"])

    task, params = Task(), {"w": jnp.ones(2)}
    assert saliency.snip(task.loss, params, None)["w"].tolist() == [1, 0]
    task.weights = np.float32([0, 1])
    assert saliency.snip(task.loss, params, None)["w"].tolist() == [0, 1]


def test_a_loss_need_not_be_hashable_and_is_let_go() -> None:
    class Loss:
        __hash__ = None

        def __call__(self, params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
            return linear(params, x)

    loss_fn = Loss()
    reference = weakref.ref(loss_fn)
    saliency.snip(loss_fn, {"w": jnp.ones(2)}, {"w": jnp.ones(2)})
    del loss_fn
    gc.collect()
    assert reference() is None


# Bad input.


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda w: w, r"loss_fn returned an array of shape \(3,\), not a scalar.*mean"),
        (lambda w: w[:1], r"shape \(1,\), not a scalar"),
        (lambda w: (jnp.sum(w), {}), "loss_fn returned a tuple; return the scalar"),
        (lambda w: None, "loss_fn returned a NoneType"),
        (lambda w: jnp.sum(w).astype(int), "dtype int32, which has no gradient"),
        (lambda w: jnp.sum(w) > 0, "dtype bool, which has no gradient"),
        (lambda w: jnp.sum(w) * 1j, "dtype complex64, which has no gradient"),
    ],
)
@pytest.mark.parametrize(
    "criterion",
    [
        saliency.snip,
        functools.partial(saliency.obd, key=jax.random.key(0)),
        saliency.obs,
    ],
)
def test_a_loss_that_is_no_floating_point_scalar(
    criterion: Any, loss: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        criterion(lambda params, x: loss(params["w"]), {"w": jnp.ones(3)}, 1.0)


@pytest.mark.parametrize(
    "criterion",
    [
        saliency.snip,
        saliency.magnitude,
        saliency.random,
        saliency.obd,
        saliency.obs,
    ],
)
@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        (jnp.arange(3), "params leaf 'layer/steps' has dtype int32.*split"),
        (jax.nn.gelu, "params leaf 'layer/steps' is a .*, not an array.*equinox"),
    ],
)
def test_leaves_without_gradient(criterion: Any, leaf: Any, problem: str) -> None:
    params = {"layer": {"steps": leaf, "w": jnp.ones(2)}}
    with pytest.raises(ValueError, match=problem):
        criterion(linear, params, 1.0, key=jax.random.key(0))


# What importing it costs.


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import snipjax; snipjax.saliency.snip", {"optax", "flax"}),
        ("from snipjax import masks, optim, pruning, saliency", {"flax"}),
        ("import snipjax", {"jax"}),
    ],
)
def test_the_core_loads_no_framework_and_warns_of_nothing(
    statement: str, unwanted: set[str]
) -> None:
    heavy = {"tensorflow_datasets", "orbax", "matplotlib", "pandas", *unwanted}
    script = f"import sys; {statement}; sys.exit(', '.join({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{script or 0}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert not done.stderr.strip()
