"""Sharding on eight devices (test_on_mesh.py)."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import collectives
from snipjax import masks, optim, saliency, shrink, training
from snipjax.training import Batch, distributed, sharding
from tests.conftest import largest_by_sorting

MESH = sharding.make_mesh({"data": 4, "model": 2})
# The rule's shardings of some shapes; the last two are small, or not divisible.
SPECS = {
    (64, 32): P("model"),
    (4, 4, 32, 64): P(None, None, None, "model"),
    (48, 48): P(None, "model"),
    (31, 32): P(),
    (35, 35): P(),
}


def scattered(tree: chex.ArrayTree) -> Any:
    return jax.device_put(tree, sharding.tree_shardings(MESH, tree))


def split(batch: Any) -> Any:
    return jax.device_put(batch, sharding.batch_sharding(MESH))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_mesh_takes_the_devices_asked_for() -> None:
    assert jax.device_count() == 8
    assert dict(MESH.shape) == {"data": 4, "model": 2}
    mesh = sharding.make_mesh({"model": 2})
    assert dict(mesh.shape) == {"data": 1, "model": 2}
    assert [device.id for device in mesh.devices.flat] == [0, 1]
    assert dict(sharding.make_mesh().shape) == {"data": 8, "model": 1}
    with pytest.raises(ValueError, match=r"asks for 16.*_device_count=16"):
        sharding.make_mesh({"data": 8, "model": 2})


def test_a_mesh_must_divide_batches() -> None:
    sharding.check_divides(MESH, 104, "train.batch_size")
    with pytest.raises(ValueError, match=r"train\.batch_size is 100.*e\.g\. 104"):
        sharding.check_divides(MESH, 100, "train.batch_size")


class TestRule:
    def test_splits_the_largest_dimension_that_the_axis_divides(self) -> None:
        for shape, spec in SPECS.items():
            placed = sharding.tree_shardings(MESH, jnp.zeros(shape))
            expected = NamedSharding(MESH, spec)
            assert placed.is_equivalent_to(expected, len(shape)), shape
        leaf = scattered(jnp.zeros((64, 32)))
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(32, 32)}

    def test_has_all_of_a_state_lie_as_its_parameters(self) -> None:
        params = {"w": jnp.ones((64, 32)), "b": jnp.ones(32)}
        optimizer = optim.sparse(training.sgd(0.1), masks.ones(params))
        state = training.init_state({"params": params}, optimizer, jax.random.key(0))
        placed = sharding.tree_shardings(MESH, state)
        split = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
            if leaf.spec == P("model")
        ]
        assert len(split) == 3  # the parameter, its mask, its momentum
        assert all(name.endswith("['w']") for name in split)

    def test_splits_batches_over_both_axes(self) -> None:
        for leading, shape, part in ((0, (16, 3), (2, 3)), (1, (5, 16, 3), (5, 2, 3))):
            placed = sharding.batch_sharding(MESH, leading=leading)
            batch = jax.device_put(jnp.zeros(shape), placed)
            assert {shard.data.shape for shard in batch.addressable_shards} == {part}


def test_smaller_networks_are_sharded_like_others() -> None:
    def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
        return jnp.mean(jnp.sin(jax.nn.relu(x @ params["in"]) @ params["out"]))

    params = {"in": normal(64, 128), "out": normal(128, 64, seed=1)}
    x, keep = normal(16, 64, seed=2), np.arange(128) % 2 == 0
    mask = {"in": jnp.tile(keep, (64, 1)), "out": jnp.tile(keep[:, None], (1, 64))}
    small_loss, small_params = shrink.shrink(loss_fn, params, mask, x)
    placed = scattered(small_params)
    assert not any(x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
    grads = jax.jit(jax.grad(small_loss))(placed, split(x))
    expected = jax.grad(loss_fn)(masks.apply(mask, params), x)
    np.testing.assert_allclose(grads["in"], expected["in"][:, keep], atol=1e-6)
    np.testing.assert_allclose(grads["out"], expected["out"][keep], atol=1e-6)


def test_selection_is_exact_and_exchanges_scalars_only() -> None:
    # Few levels make many ties, which must be cut at the same index.
    rng = np.random.default_rng(0)
    scores = [rng.integers(0, 9, shape).astype(np.float32) for shape in SPECS]
    prunable = lambda path, leaf: True  # noqa: E731
    select = jax.jit(lambda scores: masks.global_topk(scores, 0.9, prunable))
    program = select.lower(scattered(scores)).compile()
    kept = masks.kept_count(sum(leaf.size for leaf in scores), 0.9)
    mask = program(scattered(scores))
    for ours, theirs in zip(mask, largest_by_sorting(scores, kept)):
        np.testing.assert_array_equal(ours, theirs)
    exchanged = collectives(program)
    assert {(one.kind, one.shape, one.group_size) for one in exchanged} == {
        ("all-reduce", (), 2)
    }
    for keep, shape in zip(mask, SPECS):
        expected = NamedSharding(MESH, SPECS[shape])
        assert keep.sharding.is_equivalent_to(expected, len(shape))


def deep(params: list[chex.Array], x: chex.Array) -> chex.Array:
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Conv(8, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(jnp.mean(nn.relu(x), (1, 2)))


class TestFullySharded:
    def test_gradients_and_saliency_are_of_one_device_and_split(self) -> None:
        params = [normal(64, 64, seed=seed) / 8 for seed in range(3)]
        x, lying = normal(16, 64), scattered(params)
        sharded = sharding.fully_sharded(MESH, deep)
        snip = functools.partial(saliency.snip, deep)
        snip_sharded = functools.partial(saliency.snip, sharded)
        for one, many in (
            (jax.grad(deep), jax.grad(sharded)),
            (snip, snip_sharded),
        ):
            expected, actual = one(params, x), jax.jit(many)(lying, split(x))
            for ours, theirs, param in zip(actual, expected, lying):
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
                assert ours.sharding.is_equivalent_to(param.sharding, 2)

    def test_never_has_all_parameters_on_one_device(self) -> None:
        layers, width, batch = 16, 256, 8
        params = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * layers
        placed = sharding.tree_shardings(MESH, params)

        def step(params: list[chex.Array], x: chex.Array) -> list[chex.Array]:
            grad = jax.grad(sharding.fully_sharded(MESH, deep))(params, x)
            return [w - 0.1 * g for w, g in zip(params, grad)]

        lowered = jax.jit(
            step,
            in_shardings=(placed, sharding.batch_sharding(MESH)),
            out_shardings=placed,
            donate_argnums=0,
        ).lower(params, jax.ShapeDtypeStruct((batch, width), jnp.float32))
        program = sharding.compiled(MESH, lowered)
        # Half of every gradient, and few whole matrices at a time.
        whole = layers * width * width * 4
        assert program.memory_analysis().temp_size_in_bytes < 0.75 * whole
        gathers = [c for c in collectives(program) if c.kind == "all-gather"]
        assert {c.shape for c in gathers} == {(width, width)}
        # Of each forward, and of each but the first backward: d loss / dx is not asked.
        assert len(gathers) == 2 * layers - 1

    def test_batch_norm_is_of_the_whole_batch(self) -> None:
        model, batch = Normalized(), Batch(normal(16, 4, 4, 3), np.arange(16) % 2)
        variables = model.init(jax.random.key(0), batch.images)
        optimizer = optim.sparse(training.sgd(0.1), masks.ones(variables["params"]))
        state = training.init_state(variables, optimizer, jax.random.key(1))
        step = functools.partial(training.train_step, model=model, optimizer=optimizer)
        expected, metrics = jax.jit(step)(state, batch)
        transform = functools.partial(sharding.fully_sharded, MESH)
        with jax.set_mesh(MESH):
            ours, our_metrics = jax.jit(functools.partial(step, transform=transform))(
                scattered(state), split(batch)
            )
        chex.assert_trees_all_close(
            (ours[1:3], our_metrics), (expected[1:3], metrics), rtol=1e-4, atol=1e-5
        )


def test_an_array_does_not_keep_its_copy_on_the_host() -> None:
    """Or one leaf after the other would come to the whole parameters."""
    values = normal(128, 64)
    array = scattered(values)
    assert not array.is_fully_replicated
    first, second = distributed.on_host(array), distributed.on_host(array)
    np.testing.assert_array_equal(first, values)
    assert not np.shares_memory(first, second)
