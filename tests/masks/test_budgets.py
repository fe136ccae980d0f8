"""Budgets against their definitions in NumPy, by stable sorts."""

import functools
import math
from decimal import Decimal
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snipjax import masks, pruning, saliency
from snipjax._src import trees
from snipjax.masks import selection
from tests.conftest import largest_by_sorting

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")


def every_array(path: Any, leaf: chex.Array) -> bool:
    del path, leaf
    return True


def with_minima(
    leaves: list[np.ndarray], kept: int, minima: list[int]
) -> list[np.ndarray]:
    """Each leaf's own largest first, then the largest of what is left of all."""
    own = [largest_by_sorting([x], n)[0] for x, n in zip(leaves, minima)]
    rest = [np.where(m, -np.inf, np.float64(x)) for m, x in zip(own, leaves)]
    more = largest_by_sorting(rest, kept - sum(minima))
    return [a | b for a, b in zip(own, more)]


# A minimum density, on whatever hypothesis can think of. One tree, so that nothing is
# compiled twice; the empty leaf and the scalar are never prunable.

SHAPES = {"a": (3, 5), "b": (30,), "c": (2, 1, 3), "d": (1, 1), "e": (0, 3), "f": ()}
PRUNABLE = ("a", "b", "c", "d")
TOTAL = 15 + 30 + 6 + 1


