"""Densities against their formulas, solved in NumPy, and against published costs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snipjax import masks, models, pruning, saliency
from snipjax._src import text, trees
from tests.conftest import largest_by_sorting

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")

Shapes = dict[str, tuple[int, ...]]
LENET: Shapes = {
    "Dense_0/kernel": (784, 300),
    "Dense_1/kernel": (300, 100),
    "Dense_2/kernel": (100, 10),
}


def everything(path: Any, leaf: chex.Array) -> bool:
    del path, leaf
    return True


def ones(shapes: Shapes) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def in_order(params: chex.ArrayTree) -> list[str]:
    found = [name for name, _ in trees.named_leaves(params)]
    return sorted(found, key=text.natural_order)


def kept(densities: dict[str, float], params: dict[str, np.ndarray]) -> float:
    return sum(densities[name] * leaf.size for name, leaf in params.items())


def capped(ratios: list[float], sizes: list[int], total: int) -> list[float]:
    """``min(1, epsilon * ratio)`` with the epsilon of the total, by bisection."""
    low, high = 0.0, 1 / min(ratios) + 1
    for _ in range(200):
        middle = (low + high) / 2
        count = sum(min(1, middle * r) * n for r, n in zip(ratios, sizes))
        low, high = (middle, high) if count < total else (low, middle)
    return [min(1.0, high * r) for r in ratios]


RATIOS: dict[Callable, Callable[[tuple[int, ...]], float]] = {
    masks.uniform: lambda shape: 1.0,
    masks.erk: lambda shape: sum(shape) / math.prod(shape),
    masks.erdos_renyi: lambda shape: sum(shape[-2:]) / math.prod(shape[-2:]),
}
SHAPES = st.lists(
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=5,
)
SPARSITIES = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.9, 0.99, 0.999])


@pytest.mark.parametrize("allocation", RATIOS, ids=lambda a: a.__name__)
@given(shapes=SHAPES, sparsity=SPARSITIES)
def test_densities_are_in_the_ratios_of_the_formula_up_to_one(
    allocation: masks.Allocation, shapes: list[tuple[int, ...]], sparsity: float
) -> None:
    params = ones({str(i): shape for i, shape in enumerate(shapes)})
    sizes = [math.prod(shape) for shape in shapes]
    total = round(sum(sizes) * (1 - sparsity))
    found = list(allocation(params, sparsity, everything).values())
    expected = capped([RATIOS[allocation](s) for s in shapes], sizes, total)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert max(found) <= 1.0
    assert kept(dict(zip(params, found)), params) == pytest.approx(total, abs=1e-6)


def test_erk_resnet_50_costs_what_evci_et_al_print() -> None:
    """Multiplications, relative to the dense network: ICML 2020, figure 2."""
    model = models.create("resnet_50", num_classes=1000)
    images = jnp.zeros((1, 224, 224, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    printed = {0.8: 0.42, 0.9: 0.24}
    densities = [dict(trees.named_leaves(masks.erk(params, s))) for s in printed]
    dense, sparse = 0.0, np.zeros(2)
    for name, leaf in trees.named_leaves(params):
        if not name.endswith("kernel"):
            continue
        pixels = 112 if name == "Conv_0/kernel" else 1
        if name.startswith("group"):
            _, group, _, rest = name.split("_", 3)
            pixels = 56 // 2 ** int(group)
            # The first convolution of a group sees the image before it is halved.
            is_before = rest == "0/Conv_0/kernel" and int(group) > 0
            pixels *= 2 if is_before else 1
        dense += pixels**2 * leaf.size
        sparse += pixels**2 * leaf.size * np.array([d[name] for d in densities])
    np.testing.assert_allclose(sparse / dense, [*printed.values()], atol=0.01)


def test_what_is_not_prunable_is_dense() -> None:
    params = {"w": np.ones((4, 5)), "b": np.ones(5), "x": {"w": np.ones((5, 5))}}
    for allocation in RATIOS:
        densities = allocation(params, 0.8)
        assert densities["b"] == 1.0
        assert 20 * densities["w"] + 25 * densities["x"]["w"] == pytest.approx(9)


# Allocations by the place of a layer.


def test_uniform_plus_keeps_the_first_layer_and_a_fifth_of_the_last() -> None:
    params = ones({"a": (10, 100), "b": (100, 100), "c": (100, 10)})
    plus = functools.partial(masks.uniform_plus, order=["a", "b", "c"])
    assert plus(params, 0.5) == pytest.approx({"a": 1, "b": 5 / 11, "c": 5 / 11})
    assert plus(params, 0.85) == pytest.approx({"a": 1, "b": 0.06, "c": 0.2})
    assert plus(params, 0.0) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_smart_ratio_falls_with_the_square_of_the_place() -> None:
    params = ones({f"layer_{i}": (20, 20) for i in range(1, 12)})  # 2 before 10
    order = [f"layer_{i}" for i in range(1, 12)]
    densities = masks.smart_ratio(params, 0.9, order=order)
    assert densities["layer_11"] == 0.3
    ratios = {f"layer_{i}": (12 - i) ** 2 + (12 - i) for i in range(1, 11)}
    epsilon = (0.1 * 11 - 0.3) / sum(ratios.values())
    for name, ratio in ratios.items():
        assert densities[name] == pytest.approx(epsilon * ratio, rel=2e-3)
    assert kept(densities, params) == pytest.approx(440)


def test_smart_ratio_is_capped_and_fills_the_last_layer_at_the_end() -> None:
    params = ones({"a": (10, 10), "b": (10, 10), "c": (10, 10)})
    smart = functools.partial(masks.smart_ratio, order=["a", "b", "c"])
    # 12 to 6 shared would be 1.13 and 0.57.
    assert smart(params, 1 / 3) == pytest.approx({"a": 1.0, "b": 0.7, "c": 0.3})
    assert smart(params, 0.1) == pytest.approx({"a": 1.0, "b": 1.0, "c": 0.7})
    assert smart(params, 0.0) == {"a": 1.0, "b": 1.0, "c": 1.0}


@pytest.mark.parametrize("allocation", [masks.uniform_plus, masks.smart_ratio])
def test_biases_are_no_layers_and_stay_dense(allocation: Callable) -> None:
    params = ones({**LENET, "Dense_0/bias": (300,), "Dense_2/bias": (10,)})
    densities = allocation(params, 0.1, everything, order=in_order(params))
    assert densities["Dense_0/bias"] == densities["Dense_2/bias"] == 1.0
    total = sum(leaf.size for leaf in params.values())
    assert kept(densities, params) == pytest.approx(round(total * 0.9))


@pytest.mark.parametrize(
    ("allocation", "sparsity", "order", "problem"),
    [
        (
            masks.uniform_plus,
            0.95,
            LENET,
            "1 of Dense_0/kernel is 235,200 .* 13,310 of",
        ),
        (masks.smart_ratio, 0.999, LENET, "0.3 of Dense_2/kernel is 300 .* 266 of"),
        (masks.smart_ratio, 0.5, [*LENET][1:], "'Dense_0/kernel' is prunable, but not"),
        (masks.smart_ratio, 1.0, LENET, r"outside \[0, 1\)"),
    ],
)
def test_allocations_that_cannot_be(
    allocation: Callable, sparsity: float, order: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        allocation(ones(LENET), sparsity, order=[*order])


def test_nothing_prunable_is_told() -> None:
    params = {"b": np.ones(3)}
    with pytest.raises(ValueError, match="nothing is prunable"):
        masks.erk(params, 0.5)
    with pytest.raises(ValueError, match="no prunable leaf has two dimensions"):
        masks.smart_ratio(params, 0.5, everything, order=["b"])


# The order of layers.


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("lenet_300_100", ["Dense_0", "Dense_1"], "Dense_2"),
        ("resnet_20", ["Conv_0", "group_0_block_0/Conv_0"], "Dense_0"),
        ("lstm_s", ["Dense_0", "cell/gates"], "Dense_1"),
        ("vit_ti_16", ["patches", "block_0/query"], "classifier"),
    ],
)
def test_layers_are_in_the_order_of_use(name: str, first: list[str], last: str) -> None:
    model = models.create(name, num_classes=10)
    size, channels = (28, 1) if name[0] == "l" else (32, 3)
    images = jnp.zeros((1, size, size, channels))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    params = variables["params"]
    stats = jax.tree.map(
        lambda x: np.ones(x.shape, np.float32), variables.get("batch_stats", {})
    )
    order = masks.layer_order(
        lambda params, x: model.apply({"params": params, "batch_stats": stats}, x),
        params,
        images,
    )
    kernels = [n.removesuffix("/kernel") for n in order if n.endswith("/kernel")]
    assert kernels[:2] == first
    assert kernels[-1] == last
    assert {*order} == {name for name, _ in trees.named_leaves(params)}


# Selection by densities.


def scores_like(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 9, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


# One tree, so that nothing is compiled twice.
TREE: Shapes = {"a": (3, 3, 2, 4), "b": (4, 30), "c": (30, 7), "d": (7, 3)}


@given(seed=st.integers(0, 2**32 - 1))
def test_the_largest_of_each_leaf_and_the_total_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Any density, and often one of the ends.
    shares = np.clip(rng.uniform(-0.5, 1.5, len(TREE)), 0, 1)
    densities = dict(zip(TREE, shares.tolist()))
    scores = scores_like(TREE, seed)
    mask = masks.by_density(scores, densities, everything)
    counts = {name: int(keep.sum()) for name, keep in mask.items()}
    for name, leaf in scores.items():
        expected = largest_by_sorting([leaf], counts[name])[0]
        np.testing.assert_array_equal(mask[name], expected)
        assert abs(counts[name] - densities[name] * leaf.size) < 1
    assert sum(counts.values()) == round(kept(densities, scores))


def test_counts_are_the_roundings_of_one_multiple_of_the_quotas() -> None:
    """Webster's: 2.4, 2.4, 2.4 and 2.8 are 10, but 2 + 2 + 2 + 3 are 9."""
    scores = scores_like({"a": (2, 5), "b": (2, 5), "c": (2, 5), "d": (2, 5)})
    densities = {"a": 0.24, "b": 0.24, "c": 0.24, "d": 0.28}
    mask = masks.by_density(scores, densities)
    assert [int(keep.sum()) for keep in mask.values()] == [3, 2, 2, 3]


