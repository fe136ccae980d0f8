"""Criteria that see no data: magnitudes and chance."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import saliency
from tests.conftest import Network


def test_magnitude_is_the_absolute_value_in_float32(network: Network) -> None:
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), network.params)
    scores = saliency.magnitude(None, half, None)
    chex.assert_trees_all_equal(
        scores, jax.tree.map(lambda w: np.abs(np.float32(w)), half)
    )


def test_random_scores_are_uniform() -> None:
    params = {"w": jnp.zeros((100, 200)), "b": jnp.zeros(20_000)}
    scores = saliency.random(None, params, None, key=jax.random.key(0))
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
        return saliency.random(None, params, None, key=jax.random.PRNGKey(seed))

    chex.assert_trees_all_equal(scores(0), scores(0))
    assert not np.isin(scores(0)["a"], scores(1)["a"]).any()
    assert not np.isin(scores(0)["a"], scores(0)["b"]).any()
    assert scores(0)["b"].dtype == jnp.float32


def test_chance_has_a_key() -> None:
    with pytest.raises(ValueError, match=r"saliency.random .*has no key; pass key="):
        saliency.random(None, {"w": jnp.ones(2)}, None)
