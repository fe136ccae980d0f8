"""Moves of masks against loops over connections in NumPy."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snipjax import masks, optim, saliency
from snipjax.optim.moves import when
from snipjax.optim.relocation import relocated

SHAPES = {"b": (3,), "dense": (), "v": (4, 5), "w": (2, 3, 7)}
CASES = 1000


def first(scores: np.ndarray, number: int) -> list[int]:
    """Indices of the largest scores, of equal ones the first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:number]


def by_loop(
    mask: np.ndarray, scores: np.ndarray, growth: np.ndarray, fraction: np.float32
) -> np.ndarray:
    """The mask after a move, connection by connection."""
    kept = [i for i in range(mask.size) if mask[i]]
    dropped = int(np.floor(np.float32(len(kept)) * fraction))
    stay = {kept[i] for i in first(scores[kept], len(kept) - dropped)}
    free = [i for i in range(mask.size) if i not in stay]
    grow = {free[i] for i in first(growth[free], dropped)}
    return np.array([i in stay or i in grow for i in range(mask.size)])


def flat(tree: dict[str, np.ndarray], case: int) -> np.ndarray:
    """The prunable entries of a case in tree order."""
    names = [name for name in SHAPES if name != "dense"]
    return np.concatenate([tree[name][case].ravel() for name in names])


def random_cases(dtype: str) -> tuple[dict[str, np.ndarray], ...]:
    """Masks of all densities; scores with ties, zeros and far apart exponents."""
    rng = np.random.default_rng(0)

    def scores() -> dict[str, np.ndarray]:
        tree = {}
        for name, shape in SHAPES.items():
            x = rng.exponential(size=(CASES, *shape)) ** rng.integers(1, 9)
            levels = rng.integers(1, 5, size=(CASES, *[1] * len(shape)))
            is_tied = rng.random(size=levels.shape) < 0.5
            x = np.where(is_tied, np.round(x * levels) / levels, x)
            # Some negative, and in some cases subnormal.
            x = np.where(rng.random(x.shape) < 0.2 * is_tied, -x, x)
            x = np.where(rng.random(levels.shape) < 0.1, 1e-40 * x, x)
            tree[name] = np.asarray(jnp.asarray(x, dtype).astype(jnp.float32))
        return tree

    keep = {
        name: rng.random((CASES, *shape)) < rng.random((CASES, *[1] * len(shape)))
        for name, shape in SHAPES.items()
    }
    keep["dense"] = np.ones(CASES, bool)
    fractions = rng.choice([0.0, 0.1, 0.3, 0.5, 0.999, 1.0], CASES).astype(np.float32)
    return keep, scores(), scores(), fractions


@pytest.mark.parametrize(
    ("dtype", "layerwise"),
    [("float32", True), ("bfloat16", False)],
)
def test_a_thousand_moves_are_those_of_a_loop(dtype: str, layerwise: bool) -> None:
    keep, scores, growth, fractions = random_cases(dtype)

    def move(keep: Any, scores: Any, growth: Any, fraction: Any) -> Any:
        scores, growth = (
            jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (scores, growth)
        )
        return relocated(keep, scores, growth, fraction, layerwise=layerwise)

    new = jax.device_get(
        jax.jit(jax.vmap(move))(keep, scores, growth, jnp.asarray(fractions))
    )
    assert new["dense"].all()
    for case, fraction in enumerate(fractions):
        if layerwise:
            for name in ("b", "v", "w"):
                tree = (keep, scores, growth)
                expected = by_loop(*(t[name][case].ravel() for t in tree), fraction)
                np.testing.assert_array_equal(new[name][case].ravel(), expected)
        else:
            tree = (keep, scores, growth)
            expected = by_loop(*(flat(t, case) for t in tree), fraction)
            np.testing.assert_array_equal(flat(new, case), expected)
            assert flat(new, case).sum() == flat(keep, case).sum()


def test_units_of_a_kernel_and_its_bias_move_together() -> None:
    rng = np.random.default_rng(3)
    structure = functools.partial(
        masks.units, -1, group=lambda name: name.rpartition("/")[0]
    )
    kept = np.array([True, False, True, False, True, False])
    whole = {"kernel": np.broadcast_to(kept, (4, 6)), "bias": kept}
    scores, growth = (
        {n: rng.random(x.shape).astype(np.float32) for n, x in whole.items()}
        for _ in range(2)
    )
    growth["bias"] = growth["bias"] + np.float32(9.0) * ~kept
    new = jax.jit(functools.partial(relocated, structure=structure))(
        {"layer": whole}, {"layer": scores}, {"layer": growth}, jnp.float32(0.7)
    )["layer"]
    sums = ({**x, "kernel": x["kernel"].sum(axis=0)} for x in (scores, growth))
    expected = by_loop(kept, *(x["kernel"] + x["bias"] for x in sums), np.float32(0.7))
    assert (expected != kept).any()
    np.testing.assert_array_equal(new["bias"], expected)
    np.testing.assert_array_equal(new["kernel"], np.broadcast_to(expected, (4, 6)))


