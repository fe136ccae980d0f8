"""Sharding on eight devices (test_sharding.py)."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from snipjax import masks, optim, pruning, saliency, training
from snipjax.training import distributed, sharding
from snipjax.training.collectives import Collective, bytes_per_device, collectives

MESH = sharding.make_mesh({"data": 4, "model": 2})
SHAPES = {"a": (6, 4), "b": (5,), "c": (3, 3, 2, 8), "d": (7, 3)}
SPECS = {"a": P("model"), "b": P(), "c": P(None, None, None, "model"), "d": P()}


def scattered(tree: chex.ArrayTree) -> Any:
    """The tree on the mesh, small leaves split too."""
    return jax.device_put(tree, sharding.tree_shardings(MESH, tree, small=1))


def select(scores: chex.ArrayTree, sparsity: float) -> chex.ArrayTree:
    return masks.global_topk(scores, sparsity, lambda path, leaf: True)


def kept_by_sorting(scores: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The definition: the largest of all leaves, of equal ones the first."""
    flat = np.concatenate([leaf.ravel() for leaf in scores.values()])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:count]] = True
    parts = np.split(kept, np.cumsum([leaf.size for leaf in scores.values()])[:-1])
    return {k: p.reshape(scores[k].shape) for k, p in zip(scores, parts)}


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Conv(8, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(jnp.mean(nn.relu(x), (1, 2)))


def test_there_are_eight_devices() -> None:
    assert jax.device_count() == 8


class TestMesh:
    def test_has_the_axes_asked_for(self) -> None:
        assert dict(MESH.shape) == {"data": 4, "model": 2}
        assert MESH.size == 8

    def test_takes_the_first_devices(self) -> None:
        mesh = sharding.make_mesh({"model": 2})
        assert list(mesh.devices.flat) == jax.devices()[:2]

    def test_without_axes_is_all_devices_along_data(self) -> None:
        assert dict(sharding.make_mesh().shape) == {"data": 8, "model": 1}

    def test_of_more_devices_says_how_to_have_them(self) -> None:
        remedy = "XLA_FLAGS=--xla_force_host_platform_device_count=16"
        with pytest.raises(ValueError, match=remedy):
            sharding.make_mesh({"data": 8, "model": 2})


class TestRule:
    def test_splits_the_largest_dimension_that_the_axis_divides(self) -> None:
        leaves = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
        placed = sharding.tree_shardings(MESH, leaves, small=1)
        for name, leaf in leaves.items():
            expected = NamedSharding(MESH, SPECS[name])
            assert placed[name].is_equivalent_to(expected, leaf.ndim), name

    def test_leaves_small_ones_whole(self) -> None:
        leaves = {"small": jnp.zeros((2, 8)), "large": jnp.zeros((2, 9))}
        placed = sharding.tree_shardings(MESH, leaves, small=17)
        assert placed["small"].spec == P()
        assert placed["large"].spec == P("model")

    def test_has_all_of_a_state_lie_as_its_parameters(self) -> None:
        params = {"w": jnp.ones((64, 32)), "b": jnp.ones(32)}
        mask = masks.ones(params)
        optimizer = optim.sparse(training.paper_optimizer(0.1), mask)
        state = training.init_state({"params": params}, optimizer, jax.random.key(0))
        placed = sharding.tree_shardings(MESH, state)
        split = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
            if leaf.spec == P("model")
        ]
        assert len(split) == 3  # the parameter, its mask, its momentum
        assert all(name.endswith("['w']") for name in split)

    def test_puts_half_of_a_split_leaf_on_each_device(self) -> None:
        leaf = scattered({"w": jnp.arange(32.0).reshape(8, 4)})["w"]
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(4, 4)}

    def test_splits_batches_over_both_axes(self) -> None:
        batch = jax.device_put(jnp.zeros((16, 3)), sharding.batch_sharding(MESH))
        assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
        stack = jax.device_put(
            jnp.zeros((5, 16, 3)), sharding.batch_sharding(MESH, leading=1)
        )
        assert {shard.data.shape for shard in stack.addressable_shards} == {(5, 2, 3)}


