"""Selection against a stable sort in NumPy, and everything one can do with a mask."""

import functools
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Network, nested_dict
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from snipjax import masks
from snipjax._src import trees

# What disconnects a network is of no matter here but where the warning is tested.
pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def every_array(path: trees.KeyPath, leaf: chex.Array) -> bool:
    del path, leaf
    return True


def oracle(leaves: list[np.ndarray], sparsity: float) -> list[np.ndarray]:
    """The mask of the largest entries, earlier ones first, by a stable sort."""
    flat = np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])
    kept = round(flat.size * (1 - sparsity))
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:kept]] = True
    pieces = np.split(mask, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves)]


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


def check_layerwise(scores: dict[str, np.ndarray], sparsity: float) -> None:
    mask = masks.layerwise_topk(scores, sparsity, every_array)
    for name in PRUNABLE:
        np.testing.assert_array_equal(mask[name], oracle([scores[name]], sparsity)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), sparsity=SPARSITIES)
def test_the_largest_are_kept_as_a_stable_sort_keeps_them(
    dtype: Any, data: st.DataObject, sparsity: float
) -> None:
    scores = data.draw(scores_like_shapes(dtype))
    check_global(scores, sparsity)
    check_layerwise(scores, sparsity)


@settings(max_examples=10)
@given(scores=scores_like_shapes(jnp.float64), sparsity=SPARSITIES)
def test_double_precision_is_told_apart(
    scores: dict[str, np.ndarray], sparsity: float
) -> None:
    with jax.enable_x64(True):
        check_global(scores, sparsity)


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


def test_ties_go_to_the_lower_flat_index_in_tree_order() -> None:
    scores = {"a": np.ones((2, 2)), "b": np.ones((1, 3)), "c": np.full((1, 2), 2.0)}
    mask = masks.global_topk(scores, 3 / 9)
    np.testing.assert_array_equal(mask["a"], [[True, True], [True, True]])
    np.testing.assert_array_equal(mask["b"], [[False, False, False]])
    np.testing.assert_array_equal(mask["c"], [[True, True]])


def test_all_zero_scores_keep_the_first() -> None:
    mask = masks.global_topk({"w": np.zeros((2, 3))}, 0.5)
    np.testing.assert_array_equal(mask["w"], [[True, True, True], [False] * 3])


def test_minus_zero_and_zero_are_a_tie() -> None:
    mask = masks.global_topk({"w": np.float32([[-0.0, 0.0, -0.0, 0.0]])}, 0.5)
    np.testing.assert_array_equal(mask["w"], [[True, True, False, False]])


def test_subnormals_are_told_apart() -> None:
    scores = np.float32([[1e-45, 3e-45, -1e-45, 0.0]])
    mask = masks.global_topk({"w": scores}, 0.5)
    np.testing.assert_array_equal(mask["w"], [[True, True, False, False]])


def test_scalars_are_never_prunable() -> None:
    mask = masks.global_topk({"w": np.ones(4), "t": np.ones(())}, 0.5, every_array)
    assert mask["t"].shape == ()
    assert int(mask["w"].sum()) == 2


# Exact counts.


@given(total=st.integers(0, 2**33), sparsity=SPARSITIES)
def test_the_count_is_rounded_from_the_share(total: int, sparsity: float) -> None:
    assert masks.kept_count(total, sparsity) == round(total * (1 - sparsity))


@pytest.mark.parametrize(
    ("total", "sparsity", "kept"),
    [
        (266_610, 0.0, 266_610),
        (266_610, 0.95, 13_331),
        (266_610, 0.98, 5_332),
        (1, 0.5, 0),
        (3, 0.5, 2),
        (10, np.float32(0.5), 5),
        (10, jnp.float32(0.5), 5),
        (10, 0, 10),
    ],
)
def test_counts(total: int, sparsity: Any, kept: int) -> None:
    assert masks.kept_count(total, sparsity) == kept


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.999, 1 - 2**-53])
def test_exactly_the_count_is_kept(network: Network, sparsity: float) -> None:
    prunable = masks.weights_and_biases
    rows = masks.summary(masks.global_topk(network.params, sparsity, prunable))
    total = sum(row.total for row in rows)
    assert sum(row.kept for row in rows) == round(total * (1 - sparsity))
    for row in masks.summary(masks.layerwise_topk(network.params, sparsity, prunable)):
        assert row.kept == round(row.total * (1 - sparsity))