def test_no_leaf_gains_a_connection_while_density_shrinks() -> None:
    scores = scores_like(TREE)
    total = sum(leaf.size for leaf in scores.values())
    before = np.full(4, total)
    for count in range(150, 0, -1):
        mask = masks.by_allocation(masks.erk)(scores, 1 - count / total, everything)
        counts = np.array([int(m.sum()) for m in mask.values()])
        assert counts.sum() == count
        assert (counts <= before).all()
        before = counts


def test_in_rounds_the_count_is_exact() -> None:
    _, mask = pruning.prune(
        None,
        scores_like({"a": (3, 3, 2, 4), "b": (72, 30)}),
        None,
        0.97,
        criterion=saliency.magnitude,
        select=masks.by_allocation(masks.erk),
        rounds=20,
    )
    kept = sum(row.kept for row in masks.summary(mask))
    assert kept == masks.kept_count(72 + 2160, 0.97)


def test_densities_of_a_mask() -> None:
    mask = {"w": np.arange(8).reshape(2, 4) < 6, "b": True, "v": np.zeros(3, bool)}
    assert masks.densities(mask) == {"w": 0.75, "b": 1.0, "v": 0.0}


def test_traced_and_over_networks() -> None:
    scores = {"a": np.random.default_rng(0).random((4, 6, 5), np.float32)}
    select = functools.partial(masks.by_allocation(masks.erk), sparsity=0.7)
    mask = jax.jit(jax.vmap(select))(scores)
    for i in range(4):
        expected = largest_by_sorting([scores["a"][i]], 9)[0]
        np.testing.assert_array_equal(mask["a"][i], expected)


@pytest.mark.parametrize(
    ("densities", "problem"),
    [
        ({"w": 1.5}, r"density of 'w' is 1.5, outside \[0, 1\]"),
        ({"w": "0.5"}, "density of 'w' is '0.5'"),
        ({"v": 0.5}, "missing leaves: w"),
    ],
)
def test_densities_that_do_not_fit(densities: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        masks.by_density({"w": np.ones((2, 2), np.float32)}, densities)