def test_n_of_m_stays_n_of_m() -> None:
    rng = np.random.default_rng(2)
    structure = functools.partial(masks.n_of_m, 2, 4)
    scores, growth = rng.random((2, 16, 6)).astype(np.float32)
    mask = structure()({"w": jnp.asarray(rng.random((16, 6)))}, None, masks.kernels)
    new = jax.jit(functools.partial(relocated, structure=structure))(
        mask, {"w": jnp.asarray(scores)}, {"w": jnp.asarray(growth)}, jnp.float32(0.4)
    )
    groups = np.asarray(new["w"]).reshape(4, 4, 6)
    assert (groups.sum(axis=1) == 2).all()
    # In each group the connections that stay, and of all others the best to grow.
    old = np.asarray(mask["w"])
    weakest = np.sort(scores[old])[: int(0.4 * old.sum())]
    stay = old & ~np.isin(scores, weakest)
    best = np.where(stay, np.inf, growth).reshape(4, 4, 6)
    expected = np.argsort(-best, axis=1)[:, :2]
    assert np.take_along_axis(groups, expected, axis=1).all()
    assert (np.asarray(new["w"]) != old).any()


# The moves of an optimizer.

MASK = {"b": jnp.array(True), "w": jnp.arange(12).reshape(3, 4) % 3 == 0}


def gradient_at(step: int) -> dict[str, chex.Array]:
    rng = np.random.default_rng(step)
    return {
        "b": jnp.asarray(rng.normal(size=2), jnp.float32),
        "w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
    }


def initial() -> dict[str, chex.Array]:
    return masks.apply(MASK, gradient_at(-1 % 2**32))


def history(optimizer: Any, steps: int) -> list[tuple[Any, Any]]:
    """Params and state after each step."""
    params, found = initial(), []
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradient_at(step), state, params)
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


def test_rigl_by_its_equations() -> None:
    optimizer = optim.rigl(optax.sgd(0.1, 0.9), MASK, every=3, stop=10, fraction=0.8)
    w = np.asarray(initial()["w"], np.float64)
    keep = np.asarray(MASK["w"])
    velocity = np.zeros_like(w)
    moves = []
    for step, (params, state) in enumerate(history(optimizer, 14)):
        gradient = np.asarray(gradient_at(step)["w"], np.float64)
        if step in (3, 6, 9):  # moves, in place of steps
            fraction = 0.4 * (1 + np.cos(np.pi * step / 10))
            assert float(state.info.fraction) == pytest.approx(fraction, rel=1e-5)
            new = by_loop(
                keep.ravel(),
                np.abs(w).ravel(),
                np.abs(gradient).ravel(),
                np.float32(state.info.fraction),
            ).reshape(3, 4)
            moves.append((new != keep).any())
            assert int(state.info.grown) == (new & ~keep).sum()
            assert int(state.info.dropped) == (keep & ~new).sum()
            velocity[new & ~keep] = 0.0
            w, keep = np.where(keep & new, w, 0.0), new
        else:
            velocity = np.where(keep, 0.9 * velocity + gradient, 0.9 * velocity)
            w = np.where(keep, w - 0.1 * velocity, 0.0)
        assert bool(state.info.moved) == (step in (3, 6, 9))
        assert int(state.step) == step + 1
        np.testing.assert_array_equal(state.mask["w"], keep)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5, atol=1e-6)
        assert not np.asarray(params["w"])[~keep].any()
    assert all(moves[:2])


def test_any_criterion_sees_the_loss_and_the_batch_of_the_update() -> None:
    def loss_fn(params: Any, batch: chex.Array) -> chex.Array:
        return jnp.sum(params["w"] * batch) ** 2

    optimizer = optim.rigl(
        optax.sgd(0.1), MASK, every=1, stop=9, fraction=0.9, criterion=saliency.snip
    )
    params, batch = initial(), jnp.arange(1.0, 13.0).reshape(3, 4)
    state = optimizer.init(params)._replace(step=jnp.int32(1))
    _, state = jax.jit(
        functools.partial(optimizer.update, loss_fn=loss_fn)
    )(gradient_at(0), state, params, batch=batch)  # fmt: skip
    w = np.asarray(params["w"])
    expected = by_loop(
        np.asarray(MASK["w"]).ravel(),
        np.abs(w * batch).ravel(),
        np.abs(gradient_at(0)["w"]).ravel(),
        np.float32(state.info.fraction),
    )
    np.testing.assert_array_equal(np.ravel(state.mask["w"]), expected)


