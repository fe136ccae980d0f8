"""Scores against finite differences and closed forms, never against themselves."""

import functools
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
from flax import nnx

from snipjax import saliency

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


def flatten(tree: chex.ArrayTree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


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
    chex.assert_trees_all_equal_structs(scores, params)
    assert [s.shape for s in jax.tree.leaves(scores)] == [
        w.shape for w in jax.tree.leaves(params)
    ]
    with jax.enable_x64(True):
        batch = jax.tree.map(np.float64, batch)
        loss_of_flat = jax.jit(lambda flat: loss_fn(unflatten(flat, params), batch))
        flat = flatten(params).astype(np.float64)
        magnitude = np.abs(central_differences(loss_of_flat, flat))
    np.testing.assert_allclose(
        flatten(scores), magnitude / magnitude.sum(), rtol=2e-4, atol=1e-7
    )


def test_scores_are_float32_non_negative_and_sum_to_one(network: Network) -> None:
    scores = saliency.snip(*network)
    chex.assert_trees_all_equal_dtypes(
        scores, jax.tree.map(np.float32, jax.tree.map(np.zeros_like, scores))
    )
    assert flatten(scores).min() >= 0
    np.testing.assert_allclose(flatten(scores).sum(dtype=np.float64), 1, rtol=1e-6)


def test_a_shared_weight_adds_up_its_uses() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.sum(params["w"] * x) + 2 * jnp.sum(params["w"])

    signed = saliency.sensitivity(loss_fn, {"w": jnp.array([2.0, -1.0])}, 3.0)
    np.testing.assert_array_equal(signed["w"], [10.0, -5.0])


def test_a_zero_weight_has_no_saliency_however_large_its_gradient() -> None:
    scores = saliency.snip(
        linear, {"w": jnp.array([0.0, 1.0])}, {"w": np.array([9, 1])}
    )
    np.testing.assert_array_equal(scores["w"], [0.0, 1.0])


def test_where_every_derivative_is_zero_so_are_the_scores() -> None:
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    scores = saliency.snip(linear, params, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(scores, jax.tree.map(np.zeros_like, params))


def test_a_loss_without_parameters_gives_zeros() -> None:
    scores = saliency.snip(lambda params, batch: 1.5, {"w": jnp.ones(2)}, None)
    np.testing.assert_array_equal(scores["w"], [0.0, 0.0])


def test_an_empty_leaf_is_no_obstacle() -> None:
    params = {"a": jnp.ones((0, 3)), "b": jnp.ones(2)}
    scores = saliency.snip(
        linear, params, {"a": np.ones((0, 3)), "b": np.array([1, 3])}
    )
    assert scores["a"].shape == (0, 3)
    np.testing.assert_array_equal(scores["b"], [0.25, 0.75])


def test_python_and_numpy_numbers_are_params_too() -> None:
    scores = saliency.snip(linear, [2.0, np.float64(6)], [1.0, 1.0])
    np.testing.assert_array_equal(flatten(scores), [0.25, 0.75])


# Numbers: half precision and the ends of the range.


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_params_have_float32_scores(dtype: Any) -> None:
    # 1 + u squared is 1 + 2u + u**2, which only float32 can hold.
    u = float(jnp.finfo(dtype).eps)
    params = {"w": jnp.array([1 + u, 1.0], dtype)}
    signed = saliency.sensitivity(linear, params, params)["w"]
    assert signed.dtype == jnp.float32
    np.testing.assert_array_equal(signed, np.float32([(1 + u) ** 2, 1.0]))


@pytest.mark.parametrize("dtype", HALF)
def test_the_loss_sees_params_in_their_own_dtype(dtype: Any) -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        assert params["half"].dtype == dtype
        assert params["single"].dtype == jnp.float32
        return jnp.sum(params["half"]) + jnp.sum(params["single"])

    params = {"half": jnp.ones(2, dtype), "single": jnp.ones(2)}
    scores = saliency.snip(loss_fn, params, 0.0)
    assert {x.dtype for x in jax.tree.leaves(scores)} == {jnp.dtype("float32")}


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


def test_the_sum_does_not_overflow() -> None:
    params = {"w": jnp.full(1000, 3e38)}
    scores = saliency.snip(linear, params, {"w": np.ones(1000)})
    np.testing.assert_allclose(scores["w"], 1e-3, rtol=1e-5)


def test_small_derivatives_are_scaled_up() -> None:
    params = {"w": jnp.array([1e-37, 3e-37])}
    scores = saliency.snip(linear, params, {"w": np.ones(2)})
    np.testing.assert_allclose(scores["w"], [0.25, 0.75], rtol=1e-6)


def test_non_finite_derivatives_stay_where_they_are() -> None:
    params = {"a": jnp.array([1.0, 2.0, 3.0, 4.0])}
    x = {"a": np.array([1.0, np.nan, np.inf, -np.inf])}
    scores = saliency.snip(linear, params, x)["a"]
    np.testing.assert_array_equal(np.isfinite(scores), [True, False, False, False])


def test_a_million_equal_scores_sum_to_one() -> None:
    params = {"w": jnp.ones((1000, 1000))}
    scores = saliency.snip(linear, params, params)["w"]
    np.testing.assert_allclose(np.float64(scores).sum(), 1, rtol=1e-5)


# Several batches.


def batches_of(count: int) -> list[dict[str, np.ndarray]]:
    return [batch_of(5, seed) for seed in range(count)]


def stacked(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def test_the_gradient_is_averaged_before_its_absolute_value() -> None:
    params = {"w": jnp.array([1.0, 2.0, -4.0])}
    batches = [{"w": np.float32([1, -1, 3])}, {"w": np.float32([1, 1, -2])}]
    # Averages of x: 1, 0, 0.5. So w * x averages to 1, 0, -2.
    signed = saliency.sensitivity(linear, params, iter(batches))["w"]
    np.testing.assert_array_equal(signed, [1.0, 0.0, -2.0])
    expected = np.float32([1, 0, 2]) / 3
    scores = saliency.snip(linear, params, iter(batches))["w"]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    mean_loss = saliency.MeanLoss(linear)
    scores = saliency.snip(mean_loss, params, stacked(batches))["w"]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_batches_one_by_one_are_one_large_batch() -> None:
    loss_fn, params, _ = nested_dict()
    batches = batches_of(4)
    large = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    expected = saliency.sensitivity(loss_fn, params, large)
    one_by_one = saliency.sensitivity(loss_fn, params, iter(batches))
    chex.assert_trees_all_close(one_by_one, expected, rtol=1e-4, atol=1e-6)
    along_axis = saliency.sensitivity(
        saliency.MeanLoss(loss_fn), params, stacked(batches)
    )
    chex.assert_trees_all_close(along_axis, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_batches_add_up_in_float32(dtype: Any) -> None:
    params = {"w": jnp.ones(4, dtype)}
    x = np.random.default_rng(0).normal(1, 1, size=(256, 4)).astype(dtype)
    expected = x.astype(np.float64).mean(axis=0)
    signed = saliency.sensitivity(linear, params, iter(x))
    np.testing.assert_allclose(signed["w"], expected, rtol=1e-5)
    signed = saliency.sensitivity(saliency.MeanLoss(linear), params, x)
    np.testing.assert_allclose(signed["w"], expected, rtol=1e-5)
    # And for a criterion of one's own, which takes the gradient in the params.
    gradient = jax.grad(saliency.MeanLoss(linear))(params, x)["w"]
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(gradient), expected, rtol=eps)


def test_leaves_the_loss_ignores_do_not_disturb_an_iterator() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "w": jnp.ones(2)}
    signed = saliency.sensitivity(lambda p, x: linear(p["w"], x), params, iter([1, 2]))
    chex.assert_trees_all_equal(
        signed, {"a": np.zeros(2), "b": np.zeros(2), "w": np.full(2, 1.5)}
    )


def test_an_iterator_is_read_once_and_one_batch_at_a_time() -> None:
    alive: list[weakref.ref] = []

    def batches() -> Iterator[np.ndarray]:
        for _ in range(8):
            batch = np.ones(2)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            # The loop that consumes them may hold the last one.
            assert sum(r() is not None for r in alive) <= 1

    saliency.snip(linear, {"w": jnp.ones(2)}, batches())
    assert len(alive) == 8


def temporary_bytes(function: Callable, *args: Any) -> int:
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    params = [jnp.ones((16, 256)), jnp.ones((256, 256)), jnp.ones((256, 1))]

    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.mean(x)

    def scores(params: chex.ArrayTree, batches: chex.Array) -> chex.ArrayTree:
        return saliency.snip(saliency.MeanLoss(loss_fn), params, batches)

    def at_once(params: chex.ArrayTree, batches: chex.Array) -> chex.ArrayTree:
        return saliency.snip(loss_fn, params, batches.reshape(-1, 16))

    few, many = jnp.ones((2, 64, 16)), jnp.ones((64, 64, 16))
    assert temporary_bytes(scores, params, many) <= 1.01 * temporary_bytes(
        scores, params, few
    )
    assert temporary_bytes(at_once, params, many) > 5 * temporary_bytes(
        at_once, params, few
    )
    gradient = jax.grad(saliency.MeanLoss(loss_fn))
    assert temporary_bytes(gradient, params, many) <= 1.01 * temporary_bytes(
        gradient, params, few
    )


# Memory: besides the params, one array of the scores' dtype for each of them.


def deep(params: list[chex.Array], x: chex.Array) -> chex.Array:
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(x.astype(jnp.float32))


def square_layers(dtype: Any, count: int = 12, size: int = 128) -> list[chex.Array]:
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(k, (size, size), dtype) / size**0.5 for k in keys]


def extra_bytes(function: Callable, *args: Any, donated: int = 0) -> float:
    """What a program holds beyond its arguments, less those it may overwrite."""
    compiled = function.lower(*args).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == donated
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - donated


def test_scoring_takes_no_more_memory_than_a_training_step() -> None:
    params, x = square_layers(jnp.float32), jnp.ones((2, 128))
    size = sum(w.nbytes for w in params)
    score = saliency._compiled_sensitivity(deep, jnp.dtype(jnp.float32))
    assert extra_bytes(score, params, x) < 1.3 * size
    # What normalises then has the derivative alone, and writes the scores over it.
    assert extra_bytes(saliency._divisors, params) < 0.3 * size
    one = jnp.float32(1)
    over = saliency._in_place_magnitude_over
    assert extra_bytes(over, params, one, one, one, donated=size) < 0.1 * size

    def step(
        params: list[chex.Array], momentum: list[chex.Array], x: chex.Array
    ) -> Any:
        gradient = jax.grad(deep)(params, x)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        return jax.tree.map(lambda w, m: w - 0.1 * m, params, momentum), momentum

    training = jax.jit(step, donate_argnums=(0, 1))
    beyond_params = size + extra_bytes(training, params, params, x, donated=2 * size)
    assert extra_bytes(score, params, x) < 1.1 * beyond_params


def test_batches_of_an_iterator_are_added_in_place() -> None:
    params, x = square_layers(jnp.float32), jnp.ones((2, 128))
    size = sum(w.nbytes for w in params)
    add = saliency._compiled_addition(deep)
    assert extra_bytes(add, params, params, x, donated=size) < 0.6 * size


def test_scores_held_in_bfloat16_are_the_float32_ones_rounded() -> None:
    params, x = square_layers(jnp.bfloat16, count=3), jnp.ones((2, 128), jnp.bfloat16)
    scores = saliency.snip(deep, params, x, dtype=jnp.bfloat16)
    expected = saliency.snip(deep, params, x)
    for actual, wide in zip(scores, expected):
        assert (actual.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
        # Rounded twice, by half a unit in the 8th bit; and the sum is of the rounded.
        np.testing.assert_allclose(np.float64(actual), np.float64(wide), rtol=2**-7)
    assert abs(sum(np.float64(s).sum() for s in scores) - 1) < 1e-3
    single = saliency._compiled_sensitivity(deep, jnp.dtype(jnp.float32))
    half = saliency._compiled_sensitivity(deep, jnp.dtype(jnp.bfloat16))
    outputs = [
        f.lower(params, x).compile().memory_analysis().output_size_in_bytes
        for f in (single, half)
    ]
    assert outputs[1] < 0.51 * outputs[0]


@pytest.mark.parametrize("many", [iter, stacked])
def test_several_batches_in_bfloat16(many: Callable) -> None:
    params = {"w": jnp.array([1.0, 2.0, -4.0])}
    batches = [{"w": np.float32([1, -1, 3])}, {"w": np.float32([1, 1, -2])}]
    loss_fn = linear if many is iter else saliency.MeanLoss(linear)
    signed = saliency.sensitivity(loss_fn, params, many(batches), dtype=jnp.bfloat16)
    assert signed["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(signed["w"]), [1.0, 0.0, -2.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.int32, jnp.float64])
def test_scores_of_another_dtype(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype is .*, in which scores cannot be"):
        saliency.snip(linear, {"w": jnp.ones(2)}, {"w": jnp.ones(2)}, dtype=dtype)


@pytest.mark.parametrize(
    "policy",
    [
        None,
        jax.checkpoint_policies.everything_saveable,
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ],
)
def test_a_loss_that_computes_layers_again_has_the_same_scores(policy: Any) -> None:
    def layer(x: chex.Array, w: chex.Array) -> chex.Array:
        return jnp.tanh(x @ w)

    def again(params: list[chex.Array], x: chex.Array) -> chex.Array:
        for w in params:
            x = jax.checkpoint(layer, policy=policy)(x, w)
        return jnp.mean(x)

    params, x = square_layers(jnp.float32, count=3, size=16), jnp.ones((4, 16))
    derivative = central_differences(
        lambda flat: numpy_deep(np.split(flat, 3), x), flatten(params).astype("f8")
    )
    expected = np.abs(derivative) / np.abs(derivative).sum()
    scores = flatten(saliency.snip(again, params, x))
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-7)


def numpy_deep(flat_layers: list[np.ndarray], x: chex.Array) -> np.float64:
    x = np.asarray(x, np.float64)
    for w in flat_layers:
        x = np.tanh(x @ w.reshape(x.shape[1], -1))
    return np.mean(x)


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
    def test_iterator_of_traced_batches(self) -> None:
        def scores_of(x: chex.Array, y: chex.Array) -> chex.Array:
            return saliency.snip(linear, {"w": jnp.ones(2)}, iter([x, y]))["w"]

        scores = self.variant(scores_of)(jnp.array([1.0, 6.0]), jnp.array([1.0, 0.0]))
        np.testing.assert_array_equal(scores, [0.25, 0.75])

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


# Compilation.


def test_the_same_loss_function_is_traced_once() -> None:
    traces = []

    def loss_fn(params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
        traces.append(1)
        return linear(params, x)

    for scale in (1.0, 2.0, 3.0):
        saliency.snip(loss_fn, {"w": jnp.full(2, scale)}, {"w": jnp.ones(2)})
    assert len(traces) == 1
    stack = {"w": jnp.ones((4, 2))}
    for _ in range(3):
        saliency.snip(saliency.MeanLoss(loss_fn), {"w": jnp.ones(2)}, stack)
    assert len(traces) == 2


def test_loss_functions_are_let_go_in_the_end() -> None:
    class Data:
        value = 2.0

    def use_once() -> weakref.ref:
        data = Data()
        jax.eval_shape(
            lambda w: saliency.snip(lambda p, x: linear(p, x) * data.value, [w], [1.0]),
            jnp.ones(2),
        )
        return weakref.ref(data)

    references = [use_once() for _ in range(40)]
    gc.collect()
    assert sum(r() is not None for r in references) <= 20


def test_params_and_batch_are_not_donated() -> None:
    params, batch = {"w": jnp.ones(2)}, {"w": jnp.ones(2)}
    saliency.snip(linear, params, iter([batch, batch]))
    saliency.magnitude(None, params, None)
    assert not params["w"].is_deleted()
    assert not batch["w"].is_deleted()


# The other criteria.


def test_magnitude_is_the_absolute_value_in_float32(network: Network) -> None:
    scores = saliency.magnitude(None, network.params, None)
    chex.assert_trees_all_equal(scores, jax.tree.map(np.abs, network.params))
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), network.params)
    scores = saliency.magnitude(None, half, None)
    chex.assert_trees_all_equal(
        scores, jax.tree.map(lambda w: np.abs(np.float32(w)), half)
    )


def test_random_scores_are_uniform() -> None:
    params = {"w": jnp.zeros((100, 200)), "b": jnp.zeros(20_000)}
    scores = saliency.random(jax.random.key(0))(None, params, None)
    for leaf in jax.tree.leaves(scores):
        ordered = np.sort(np.ravel(leaf))
        uniform = np.arange(ordered.size) / ordered.size
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand draws.
        assert np.abs(ordered - uniform).max() < 1.95 / np.sqrt(ordered.size)
        assert ordered[0] >= 0
        assert ordered[-1] < 1


def test_random_scores_depend_on_the_key_and_on_the_leaf() -> None:
    params = {"a": jnp.zeros(64), "b": jnp.zeros(64, jnp.bfloat16)}

    def scores(seed: int) -> dict[str, chex.Array]:
        return saliency.random(jax.random.key(seed))(None, params, None)

    chex.assert_trees_all_equal(scores(0), scores(0))
    assert not np.isin(scores(0)["a"], scores(1)["a"]).any()
    assert not np.isin(scores(0)["a"], scores(0)["b"]).any()
    assert scores(0)["b"].dtype == jnp.float32


def test_random_scores_take_an_old_style_key_and_any_pytree(network: Network) -> None:
    scores = saliency.random(jax.random.PRNGKey(0))(None, network.params, None)
    chex.assert_trees_all_equal_structs(scores, network.params)


# What bad input gets.


def snip_of(loss: Any) -> chex.ArrayTree:
    return saliency.snip(lambda params, x: loss(params["w"]), {"w": jnp.ones(3)}, 1.0)


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda w: w, r"loss_fn returned an array of shape \(3,\), not a scalar.*mean"),
        (lambda w: w[:1], r"shape \(1,\), not a scalar"),
        (lambda w: (jnp.sum(w), {}), "loss_fn returned a tuple; return the scalar"),
        (lambda w: {"loss": jnp.sum(w)}, "loss_fn returned a dict"),
        (lambda w: None, "loss_fn returned a NoneType"),
        (lambda w: jnp.sum(w).astype(int), "dtype int32, which has no gradient"),
        (lambda w: jnp.sum(w) > 0, "dtype bool, which has no gradient"),
        (lambda w: jnp.sum(w) * 1j, "dtype complex64, which has no gradient"),
    ],
)
def test_a_loss_that_is_no_floating_point_scalar(loss: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        snip_of(loss)
    mean_loss = saliency.MeanLoss(lambda params, x: loss(params["w"]))
    with pytest.raises(ValueError, match=problem):
        saliency.snip(mean_loss, {"w": jnp.ones(3)}, jnp.ones(2))
    with pytest.raises(ValueError, match=problem):
        mean_loss({"w": jnp.ones(3)}, jnp.ones(2))


CRITERIA = {
    "snip": saliency.snip,
    "magnitude": saliency.magnitude,
    "random": saliency.random(jax.random.key(0)),
}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA.keys())
@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        (jnp.arange(3), "params leaf 'layer/steps' has dtype int32.*split"),
        (jax.nn.gelu, "params leaf 'layer/steps' is a .*, not an array.*equinox"),
        ("SAME", "params leaf 'layer/steps' is a str, not an array"),
        (jax.random.key(0), "params leaf 'layer/steps' has dtype key"),
    ],
)
def test_leaves_without_gradient(criterion: Any, leaf: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        criterion(linear, {"layer": {"steps": leaf, "w": jnp.ones(2)}}, 1.0)


def test_random_state_among_nnx_state_is_named() -> None:
    state = nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="no gradient; split the trainable"):
        saliency.magnitude(None, state, None)


