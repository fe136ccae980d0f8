"""A shuffled mask keeps the count of each leaf, and is another mask."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks
from tests.conftest import Network

pytestmark = pytest.mark.filterwarnings("error")


def test_counts_are_kept_and_the_mask_is_another(network: Network) -> None:
    mask = masks.global_topk(network.params, 0.5)
    shuffled = masks.shuffle(mask, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(shuffled, mask)
    assert masks.densities(shuffled) == masks.densities(mask)
    pairs = zip(jax.tree.leaves(shuffled), jax.tree.leaves(mask))
    assert any(bool(jnp.any(a != b)) for a, b in pairs)


def test_a_permutation_is_uniform() -> None:
    """Every connection is kept in about half of many shuffles."""
    mask = {"w": np.arange(20).reshape(4, 5) < 10}
    keys = jax.random.split(jax.random.key(0), 2000)
    shuffled = jax.vmap(lambda key: masks.shuffle(mask, key))(keys)["w"]
    np.testing.assert_array_equal(shuffled.sum((1, 2)), 10)
    # Five standard deviations of a share of 2000.
    np.testing.assert_allclose(shuffled.mean(0), 0.5, atol=5 * 0.5 / 2000**0.5)


def test_leaves_are_shuffled_apart() -> None:
    mask = {name: np.arange(100).reshape(10, 10) < 50 for name in "ab"}
    shuffled = masks.shuffle(mask, jax.random.key(0))
    assert bool(jnp.any(shuffled["a"] != shuffled["b"]))


def test_the_key_decides() -> None:
    mask = {"w": np.arange(100).reshape(10, 10) < 50, "b": True}
    one, again, other = (masks.shuffle(mask, jax.random.key(k)) for k in (0, 0, 1))
    chex.assert_trees_all_equal(one, again)
    assert bool(jnp.any(one["w"] != other["w"]))
    assert one["b"] is True


def test_nothing_to_shuffle() -> None:
    with pytest.raises(ValueError, match="no leaf of the mask is prunable"):
        masks.shuffle({"b": True}, jax.random.key(0))
