"""Names and checks of pytree leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equinox_style, linen, nested_dict, nnx_state

from snipjax._src import trees


def names(tree: Any) -> list[str]:
    return [name for name, _ in trees.named_leaves(tree)]


def test_leaves_are_named_by_their_path_in_tree_order() -> None:
    assert names(nested_dict().params) == ["hidden/bias", "hidden/kernel", "out/kernel"]


def test_a_list_index_is_part_of_the_name() -> None:
    assert names([jnp.ones(1), (jnp.ones(1),)]) == ["0", "1/0"]


def test_flax_and_equinox_style_leaves_are_named_as_their_users_know_them() -> None:
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


@pytest.mark.parametrize(
    "leaf", [np.float32(1), 1.0, np.ones(2, np.float16), jnp.ones(2, jnp.bfloat16)]
)
def test_floating_leaves_pass(leaf: Any) -> None:
    trees.check_floating({"a": leaf, "b": None}, "params")


@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        (np.arange(3), "params leaf 'layer/w' has dtype int.*no gradient.*split"),
        (np.ones(2, bool), "params leaf 'layer/w' has dtype bool"),
        (np.ones(2, complex), "params leaf 'layer/w' has dtype complex"),
        (jax.random.key(0), "params leaf 'layer/w' has dtype key"),
        (jax.nn.relu, "params leaf 'layer/w' is a .*not an array.*equinox.filter"),
        ("float32", "params leaf 'layer/w' is a str, not an array"),
        (jnp.float32, "params leaf 'layer/w' is a .*not an array"),
    ],
)
def test_other_leaves_are_named(leaf: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        trees.check_floating({"layer": {"w": leaf}}, "params")


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"a": 1}, r"mask does not have the structure of params \(missing leaves: b\)"),
        ({"a": 1, "b": 2, "c": 3}, "unknown leaves: c"),
        ({"a": 1, "d": 2}, "missing leaves: b; unknown leaves: d"),
        ({"a": 1, "b": None}, "missing leaves: b"),
        ({"a": 1, "b": (2,)}, "missing leaves: b; unknown leaves: b/0"),
    ],
)
def test_a_difference_in_structure_names_the_leaves(tree: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        trees.check_same_structure(tree, {"a": 1, "b": 2}, "mask", "params")


def test_trees_of_equal_names_and_other_containers_differ() -> None:
    with pytest.raises(ValueError, match=r"PyTreeDef.*\[\*\].* against .*\(\*,\)"):
        trees.check_same_structure([1], (1,), "mask", "params")