# A move is computed in steps with a move alone.


def test_a_criterion_sees_pruned_connections_as_constants() -> None:
    """ProsPr takes steps of training, in which they stay at zero."""
    mask = {"w": jnp.arange(12).reshape(3, 4) % 3 > 0}
    params = masks.apply(mask, {"w": jnp.linspace(-1, 1, 12).reshape(3, 4)})

    def loss_fn(params: Any, batch: chex.Array) -> chex.Array:
        return jnp.mean((jnp.tanh(batch @ params["w"]) - 1) ** 2)

    def loss_of_pruned(params: Any, batch: chex.Array) -> chex.Array:
        return loss_fn(masks.apply(mask, params), batch)

    batch = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    scores = saliency.prospr(loss_of_pruned, params, batch)["w"]
    weakest = np.argsort(np.where(mask["w"], scores, np.inf), axis=None)[:2]
    optimizer = optim.gradual_magnitude(
        optax.sgd(0.0), mask, sparsity=0.5, every=1, stop=1, criterion=saliency.prospr
    )
    state = optimizer.init(params)._replace(step=jnp.int32(1))
    _, state = optimizer.update(params, state, params, loss_fn=loss_fn, batch=batch)
    dropped = np.flatnonzero(mask["w"] & ~state.mask["w"])
    np.testing.assert_array_equal(dropped, np.sort(weakest))


def test_a_branch_is_not_computed_unless_it_is_wanted_somewhere() -> None:
    calls: list[float] = []

    def counted(x: chex.Array) -> chex.Array:
        def run(predicate: chex.Array, x: chex.Array) -> chex.Array:
            def function() -> chex.Array:
                jax.debug.callback(lambda value: calls.append(float(value)), x)
                return x + 1

            return when(predicate, function, x)

        return run

    numbers = jnp.arange(4.0)
    run = counted(numbers)
    for wrap in (
        lambda f: jax.jit(jax.vmap(f)),
        jax.vmap,
        lambda f: lambda p, x: jax.vmap(jax.vmap(f))(p[:, None], x[:, None])[:, 0],
    ):
        calls.clear()
        never = wrap(run)(jnp.zeros(4, bool), numbers)
        jax.effects_barrier()
        assert calls == []
        np.testing.assert_array_equal(never, numbers)
        once = wrap(run)(jnp.arange(4) == 2, numbers)
        jax.effects_barrier()
        assert calls
        np.testing.assert_array_equal(once, [0, 1, 3, 3])


def test_set_grows_at_random_by_its_key_in_seeds_side_by_side() -> None:
    gradients = jax.tree.map(lambda *x: np.stack(x), *map(gradient_at, range(60)))

    @jax.jit
    @jax.vmap
    def moved_masks(key: chex.PRNGKey) -> chex.Array:
        optimizer = optim.set(
            optax.sgd(0.1),
            MASK,
            every=1,
            stop=99,
            fraction=optax.constant_schedule(0.5),
            key=key,
        )

        def step(carry: Any, gradient: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), state.mask["w"]

        start = initial(), optimizer.init(initial())
        return jax.lax.scan(step, start, gradients)[1]

    key, other = jax.random.split(jax.random.key(0))
    found, another, again = np.asarray(moved_masks(jnp.stack([key, other, key])))
    np.testing.assert_array_equal(found, again)
    assert (found != another).any()
    assert (found.sum(axis=(1, 2)) == 4).all()
    assert found.any(axis=0).all()  # every connection was kept at some time


# What bad input gets.


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"every": 0, "stop": 9}, "every is 0"),
        ({"every": 1, "stop": 0.5}, "stop is 0.5"),
        ({"every": 1, "stop": 9, "fraction": 1.5}, "fraction is 1.5, outside"),
    ],
)
def test_settings_out_of_range(settings: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        optim.rigl(optax.sgd(0.1), MASK, **settings)


def test_an_update_without_params() -> None:
    optimizer = optim.rigl(optax.sgd(0.1), MASK, every=1, stop=9)
    with pytest.raises(ValueError, match="params is None, but a mask moves"):
        optimizer.update(gradient_at(0), optimizer.init(initial()))
