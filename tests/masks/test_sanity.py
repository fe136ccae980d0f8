"""A shuffled mask keeps the count of each leaf, and is another mask."""

import chex
import jax
import numpy as np
import pytest

from snipjax import masks

pytestmark = pytest.mark.filterwarnings("error")


def test_a_permutation_is_uniform() -> None:
    """Every connection is kept in about half of many shuffles."""
    mask = {"w": np.arange(20).reshape(4, 5) < 10, "b": np.array([True, False, True])}
    keys = jax.random.split(jax.random.key(0), 2000)
    both = jax.jit(jax.vmap(lambda key: masks.shuffle(mask, key)))(keys)
    shuffled = np.asarray(both["w"])
    np.testing.assert_array_equal(shuffled.sum((1, 2)), 10)
    np.testing.assert_array_equal(both["b"].sum(1), 2)
    # Five standard deviations of a share of 2000.
    np.testing.assert_allclose(shuffled.mean(0), 0.5, atol=5 * 0.5 / 2000**0.5)


def test_the_key_decides_and_leaves_are_shuffled_apart() -> None:
    mask = {name: np.arange(100).reshape(10, 10) < 50 for name in "ab"}
    mask["c"] = True
    one, again, other = (masks.shuffle(mask, jax.random.key(k)) for k in (0, 0, 1))
    chex.assert_trees_all_equal(one, again)
    assert np.any(one["a"] != other["a"])
    assert np.any(one["a"] != one["b"])
    assert one["c"] is True


def test_a_key_is_needed() -> None:
    with pytest.raises(ValueError, match="key is None; pass a PRNG key"):
        masks.shuffle({"a": np.eye(2, dtype=bool)}, None)


def test_nothing_to_shuffle() -> None:
    with pytest.raises(ValueError, match="no leaf of the mask is prunable"):
        masks.shuffle({"b": True}, jax.random.key(0))
