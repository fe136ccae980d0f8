"""Selections against a stable sort in NumPy."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snipjax import masks
from tests.conftest import largest_by_sorting, on_eight_devices

pytestmark = pytest.mark.filterwarnings("error")

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
BOTH = [masks.global_topk, masks.layerwise_topk]


def every_array(path: Any, leaf: chex.Array) -> bool:
    del path, leaf
    return True


def oracle(leaves: list[np.ndarray], sparsity: float) -> list[np.ndarray]:
    total = sum(leaf.size for leaf in leaves)
    return largest_by_sorting(leaves, round(total * (1 - sparsity)))


# Selection, on whatever hypothesis can think of. One tree of odd shapes, so that
# nothing is compiled twice; the empty leaf and the scalar are never prunable.

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 1, 3), "d": (1, 1), "e": (0, 3), "f": ()}
PRUNABLE = ("a", "b", "c", "d")

SPARSITIES = st.one_of(
    st.sampled_from([0.0, 1e-12, 0.05, 0.1, 1 / 3, 0.5, 0.9, 0.95, 0.99, 1 - 2**-53]),
    st.floats(0, 1, exclude_max=True),
)


def finite_floats(dtype: Any) -> st.SearchStrategy[float]:
    """Any finite float, often one at an edge: both zeros, subnormals, the extremes."""
    info = jnp.finfo(dtype)
    tiny, eps = float(info.smallest_subnormal), float(info.eps)
    low, high = float(info.min), float(info.max)
    edges = [0.0, -0.0, tiny, -tiny, 2 * tiny, float(info.tiny), high, low, 1, 1 + eps]
    width = {jnp.float64: 64, jnp.float16: 16}.get(dtype, 32)
    return st.sampled_from(edges) | st.floats(low, high, width=width)


@st.composite
def scores_like_shapes(draw: st.DrawFn, dtype: Any) -> dict[str, np.ndarray]:
    """Entries drawn from a pool: a pool of one is all ties, of forty almost none."""
    pool = draw(st.lists(finite_floats(dtype), min_size=1, max_size=40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return {
        name: np.array(pool, dtype)[rng.integers(len(pool), size=shape)]
        for name, shape in SHAPES.items()
    }


def check_global(scores: dict[str, np.ndarray], sparsity: float) -> None:
    mask = masks.global_topk(scores, sparsity, every_array)
    expected = oracle([scores[name] for name in PRUNABLE], sparsity)
    chex.assert_trees_all_equal([mask[name] for name in PRUNABLE], expected)
    for name in ("e", "f"):
        assert mask[name].shape == ()
        assert mask[name]


@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64])
@given(data=st.data(), sparsity=SPARSITIES)
def test_the_largest_are_kept_as_a_stable_sort_keeps_them(
    dtype: Any, data: st.DataObject, sparsity: float
) -> None:
    scores = data.draw(scores_like_shapes(dtype))
    with jax.enable_x64(dtype is jnp.float64):
        check_global(scores, sparsity)
        mask = masks.layerwise_topk(scores, sparsity, every_array)
    for name in PRUNABLE:
        np.testing.assert_array_equal(mask[name], oracle([scores[name]], sparsity)[0])


@settings(max_examples=10)
@given(data=st.data(), sparsity=SPARSITIES)
def test_leaves_of_several_dtypes_are_compared_by_value(
    data: st.DataObject, sparsity: float
) -> None:
    scores = {
        name: data.draw(scores_like_shapes(dtype))[name]
        for name, dtype in zip(SHAPES, [*DTYPES, *DTYPES])
    }
    check_global(scores, sparsity)


def test_ties_of_several_leaves_are_cut_in_tree_order() -> None:
    scores = {"a": np.ones((2, 2)), "c": np.ones((1, 3)), "d": np.full((1, 2), 2.0)}
    mask = masks.global_topk(scores, 3 / 9)
    assert [int(leaf.sum()) for leaf in mask.values()] == [4, 0, 2]


# Exact counts.


@given(total=st.integers(0, 2**33), sparsity=SPARSITIES)
def test_the_count_is_rounded_from_the_share(total: int, sparsity: float) -> None:
    assert masks.kept_count(total, sparsity) == round(total * (1 - sparsity))
    for half in (np.float32(0.5), jnp.float32(0.5)):
        assert masks.kept_count(3, half) == 2


# Transformations.


@pytest.mark.parametrize("topk", BOTH)
def test_traced_and_over_networks(topk: Any) -> None:
    rng = np.random.default_rng(0)
    scores = [
        rng.integers(0, 5, (6, 3, 4)).astype(np.float32),
        rng.integers(0, 5, (6, 2, 5)).astype(np.float32),
    ]
    mask = jax.jit(jax.vmap(functools.partial(topk, sparsity=0.7)))(scores)
    for i in range(6):
        leaves = [leaf[i] for leaf in scores]
        expected = oracle(leaves, 0.7)
        if topk is masks.layerwise_topk:
            expected = [oracle([leaf], 0.7)[0] for leaf in leaves]
        chex.assert_trees_all_equal([m[i] for m in mask], expected)


def test_one_can_differentiate_past_a_selection() -> None:
    def loss_fn(w: chex.Array) -> chex.Array:
        mask = masks.global_topk({"w": jnp.abs(w)}, 0.5)
        return jnp.sum(masks.apply(mask, {"w": w})["w"] ** 2)

    gradient = jax.grad(loss_fn)(jnp.array([[1.0, -3.0]]))
    np.testing.assert_array_equal(gradient, [[0.0, -6.0]])


def test_selection_neither_sorts_nor_concatenates_nor_copies() -> None:
    scores = {"a": jnp.ones((3000, 200)), "b": jnp.ones((400, 1000))}
    topk = functools.partial(masks.global_topk, sparsity=0.9)
    jaxpr = str(jax.make_jaxpr(topk)(scores))
    assert not any(op in jaxpr for op in ("sort[", "top_k["))
    memory = jax.jit(topk).lower(scores).compile().memory_analysis()
    # Nothing of the scores' size, but for what is counted at a time.
    assert memory.temp_size_in_bytes < 0.5 * sum(s.nbytes for s in scores.values())


def test_other_values_and_another_sparsity_do_not_compile_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    masks.global_topk({"w": np.ones((11, 13))}, 0.5)
    with jax.log_compiles():
        masks.global_topk({"w": np.zeros((11, 13))}, 0.9)
        assert not caplog.records
        masks.global_topk({"w": np.zeros((13, 11))}, 0.9)
        assert caplog.records


def test_a_rule_sees_key_paths_and_its_choice_is_a_mask() -> None:
    def first_of_a(leaves: Any, sparsity: float) -> list[chex.Array]:
        assert sparsity == 0.5
        return [
            jnp.arange(x.size).reshape(x.shape) < (path[0].key == "a")
            for path, x in leaves
        ]

    scores = {"a": np.ones((2, 2)), "b": np.ones(3), "c": np.ones((1, 3))}
    mask = masks.select_leaves(scores, 0.5, masks.kernels, first_of_a)
    np.testing.assert_array_equal(mask["a"], [[True, False], [False, False]])
    assert mask["b"].shape == ()
    assert not mask["c"].any()
    with pytest.raises(ValueError, match="outside"):
        masks.select_leaves(scores, 1.5, masks.kernels, first_of_a)


# Bad input.


@pytest.mark.parametrize(
    "sparsity",
    [1.0, -0.1, 95, float("nan"), True, np.False_, "0.9", None, 0.5j, [0.5]],
)
def test_a_sparsity_that_is_no_number_in_the_interval(sparsity: Any) -> None:
    for topk in BOTH:
        with pytest.raises(ValueError, match=r"outside \[0, 1\).*e.g. 0.95 for 95%"):
            topk({"w": jnp.ones((2, 2))}, sparsity)


def test_a_traced_sparsity() -> None:
    with pytest.raises(ValueError, match=r"sparsity is traced.*static_argnames"):
        jax.jit(masks.global_topk)({"w": jnp.ones((2, 2))}, 0.5)


@pytest.mark.parametrize(
    ("scores", "prunable", "names"),
    [
        ({"layer": {"b": jnp.ones(3)}}, masks.kernels, "layer/b"),
        ({}, masks.kernels, ""),
        ({"w": jnp.ones((0, 3)), "t": jnp.ones(())}, every_array, "t, w"),
        ({"w": jnp.ones((2, 3))}, lambda path, leaf: False, "w"),
    ],
)
def test_nothing_prunable(scores: Any, prunable: Any, names: str) -> None:
    problem = rf"nothing is prunable among the leaves \[{names}\].*masks.kernels"
    with pytest.raises(ValueError, match=problem):
        masks.global_topk(scores, 0.5, prunable)


def test_a_score_that_is_not_finite_names_its_leaf() -> None:
    # The largest of these, as XLA takes it on the CPU, need not be NaN.
    values = np.abs(np.random.default_rng(0).normal(size=6300))
    bad = itertools.cycle([np.nan, np.inf, -np.inf])
    for position, dtype in zip(range(0, 6300, 487), itertools.cycle(DTYPES)):
        scores = values.astype(dtype)
        scores[position] = next(bad)
        tree = {"fine": np.ones((2, 2)), "bad": {"kernel": scores.reshape(7, 900)}}
        with pytest.raises(ValueError, match=r"not finite in bad/kernel; .*check"):
            masks.global_topk(tree, 0.9)


def test_a_score_that_is_not_finite_but_not_prunable_does_not_matter() -> None:
    mask = masks.global_topk({"w": np.ones((2, 2)), "b": np.full(2, np.nan)}, 0.5)
    assert int(mask["w"].sum()) == 2


def test_scores_that_are_no_floats() -> None:
    with pytest.raises(ValueError, match="scores leaf 'layer/w' has dtype int"):
        masks.global_topk({"layer": {"w": np.ones((2, 2), int)}}, 0.5)


def test_more_connections_than_can_be_counted() -> None:
    scores = {"w": jax.ShapeDtypeStruct((2**16, 2**17), jnp.float32)}
    with pytest.raises(ValueError, match=r"8,589,934,592 .* more than .*groups"):
        jax.eval_shape(lambda scores: masks.global_topk(scores, 0.5), scores)


# Several devices.


def test_sharded_scores_give_the_same_mask_sharded_alike() -> None:
    on_eight_devices("""
