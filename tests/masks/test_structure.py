"""Structures against loops in NumPy over groups, blocks and units."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snipjax import masks, pruning, saliency
from tests.conftest import largest_by_sorting

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")


def scores_like(*shape: int, seed: int = 0, levels: int = 5) -> np.ndarray:
    """Scores with many ties."""
    return np.random.default_rng(seed).integers(0, levels, shape).astype(np.float32)


# N of M.


@settings(max_examples=15)
@given(
    m=st.sampled_from([1, 2, 3, 4, 8]),
    n=st.integers(1, 8),
    groups=st.integers(1, 3),
    axis=st.sampled_from([0, 1, -1, -2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_n_largest_of_every_m_neighbors(
    m: int, n: int, groups: int, axis: int, seed: int
) -> None:
    n = min(n, m)
    shape = [3, 5]
    shape[axis] = m * groups
    scores = scores_like(*shape, seed=seed)
    mask = masks.n_of_m(n, m, axis=axis)({"w": scores}, 0.0, masks.kernels)["w"]
    rows = np.moveaxis(scores, axis, -1).reshape(-1, m)
    expected = np.stack([largest_by_sorting([row], n)[0] for row in rows])
    found = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, m)
    np.testing.assert_array_equal(found, expected)


def test_the_sparsity_of_n_of_m_is_its_own() -> None:
    params = {"conv": scores_like(3, 3, 8, 5), "dense": scores_like(12, 7), "b": 0.0}
    params["b"] = np.ones(7, np.float32)
    mask = masks.n_of_m(1, 4)(params, 0.5, masks.kernels)
    assert masks.densities(mask) == {"conv": 0.25, "dense": 0.25, "b": 1.0}


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (2.0, 4), (2, True)])
def test_n_of_m_that_cannot_be(n: Any, m: Any) -> None:
    with pytest.raises(ValueError, match=r"n is|m is"):
        masks.n_of_m(n, m)


# Blocks.


def test_whole_blocks_by_their_sums() -> None:
    scores = {"v": scores_like(4, 6), "w": scores_like(2, 2, 4, 9, seed=1)}
    mask = masks.blocks((2, 3))(scores, 0.7, masks.kernels)
    sums = [
        np.array([[x[i : i + 2, j : j + 3].sum() for j in range(0, x.shape[1], 3)]
                  for i in range(0, x.shape[0], 2)])
        for x in (scores["v"], *scores["w"].reshape(4, 4, 9))
    ]  # fmt: skip
    expected = largest_by_sorting(sums, round((4 + 24) * 0.3))
    found = [mask["v"], *np.asarray(mask["w"]).reshape(4, 4, 9)]
    for blocks, keep in zip(expected, found):
        np.testing.assert_array_equal(np.kron(blocks, np.ones((2, 3), bool)), keep)


def test_blocks_with_the_densities_of_an_allocation() -> None:
    scores = {"v": scores_like(8, 8), "w": scores_like(16, 16)}
    select = masks.blocks((2, 2), select=masks.by_allocation(masks.uniform))
    mask = select(scores, 0.75, masks.kernels)
    assert masks.densities(mask) == {"v": 0.25, "w": 0.25}


# Units.


def test_whole_units_by_the_sums_of_their_scores() -> None:
    scores = {"v": scores_like(3, 3, 2, 6), "w": scores_like(6, 4, seed=1)}
    mask = masks.units()(scores, 0.6, masks.kernels)
    sums = [leaf.reshape(-1, leaf.shape[-1]).sum(0) for leaf in scores.values()]
    expected = largest_by_sorting(sums, round(10 * 0.4))
    for units, keep in zip(expected, mask.values()):
        np.testing.assert_array_equal(np.broadcast_to(units, keep.shape), keep)


def test_heads_are_units_of_another_axis() -> None:
    scores = {"query": np.ones((8, 3, 4), np.float32)}
    scores["query"][:, 1] = 2
    mask = masks.units(axis=-2)(scores, 2 / 3, masks.kernels)["query"]
    np.testing.assert_array_equal(np.any(mask, axis=(0, 2)), [False, True, False])
    np.testing.assert_array_equal(np.all(mask, axis=(0, 2)), [False, True, False])


def test_leaves_of_a_group_have_units_in_common() -> None:
    scores = {
        "dense": {"kernel": np.float32([[1, 2, 3]]), "bias": np.float32([9, 0, 0])},
        "out": {"kernel": np.float32([[4], [4], [4]])},
    }
    select = masks.units(group=lambda name: name.rpartition("/")[0])
    mask = select(scores, 0.5, masks.weights_and_biases)
    # 10, 2 and 3, and 12.
    np.testing.assert_array_equal(mask["dense"]["kernel"], [[True, False, False]])
    np.testing.assert_array_equal(mask["dense"]["bias"], [True, False, False])
    assert bool(mask["out"]["kernel"].all())


def test_units_of_different_numbers_have_none_in_common() -> None:
    scores = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 4), np.float32)}
    with pytest.raises(ValueError, match=r"'b' has 4 .*of its group 'x' have 3"):
        masks.units(group=lambda name: "x")(scores, 0.5, masks.kernels)


# All of them.

SELECTIONS = {
    "n of m": masks.n_of_m(2, 4),
    "blocks": masks.blocks((2, 2)),
    "units": masks.units(),
    "units of all leaves alike": masks.units(select=masks.layerwise_topk),
}


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_traced_and_over_networks(select: masks.Select) -> None:
    scores = {"v": scores_like(3, 8, 4), "w": scores_like(3, 4, 6, seed=1)}
    networks = functools.partial(select, sparsity=0.5, prunable=masks.kernels)
    mask = jax.jit(jax.vmap(networks))(scores)
    for i in range(3):
        one = networks({name: leaf[i] for name, leaf in scores.items()})
        for name in scores:
            np.testing.assert_array_equal(mask[name][i], one[name])


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_in_rounds_it_is_the_structure_of_one_round(select: masks.Select) -> None:
    rng = np.random.default_rng(0)
    params = {"v": rng.random((8, 8), np.float32), "w": rng.random((8, 16), np.float32)}

    def prune(rounds: int) -> Any:
        return pruning.prune(
            lambda params, batch: sum(jnp.sum(w) for w in params.values()),
            params, None, 0.5, select=select, rounds=rounds,
        )[1]  # fmt: skip

    for keep, expected in zip(prune(4).values(), prune(1).values()):
        np.testing.assert_array_equal(keep, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_of_half_precision_are_exact(dtype: Any) -> None:
    scores = {"w": jnp.concatenate([jnp.ones((1000, 1)), jnp.ones((1000, 1))], 1)}
    scores["w"] = scores["w"].astype(dtype).at[0, 0].set(1.0078125)
    assert masks.units()(scores, 0.5, masks.kernels)["w"][0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("select", "problem"),
    [
        (masks.n_of_m(2, 4), "'w' has 6 entries along axis -2, which 4 does not div"),
        (masks.n_of_m(2, 4, axis=2), r"'w' has shape \(6, 3\), without an axis 2"),
        (masks.blocks((4, 3)), "'w' has 6 entries along axis 0, which 4 does not"),
        (masks.blocks((1, 2, 3)), r"'w' has shape \(6, 3\), which has fewer dim"),
        (masks.units(axis=-3), r"'w' has shape \(6, 3\), without an axis -3"),
    ],
)
def test_leaves_that_do_not_fit(select: masks.Select, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        select({"w": np.ones((6, 3), np.float32)}, 0.5, masks.kernels)


def test_a_score_that_is_not_finite_is_told() -> None:
    scores = {"w": np.float32([[1, np.nan], [1, 1]])}
    for select in SELECTIONS.values():
        with pytest.raises(ValueError, match=r"not finite in w|does not divide"):
            select(scores, 0.5, masks.kernels)


@pytest.mark.parametrize("select", [masks.units(), masks.blocks((10, 1))])
def test_connections_pruned_before_do_not_count(select: masks.Select) -> None:
    w = jnp.broadcast_to(jnp.array([100.0, 50.0, 1.0]), (10, 3))
    before = {"w": jnp.ones((10, 3), bool).at[0, :2].set(False)}
    _, mask = pruning.prune(
        None, {"w": w}, None, 2 / 3, criterion=saliency.magnitude, select=select,
        mask=before,
    )  # fmt: skip
    assert mask["w"].sum(axis=0).tolist() == [9, 0, 0]
