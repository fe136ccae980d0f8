"""Names of pytree leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snipjax._src import trees
from tests.conftest import equinox_style, linen, nested_dict, nnx_state


def names(tree: Any) -> list[str]:
    return [name for name, _ in trees.named_leaves(tree)]


def test_flax_and_equinox_style_leaves_are_named_as_their_users_know_them() -> None:
    assert names(nested_dict().params) == ["hidden/bias", "hidden/kernel", "out/kernel"]
    assert names([jnp.ones(1), (jnp.ones(1),)]) == ["0", "1/0"]
    assert names(linen().params) == [
        "Dense_0/bias",
        "Dense_0/kernel",
        "Dense_1/bias",
        "Dense_1/kernel",
        "LayerNorm_0/bias",
        "LayerNorm_0/scale",
    ]
    assert names(nnx_state().params) == [
        "hidden/bias",
        "hidden/kernel",
        "layers/0/bias",
        "layers/0/kernel",
        "norm/bias",
        "norm/scale",
    ]
    assert names(equinox_style().params) == [
        "layers/0/weight",
        "layers/0/bias",
        "layers/1/weight",
    ]


def test_a_dictionary_key_called_value_stays_in_the_name() -> None:
    assert names({"query": jnp.ones(1), "value": jnp.ones(1)}) == ["query", "value"]


def test_a_tree_is_traced_if_one_leaf_is() -> None:
    traced = []

    @jax.jit
    def look(x: jax.Array) -> jax.Array:
        traced.append(trees.is_traced({"a": np.ones(1), "b": x}))
        return x

    look(jnp.ones(1))
    assert traced == [True]
    assert not trees.is_traced({"a": np.ones(1), "b": None})
