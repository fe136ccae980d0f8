"""Scores of SNIP against finite differences and closed forms."""

import functools
import subprocess
import sys
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


def linear(params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
    """A loss whose derivative in connection c_j is w_j * x_j."""
    return sum(
        jnp.sum(w * v) for w, v in zip(jax.tree.leaves(params), jax.tree.leaves(x))
    )


# The sensitivity itself.


def test_snip_is_the_finite_difference_in_each_connection_in_numpy() -> None:
    loss_fn, params, batch = nested_dict()
    flat, eps = flatten(params).astype(np.float64), 1e-5

    def loss_of_mask(mask: np.ndarray) -> np.float64:
        b, w, v = np.split(mask * flat, [4, 4 + 12])
        hidden = np.tanh(batch["x"].astype(np.float64) @ w.reshape(3, 4) + b)
        return np.mean((hidden @ v.reshape(4, 2) - batch["y"]) ** 2)

    derivative = [
        (loss_of_mask(1 + change) - loss_of_mask(1 - change)) / (2 * eps)
        for change in eps * np.eye(flat.size)
    ]
    signed, scores = (
        jax.jit(functools.partial(criterion, loss_fn))(params, batch)
        for criterion in (saliency.sensitivity, saliency.snip)
    )
    expected = np.abs(derivative) / np.abs(derivative).sum()
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(flatten(signed), derivative, rtol=1e-4, atol=1e-6)


def test_snip_is_weight_times_gradient_on_every_kind_of_pytree(
    network: Network,
) -> None:
    loss_fn, params, batch = network
    scores = jax.jit(functools.partial(saliency.snip, loss_fn))(params, batch)
    chex.assert_trees_all_equal_shapes(scores, params)
    assert {s.dtype for s in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    gradient = jax.jit(jax.grad(loss_fn))(params, batch)
    magnitude = np.abs(flatten(params) * flatten(gradient))
    np.testing.assert_allclose(
        flatten(scores), magnitude / magnitude.sum(), rtol=2e-4, atol=1e-7
    )


@pytest.mark.parametrize(
    ("params", "x", "expected"),
    [
        ([np.ones((1, 2), "f4"), np.ones(1, "f4")], [np.zeros((1, 2)), 0], [0, 0, 0]),
        ([np.ones((0, 3), "f4"), 2.0, np.float64(6)], [1.0] * 3, [0.25, 0.75]),
        ([np.full(4, 3e38, "f4")], [1.0], [0.25] * 4),  # a sum that would overflow
        ([np.float32([1e-37, 3e-37])], [1.0], [0.25, 0.75]),
    ],
)
def test_scores_at_the_edges(params: Any, x: Any, expected: list[float]) -> None:
    scores = jax.jit(lambda params: saliency.snip(linear, params, x))(params)
    chex.assert_trees_all_equal_shapes(scores, jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-5)


def test_a_loss_without_parameters_gives_zeros() -> None:
    score = jax.jit(lambda w: saliency.snip(lambda params, batch: 1.5, w, None))
    np.testing.assert_array_equal(score(np.ones(2, np.float32)), [0.0, 0.0])


def test_non_finite_derivatives_stay_where_they_are() -> None:
    x = np.float32([1.0, np.nan, np.inf, -np.inf])
    scores = jax.jit(functools.partial(saliency.snip, linear))(x**0, x)
    np.testing.assert_array_equal(np.isfinite(scores), [True, False, False, False])


def test_a_million_equal_scores_sum_to_one() -> None:
    ones = np.ones((1000, 1000), np.float32)
    scores = jax.jit(functools.partial(saliency.snip, linear))(ones, ones)
    np.testing.assert_allclose(np.float64(scores).sum(), 1, rtol=1e-5)


# Precision.


def test_half_precision_params_have_float32_scores() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.ArrayTree) -> chex.Array:
        assert params["half"].dtype == dtype
        assert params["single"].dtype == jnp.float32
        return linear(params, x)

    for dtype in (jnp.bfloat16, jnp.float16):
        # 1 + u squared is 1 + 2u + u**2, which only float32 can hold.
        u = float(jnp.finfo(dtype).eps)
        params = {"half": np.array([1 + u, 1.0], dtype), "single": np.ones(2, "f4")}
        score = functools.partial(saliency.sensitivity, loss_fn)
        signed = jax.jit(score)(params, params)
        assert signed["half"].dtype == signed["single"].dtype == jnp.float32
        np.testing.assert_array_equal(signed["half"], np.float32([(1 + u) ** 2, 1.0]))


def test_double_precision_params_have_float32_scores() -> None:
    with jax.enable_x64(True):
        snip = jax.jit(functools.partial(saliency.snip, linear))
        scores = snip({"w": np.array([1.0, 3.0])}, {"w": np.ones(2)})
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
    half = jax.jit(functools.partial(saliency.snip, deep, dtype=jnp.bfloat16))
    expected = jax.jit(functools.partial(saliency.snip, deep))(params, x)
    scores = half(params, x)
    for actual, wide in zip(scores, expected):
        assert (actual.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
        # Rounded twice, by half a unit in the 8th bit; and the sum is of the rounded.
        np.testing.assert_allclose(np.float64(actual), np.float64(wide), rtol=2**-7)
    assert abs(sum(np.float64(s).sum() for s in scores) - 1) < 1e-3
    memory = half.lower(params, x).compile().memory_analysis()
    assert memory.output_size_in_bytes < 2.1 * sum(w.size for w in params)


def test_scores_of_another_dtype() -> None:
    for dtype in (jnp.float16, jnp.int32, jnp.float64):
        with pytest.raises(ValueError, match=r"dtype is .*, in which scores cannot be"):
            saliency.snip(linear, {"w": jnp.ones(2)}, {"w": jnp.ones(2)}, dtype=dtype)


# Transformations.


def test_a_loss_that_closes_over_traced_values_and_has_a_key() -> None:
    def scores_of(w: chex.Array, x: chex.Array, key: chex.PRNGKey) -> chex.Array:
        def loss_fn(params: chex.ArrayTree, key: chex.PRNGKey) -> chex.Array:
            return jnp.sum(params["w"] * x * jax.random.normal(key, (2,)))

        return saliency.snip(loss_fn, {"w": w}, key)["w"]

    w, x = np.float32([[1, -3], [2, 2]]), np.float32([[1, 3], [5, 4]])
    keys = jax.random.split(jax.random.key(5))
    scores = jax.jit(jax.vmap(scores_of))(w, x, keys)
    noise = np.stack([jax.random.normal(key, (2,)) for key in keys])
    magnitude = np.abs(w * x * noise)
    expected = magnitude / magnitude.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_snip_is_differentiable() -> None:
    def first_score(w: chex.Array) -> chex.Array:
        return saliency.snip(linear, {"w": w}, {"w": jnp.ones(2)})["w"][0]

    # d/dw of w0 / (w0 + w1) at (1, 3).
    gradient = jax.jit(jax.grad(first_score))(np.float32([1.0, 3.0]))
    np.testing.assert_allclose(gradient, [3 / 16, -1 / 16], rtol=1e-5)


# Bad input.


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda w: w, r"loss_fn returned an array of shape \(3,\), not a scalar.*mean"),
        (lambda w: (jnp.sum(w), {}), "loss_fn returned a tuple; return the scalar"),
        (lambda w: None, "loss_fn returned a NoneType"),
        (lambda w: jnp.sum(w).astype(int), "dtype int32, which has no gradient"),
        (lambda w: jnp.sum(w) * 1j, "dtype complex64, which has no gradient"),
    ],
)
def test_a_loss_that_is_no_floating_point_scalar(loss: Any, problem: str) -> None:
    for criterion in (saliency.snip, saliency.obd, saliency.obs):
        with pytest.raises(ValueError, match=problem):
            criterion(
                lambda params, x: loss(params["w"]),
                {"w": jnp.ones(3)},
                1.0,
                key=jax.random.key(0),
            )


