"""Masks and parameters come back from their files, or an error says why not."""

import resource
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import io, masks

PARAMS = {
    "Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.zeros(3)},
    "Dense_1": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
}


def test_a_mask_is_put_on_another_network(tmp_path: Path) -> None:
    mask = masks.global_topk(PARAMS, 0.5)
    io.save_mask(mask, tmp_path / "mask.npz")
    other = jax.tree.map(lambda w: w + 1, PARAMS)
    found = io.load_mask(tmp_path / "mask.npz", other)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, mask)
    chex.assert_trees_all_equal(masks.apply(found, other), masks.apply(mask, other))
    abstract = jax.eval_shape(lambda: other)
    chex.assert_trees_all_equal(io.load_mask(tmp_path / "mask.npz", abstract), mask)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_arrays_come_back_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    params = jax.tree.map(lambda w: np.asarray(w).astype(dtype), PARAMS)
    params["Dense_0"]["bias"] = np.array([np.nan, -0.0, np.inf]).astype(dtype)
    io.save_arrays(params, tmp_path / "params.npz")
    found = io.load_arrays(tmp_path / "params.npz", like=params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for array, expected in zip(jax.tree.leaves(found), jax.tree.leaves(params)):
        assert array.dtype == expected.dtype
        assert np.asarray(array).tobytes() == np.asarray(expected).tobytes()


def test_numpy_reads_the_file_by_the_names_of_the_leaves(tmp_path: Path) -> None:
    io.save_arrays(PARAMS, tmp_path / "params.npz")
    with np.load(tmp_path / "params.npz") as archive:
        assert set(archive.files) == {
            f"Dense_{i}/{name}" for i in (0, 1) for name in ("kernel", "bias")
        }
        np.testing.assert_array_equal(
            archive["Dense_0/kernel"], PARAMS["Dense_0"]["kernel"]
        )


def test_leaves_come_to_the_host_one_after_the_other(tmp_path: Path) -> None:
    path, sizes = tmp_path / "mask.npz", []

    def on_host(array: chex.Array) -> np.ndarray:
        sizes.append(path.with_name("mask.npz.partial").stat().st_size)
        return np.asarray(array)

    rng = np.random.default_rng(0)  # nothing that compresses into a buffer
    mask = {name: rng.random(100_000) < 0.5 for name in "abc"}
    io.save_mask(mask, path, on_host=on_host)
    assert sizes == sorted(set(sizes))
    assert [file.name for file in tmp_path.iterdir()] == ["mask.npz"]


@pytest.mark.parametrize(
    ("save", "tree", "message"),
    [
        (io.save_mask, PARAMS, "'Dense_0/bias' has dtype float32"),
        (
            io.save_arrays,
            {"a": {"b": np.ones(1)}, "a/b": np.ones(2)},
            "are called 'a/b'",
        ),
    ],
)
def test_a_tree_that_cannot_be_read_again_is_not_written(
    tmp_path: Path, save: Any, tree: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save(tree, tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    io.save_arrays(PARAMS, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"params\.npz' cannot be written"):
            io.save_arrays({"w": np.random.default_rng(0).random(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    chex.assert_trees_all_equal(io.load_arrays(path, PARAMS), PARAMS)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OSError, match="cannot be written"):
        io.save_arrays(PARAMS, tmp_path / "missing" / "params.npz")


ONES = masks.ones(PARAMS, prunable=lambda path, leaf: True)
SHAPES = {"Dense_1": {"kernel": jnp.ones((2, 3), bool), "bias": jnp.ones(2, bool)}}
LEAVES = {"Dense_1": {"kernel": jnp.ones((3, 2), bool), "scale": jnp.array(True)}}
OTHER_SHAPE = r"npz'.*'Dense_1/kernel' has shape \(2, 3\).*\(3, 2\)"
OTHER_LEAVES = "missing leaves: Dense_1/bias; unknown leaves: Dense_1/scale"


@pytest.mark.parametrize(
    ("tree", "load", "message"),
    [
        (ONES | SHAPES, io.load_mask, OTHER_SHAPE),
        (ONES | LEAVES, io.load_mask, OTHER_LEAVES),
        (ONES | LEAVES, io.load_arrays, OTHER_LEAVES),
        # Only a mask has scalars for arrays, and parameters are no mask.
        (
            masks.ones(PARAMS),
            io.load_arrays,
            r"'Dense_0/bias' has shape \(\), not \(3,",
        ),
        (PARAMS, io.load_mask, r"npz' does not fit.*float32, not bool"),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, tree: Any, load: Any, message: str
) -> None:
    io.save_arrays(tree, tmp_path / "file.npz")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "file.npz", PARAMS)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    io.save_arrays(PARAMS, path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-30], whole[:60] + b"\xff" * 9 + whole[69:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"params\.npz' is damaged .*; remove it"):
            io.load_arrays(path, PARAMS)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"params\.npz"):
        io.load_arrays(path, PARAMS)
