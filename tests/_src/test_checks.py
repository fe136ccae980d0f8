"""Checks of arguments: what passes, and what the messages name."""

from typing import Any

import jax
import numpy as np
import pytest

from snipjax._src import checks


@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        (np.arange(3), "params leaf 'layer/w' has dtype int.*no gradient.*split"),
        (np.ones(2, complex), "'layer/w' has dtype complex.* imaginary part as two"),
        (jax.random.key(0), "params leaf 'layer/w' has dtype key"),
        (jax.nn.relu, "params leaf 'layer/w' is a .*not an array.*equinox.filter"),
        ("float32", "params leaf 'layer/w' is a str, not an array"),
    ],
)
def test_other_leaves_are_named(leaf: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        checks.check_floating({"layer": {"w": leaf}}, "params")


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
        checks.check_same_structure(tree, {"a": 1, "b": 2}, "mask", "params")


def test_trees_of_equal_names_and_other_containers_differ() -> None:
    for tree, like in (([1], (1,)), ({"a": [1], "b": 0}, {"a": (1,), "b": 0})):
        with pytest.raises(ValueError, match=r"params \(a list against a tuple\);"):
            checks.check_same_structure(tree, like, "mask", "params")


def test_nodes_with_other_static_fields_differ() -> None:
    nodes = [jax.tree_util.Partial(function, 1) for function in (abs, max)]
    with pytest.raises(ValueError, match="each has a Partial, with other static"):
        checks.check_same_structure(*nodes, "mask", "params")


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None, True])
def test_what_is_no_positive_integer(value: Any) -> None:
    with pytest.raises(ValueError, match=r"rounds is .*an integer of at least 1"):
        checks.check_positive_integer(value, "rounds")
    checks.check_positive_integer(np.int64(3), "rounds")
