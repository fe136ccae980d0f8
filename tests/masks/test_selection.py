"""The k largest of several arrays, against a stable sort of all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax.masks import counting, selection
from tests.conftest import largest_by_sorting


def assert_largest(leaves: list[np.ndarray], k: int) -> None:
    actual = selection.largest([jnp.asarray(leaf) for leaf in leaves], k)
    for mask, expected in zip(actual, largest_by_sorting(leaves, k), strict=True):
        np.testing.assert_array_equal(mask, expected)


def scores(seed: int, *shapes: tuple[int, ...], levels: int = 0) -> list[np.ndarray]:
    """Products of normals; with levels, few different ones, so that many are equal."""
    rng = np.random.default_rng(seed)
    leaves = [rng.standard_normal(s) * rng.standard_normal(s) for s in shapes]
    if levels:
        leaves = [np.round(levels * leaf) / levels for leaf in leaves]
    return [np.abs(leaf).astype(np.float32) for leaf in leaves]


SHAPES = (3, 5), (2000,), (40, 5, 10), (1,), (3001,)


def test_in_pieces_and_narrowed_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the sizes at hand, small ones. No other test has these shapes, so that the
    # functions are compiled for them here.
    monkeypatch.setattr(counting, "_PIECE", 600)
    monkeypatch.setattr(counting, "_SMALL", 300)
    monkeypatch.setattr(selection, "_SAMPLE", 200)
    shapes = (4, 5), (2100,), (40, 5, 9), (3101,)
    for levels in (0, 2):
        leaves = scores(1, *shapes, levels=levels)
        for k in (1, 350, 7016):
            assert_largest(leaves, k)


@pytest.fixture(params=["one CPU", "accelerator"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the CPU for another device, where the scores are read few times."""
    if request.param == "accelerator":
        monkeypatch.setattr(counting, "is_on_one_cpu", lambda tree: False)
    monkeypatch.setattr(selection, "_SAMPLE", 200)


@pytest.mark.usefixtures("device")
class TestOnADevice:
    def test_several_leaves_with_and_without_ties(self) -> None:
        for levels in (0, 1, 3, 100):
            leaves = scores(3, *SHAPES, levels=levels)
            for k in (1, 7, 350, 3500, 7016):
                assert_largest(leaves, k)
                assert_largest([-leaf for leaf in leaves], k)

    def test_a_sample_that_misleads_changes_nothing(self) -> None:
        # Every entry the sample sees is the least or the largest of all.
        (leaf,) = scores(2, (8000,))
        for seen in (0.0, 100.0):
            leaf[:: leaf.size // 200] = seen
            for k in (10, 150, 400, 7900):
                assert_largest([leaf], k)

    def test_each_leaf_keeps_some_of_its_own(self) -> None:
        leaves = [jnp.asarray(x) for x in scores(4, (50, 30), (2000,))]
        minima = [100, 5]
        leaves[0] *= 1e-3
        found = selection.largest_of_all_and_each(leaves, 300, minima)
        for mask, leaf, kept in zip(found, leaves, (100, 200)):
            (wanted,) = largest_by_sorting([np.asarray(leaf)], kept)
            np.testing.assert_array_equal(mask, wanted)

    def test_many_selections_at_once_and_on_a_mesh_of_one(self) -> None:
        (leaf,) = scores(5, (3, 4000))
        (wanted,) = largest_by_sorting([leaf[0]], 200)

        def select(leaf: jax.Array) -> jax.Array:
            return selection.largest([leaf], 200)[0]

        found = jax.jit(jax.vmap(select))(leaf)
        np.testing.assert_array_equal(found[0], wanted)
        assert found.sum(1).tolist() == [200] * 3
        axis_types = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((1,), ("x",), axis_types)
        spec = jax.sharding.PartitionSpec("x")
        mapped = jax.shard_map(select, mesh=mesh, in_specs=spec, out_specs=spec)
        np.testing.assert_array_equal(jax.jit(mapped)(leaf[0]), wanted)

    def test_traced_scores_that_are_not_numbers_come_to_an_end(self) -> None:
        leaf = jnp.ones((700, 3)).at[::2].set(jnp.nan)
        jax.block_until_ready(jax.jit(lambda x: selection.largest([x], 100))(leaf))


def test_reads_of_an_accelerator_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    count_each = counting.count_each

    def counted(*args: Any) -> list[jax.Array]:
        jax.debug.callback(lambda: reads.append(1))
        return count_each(*args)

    monkeypatch.setattr(counting, "count_each", counted)
    monkeypatch.setattr(counting, "is_on_one_cpu", lambda tree: False)
    monkeypatch.setattr(selection, "_SAMPLE", 2**12)
    assert_largest(scores(6, (301, 999)), 15_000)
    jax.effects_barrier()
    assert 0 < len(reads) <= 8


def test_a_million_entries_traced_or_not() -> None:
    traced = jax.jit(lambda leaves: selection.largest(leaves, 55_000))
    for levels in (0, 1000):
        leaves = scores(3, (600, 1000), (500_000,), levels=levels)
        assert_largest(leaves, 55_000)
        expected = largest_by_sorting(leaves, 55_000)
        for mask, keep in zip(traced(leaves), expected, strict=True):
            np.testing.assert_array_equal(mask, keep)
