"""Structures against loops in NumPy over groups, blocks and units."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, pruning, saliency
from tests.conftest import largest_by_sorting

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")


def scores_like(*shape: int, seed: int = 0, levels: int = 5) -> np.ndarray:
    """Scores with many ties."""
    return np.random.default_rng(seed).integers(0, levels, shape).astype(np.float32)


def selected(select: masks.Select, scores: Any, sparsity: float = 0.5) -> masks.Mask:
    """The mask by one program."""
    return jax.jit(lambda scores: select(scores, sparsity, masks.kernels))(scores)


# N of M.


@pytest.mark.parametrize(
    ("n", "m", "axis"), [(1, 1, 0), (2, 4, -2), (3, 4, 0), (1, 2, -1), (5, 6, 1)]
)
def test_the_n_largest_of_every_m_neighbors(n: int, m: int, axis: int) -> None:
    scores = scores_like(12, 12)
    mask = selected(masks.n_of_m(n, m, axis=axis), {"w": scores})["w"]
    rows = np.moveaxis(scores, axis, -1).reshape(-1, m)
    expected = np.stack([largest_by_sorting([row], n)[0] for row in rows])
    found = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, m)
    np.testing.assert_array_equal(found, expected)


def test_the_sparsity_of_n_of_m_is_its_own() -> None:
    params = {"conv": scores_like(3, 3, 8, 5), "dense": scores_like(12, 7)}
    mask = selected(masks.n_of_m(1, 4), params | {"b": np.ones(7, "f4")})
    assert masks.densities(mask) == {"conv": 0.25, "dense": 0.25, "b": 1.0}


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (2.0, 4), (2, True)])
def test_n_of_m_that_cannot_be(n: Any, m: Any) -> None:
    with pytest.raises(ValueError, match=r"n is|m is"):
        masks.n_of_m(n, m)


# Blocks.


def test_whole_blocks_by_their_sums() -> None:
    scores = {"v": scores_like(4, 6), "w": scores_like(2, 2, 4, 9, seed=1)}
    mask = selected(masks.blocks((2, 3)), scores, 0.7)
    sums = [
        np.array([[x[i : i + 2, j : j + 3].sum() for j in range(0, x.shape[1], 3)]
                  for i in range(0, x.shape[0], 2)])
        for x in (scores["v"], *scores["w"].reshape(4, 4, 9))
    ]  # fmt: skip
    expected = largest_by_sorting(sums, round((4 + 24) * 0.3))
    found = [mask["v"], *np.asarray(mask["w"]).reshape(4, 4, 9)]
    for blocks, keep in zip(expected, found):
        np.testing.assert_array_equal(np.kron(blocks, np.ones((2, 3), bool)), keep)


# Units.


def test_whole_units_by_the_sums_of_their_scores() -> None:
    scores = {"v": scores_like(4, 2, 4), "w": scores_like(4, 6, seed=1)}
    mask = selected(masks.units(), scores, 0.6)
    sums = [leaf.reshape(-1, leaf.shape[-1]).sum(0) for leaf in scores.values()]
    expected = largest_by_sorting(sums, round(10 * 0.4))
    for units, keep in zip(expected, mask.values()):
        np.testing.assert_array_equal(np.broadcast_to(units, keep.shape), keep)


def test_heads_are_units_of_another_axis() -> None:
    scores = {"query": np.ones((8, 3, 4), np.float32)}
    scores["query"][:, 1] = 2
    mask = selected(masks.units(axis=-2), scores, 2 / 3)["query"]
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


def test_blocks_of_one_number() -> None:
    with pytest.raises(ValueError, match="shape is 2; pass a size for each axis"):
        masks.blocks(2)


def test_units_of_different_numbers_have_none_in_common() -> None:
    scores = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 4), np.float32)}
    with pytest.raises(ValueError, match=r"'b' has 4 .*of its group 'x' have 3"):
        masks.units(group=lambda name: "x")(scores, 0.5, masks.kernels)


# All of them.

SELECTIONS = [masks.n_of_m(2, 4), masks.blocks((2, 2)), masks.units()]


@pytest.mark.parametrize("select", SELECTIONS)
def test_traced_and_over_networks(select: masks.Select) -> None:
    scores = {"v": scores_like(3, 8, 4), "w": scores_like(3, 4, 6, seed=1)}
    one = functools.partial(select, sparsity=0.5, prunable=masks.kernels)
    mask, compiled = jax.jit(jax.vmap(one))(scores), jax.jit(one)
    for i in range(3):
        alone = compiled({name: leaf[i] for name, leaf in scores.items()})
        for name in scores:
            np.testing.assert_array_equal(mask[name][i], alone[name])


def test_in_rounds_it_is_the_structure_of_one_round() -> None:
    rng = np.random.default_rng(0)
    params = {"v": rng.random((8, 4), np.float32), "w": rng.random((4, 6), np.float32)}
    for select in SELECTIONS:
        several, one = (
            pruning.prune(
                None, params, None, 0.5, criterion=saliency.magnitude, select=select,
                rounds=rounds,
            )[1]
            for rounds in (3, 1)
        )  # fmt: skip
        for name in params:
            np.testing.assert_array_equal(several[name], one[name])


def test_sums_of_half_precision_are_exact() -> None:
    scores = {"w": np.ones((1000, 2), jnp.bfloat16)}
    scores["w"][0, 0] = 1.0078125
    assert selected(masks.units(), scores)["w"][0].tolist() == [True, False]


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
    for select in SELECTIONS:
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
