"""Everything one can do with a mask."""

import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks
from tests.conftest import Network, nested_dict

pytestmark = pytest.mark.filterwarnings("error")


def test_scores_and_masks_that_a_traced_function_closes_over() -> None:
    scores = {"w": jnp.array([[1.0, 4.0]])}
    mask = masks.global_topk(scores, 0.5)

    def share_pruned(keep: chex.Array) -> chex.Array:
        again = masks.global_topk(scores, 0.5)
        assert masks.summary(mask)[0].kept == 1
        traced = masks.sparsity({"w": keep, "b": True})
        return traced + masks.sparsity(mask) + masks.sparsity(again)

    assert jax.jit(share_pruned)(np.array([True, False, False, False])) == 1.75


def test_a_mask_multiplies_into_every_kind_of_pytree(network: Network) -> None:
    mask = masks.global_topk(network.params, 0.5)
    chex.assert_trees_all_equal_structs(mask, network.params)
    for keep, w in zip(jax.tree.leaves(mask), jax.tree.leaves(network.params)):
        assert keep.dtype == jnp.bool_
        assert keep.shape == (w.shape if w.ndim >= 2 else ())
    pruned = masks.apply(mask, network.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(pruned, network.params)
    chex.assert_trees_all_equal(
        pruned, jax.tree.map(jnp.multiply, mask, network.params)
    )
    whole = masks.ones(network.params)
    chex.assert_trees_all_equal(whole, masks.global_topk(network.params, 0.0))


def test_apply_makes_pruned_entries_plus_zero_whatever_they_were() -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        w = jnp.array([np.nan, np.inf, -np.inf, -1.0, -0.0, 2.0], dtype)
        keep = np.array([False, False, False, False, False, True])
        pruned = masks.apply({"w": keep}, {"w": w})["w"]
        assert pruned.dtype == dtype
        np.testing.assert_array_equal(np.float64(pruned), [0, 0, 0, 0, 0, 2])
        assert not np.signbit(np.float64(pruned)).any()


def test_the_gradient_of_pruned_params_is_masked() -> None:
    mask = {"w": jnp.array([[True, False]])}
    # Even where a pruned entry would make the loss or its gradient overflow.
    params = {"w": jnp.array([[3.0, np.nan]])}
    gradient = jax.grad(lambda p: jnp.sum(masks.apply(mask, p)["w"] ** 2))(params)
    np.testing.assert_array_equal(gradient["w"], [[6.0, 0.0]])


# Summaries.


def test_summary_has_a_row_for_every_prunable_leaf() -> None:
    mask = {
        "hidden": {"kernel": jnp.arange(6).reshape(2, 3) < 2, "bias": jnp.array(True)},
        "out": {"kernel": jnp.ones((3, 1), bool), "bias": jnp.zeros(1, bool)},
    }
    rows = masks.summary(mask)
    assert rows == (
        ("hidden/kernel", (2, 3), 2, 6, 1 / 3),
        ("out/bias", (1,), 0, 1, 0.0),
        ("out/kernel", (3, 1), 3, 3, 1.0),
    )
    assert rows[0].density == 1 / 3
    assert rows.dense == ("hidden/bias",)


def test_summary_prints_as_a_table_of_what_is_prunable_and_what_is_not() -> None:
    mask = {
        "conv": jnp.arange(3600).reshape(3, 3, 20, 20) < 1800,
        "w": np.eye(2) > 0,
        "b": True,
        "norm": True,
    }
    assert str(masks.summary(mask)).splitlines() == [
        "path       shape   kept  total  density",
        "conv   3x3x20x20  1,800  3,600   50.00%",
        "w            2x2      2      4   50.00%",
        "total             1,802  3,604   50.00%",
        "not prunable: b, norm",
    ]


def is_said_to_disconnect(mask: chex.ArrayTree) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        masks.warn_if_disconnected(mask)
    assert all(warning.filename == __file__ for warning in said)
    return [str(warning.message).split("'")[1] for warning in said]


def test_a_matrix_without_connections_disconnects_and_a_bias_does_not() -> None:
    for name in ("b", "lora_B", "1", "kernel"):
        mask = {"a": np.ones((3, 3), bool), name: np.zeros((3, 3), bool), "c": True}
        assert is_said_to_disconnect(mask) == [name]
    for name in ("bias", "b", "b1", "bias_2", "qkv_bias", "Bias", "0"):
        mask = {"layer": {"kernel": np.ones((2, 2), bool), name: np.zeros(2, bool)}}
        assert is_said_to_disconnect(mask) == []


# Bad input.


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        ({"w": np.ones((2, 3), bool)}, "missing leaves: b.*same pytree as params"),
        (
            {"w": np.ones((3, 2), bool), "b": True},
            r"'w' has shape \(3, 2\), but .*2, 3",
        ),
        ({"w": np.ones(3, bool), "b": True}, r"mask leaf 'w' has shape \(3,\)"),
        ({"w": np.ones((2, 3)), "b": True}, "'w' has dtype float.*not bool.*mask > 0"),
        ({"w": jnp.tanh, "b": True}, "mask leaf 'w' is a .*, not an array"),
    ],
)
def test_a_mask_that_does_not_fit(mask: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        masks.apply(mask, {"w": jnp.ones((2, 3)), "b": jnp.ones(3)})


@pytest.mark.parametrize("function", [masks.sparsity, masks.summary])
def test_what_is_no_mask_has_no_sparsity(function: Any) -> None:
    with pytest.raises(ValueError, match="no leaf of the mask is prunable"):
        function({"w": True})
    with pytest.raises(ValueError, match="'hidden/bias' has dtype float32, not bool"):
        function(nested_dict().params)