@pytest.mark.parametrize(
    "criterion",
    [
        *(saliency.snip, saliency.magnitude, saliency.random, saliency.obd),
        *(saliency.obs, saliency.prospr, saliency.synflow, saliency.fisher),
    ],
)
def test_leaves_without_gradient(criterion: Any) -> None:
    options: dict[str, Any] = {"key": jax.random.key(0)}
    if criterion is saliency.synflow:
        options |= {"apply_fn": linear, "inputs": 1.0}
    for leaf, problem in (
        (np.arange(3), "params leaf 'layer/steps' has dtype int.*split"),
        (jax.nn.gelu, "params leaf 'layer/steps' is a .*, not an array.*equinox"),
    ):
        params = {"layer": {"steps": leaf, "w": np.ones(2)}}
        with pytest.raises(ValueError, match=problem):
            criterion(linear, params, 1.0, **options)


# What importing it costs.


def test_the_core_loads_no_framework_and_warns_of_nothing() -> None:
    script = """
import sys

def check(*unwanted):
    unwanted += "tensorflow_datasets", "orbax", "matplotlib", "pandas", "flax"
    assert not set(unwanted) & set(sys.modules)

import snipjax
check("jax")
snipjax.saliency.snip
check("optax")
from snipjax import masks, optim, pruning, saliency
check()
"""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