def test_an_empty_iterator() -> None:
    with pytest.raises(ValueError, match=r"yields nothing.*at least one batch"):
        saliency.snip(linear, {"w": jnp.ones(2)}, iter([]))


def test_an_iterator_that_was_read_before() -> None:
    batches = iter([{"w": jnp.ones(2)}])
    saliency.snip(linear, {"w": jnp.ones(2)}, batches)
    with pytest.raises(ValueError, match="read only once"):
        saliency.snip(linear, {"w": jnp.ones(2)}, batches)


def test_a_data_loader_instead_of_its_iterator() -> None:
    class Loader:
        def __iter__(self) -> Iterator[dict[str, chex.Array]]:
            return iter([{"w": jnp.ones(2)}])

    with pytest.raises(ValueError, match=r"is a Loader, not an array.*iter\(loader\)"):
        saliency.snip(linear, {"w": jnp.ones(2)}, Loader())
    saliency.snip(linear, {"w": jnp.ones(2)}, iter(Loader()))


def test_a_loss_function_that_cannot_be_hashed() -> None:
    class Loss:
        __hash__ = None

        def __call__(self, params: chex.ArrayTree, batch: Any) -> chex.Array:
            return linear(params, batch)

    with pytest.raises(ValueError, match=r"Loss, is not hashable.*wrap it"):
        saliency.snip(Loss(), {"w": jnp.ones(2)}, {"w": jnp.ones(2)})


# What importing it costs.


def test_the_core_loads_no_framework_and_warns_of_nothing() -> None:
    script = """
import sys
from snipjax import masks, optim, pruning, saliency
from snipjax._src import trees
heavy = {"flax", "tensorflow_datasets", "orbax", "matplotlib", "tensorflow"}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    repository = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=repository, check=True
    )
