"""Ten thousand random trees of scores against an exact oracle in NumPy."""

import fractions
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks
from tests.conftest import largest_by_sorting
from tests.masks.test_budgets import with_minima

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
SHAPES = [
    *((), (0,), (3, 0, 2), (1,), (17,), (2, 3, 1, 2, 2, 1, 3), (1,) * 10),
    *((5, 7), (11, 3), (3, 3, 2, 5), (7, 900)),
]
PRUNABLE = [masks.kernels, masks.weights_and_biases, lambda path, leaf: True]
Rng = np.random.Generator


def random_values(rng: Rng, size: int, info: Any) -> np.ndarray:
    """Entries of one of many kinds: ties, both zeros, subnormals, extremes."""
    least, tiny = float(info.smallest_subnormal), float(info.tiny)
    low, high = float(info.min), float(info.max)
    extremes = [low, high, tiny, -tiny, least, -least, 0.0, -0.0, 1.0]
    kinds: list[Callable[[], np.ndarray]] = [
        lambda: rng.normal(size=size),
        lambda: np.abs(rng.normal(size=size)),
        lambda: rng.integers(0, 3, size).astype(float),
        lambda: np.zeros(size),
        lambda: np.where(rng.random(size) < 0.5, 0.0, -0.0),
        lambda: rng.integers(-5, 6, size) * least,
        lambda: np.exp(rng.normal(size=size) * 8),
        lambda: np.where(rng.random(size) < 0.9, 0.0, rng.random(size)),
        lambda: rng.choice(extremes, size),
        lambda: np.full(size, rng.choice(extremes)),
        lambda: np.arange(size, dtype=float)[::-1],
        lambda: -np.abs(rng.normal(size=size)) * tiny,
        lambda: rng.random(size) ** 20,
        lambda: 1.0 + rng.integers(0, 4, size) * float(info.eps),
        lambda: rng.choice([1e-8, 2e-8, 3e-8], size),
    ]
    return np.clip(kinds[rng.integers(len(kinds))](), low, high)


def random_structure(rng: Rng) -> list[tuple[tuple[int, ...], Any]]:
    dtypes = rng.choice(len(DTYPES), rng.integers(1, 6), p=[0.7, 0.15, 0.15])
    if rng.random() < 0.3:
        dtypes[:] = dtypes[0]
    return [(SHAPES[rng.integers(len(SHAPES))], DTYPES[i]) for i in dtypes]


def random_tree(rng: Rng, structure: Any, container: int) -> Any:
    leaves = [
        random_values(rng, math.prod(shape), jnp.finfo(dtype))
        .reshape(shape)
        .astype(dtype)
        for shape, dtype in structure
    ]
    names = ["kernel", "bias", "w", "b", "scale"]
    return [
        lambda: {f"{names[i % 5]}{i}": leaf for i, leaf in enumerate(leaves)},
        lambda: {"m": {f"Dense_{i}": {"kernel": x} for i, x in enumerate(leaves)}},
        lambda: {"a": tuple(leaves[:1]), "b": {"c": leaves[1:], "n": None}},
    ][container]()


def kept_count(leaves: list[np.ndarray], sparsity: float) -> int:
    return round(sum(leaf.size for leaf in leaves) * (1 - sparsity))


def expected_masks(
    kind: str, leaves: list[np.ndarray], sparsity: float, minimum: float
) -> list[np.ndarray] | None:
    """The oracle's masks, None where the minima come to more than is kept."""
    if kind == "layerwise":
        return [largest_by_sorting([x], kept_count([x], sparsity))[0] for x in leaves]
    kept = kept_count(leaves, sparsity)
    share = fractions.Fraction(repr(minimum if kind == "minimum" else 0.0))
    minima = [math.ceil(share * leaf.size) for leaf in leaves]
    return with_minima(leaves, kept, minima) if sum(minima) <= kept else None


def check_one(rng: Rng, structure: Any, container: int) -> None:
    tree = random_tree(rng, structure, container)
    prunable = PRUNABLE[rng.integers(3)]
    chosen = masks.are_prunable(tree, prunable)
    leaves, treedef = jax.tree.flatten(tree)
    is_poisoned = False
    if rng.random() < 0.08:
        i = rng.integers(len(leaves))
        if leaves[i].size:
            flat = leaves[i].ravel().copy()
            flat[rng.integers(flat.size)] = rng.choice([np.nan, np.inf, -np.inf])
            leaves[i], is_poisoned = flat.reshape(leaves[i].shape), chosen[i]
    sparsity = float(
        rng.choice([0.0, 0.5, 0.9, 0.95, 0.99, rng.random(), 1e-9, 1 - 2**-53])
    )
    minimum = float(rng.choice([0.01, 0.07, 0.1, rng.random(), 1 - sparsity]))
    kind = str(rng.choice(["global", "layerwise", "minimum", "group"]))
    taken = [leaf for leaf, keep in zip(leaves, chosen) if keep]
    if kind == "group":
        groups, own = [str(g) for g in rng.integers(0, 2, len(leaves))], rng.random()
        names = iter([g for g, keep in zip(groups, chosen) if keep])
        parts: dict[str, list[int]] = {}
        for i, group in enumerate(names):
            parts.setdefault(group, []).append(i)
        given = {g: own for g in parts if g == "0"}
        expected: Any = [None] * len(taken)
        for group, numbers in parts.items():
            part = [taken[i] for i in numbers]
            kept = kept_count(part, given.get(group, sparsity))
            for i, mask in zip(numbers, largest_by_sorting(part, kept)):
                expected[i] = mask
        order = iter([g for g, keep in zip(groups, chosen) if keep])
        select = masks.by_group(lambda name: next(order), given)
    else:
        expected = taken and expected_masks(kind, taken, sparsity, minimum)
        select = {
            "global": masks.global_topk,
            "layerwise": masks.layerwise_topk,
            "minimum": masks.with_minimum_density(minimum),
        }[kind]
    tree = jax.tree.unflatten(treedef, leaves)
    if not taken or is_poisoned or expected is None:
        with pytest.raises(ValueError, match=r"nothing is|not finite|minimum density"):
            select(tree, sparsity, prunable)
        return
    is_traced = kind != "group" and rng.random() < 0.02
    function = (
        (lambda t: select(t, sparsity, prunable))
        if not is_traced
        else jax.jit(lambda t: select(t, sparsity, prunable))
    )
    mask = function(tree)
    chex.assert_trees_all_equal_structs(mask, tree)
    rows = iter(expected)
    for found, keep in zip(jax.tree.leaves(mask), chosen):
        np.testing.assert_array_equal(found, next(rows) if keep else True)
        assert found.dtype == bool


@pytest.mark.slow
def test_every_selection_is_exact() -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        structure, container = random_structure(rng), rng.integers(3)
        for _ in range(250):  # whose programs are compiled once
            check_one(rng, structure, container)
