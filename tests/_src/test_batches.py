"""Batches of any library's arrays, and what is no batch."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import pruning, saliency
from snipjax._src import batches


class Tensor:
    """An array of another library, which NumPy reads and JAX does not."""

    def __init__(self, values: Any) -> None:
        self._values = np.float32(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._values, dtype)


X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
PARAMS = {"w": jnp.array([[0.5], [-1.0], [2.0]])}


def loss_fn(params: chex.ArrayTree, batch: Any) -> chex.Array:
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) - y) ** 2)


@pytest.mark.parametrize(
    "criterion",
    [saliency.snip, saliency.grasp, saliency.obs, saliency.fisher, saliency.prospr],
)
def test_criteria_take_arrays_of_another_library(criterion: Callable) -> None:
    def scores() -> chex.ArrayTree:
        return criterion(loss_fn, PARAMS, [Tensor(X), Tensor(X[:, :1])])

    assert jax.eval_shape(scores)["w"].shape == (3, 1)
    with pytest.raises(
        ValueError, match=r"batch is a list_iterator, not an array.*prune"
    ):
        criterion(loss_fn, PARAMS, iter([(X, X[:, :1])]))


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_loader_of_another_library_is_several_batches(rounds: int) -> None:
    loader = [[Tensor(X), Tensor(X[:, :1])], [Tensor(-X), Tensor(X[:, 1:2])]]
    batches = [[np.asarray(tensor) for tensor in batch] for batch in loader]
    prune = functools.partial(pruning.prune, loss_fn, PARAMS, rounds=rounds)
    chex.assert_trees_all_equal(
        prune(iter(loader), sparsity=0.5), prune(iter(batches), sparsity=0.5)
    )


def test_arrays_and_numbers_are_left_alone() -> None:
    batch = {"x": X, "key": jax.random.key(0), "step": 3, "nothing": None}
    found = batches.as_arrays(batch)
    assert all(found[name] is leaf for name, leaf in batch.items())
