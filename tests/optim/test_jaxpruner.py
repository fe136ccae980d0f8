"""The expectations of JaxPruner's tests, on the same inputs.

The expectations are from ``sparse_trainers_test.py``, ``sparsity_schedules_test.py``,
``pruners_test.py``, ``ste_test.py`` and ``global_pruners_test.py`` at
google-research/jaxpruner; a difference is said where there is one. There the number of
connections that a leaf keeps is rounded, and is one at least; here the number that a
move drops is rounded down.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks, optim, saliency
from snipjax.optim.relocation import relocated


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, [0, 1, 0, 1, 0, 1, 1, 0]),
        (0.25, [1, 1, 0, 1, 0, 1, 0, 0]),
        (0.5, [1, 1, 0, 0, 1, 1, 0, 0]),
        (0.75, [1, 0, 1, 0, 1, 1, 0, 0]),
        (1.0, [1, 0, 1, 0, 1, 1, 0, 0]),
    ],
)
def test_rigl_update_mask(fraction: float, expected: list[int]) -> None:
    # Their scores for dropping have signs: 1 is kept before -1, and -2 goes first.
    w = jnp.array([-9.0, 1, 4, -1, 5, 8, -2, 3])
    mask = {"w": jnp.array([0, 1, 0, 1, 0, 1, 1, 0], bool)}
    new = relocated(mask, {"w": w}, {"w": jnp.abs(w)}, jnp.float32(fraction))
    np.testing.assert_array_equal(new["w"], np.array(expected, bool))


def slow(*shapes: tuple[int, ...]) -> list[Any]:
    return [pytest.param(shape, marks=pytest.mark.slow) for shape in shapes]


@pytest.mark.parametrize("name", ["rigl", "set"])
@pytest.mark.parametrize("shape", [(1,), (2, 2, 4, 4), *slow((5,), (4, 5), (2, 9, 1))])
def test_dynamic_sparse_update_state_constant_sparsity(
    name: str, shape: tuple[int, ...]
) -> None:
    params = {"w": jax.random.normal(jax.random.key(0), shape)}
    gradient = {"w": jax.random.normal(jax.random.key(8), shape)}
    make, key = getattr(optim, name), jax.random.key(2)
    dense = masks.ones(params, {"w": True})
    optimizer = make(optax.sgd(0.1), dense, every=1, stop=9, key=key)
    update, start = jax.jit(optimizer.update), optimizer.init(params)
    scores = {"w": jax.random.uniform(jax.random.key(1), shape)}
    for sparsity in (0.0, 0.5, 0.95):
        mask = masks.layerwise_topk(scores, sparsity, {"w": True})
        state = start._replace(mask=mask, step=jnp.int32(1))
        _, after = update(gradient, state, params)
        assert bool(after.info.moved)
        assert after.mask["w"].sum() == mask["w"].sum()


@pytest.mark.parametrize("inner", [optax.adam(0.001), optax.sgd(0.001, momentum=0.9)])
@pytest.mark.parametrize("shape", [(4, 5), *slow((5,), (2, 9, 1), (2, 2, 4, 4))])
def test_dynamic_sparse_update_state_inner_reset(
    inner: Any, shape: tuple[int, ...]
) -> None:
    params = {"w": jax.random.normal(jax.random.key(0), shape)}
    gradient = {"w": jax.random.normal(jax.random.key(8), shape)}
    mask = masks.layerwise_topk(
        {"w": jax.random.uniform(jax.random.key(1), shape)}, 0.5, {"w": True}
    )
    optimizer = optim.rigl(inner, mask, every=1, stop=9, fraction=0.9)
    state = optimizer.init(masks.apply(mask, params))._replace(step=jnp.int32(1))
    ones = optax.tree.map_params(inner, jnp.ones_like, state.inner_state)
    state = state._replace(inner_state=ones)
    _, after = jax.jit(optimizer.update)(gradient, state, params)
    # Theirs are reset where connections grow, ours where they are dropped too.
    new = np.asarray(after.mask["w"] != mask["w"])
    assert new.any()
    for name in ("mu", "nu", "trace"):
        found = optax.tree.get(after.inner_state, name)
        if found is not None:
            np.testing.assert_array_equal(found["w"], np.where(new, 0.0, 1.0))


def test_polynomial_decay_schedule() -> None:
    # Theirs is of the step after: at step 9 of 20, 10 / 20 of the way, it is 0.4375.
    dense = masks.ones({"a": jnp.ones((4, 8))})
    optimizer = optim.gradual_magnitude(
        optax.sgd(0.0), dense, sparsity=0.5, every=5, stop=20
    )
    params = {"a": jnp.arange(1.0, 33.0).reshape(4, 8)}
    state = optimizer.init(params)
    sparsity = {}
    update = jax.jit(optimizer.update)
    for step in range(21):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        sparsity[step] = masks.sparsity(state.mask)
    assert sparsity[0] == 0.0
    assert sparsity[10] == 0.4375
    assert sparsity[20] == 0.5


def test_one_shot_and_periodic_schedules() -> None:
    params = {"a": jnp.arange(1.0, 33.0).reshape(4, 8)}
    half = masks.layerwise_topk(params, 0.5)
    one_shot = optim.gradual_magnitude(
        optax.sgd(0.0), masks.ones(params), sparsity=0.5, every=1, start=19, stop=20
    )
    periodic = optim.rigl(optax.sgd(0.0), half, every=5, stop=20)
    state, other = one_shot.init(params), periodic.init(masks.apply(half, params))
    update, move = jax.jit(one_shot.update), jax.jit(periodic.update)
    sparsity, moves = {}, []
    for step in range(25):
        _, state = update(params, state, params)
        _, other = move(params, other, params)
        sparsity[step] = masks.sparsity(state.mask)
        moves += [step] if other.info.moved else []
    assert [sparsity[step] for step in (18, 19, 20, 24)] == [0.0, 0.0, 0.5, 0.5]
    assert moves == [5, 10, 15]  # theirs in steps 0 and 20 too


def test_magnitude_saliency_and_random_pruning() -> None:
    params = {"w": jnp.array([0.1, 0.9, -0.2, 0.5])}
    gradient = jnp.array([5.0, 1.0, 3.0, 0.5])
    magnitude = saliency.magnitude(None, params, None)
    np.testing.assert_allclose(magnitude["w"], [0.1, 0.9, 0.2, 0.5])
    found = saliency.snip(lambda p, batch: jnp.sum(p["w"] * batch), params, gradient)
    expected = np.array([0.5, 0.9, 0.6, 0.25])  # theirs; ours sum to one
    np.testing.assert_allclose(found["w"], expected / expected.sum(), rtol=1e-6)
    weights = {"w": jnp.ones((10, 10))}
    first, other = (
        saliency.random(None, weights, None, key=jax.random.key(seed))
        for seed in (0, 5)
    )
    assert (first["w"] != other["w"]).any()
    assert masks.sparsity(masks.layerwise_topk(first, 0.5)) == 0.5


def test_global_pruning() -> None:
    # Theirs are signed scores, each leaf divided by its norm: here magnitudes, and the
    # norms are in the scores.
    scores = {"w": jnp.array([0.1, 0.9, -0.2, 0.5]), "w2": jnp.array([0.7, 0.8])}
    normed = jax.tree.map(lambda s: s / jnp.linalg.norm(s), scores)
    dense = masks.ones(scores, {"w": True, "w2": True})
    optimizer = optim.gradual_magnitude(
        optax.sgd(0.1),
        dense,
        sparsity=0.5,
        every=1,
        stop=1,
        layerwise=False,
        criterion=lambda loss_fn, params, batch, key: normed,
    )
    state = optimizer.init(scores)._replace(step=jnp.int32(1))
    _, state = jax.jit(optimizer.update)(scores, state, scores)
    expected = {"w": jnp.array([0, 1, 0, 0], bool), "w2": jnp.array([1, 1], bool)}
    chex.assert_trees_all_equal(state.mask, expected)


def test_ste_magnitude_pruning_instant_sparsify() -> None:
    weights = {
        "w": jnp.array(
            [
                [0.11, -1.08, -1.6, 0.37],
                [-0.3, 1.03, 0.02, -0.78],
                [-0.95, 0.47, -1.3, 0.87],
                [1.96, 3.02, 0.3, -0.92],
            ]
        )
    }
    expected = jnp.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], bool)
    optimizer = optim.straight_through(
        optax.sgd(0.0), masks.ones(weights), sparsity=0.5
    )
    state = optimizer.init(weights)
    updates, state = jax.jit(optimizer.update)(weights, state, weights)
    pruned = optax.apply_updates(weights, updates)
    chex.assert_trees_all_close(pruned["w"], jnp.where(expected, weights["w"], 0.0))
    chex.assert_trees_all_close(state.dense, weights)


def test_ste_pruning_generates_a_mask_each_iteration_and_keeps_dense_weights() -> None:
    weights = {"w": jax.random.normal(jax.random.key(0), (10, 10))}
    mask = masks.layerwise_topk(jax.tree.map(jnp.abs, weights), 0.5)
    optimizer = optim.straight_through(optax.adam(0.0001), mask, sparsity=0.5)
    state, params = optimizer.init(weights), masks.apply(mask, weights)
    update = jax.jit(optimizer.update)
    gradient = jax.jit(jax.grad(lambda p: -jnp.abs(p["w"]).sum()))
    for _ in range(10):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        assert bool(state.info.moved)
        assert (params["w"] == 0).sum() == 50
        assert (state.dense["w"] == 0).sum() == 0


@pytest.mark.slow
def test_n_by_m_and_blocks_can_be_moved_by_every_method() -> None:
    # Their sparsity types are settings of each algorithm.
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    for structure in (
        functools.partial(masks.n_of_m, 2, 4),
        functools.partial(masks.blocks, (2, 2)),
        functools.partial(masks.units, -1),
    ):
        select = structure()
        mask = select(jax.tree.map(jnp.abs, params), 0.5, masks.kernels)
        for make in (optim.rigl, functools.partial(optim.set, key=jax.random.key(1))):
            optimizer = make(optax.sgd(0.1), mask, every=1, stop=9, structure=structure)
            state = optimizer.init(params)._replace(step=jnp.int32(1))
            _, state = jax.jit(optimizer.update)(params, state, params)
            assert state.mask["w"].sum() == mask["w"].sum()