class TestSelection:
    @pytest.mark.filterwarnings("ignore:no connection of")
    @settings(max_examples=15)
    @given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 30), data=st.data())
    def test_is_that_of_a_stable_sort(
        self, seed: int, levels: int, data: st.DataObject
    ) -> None:
        # Few levels make many ties, which must be cut at the same index.
        rng = np.random.default_rng(seed)
        scores = {
            name: (rng.integers(0, levels, shape) / levels).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        total = sum(leaf.size for leaf in scores.values())
        sparsity = data.draw(st.sampled_from([0.0, 0.5, 0.9]))
        expected = kept_by_sorting(scores, masks.kept_count(total, sparsity))
        for function in (select, jax.jit(select, static_argnums=1)):
            mask = function(scattered(scores), sparsity)
            chex.assert_trees_all_equal(jax.device_get(mask), expected)

    def test_exchanges_scalars_only(self) -> None:
        scores = {"a": jnp.ones((64, 64)), "b": jnp.ones((128, 32))}
        placed = sharding.tree_shardings(MESH, scores)
        select = jax.jit(lambda s: masks.global_topk(s, 0.9), in_shardings=(placed,))
        program = select.lower(scores).compile()
        exchanged = collectives(program)
        assert exchanged
        for one in exchanged:
            assert one.kind == "all-reduce"
            assert one.shape == ()
            assert one.dtype in ("u32", "f32")
            assert one.group_size == 2
        for mask, scores_lie in zip(program.output_shardings.values(), placed.values()):
            assert mask.is_equivalent_to(scores_lie, 2)


class TestSaliency:
    def test_and_mask_are_the_same_bit_for_bit_where_the_gradient_is(self) -> None:
        # Sums of integers are exact in any order.
        rng = np.random.default_rng(0)
        params = {
            name: rng.integers(-8, 9, shape).astype(np.float32)
            for name, shape in {"v": (32, 16), "w": (64, 32)}.items()
        }
        x = rng.integers(-4, 5, (16, 64)).astype(np.float32)

        def loss_fn(params: chex.ArrayTree, x: chex.Array) -> chex.Array:
            return jnp.sum(x @ params["w"] @ params["v"])

        _, mask = pruning.prune(loss_fn, params, x, 0.9)
        of_mesh = jax.device_put(params, sharding.tree_shardings(MESH, params, small=1))
        batch = jax.device_put(x, sharding.batch_sharding(MESH))
        sharded = sharding.fully_sharded(MESH, loss_fn)
        gradient = saliency.sensitivity(sharded, of_mesh, batch)
        # d loss / d c_v[j, k] = v[j, k] * sum_i (x w)[i, j]
        by_hand = params["v"] * (x @ params["w"]).sum(0)[:, None]
        np.testing.assert_array_equal(gradient["v"], by_hand)
        scores = saliency.snip(sharded, of_mesh, batch)
        for name, score in scores.items():
            assert score.sharding.is_equivalent_to(of_mesh[name].sharding, 2)
        _, of_mesh_mask = pruning.prune(sharded, of_mesh, batch, 0.9)
        chex.assert_trees_all_equal(jax.device_get(of_mesh_mask), jax.device_get(mask))


def deep(params: list[chex.Array], x: chex.Array) -> chex.Array:
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


class TestFullySharded:
    def test_gradient_is_that_of_one_device_and_split(self) -> None:
        rng = np.random.default_rng(1)
        params = [rng.normal(size=(64, 64)).astype(np.float32) / 8 for _ in range(3)]
        x = rng.normal(size=(16, 64)).astype(np.float32)
        expected = jax.grad(deep)(params, x)
        of_mesh = scattered(params)
        gradient = jax.jit(jax.grad(sharding.fully_sharded(MESH, deep)))(
            of_mesh, jax.device_put(x, sharding.batch_sharding(MESH))
        )
        for ours, theirs, param in zip(gradient, expected, of_mesh):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
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
        model = Normalized()
        images = np.random.default_rng(2).normal(size=(16, 4, 4, 3)).astype(np.float32)
        labels = np.arange(16, dtype=np.int32) % 2
        variables = model.init(jax.random.key(0), images)
        mask = masks.ones(variables["params"])
        optimizer = optim.sparse(training.paper_optimizer(0.1), mask)
        state = training.init_state(variables, optimizer, jax.random.key(1))
        step = functools.partial(training.train_step, model=model, optimizer=optimizer)
        expected, metrics = jax.jit(step)(state, training.Batch(images, labels))
        with jax.set_mesh(MESH):
            transform = functools.partial(sharding.fully_sharded, MESH)
            ours, our_metrics = jax.jit(functools.partial(step, transform=transform))(
                scattered(state),
                jax.device_put(
                    training.Batch(images, labels), sharding.batch_sharding(MESH)
                ),
            )
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, ours.params, expected.params)
        jax.tree.map(close, ours.batch_stats, expected.batch_stats)
        jax.tree.map(close, our_metrics, metrics)


