"""Sparse momentum, gradual magnitude pruning and straight-through estimation."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks, optim, saliency
from snipjax.optim.sparse_momentum import apportioned

SHAPES = {"a": (6, 5), "b": (7,), "c": (8, 3)}
MASK = {
    "a": jnp.arange(30).reshape(6, 5) % 3 == 0,
    "b": jnp.array(True),
    "c": jnp.arange(24).reshape(8, 3) % 4 == 0,
}
METHODS = {
    "rigl": functools.partial(optim.rigl, every=1, stop=9),
    "set": functools.partial(optim.set, every=1, stop=9, key=jax.random.key(0)),
    "sparse_momentum": functools.partial(optim.sparse_momentum, every=1, stop=9),
    "gradual_magnitude": functools.partial(
        optim.gradual_magnitude, sparsity=0.9, every=1, stop=9
    ),
    "straight_through": functools.partial(optim.straight_through, sparsity=0.9),
}


def tree_at(seed: int) -> dict[str, chex.Array]:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}


def steps(
    optimizer: Any, params: Any, number: int
) -> list[tuple[dict[str, np.ndarray], Any]]:
    """Params and state after each update."""
    update, state, found = jax.jit(optimizer.update), optimizer.init(params), []
    for step in range(number):
        updates, state = update(tree_at(step), state, params)
        params = optax.apply_updates(params, updates)
        found.append((jax.device_get(params), state))
    return found


def largest(scores: np.ndarray, number: int) -> np.ndarray:
    keep = np.zeros(scores.size, bool)
    keep[np.argsort(-scores.ravel(), kind="stable")[:number]] = True
    return keep.reshape(scores.shape)


class TestSparseMomentum:
    @pytest.mark.parametrize(
        ("total", "ratios", "room", "expected"),
        [
            (10, [1.0, 1.0], [20, 20], [5, 5]),
            (10, [3.0, 1.0], [20, 20], [8, 2]),  # 7.5 and 2.5: the first is larger
            (10, [9.0, 1.0, 1.0], [4, 20, 20], [4, 3, 3]),
            (10, [1.0, 0.0], [4, 20], [4, 6]),
            (0, [1.0, 2.0], [4, 20], [0, 0]),
            (7, [0.0, 0.0], [4, 20], [4, 3]),
            (24, [1.0, 1e-9], [4, 20], [4, 20]),
            # Next to 2**24, where float32 has even numbers alone.
            (2**24 + 3, [1.0], [2**31], [2**24 + 3]),
        ],
    )
    def test_whole_numbers_in_ratios(
        self, total: int, ratios: Any, room: Any, expected: Any
    ) -> None:
        room = jnp.array(room, jnp.uint32)
        found = jax.jit(apportioned)(jnp.uint32(total), jnp.array(ratios), room)
        np.testing.assert_array_equal(found, expected)

    def test_moves_by_its_equations(self) -> None:
        optimizer = optim.sparse_momentum(
            optax.sgd(0.1),
            MASK,
            every=4,
            stop=9,
            fraction=optax.constant_schedule(0.5),
            decay=0.7,
        )
        params = masks.apply(MASK, tree_at(99))
        *_, before, after = steps(optimizer, params, 5)
        momentum = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for step in range(5):
            for name, g in tree_at(step).items():
                momentum[name] = 0.7 * momentum[name] + 0.3 * np.float64(g)
        np.testing.assert_allclose(after[1].momentum["a"], momentum["a"], rtol=1e-5)
        stay, means, dropped = {}, {}, 0
        for name in ("a", "c"):
            keep = np.asarray(before[1].mask[name])
            number = int(keep.sum() * 0.5)
            w = np.where(keep, np.abs(before[0][name]), -1)
            stay[name] = largest(w, keep.sum() - number)
            means[name] = np.abs(momentum[name])[keep].mean()
            dropped += number
        quotas = apportioned(
            jnp.uint32(dropped),
            jnp.array([*means.values()]),
            jnp.array([np.sum(~x) for x in stay.values()], jnp.uint32),
        )
        for name, grow in zip(("a", "c"), quotas):
            size = np.where(stay[name], -1, np.abs(momentum[name]))
            expected = stay[name] | largest(size, int(grow))
            np.testing.assert_array_equal(after[1].mask[name], expected)

    def test_a_gradient_that_is_not_finite_leaves_the_momentum(self) -> None:
        mask = {"w": jnp.array([True, True, False, False])}
        inner = optax.apply_if_finite(optax.sgd(0.1), 5)
        optimizer = optim.sparse_momentum(inner, mask, every=9, stop=10)
        params = {"w": jnp.array([1.0, 2.0, 0.0, 0.0])}
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for gradient in ([1.0, 1, 1, 1], [jnp.nan, jnp.inf, 2, 1]):
            _, state = update({"w": jnp.array(gradient)}, state, params)
        np.testing.assert_allclose(state.momentum["w"], [0.1, 0.1, 0.29, 0.19])

    def test_in_double_precision(self) -> None:
        mask = {"w": jnp.array([True, True, False, False])}
        params = {"w": jnp.array([1.0, 2.0, 0.0, 0.0])}
        with jax.enable_x64(True):
            optimizer = optim.sparse_momentum(optax.sgd(0.1), mask, every=1, stop=9)
            state, update = optimizer.init(params), jax.jit(optimizer.update)
            for _ in range(2):
                _, state = update({"w": jnp.arange(4.0)}, state, params)
        assert bool(state.info.moved) and int(jnp.sum(state.mask["w"])) == 2

    def test_units_move_between_leaves(self) -> None:
        structure = functools.partial(masks.units, -2)
        mask = {
            "a": jnp.tile(jnp.arange(6)[:, None] % 2 == 0, 5),
            "b": jnp.array(True),
            "c": jnp.tile(jnp.arange(8)[:, None] % 2 == 0, 3),
        }
        optimizer = optim.sparse_momentum(
            optax.sgd(0.1),
            mask,
            every=1,
            stop=9,
            fraction=optax.constant_schedule(0.9),
            structure=structure,
        )
        changed = 0
        for _, state in steps(optimizer, masks.apply(mask, tree_at(99)), 6):
            keep = {name: np.asarray(state.mask[name]) for name in ("a", "c")}
            assert all((x.all(axis=1) == x.any(axis=1)).all() for x in keep.values())
            assert sum(x.any(axis=1).sum() for x in keep.values()) == 7
            changed += keep["a"].any(axis=1).sum() != mask["a"].any(axis=1).sum()
        assert changed


class TestGradualMagnitude:
    @pytest.mark.parametrize(
        ("first", "layerwise"), [(masks.ones(tree_at(0)), True), (MASK, False)]
    )
    def test_follows_the_cubic_schedule(self, first: Any, layerwise: bool) -> None:
        optimizer = optim.gradual_magnitude(
            optax.sgd(0.05),
            first,
            sparsity=0.8,
            start=2,
            every=3,
            stop=9,
            layerwise=layerwise,
        )
        params = masks.apply(first, tree_at(99))
        names = ["a", "c"]
        groups = [[n] for n in names] if layerwise else [names]
        keep = {n: np.asarray(first[n]) for n in names}
        w = {n: np.asarray(params[n]) for n in names}
        for step, (after, state) in enumerate(steps(optimizer, params, 12)):
            is_due = step in (2, 5, 8, 9)
            assert bool(state.info.moved) == is_due
            for group in groups if is_due else []:
                size = sum(keep[n].size for n in group)
                begin = sum(int(first[n].sum()) for n in group)
                end = round(0.2 * size)
                number = end + round((begin - end) * (1 - (step - 2) / 7) ** 3)
                scores = np.concatenate(
                    [np.where(keep[n], np.abs(w[n]), -1).ravel() for n in group]
                )
                parts = np.split(largest(scores, number), [keep[group[0]].size])
                for n, part in zip(group, parts):
                    keep[n] = part.reshape(keep[n].shape)
            for n in names:
                np.testing.assert_array_equal(state.mask[n], keep[n])
                w[n] = np.where(keep[n], w[n] - 0.05 * np.asarray(tree_at(step)[n]), 0)
                np.testing.assert_allclose(after[n], w[n], rtol=1e-5, atol=1e-6)

    def test_a_leaf_that_is_sparser_already_stays(self) -> None:
        mask = {"a": jnp.arange(10) < 2, "b": jnp.ones(10, bool)}
        params = masks.apply(mask, {"a": jnp.arange(10.0), "b": jnp.arange(10.0)})
        make = functools.partial(optim.gradual_magnitude, sparsity=0.5, every=1, stop=1)
        for layerwise, expected in ((True, [2, 5]), (False, [1, 9])):
            optimizer = make(optax.sgd(0.0), mask, layerwise=layerwise)
            state, update = optimizer.init(params), jax.jit(optimizer.update)
            for _ in range(2):
                _, state = update(params, state, params)
            assert [int(state.mask[n].sum()) for n in "ab"] == expected

    def test_a_sparsity_for_each_leaf_of_a_group_and_for_some_leaves(self) -> None:
        make = functools.partial(
            optim.gradual_magnitude, optax.sgd(0.1), every=1, stop=3
        )
        dense = masks.ones(tree_at(0))
        with pytest.raises(ValueError, match=r"sparsity does not have .* leaves: b"):
            make(dense, sparsity={"a": 0.5, "c": 0.5})
        weights = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
        optimizer = make(
            masks.ones(weights),
            sparsity={"a": 0.5, "b": 0.1},
            structure=functools.partial(masks.units, group=lambda name: "both"),
        )
        with pytest.raises(ValueError, match="sparsity has a share for each leaf"):
            state = optimizer.init(weights)
            jax.eval_shape(optimizer.update, weights, state, weights)

    def test_a_criterion_that_is_minus_infinity_somewhere(self) -> None:
        def criterion(loss_fn: Any, params: Any, batch: Any, *, key: Any) -> Any:
            return jax.tree.map(lambda w: jnp.where(w < 1, -jnp.inf, w), params)

        optimizer = optim.gradual_magnitude(
            optax.sgd(0.0),
            masks.ones(tree_at(0)),
            sparsity=0.5,
            every=1,
            stop=2,
            criterion=criterion,
        )
        _, state = steps(optimizer, tree_at(99), 3)[-1]
        assert (int(state.mask["a"].sum()), int(state.mask["c"].sum())) == (15, 12)
        large = np.asarray(tree_at(99)["a"]) >= 1
        assert large.any()
        assert np.asarray(state.mask["a"])[large].all()

    @pytest.mark.parametrize(
        ("structure", "sparsity"),
        [
            (functools.partial(masks.units, -2), {"a": 0.5, "b": 0.0, "c": 0.75}),
            (functools.partial(masks.n_of_m, 1, 2, axis=-2), 0.5),
        ],
    )
    def test_whole_units_and_n_of_m(self, structure: Any, sparsity: Any) -> None:
        optimizer = optim.gradual_magnitude(
            optax.sgd(0.1),
            masks.ones(tree_at(0)),
            sparsity=sparsity,
            every=1,
            stop=3,
            structure=structure,
        )
        _, state = steps(optimizer, tree_at(99), 4)[-1]
        a, c = (np.asarray(state.mask[name]) for name in ("a", "c"))
        if structure.func is masks.units:
            assert (a.sum(), c.sum()) == (15, 6)
            assert all((keep.all(axis=1) == keep.any(axis=1)).all() for keep in (a, c))
        else:
            for keep in (a, c):
                pairs = keep.reshape(-1, 2, keep.shape[1])
                assert (pairs.sum(axis=1) == 1).all()

    def test_a_stop_before_the_start(self) -> None:
        with pytest.raises(ValueError, match="stop is 3 and start is 5"):
            optim.gradual_magnitude(
                optax.sgd(0.1), MASK, sparsity=0.5, every=1, start=5, stop=3
            )


class TestStraightThrough:
    def test_dense_weights_train_by_the_gradient_at_the_kept(self) -> None:
        inner = optax.sgd(0.1, momentum=0.5)
        optimizer = optim.straight_through(
            inner, MASK, sparsity=0.6, every=2, stop=7, select=masks.layerwise_topk
        )
        weights = tree_at(99)
        state, params = optimizer.init(weights), masks.apply(MASK, weights)
        update = jax.jit(optimizer.update)
        dense = jax.tree.map(np.float64, weights)
        velocity = jax.tree.map(np.zeros_like, dense)
        for step in range(10):
            updates, state = update(tree_at(step), state, params)
            params = optax.apply_updates(params, updates)
            velocity = jax.tree.map(
                lambda v, g: 0.5 * v + np.float64(g), velocity, tree_at(step)
            )
            dense = jax.tree.map(lambda w, v: w - 0.1 * v, dense, velocity)
            assert bool(state.info.moved) == (step in (0, 2, 4, 6))
            if step in (0, 2, 4, 6):
                for name in ("a", "c"):
                    number = round(0.4 * dense[name].size)
                    np.testing.assert_array_equal(
                        state.mask[name], largest(np.abs(dense[name]), number)
                    )
            for name, w in params.items():
                kept = np.asarray(jnp.where(state.mask[name], state.dense[name], 0))
                np.testing.assert_array_equal(w, kept)
                np.testing.assert_allclose(state.dense[name], dense[name], rtol=1e-4)

    def test_params_that_were_not_masked_become_the_dense_ones(self) -> None:
        mask = {"w": jnp.array([True, False, False])}
        optimizer = optim.straight_through(optax.sgd(1.0), mask, sparsity=1 / 3)
        params = {"w": jnp.array([1.0, 2.0, 3.0])}
        state = optimizer.init(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = jax.jit(optimizer.update)(zeros, state, params)
        new = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(new, masks.apply(state.mask, params))

    def test_n_of_m_in_every_update(self) -> None:
        select = masks.n_of_m(1, 2)
        mask = select(tree_at(99), None, masks.kernels)
        optimizer = optim.straight_through(optax.adam(0.1), mask, select=select)
        found = steps(optimizer, masks.apply(mask, tree_at(99)), 6)
        for params, state in found:
            for name in ("a", "c"):
                pairs = np.asarray(state.mask[name]).reshape(-1, 2, SHAPES[name][1])
                assert (pairs.sum(axis=1) == 1).all()
                assert not params[name][~np.asarray(state.mask[name])].any()
        moved = [int(state.info.grown) for _, state in found]
        assert sum(moved) > 0


@pytest.mark.parametrize("name", METHODS)
def test_functions_reach_the_parameters_in_each_state(name: str) -> None:
    optimizer = METHODS[name](optax.adam(0.1), MASK)
    state = optimizer.init(tree_at(0))
    found = optax.tree.map_params(optimizer, lambda _: "like params", state)
    assert found.mask == dict.fromkeys(SHAPES, "like params")
    assert optax.tree.get(found, "mu") == dict.fromkeys(SHAPES, "like params")
    assert optax.tree.get(state, "step").dtype == jnp.int32


@pytest.mark.parametrize("name", METHODS)
def test_donating_the_state_leaves_the_key_alone(name: str) -> None:
    key = jax.random.key(5)
    optimizer = METHODS[name](optax.sgd(0.1), MASK, key=key)
    params = masks.apply(MASK, tree_at(99))
    state = optimizer.init(params)
    jax.jit(lambda state: state, donate_argnums=0)(state)
    assert not key.is_deleted()
    assert not MASK["a"].is_deleted()


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_without_prunable_leaves(name: str) -> None:
    optimizer = METHODS[name](optax.sgd(0.1), {"a": jnp.array(True)})
    with pytest.raises(ValueError, match="no leaf of the mask is prunable"):
        optimizer.init({"a": jnp.ones(3)})


@pytest.mark.parametrize(
    "name", ["rigl", "set", "sparse_momentum", "gradual_magnitude"]
)
def test_a_mask_of_another_structure(name: str) -> None:
    structure = functools.partial(masks.units, -1)
    optimizer = METHODS[name](optax.sgd(0.1), MASK, structure=structure)
    with pytest.raises(ValueError, match="mask leaf 'a' is not of the structure"):
        optimizer.init(tree_at(99))


def test_a_leaf_may_be_the_bool_of_python() -> None:
    structure = functools.partial(masks.units, -1)
    whole = {**structure()(tree_at(99), 0.5, masks.kernels), "b": True}
    for name in ("rigl", "gradual_magnitude"):
        optimizer = METHODS[name](optax.sgd(0.1), whole, structure=structure)
        mask = optimizer.init(masks.apply(whole, tree_at(99))).mask
        chex.assert_trees_all_equal(mask, jax.tree.map(jnp.asarray, whole))


@pytest.mark.parametrize("name", ["rigl", "set", "sparse_momentum"])
def test_the_mask_stays_if_the_gradient_is_not_finite(name: str) -> None:
    optimizer = METHODS[name](optax.apply_if_finite(optax.sgd(0.1), 5), MASK)
    params = masks.apply(MASK, tree_at(99))
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    gradient = tree_at(0)
    gradient["a"] = gradient["a"].at[0, 0].set(jnp.nan)
    for number in (1, 2):  # the second would move the mask
        updates, state = update(gradient, state, params)
        chex.assert_trees_all_equal(optax.apply_updates(params, updates), params)
        chex.assert_trees_all_equal(state.mask, MASK)
        assert not state.info.moved
        assert int(state.inner_state.notfinite_count) == number  # a step, skipped
    _, state = update(tree_at(1), state, params)
    assert int(state.info.dropped) > 0


def test_a_mask_that_is_n_of_m_and_one_that_is_not() -> None:
    structure = functools.partial(masks.n_of_m, 1, 2, axis=-2)
    make = functools.partial(METHODS["set"], optax.sgd(0.1), structure=structure)
    with pytest.raises(ValueError, match="mask leaf 'a' is not of the structure"):
        make(MASK).init(tree_at(99))
    make(structure()(tree_at(99), 0.5, masks.kernels)).init(tree_at(99))


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("set", {"key": None}, "key is None, but set grows at random"),
        ("sparse_momentum", {"decay": 2.0}, "decay is 2.0, outside"),
        ("gradual_magnitude", {"stop": 7.5}, "stop is 7.5"),
        ("gradual_magnitude", {"start": -5}, "start is -5"),
        ("straight_through", {"stop": -1}, "stop is -1"),
        ("straight_through", {"sparsity": None}, "sparsity is None, outside"),
        ("straight_through", {"sparsity": 2.0}, "sparsity is 2.0, outside"),
    ],
)
def test_settings_out_of_range(name: str, settings: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        METHODS[name](optax.sgd(0.1), MASK, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_a_place_that_does_not_fit(name: str) -> None:
    inside = METHODS[name](optax.lookahead(optax.sgd(0.1), 5, 0.5), MASK)
    params = masks.apply(MASK, tree_at(99))
    with pytest.raises(ValueError, match="lookahead is inside"):
        inside.init(params)
    inside = METHODS[name](optax.sgd(0.1), MASK)
    within = optax.masked(inside, {"a": True, "b": False, "c": True})
    with pytest.raises(ValueError, match=r"leaves that optax\.masked .* leaves out"):
        within.init(params)


@pytest.mark.parametrize("name", METHODS)
def test_a_criterion_without_its_loss(name: str) -> None:
    optimizer = METHODS[name](optax.sgd(0.1), MASK, criterion=saliency.snip)
    params = masks.apply(MASK, tree_at(99))
    with pytest.raises(ValueError, match=r"pass it and the batch.*loss_fn=loss_fn"):
        jax.eval_shape(optimizer.update, params, optimizer.init(params), params)