import jax, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from snipjax import masks, optim, pruning

rng = np.random.default_rng(0)
params = {
    "a": rng.integers(1, 9, (16, 6)).astype(np.float32),
    "d": rng.integers(1, 9, (3, 24)).astype(np.float32),
    "c": np.ones(8, np.float32),
}
specs = {"a": P("x", None), "d": P(None, "x"), "c": P("x")}

def loss_fn(params, batch):
    return (params["a"] * batch["a"]).sum() + (params["d"] * batch["d"]).sum()

def select(scores):
    return masks.global_topk(scores, 0.7)

whole_pruned, whole_mask = pruning.prune(loss_fn, params, params, 0.7)

for axis_type in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    sharded = jax.device_put(params, shardings)
    if axis_type == AxisType.Auto:
        prune = jax.jit(lambda p, b: pruning.prune(loss_fn, p, b, 0.7))
        pruned, mask = prune(sharded, sharded)
    else:
        stack = jax.tree.map(lambda x: np.stack([x, x]), params)
        stack = jax.device_put(
            stack, {name: NamedSharding(mesh, P(None, *specs[name])) for name in specs}
        )
        pruned, mask = pruning.prune(loss_fn, sharded, stack, 0.7, num_batches=2)
    for name in ("a", "d"):
        np.testing.assert_array_equal(mask[name], whole_mask[name])
        np.testing.assert_array_equal(pruned[name], whole_pruned[name])
        assert mask[name].sharding.is_equivalent_to(shardings[name], 2)
        assert pruned[name].sharding.is_equivalent_to(shardings[name], 2)
    assert masks.summary(mask) == masks.summary(whole_mask)

    # Scalar sums are all that leaves a device.
    text = jax.jit(select).lower(sharded).compile().as_text()
    assert "all-reduce" in text
    assert not any(op in text for op in ("all-gather", "all-to-all", "permute"))

    optimizer = optim.sparse(optax.adamw(0.1), mask)
    state = optimizer.init(pruned)
    updates, state = jax.jit(optimizer.update)(sharded, state, pruned)
    updated = optax.apply_updates(pruned, updates)
    for name in ("a", "d"):
        assert updated[name].sharding.is_equivalent_to(shardings[name], 2)
        assert state.mask[name].sharding.is_equivalent_to(shardings[name], 2)
        assert not np.asarray(updated[name])[~np.asarray(mask[name])].any()
""")
