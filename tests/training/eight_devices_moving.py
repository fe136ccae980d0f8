"""A moving mask on a mesh of eight devices (tests/optim/test_runs.py)."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from snipjax import masks, optim
from tests import runs
from tests.runs import Finished, finished_run, interrupted

pytestmark = pytest.mark.usefixtures("compile_once")


def moving(mesh: str, **fields: Any) -> ConfigDict:
    """Six steps with moves in steps 2 and 4."""
    steps = {"steps": 6, "eval_every": 3, "checkpoint_every": 3, "every": 2}
    config = runs.quick(**{"mesh": mesh, "steps_per_dispatch": 1, **steps, **fields})
    config.prune.batch_size = config.train.batch_size = 104
    config.optimizer.sparse.update(name="rigl", stop=0.9)
    return config


def check_alike(ours: Finished, theirs: Finished) -> None:
    for name, mask in ours.mask().items():
        assert mask.sum() == theirs.mask()[name].sum()
        # Rounding of gradients, and of what follows from them.
        assert (mask != theirs.mask()[name]).mean() < 0.01


def test_moves_are_those_of_one_device_and_resume(tmp_path: Path) -> None:
    split = finished_run(moving("data=4,model=2"), tmp_path / "split")
    check_alike(split, finished_run(moving("data=1"), tmp_path / "one"))
    first = split.arrays("first_mask.npz")
    assert sum(int((first[n] != m).sum()) for n, m in split.mask().items()) > 500
    mask = split.last_state().opt_state.mask["Dense_1"]["kernel"]
    assert {x.data.shape for x in mask.addressable_shards} == {(150, 100)}
    workdir = interrupted(split.workdir, tmp_path / "again", step=3)
    (workdir / "seed-0" / "mask.npz").unlink()
    again = finished_run(split.config, workdir)
    assert again.digests == split.digests
    for name, keep in again.mask().items():
        np.testing.assert_array_equal(keep, split.mask()[name])


def test_a_mask_for_each_device_moves_by_itself() -> None:
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    mask = {"w": jnp.arange(12).reshape(3, 4) % 3 == 0}
    optimizer = optim.rigl(
        optax.sgd(0.1), mask, every=1, stop=9, fraction=optax.constant_schedule(0.9)
    )

    def moved(seed: chex.Array) -> chex.Array:
        weights, *gradients = jax.random.normal(jax.random.key(seed[0]), (3, 3, 4))
        params = masks.apply(mask, {"w": weights})
        state = optimizer.init(params)
        for gradient in gradients:
            _, state = optimizer.update({"w": gradient}, state, params)
        return state.mask["w"][None]

    spec = jax.sharding.PartitionSpec("data")
    found = jax.jit(jax.shard_map(moved, mesh=mesh, in_specs=spec, out_specs=spec))(
        jnp.arange(8)
    )
    one = jax.jit(jax.vmap(moved))(jnp.arange(8)[:, None])[:, 0]
    np.testing.assert_array_equal(found, one)
    assert (found.sum(axis=(1, 2)) == 4).all()
    assert (found[0] != found[1]).any()