@st.composite
def scores_like_shapes(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Few values or many, in leaves of different scales: ties and deficits."""
    pool = draw(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, 2.0, 3e38, 1e-45])
            | st.floats(-(2.0**100), 2.0**100, width=32),
            min_size=1,
            max_size=40,
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = {name: draw(st.sampled_from([0.0, 1e-20, 1.0])) for name in SHAPES}
    return {
        name: np.float32(scale[name] * np.array(pool)[rng.integers(len(pool), size=s)])
        for name, s in SHAPES.items()
    }


@settings(max_examples=40)
@given(
    scores=scores_like_shapes(),
    sparsity=st.floats(0, 1, exclude_max=True),
    minimum=st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.1, 0.2, 1.0]),
)
def test_each_leaf_keeps_its_own_and_the_rest_is_global(
    scores: dict[str, np.ndarray], sparsity: float, minimum: float
) -> None:
    select = masks.with_minimum_density(minimum)
    share = Decimal(str(minimum))
    minima = [math.ceil(share * scores[name].size) for name in PRUNABLE]
    kept = round(TOTAL * (1 - sparsity))
    if sum(minima) > kept:
        with pytest.raises(
            ValueError, match=f"is {sum(minima)} of the 52 .*{kept}; lo"
        ):
            select(scores, sparsity, every_array)
        return
    mask = select(scores, sparsity, every_array)
    expected = with_minima([scores[name] for name in PRUNABLE], kept, minima)
    chex.assert_trees_all_equal([mask[name] for name in PRUNABLE], expected)
    assert mask["e"].shape == mask["f"].shape == ()


def test_counted_in_pieces_and_narrowed_by_a_sample() -> None:
    rng = np.random.default_rng(0)
    leaves = [
        np.ceil(np.abs(30 * scale * rng.standard_normal(size))).astype(np.float32)
        for scale, size in ((1.0, 150_000), (1e-6, 1000))
    ]
    minima, kept = [3000, 100], 30_000
    actual = selection.largest_of_all_and_each(
        [jnp.asarray(leaf) for leaf in leaves], kept, minima
    )
    chex.assert_trees_all_equal(actual, with_minima(leaves, kept, minima))


def test_a_minimum_of_all_that_is_kept_is_layerwise() -> None:
    rng = np.random.default_rng(0)
    scores = {"a": rng.random((10, 10)), "b": 9 * rng.random((10, 10))}
    mask = masks.with_minimum_density(0.07)(scores, 0.93)
    chex.assert_trees_all_equal(mask, masks.layerwise_topk(scores, 0.93))
    assert int(mask["a"].sum()) == 7


def test_no_layer_collapses_where_global_selection_lets_one() -> None:
    scores = {"first": np.ones((10, 10)), "last": np.full((10, 10), 1e-9)}
    kept = [int(m.sum()) for m in masks.global_topk(scores, 0.9).values()]
    assert kept == [20, 0]
    mask = masks.with_minimum_density(0.01)(scores, 0.9)
    assert [int(m.sum()) for m in mask.values()] == [19, 1]


@pytest.mark.parametrize("minimum", [-0.1, 1.1, math.nan, None, "0.1", True])
def test_a_minimum_that_is_no_density(minimum: Any) -> None:
    with pytest.raises(ValueError, match=r"density is .*, outside \[0, 1\]; it is the"):
        masks.with_minimum_density(minimum)


# Groups.


def layer_type(name: str) -> str | None:
    return next((part for part in ("attention", "mlp") if part in name), None)


def transformer_scores() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "embedding": rng.random((20, 10)),
        "layer_0": {
            "attention": {"query": rng.random((10, 10)), "bias": rng.random(10)},
            "mlp": {"up": rng.random((10, 40)), "down": 3 * rng.random((40, 10))},
        },
        "layer_1": {"attention": {"query": 5 * rng.random((10, 10))}},
        "head": rng.random((10, 20)),
    }


def test_each_group_has_its_sparsity_and_the_others_that_of_the_whole() -> None:
    scores, sparsities = transformer_scores(), {"attention": 0.5, "mlp": 0.9}
    select = functools.partial(masks.by_group(layer_type, sparsities), sparsity=0.75)
    mask = select(scores)
    chex.assert_trees_all_equal_structs(mask, scores)
    chex.assert_trees_all_equal(jax.jit(select)(scores), mask)
    found = dict(trees.named_leaves(mask))
    for group, sparsity in {**sparsities, None: 0.75}.items():
        own = {
            name: leaf
            for name, leaf in trees.named_leaves(scores)
            if leaf.ndim == 2 and layer_type(name) == group
        }
        kept = round(sum(leaf.size for leaf in own.values()) * (1 - sparsity))
        for name, mask in zip(own, largest_by_sorting(list(own.values()), kept)):
            np.testing.assert_array_equal(found.pop(name), mask)
    assert all(leaf.shape == () for leaf in found.values())


def test_groups_within_which_no_leaf_collapses() -> None:
    select = masks.by_group(
        layer_type, {"mlp": 0.98}, select=masks.with_minimum_density(0.01)
    )
    mask = select(transformer_scores(), 0.0)
    up, down = mask["layer_0"]["mlp"]["up"], mask["layer_0"]["mlp"]["down"]
    # Of the 16 that are kept, all but the 4 of the minimum are of the larger scale.
    assert (int(up.sum()), int(down.sum())) == (4, 12)


@pytest.mark.parametrize(
    ("scores", "sparsities", "sparsity", "problem"),
    [
        (
            transformer_scores(),
            {"mpl": 0.9},
            0.5,
            "group 'mpl'; .*None, attention, mlp",
        ),
        ({"attention": np.ones(3)}, {}, 0.5, "nothing is prunable"),
        (transformer_scores(), {"mlp": 1.0}, 0.5, r"outside \[0, 1\)"),
        (transformer_scores(), {}, -0.1, r"outside \[0, 1\)"),
    ],
)
def test_groups_that_cannot_be(
    scores: Any, sparsities: Any, sparsity: float, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        masks.by_group(layer_type, sparsities)(scores, sparsity)


def test_a_misspelled_pattern_is_told_through_groups() -> None:
    prunable = masks.excluding(masks.kernels, "emmbeding")
    with pytest.raises(ValueError, match="'emmbeding' excludes nothing"):
        masks.by_group(layer_type, {"mlp": 0.5})(transformer_scores(), 0.5, prunable)


def test_in_rounds_the_minimum_holds_and_the_count_is_exact() -> None:
    least = 1e-6 * np.arange(100, dtype=np.float32).reshape(10, 10)
    params = {"a": np.ones((10, 10), np.float32), "b": least}
    _, mask = pruning.prune(
        None,
        params,
        None,
        0.9,
        criterion=saliency.magnitude,
        select=masks.with_minimum_density(0.05),
        rounds=3,
    )
    np.testing.assert_array_equal(np.flatnonzero(mask["b"]), range(95, 100))
    assert int(mask["a"].sum()) == 15


def test_over_networks_with_vmap() -> None:
    rng = np.random.default_rng(0)
    scores = {
        "a": rng.integers(0, 5, (4, 6, 5)).astype(np.float32),
        "c": rng.integers(0, 2, (4, 5, 4)).astype(np.float32),
    }
    select = functools.partial(masks.with_minimum_density(0.2), sparsity=0.7)
    mask = jax.jit(jax.vmap(select))(scores)
    for i in range(4):
        expected = with_minima([scores["a"][i], scores["c"][i]], 15, [6, 4])
        chex.assert_trees_all_equal([mask["a"][i], mask["c"][i]], expected)