# Transformations.


class TransformationsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_global_topk(self) -> None:
        topk = self.variant(functools.partial(masks.global_topk, sparsity=0.5))
        mask = topk({"w": jnp.array([[1.0, 4.0]]), "v": jnp.array([[2.0, 3.0]])})
        np.testing.assert_array_equal(mask["w"], [[False, True]])
        np.testing.assert_array_equal(mask["v"], [[False, True]])

    @chex.variants(with_jit=True, without_jit=True)
    def test_layerwise_topk(self) -> None:
        topk = self.variant(functools.partial(masks.layerwise_topk, sparsity=0.5))
        mask = topk({"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([[4.0, 3.0]])})
        np.testing.assert_array_equal(mask["w"], [[False, True]])
        np.testing.assert_array_equal(mask["v"], [[True, False]])

    @chex.variants(with_jit=True, without_jit=True)
    def test_vmap_over_networks(self) -> None:
        rng = np.random.default_rng(0)
        scores = [
            rng.integers(0, 5, (6, 3, 4)).astype(np.float32),
            rng.integers(0, 5, (6, 2, 5)).astype(np.float32),
        ]
        topk = functools.partial(masks.global_topk, sparsity=0.7)
        mask = self.variant(jax.vmap(topk))(scores)
        for i in range(6):
            chex.assert_trees_all_equal(
                [m[i] for m in mask], oracle([s[i] for s in scores], 0.7)
            )

    @chex.variants(with_jit=True, without_jit=True)
    def test_apply(self) -> None:
        mask = {"w": jnp.array([True, False]), "b": jnp.array(True)}
        params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
        pruned = self.variant(masks.apply)(mask, params)
        chex.assert_trees_all_equal(
            pruned, {"w": np.float32([1, 0]), "b": np.float32([3, 4])}
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_sparsity(self) -> None:
        mask = {"w": jnp.array([True, False, False, False]), "b": jnp.array(True)}
        assert self.variant(masks.sparsity)(mask) == 0.75

    @chex.variants(with_jit=True, without_jit=True)
    def test_scores_and_masks_that_a_traced_function_closes_over(self) -> None:
        scores = {"w": jnp.array([[1.0, 4.0]])}
        mask = masks.global_topk(scores, 0.5)

        def share_pruned(x: chex.Array) -> chex.Array:
            again = masks.global_topk(scores, 0.5)
            assert masks.summary(mask)[0].kept == 1
            return x + masks.sparsity(mask) + masks.sparsity(again)

        assert self.variant(share_pruned)(1.0) == 2.0


def test_the_gradient_of_pruned_params_is_masked() -> None:
    mask = {"w": jnp.array([[True, False]])}
    # Even where a pruned entry would make the loss or its gradient overflow.
    params = {"w": jnp.array([[3.0, np.nan]])}
    gradient = jax.grad(lambda p: jnp.sum(masks.apply(mask, p)["w"] ** 2))(params)
    np.testing.assert_array_equal(gradient["w"], [[6.0, 0.0]])


def test_one_can_differentiate_past_a_selection() -> None:
    def loss_fn(w: chex.Array) -> chex.Array:
        mask = masks.global_topk({"w": jnp.abs(w)}, 0.5)
        return jnp.sum(masks.apply(mask, {"w": w})["w"] ** 2)

    gradient = jax.grad(loss_fn)(jnp.array([[1.0, -3.0]]))
    np.testing.assert_array_equal(gradient, [[0.0, -6.0]])


def test_selection_neither_sorts_nor_concatenates() -> None:
    scores = {"a": jnp.ones((300, 200)), "b": jnp.ones((400, 100))}
    topk = functools.partial(masks.global_topk, sparsity=0.9)
    jaxpr = str(jax.make_jaxpr(topk)(scores))
    assert not any(op in jaxpr for op in ("sort[", "top_k[", "concatenate["))
    compiled = jax.jit(topk).lower(scores).compile()
    # XLA on the CPU writes out what it counts, up to twice the size of the scores. To
    # hold keys and indices, as a sort would, doubles that.
    size = sum(s.nbytes for s in scores.values())
    assert compiled.memory_analysis().temp_size_in_bytes < 2.5 * size


def test_other_values_and_another_sparsity_do_not_compile_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    masks.global_topk({"w": np.ones((11, 13))}, 0.5)
    with jax.log_compiles():
        masks.global_topk({"w": np.zeros((11, 13))}, 0.9)
        assert not caplog.records
        masks.global_topk({"w": np.zeros((13, 11))}, 0.9)
        assert caplog.records


# What a mask looks like.


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_makes_pruned_entries_plus_zero_whatever_they_were(dtype: Any) -> None:
    w = jnp.array([np.nan, np.inf, -np.inf, -1.0, -0.0, 2.0], dtype)
    keep = np.array([False, False, False, False, False, True])
    pruned = masks.apply({"w": keep}, {"w": w})["w"]
    assert pruned.dtype == dtype
    np.testing.assert_array_equal(np.float64(pruned), [0, 0, 0, 0, 0, 2])
    assert not np.signbit(np.float64(pruned)).any()


def test_apply_leaves_the_original_alone() -> None:
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    pruned = masks.apply({"w": jnp.eye(2, dtype=bool), "b": True}, params)
    jax.jit(lambda p: jax.tree.map(jnp.negative, p), donate_argnums=0)(pruned)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_ones_keeps_everything(network: Network) -> None:
    mask = masks.ones(network.params)
    assert masks.sparsity(mask) == 0
    chex.assert_trees_all_equal(mask, masks.global_topk(network.params, 0.0))


def test_sparsity_is_the_pruned_share_of_the_prunable() -> None:
    mask = {"w": np.array([[True, False], [False, False]]), "b": np.array(True)}
    assert masks.sparsity(mask) == 0.75


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


def test_summary_prints_as_a_table_with_thousands_and_the_total() -> None:
    mask = {"conv": jnp.arange(3600).reshape(3, 3, 20, 20) < 1800, "w": np.eye(2) > 0}
    assert str(masks.summary(mask)).splitlines() == [
        "path       shape   kept  total  density",
        "conv   3x3x20x20  1,800  3,600   50.00%",
        "w            2x2      2      4   50.00%",
        "total             1,802  3,604   50.00%",
    ]


# What is prunable.


def prunable_names(params: chex.ArrayTree, prunable: masks.Prunable) -> list[str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [trees.path_name(path) for path, leaf in leaves if prunable(path, leaf)]


def test_kernels_have_two_or_more_dimensions() -> None:
    params = {"conv": np.ones((3, 3, 1, 2)), "w": np.ones((2, 2)), "b": np.ones(2)}
    assert prunable_names(params, masks.kernels) == ["conv", "w"]


class EveryLinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        x = nn.Conv(4, (3,))(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.LayerNorm()(x)
        x = nn.GroupNorm(2)(x)
        x = nn.RMSNorm()(x)
        x = nn.InstanceNorm()(x)
        return nn.Dense(2)(x)


def test_weights_and_biases_of_a_linen_network() -> None:
    params = EveryLinenNorm().init(jax.random.key(0), jnp.ones((1, 5, 3)))["params"]
    assert prunable_names(params, masks.weights_and_biases) == [
        "Conv_0/bias",
        "Conv_0/kernel",
        "Dense_0/bias",
        "Dense_0/kernel",
    ]


class EveryNnxNorm(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.bn1 = nnx.BatchNorm(4, rngs=rngs)
        self.ln_f = nnx.LayerNorm(4, rngs=rngs)
        self.group_norm = nnx.GroupNorm(4, 2, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(4, rngs=rngs)])


def test_weights_and_biases_of_an_nnx_network() -> None:
    params = nnx.state(EveryNnxNorm(nnx.Rngs(0)), nnx.Param)
    names = prunable_names(params, masks.weights_and_biases)
    assert names == ["linear/bias", "linear/kernel"]


@pytest.mark.parametrize(
    "name",
    [
        "BatchNorm_0",
        "LayerNorm_12",
        "RMSNorm_0",
        "SyncBatchNorm2d",
        "norm",
        "norm1",
        "norm_2",
        "norm_f",
        "batch_norm",
        "batch_normalization_3",
        "conv_norm",
        "post_attention_layernorm",
        "final_layer_norm",
        "input_layernorm",
        "bn",
        "bn2",
        "bn_conv1",
        "conv1_bn",
        "BN_0",
        "ln_1",
        "ln_f",
        "ln_post",
    ],
)
def test_names_of_normalisation(name: str) -> None:
    params = {name: {"bias": np.ones(2), "weight": np.ones(2)}}
    assert prunable_names(params, masks.weights_and_biases) == []


@pytest.mark.parametrize(
    "name",
    [
        "normal",
        "enormous",
        "Dense_0",
        "PreNormBlock_0",
        "norm_free_conv",
        "abn",
        "blnk",
    ],
)
def test_names_of_other_layers(name: str) -> None:
    params = {name: {"bias": np.ones(2)}}
    assert prunable_names(params, masks.weights_and_biases) == [f"{name}/bias"]


def test_a_leaf_called_scale_is_normalisation_and_a_scalar_is_no_weight() -> None:
    params = {"x": {"scale": np.ones(2), "temperature": np.ones(()), "w": np.ones(2)}}
    assert prunable_names(params, masks.weights_and_biases) == ["x/w"]


# What is excluded by its name.

LAYERS = {
    "embedding": np.ones((4, 2)),
    "head": {"bias": np.ones(3), "kernel": np.ones((2, 3))},
    "layers_0": {"embedding": np.ones((2, 2)), "mlp": {"kernel": np.ones((2, 2))}},
    "layers_10": {"mlp": {"kernel": np.ones((2, 2))}},
}


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), ["embedding", "head/kernel", "layers_0/embedding", *"01"]),
        (("embedding",), ["head/kernel", "layers_0/embedding", *"01"]),
        (("*/embedding",), ["embedding", "head/kernel", *"01"]),
        (("*embedding",), ["head/kernel", *"01"]),
        (("*embedding", "head/*"), [*"01"]),
        (("*/kernel",), ["embedding", "layers_0/embedding"]),
        (("layers_?/*",), ["embedding", "head/kernel", "1"]),
        (("layers_[0-9]*", "head/*"), ["embedding"]),
        (("*/bias",), ["embedding", "head/kernel", "layers_0/embedding", *"01"]),
    ],
)
def test_leaves_excluded_by_pattern(patterns: tuple[str, ...], left: list[str]) -> None:
    names = {"0": "layers_0/mlp/kernel", "1": "layers_10/mlp/kernel"}
    expected = [names.get(name, name) for name in left]
    prunable = masks.excluding(masks.kernels, *patterns)
    assert prunable_names(LAYERS, prunable) == expected
    all_names = [name for name, _ in trees.named_leaves(LAYERS)]
    assert masks.are_prunable(LAYERS, prunable) == [n in expected for n in all_names]


def test_what_is_excluded_stays_dense_and_does_not_count() -> None:
    prunable = masks.excluding(masks.kernels, "*embedding", "head/*")
    for mask in (
        masks.global_topk(LAYERS, 0.5, prunable),
        masks.ones(LAYERS, prunable),
    ):
        assert [row.path for row in masks.summary(mask)] == [
            "layers_0/mlp/kernel",
            "layers_10/mlp/kernel",
        ]
    mask = masks.global_topk(LAYERS, 0.5, prunable)
    assert sum(row.kept for row in masks.summary(mask)) == 4


@pytest.mark.parametrize("pattern", ["*/embeding", "Head/*", "layers", ""])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    inner = masks.excluding(masks.kernels, pattern)
    problem = rf"pattern '{re.escape(pattern)}' excludes nothing.*names most like it"
    for prunable in (inner, masks.excluding(inner, "head/*")):
        with pytest.raises(ValueError, match=problem):
            masks.global_topk(LAYERS, 0.5, prunable)
        with pytest.raises(ValueError, match=problem):
            jax.eval_shape(lambda p=prunable: masks.ones(LAYERS, p))


def test_a_pattern_that_is_no_string() -> None:
    with pytest.raises(ValueError, match=r"\['a'\] is a list, not a string"):
        masks.excluding(masks.kernels, ["a"])


def test_what_any_function_chooses_is_a_mask() -> None:
    def every_second(leaves: list[chex.Array], sparsity: float) -> list[chex.Array]:
        assert sparsity == 0.5
        return [jnp.arange(x.size).reshape(x.shape) % 2 == 0 for x in leaves]

    scores = {"a": np.ones((2, 2)), "b": np.ones(3), "c": np.ones((1, 3))}
    mask = masks.selected(scores, 0.5, masks.kernels, every_second)
    np.testing.assert_array_equal(mask["a"], [[True, False], [True, False]])
    assert mask["b"].shape == ()
    np.testing.assert_array_equal(mask["c"], [[True, False, True]])
    with pytest.raises(ValueError, match="outside"):
        masks.selected(scores, 1.5, masks.kernels, every_second)


# What bad input gets.


@pytest.mark.parametrize(
    "sparsity",
    [
        *(1.0, 1, -0.1, 95, float("nan"), float("inf")),
        *(True, False, np.False_, "0.9", b"0", None, 0.5j, [0.5], np.array([0.5, 0.5])),
    ],
)
def test_a_sparsity_that_is_no_number_in_the_interval(sparsity: Any) -> None:
    for topk in (masks.global_topk, masks.layerwise_topk):
        with pytest.raises(ValueError, match=r"outside \[0, 1\).*e.g. 0.95 for 95%"):
            topk({"w": jnp.ones((2, 2))}, sparsity)


def test_a_traced_sparsity() -> None:
    with pytest.raises(ValueError, match=r"sparsity is traced.*static_argnames"):
        jax.jit(masks.global_topk)({"w": jnp.ones((2, 2))}, 0.5)


@pytest.mark.parametrize("topk", [masks.global_topk, masks.layerwise_topk])
def test_nothing_prunable(topk: Any) -> None:
    problem = r"nothing is prunable among the leaves \[layer/b\].*masks.kernels"
    with pytest.raises(ValueError, match=problem):
        topk({"layer": {"b": jnp.ones(3)}}, 0.5)
    with pytest.raises(ValueError, match=r"nothing is prunable among the leaves \[\]"):
        topk({}, 0.5)
    with pytest.raises(ValueError, match="nothing is prunable"):
        topk({"w": jnp.ones((0, 3))}, 0.5)
    with pytest.raises(ValueError, match="nothing is prunable"):
        topk({"w": jnp.ones((2, 3))}, 0.5, lambda path, leaf: False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_score_that_is_not_finite_names_its_leaf(bad: float, dtype: Any) -> None:
    scores = {
        "fine": jnp.ones((2, 2)),
        "hidden": {"kernel": jnp.ones((2, 2), dtype).at[1, 0].set(bad)},
    }
    for topk in (masks.global_topk, masks.layerwise_topk):
        with pytest.raises(ValueError, match=r"not finite in hidden/kernel; .*check"):
            topk(scores, 0.5)


def test_a_score_that_is_not_finite_but_not_prunable_does_not_matter() -> None:
    mask = masks.global_topk({"w": np.ones((2, 2)), "b": np.full(2, np.nan)}, 0.5)
    assert int(mask["w"].sum()) == 2


@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        (np.ones((2, 2), int), "scores leaf 'layer/w' has dtype int"),
        (np.ones((2, 2), bool), "scores leaf 'layer/w' has dtype bool"),
        (jnp.tanh, "scores leaf 'layer/w' is a .*, not an array"),
    ],
)
def test_scores_that_are_no_floats(leaf: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        masks.global_topk({"layer": {"w": leaf}}, 0.5)


def test_more_connections_than_can_be_counted() -> None:
    scores = {"w": jax.ShapeDtypeStruct((2**16, 2**17), jnp.float32)}
    with pytest.raises(ValueError, match=r"8,589,934,592 .* more than .*groups"):
        jax.eval_shape(lambda scores: masks.global_topk(scores, 0.5), scores)


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        ({"w": np.ones((2, 3), bool)}, "missing leaves: b.*same pytree as params"),
        ({"w": np.ones((2, 3), bool), "b": None}, "missing leaves: b"),
        (
            {"w": np.ones((3, 2), bool), "b": True},
            r"'w' has shape \(3, 2\), but .*2, 3",
        ),
        ({"w": np.ones(3, bool), "b": True}, r"mask leaf 'w' has shape \(3,\)"),
        ({"w": np.ones((2, 3)), "b": True}, "'w' has dtype float.*not bool.*mask > 0"),
        ({"w": np.ones((2, 3), int), "b": True}, "'w' has dtype int.*not bool"),
        ({"w": jnp.tanh, "b": True}, "mask leaf 'w' is a .*, not an array"),
    ],
)
def test_a_mask_that_does_not_fit(mask: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        masks.apply(mask, {"w": jnp.ones((2, 3)), "b": jnp.ones(3)})


def test_a_mask_without_prunable_leaves_has_no_sparsity() -> None:
    for function in (masks.sparsity, masks.summary):
        with pytest.raises(ValueError, match="no leaf of the mask is prunable"):
            function({"w": True})


def test_params_taken_for_a_mask() -> None:
    params = nested_dict().params
    for function in (masks.sparsity, masks.summary):
        with pytest.raises(
            ValueError, match="'hidden/bias' has dtype float32, not bool"
        ):
            function(params)


# A mask that disconnects the network.


@pytest.mark.parametrize("select", [masks.global_topk, masks.layerwise_topk])
def test_a_layer_without_connections_is_reported_by_name_where_it_was_pruned(
    select: Any,
) -> None:
    scores = {
        "first": {"kernel": np.ones((2, 2))},
        "last": {"kernel": np.zeros((1, 1))},
    }
    with pytest.warns(UserWarning, match="no connection of 'last/kernel' is kept") as w:
        select(scores, 0.5)
    assert len(w) == 1
    assert w[0].filename == __file__


def test_a_gate_without_connections_is_not_said_to_disconnect_the_network() -> None:
    cell = {"hf": {"kernel": np.zeros((2, 2))}, "hg": {"kernel": np.ones((2, 2))}}
    said = "'cell/hf/kernel' is kept.*unless another path leads around it .a gate"
    with pytest.warns(UserWarning, match=said):
        masks.global_topk({"cell": cell}, 0.5)


@pytest.mark.parametrize("name", ["bias", "b", "b1", "bias_2", "qkv_bias", "Bias"])
def test_a_bias_without_connections_disconnects_nothing(name: str) -> None:
    scores = {"layer": {"kernel": np.ones((2, 2)), name: np.zeros(2)}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = masks.global_topk(scores, 0.5, every_array)
    assert not mask["layer"][name].any()


def test_biases_in_tuples_disconnect_nothing() -> None:
    layers = [(np.ones((2, 2)), np.zeros(2)), (np.ones((2, 2)), np.zeros(2))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = masks.global_topk(layers, 0.5, every_array)
    assert not any(bias.any() for _, bias in mask)


@pytest.mark.parametrize("name", ["b", "lora_B", "1"])
def test_a_matrix_with_the_name_of_a_bias_disconnects_the_network(name: str) -> None:
    with pytest.warns(UserWarning, match=f"no connection of '{name}' is kept"):
        masks.global_topk({"a": np.ones((3, 3)), name: np.zeros((3, 3))}, 0.5)


def test_layerwise_selection_keeps_the_network_connected() -> None:
    scores = {"first": np.ones((2, 2)), "last": np.zeros((2, 2))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.layerwise_topk(scores, 0.5)


# Sharded arrays.

SHARDED = """
import jax, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from snipjax import masks, optim, pruning

rng = np.random.default_rng(0)
params = {
    "a": rng.integers(1, 9, (16, 6)).astype(np.float32),
    "b": rng.integers(1, 9, (3, 24)).astype(np.float32),
    "c": np.ones(8, np.float32),
}
specs = {"a": P("x", None), "b": P(None, "x"), "c": P("x")}

def loss_fn(params, batch):
    return (params["a"] * batch["a"]).sum() + (params["b"] * batch["b"]).sum()

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
    for name in ("a", "b"):
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
    state = optimizer.init(sharded)
    updates, state = jax.jit(optimizer.update)(sharded, state, sharded)
    updated = optax.apply_updates(sharded, updates)
    for name in ("a", "b"):
        assert updated[name].sharding.is_equivalent_to(shardings[name], 2)
        assert state.mask[name].sharding.is_equivalent_to(shardings[name], 2)
        assert not np.asarray(updated[name])[~np.asarray(mask[name])].any()
"""


def test_sharded_scores_give_the_same_mask_sharded_alike() -> None:
    flags = "--xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