class TestCollectives:
    """Programs of one exchange each, of which all is known beforehand."""

    FLAT = Mesh(np.array(jax.devices()), ("x",))
    SQUARE = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))

    def exchanged(
        self, mesh: Mesh, function: Any, in_spec: P, out_spec: P, shape: Any
    ) -> list[Collective]:
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False
        )
        array = jax.ShapeDtypeStruct(shape, jnp.float32)
        return collectives(jax.jit(mapped).lower(array).compile())

    def test_all_reduce(self) -> None:
        psum = functools.partial(jax.lax.psum, axis_name="x")
        found = self.exchanged(self.FLAT, psum, P("x"), P(), (32, 8))
        assert found == [("all-reduce", "f32", (4, 8), 128, 8)]
        assert bytes_per_device(found) == 2 * 7 / 8 * 128

    @pytest.mark.parametrize(("axis", "size"), [("x", 2), ("y", 4)])
    def test_all_reduce_in_groups(self, axis: str, size: int) -> None:
        psum = functools.partial(jax.lax.psum, axis_name=axis)
        found = self.exchanged(self.SQUARE, psum, P(), P(), (4, 8))
        assert found == [("all-reduce", "f32", (4, 8), 128, size)]

    def test_all_gather(self) -> None:
        gather = functools.partial(jax.lax.all_gather, axis_name="y", tiled=True)
        found = self.exchanged(self.SQUARE, gather, P("y"), P(), (16, 8))
        assert [(c.kind, c.bytes, c.group_size) for c in found] == [
            ("all-gather", 16 * 8 * 4, 4)
        ]
        assert bytes_per_device(found) == 3 / 4 * 512

    def test_reduce_scatter(self) -> None:
        scatter = functools.partial(jax.lax.psum_scatter, axis_name="x", tiled=True)
        found = self.exchanged(self.FLAT, scatter, P(), P("x"), (16, 8))
        assert [(c.kind, c.bytes, c.group_size) for c in found] == [
            ("reduce-scatter", 16 * 8 * 4, 8)
        ]
        assert bytes_per_device(found) == 7 / 8 * 512

    def test_permutation(self) -> None:
        ring = [(i, (i + 1) % 8) for i in range(8)]
        shift = functools.partial(jax.lax.ppermute, axis_name="x", perm=ring)
        found = self.exchanged(self.FLAT, shift, P("x"), P("x"), (16, 8))
        assert found == [("collective-permute", "f32", (2, 8), 64, 8)]
        assert bytes_per_device(found) == 64

    def test_none(self) -> None:
        assert self.exchanged(self.FLAT, jnp.sin, P("x"), P("x"), (16, 8)) == []


def test_what_was_on_the_host_is_not_kept_there() -> None:
    """Or one leaf after the other would come to the whole parameters."""
    mesh = sharding.make_mesh({"model": 8})
    values = np.arange(8_192.0, dtype=np.float32).reshape(128, 64)
    array = jax.device_put(values, sharding.tree_shardings(mesh, values))
    assert not array.is_fully_replicated
    first, second = distributed.on_host(array), distributed.on_host(array)
    np.testing.assert_array_equal(first, values)
    assert not np.shares_memory(first, second)
