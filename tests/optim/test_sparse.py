"""Sparse optimizers against the inner optimizer driven by hand."""

import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from snipjax import masks, optim
from tests.conftest import Network

pytestmark = pytest.mark.filterwarnings(
    "error", "ignore:no connection of", r"ignore:\d+ pruned entries of params"
)

MASK = {
    "b": jnp.array(True),
    "w": jnp.array([[True, False, True], [False, True, False]]),
}
TARGET = {"b": np.float32([1, -2]), "w": np.float32([[1, 2, 3], [-4, 5, -6]])}


def initial(dtype: Any = jnp.float32) -> dict[str, chex.Array]:
    """Parameters that are not pruned yet."""
    w = [[0.3, -0.7, 1.1], [0.2, 0.5, -0.9]]
    return {"b": jnp.array([0.1, -0.4], dtype), "w": jnp.array(w, dtype)}


def loss_fn(params: chex.ArrayTree) -> chex.Array:
    """A quartic with its minimum at TARGET, also in what is pruned."""
    return sum(
        jnp.sum((w - t) ** 2 + 0.01 * (w - t) ** 4)
        for w, t in zip(jax.tree.leaves(params), jax.tree.leaves(TARGET))
    )


def backtracking() -> optax.GradientTransformation:
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)
    return optax.chain(optax.sgd(1.0), search)


def trapezoid(step: chex.Numeric) -> chex.Numeric:
    return optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12)(step)


def accumulating() -> optax.GradientTransformation:
    return optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation()


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum and weight decay": lambda: optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9)
    ),
    "nesterov on a schedule": lambda: optax.sgd(trapezoid, 0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "lamb": lambda: optax.lamb(0.1, weight_decay=0.1),
    "rmsprop": lambda: optax.rmsprop(0.05, momentum=0.5),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "lion": lambda: optax.lion(0.1),
    "clipping": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "clipping in blocks": lambda: optax.chain(
        optax.clip_by_block_rms(0.5), optax.sgd(0.1)
    ),
    "noise": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "injected hyperparameters": lambda: optax.inject_hyperparams(optax.adamw)(
        trapezoid
    ),
    "accumulated gradients": accumulating,
    "masked weight decay": lambda: optax.adamw(0.1, mask={"b": False, "w": True}),
    "two groups": lambda: optax.partition(
        {"slow": optax.sgd(0.01), "fast": optax.adam(0.1)}, {"b": "fast", "w": "slow"}
    ),
    # With extra arguments.
    "plateau": lambda: optax.chain(
        optax.adam(0.1), contrib.reduce_on_plateau(patience=1, cooldown=0)
    ),
    "polyak": lambda: optax.polyak_sgd(0.5),
    "backtracking line search": backtracking,
    "lbfgs": lambda: optax.lbfgs(
        memory_size=2, linesearch=optax.scale_by_backtracking_linesearch(5)
    ),
}
# These hold control flow, which is slow to run without compiling it whole.
COMPILED = ("accumulated gradients", "plateau", "backtracking line search", "lbfgs")
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def train(
    optimizer: optax.GradientTransformation,
    params: chex.ArrayTree,
    steps: int,
    restrict: Callable[[chex.ArrayTree], chex.ArrayTree] = lambda tree: tree,
    jit: Callable = lambda function: function,
) -> chex.ArrayTree:
    """Trains; `restrict` is what one would do to gradients and params by hand."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(
        gradient: chex.ArrayTree,
        state: chex.ArrayTree,
        params: chex.ArrayTree,
        value: chex.Array,
    ) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        return optimizer.update(
            gradient,
            state,
            params,
            value=value,
            grad=gradient,
            value_fn=lambda p: loss_fn(by_hand(p)),
        )

    update = jit(update)
    params = restrict(params)
    state = optimizer.init(params)
    for _ in range(steps):
        value, gradient = value_and_gradient(params)
        updates, state = update(restrict(gradient), state, params, value)
        params = restrict(optax.apply_updates(params, updates))
    return params


value_and_gradient = jax.jit(jax.value_and_grad(loss_fn))


def by_hand(tree: chex.ArrayTree) -> chex.ArrayTree:
    keep = {"b": True, "w": np.asarray(MASK["w"])}
    return jax.tree.map(lambda k, x: jnp.where(k, x, jnp.zeros_like(x)), keep, tree)


def pruned_entries(params: chex.ArrayTree) -> np.ndarray:
    return np.float64(params["w"])[~np.asarray(MASK["w"])]


# Pruned entries stay zero, and the others move as the inner optimizer moves them.


@every_optimizer
def test_kept_entries_move_as_under_the_inner_optimizer(name: str) -> None:
    inner, start = OPTIMIZERS[name](), by_hand(initial())
    jit = jax.jit if name in COMPILED else lambda function: function
    params = train(optim.sparse(inner, MASK), start, 7, jit=jit)
    expected = train(inner, start, 7, by_hand, jit=jit)
    if name in COMPILED:
        chex.assert_trees_all_close(params, expected, rtol=1e-4, atol=1e-5)
    else:
        chex.assert_trees_all_equal(params, expected)
    assert np.abs(params["b"] - initial()["b"]).min() > 1e-3


IN_BFLOAT16 = ("momentum and weight decay", "adamw", "lamb", "clipping", "plateau")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.float32) for name in OPTIMIZERS]
    + [(name, jnp.bfloat16) for name in IN_BFLOAT16],
)
def test_pruned_entries_are_zero_after_every_step(name: str, dtype: Any) -> None:
    optimizer = optim.sparse(OPTIMIZERS[name](), MASK)

    @jax.jit
    def step(carry: tuple, _: None) -> tuple[tuple, chex.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss_fn
        )
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = initial(dtype)
    _, history = jax.lax.scan(step, (params, optimizer.init(params)), length=50)
    assert history["w"].dtype == dtype
    w = np.float64(history["w"])
    pruned = w[:, ~np.asarray(MASK["w"])]
    assert not pruned.any()
    assert not np.signbit(pruned).any()
    assert w[:, np.asarray(MASK["w"])].all()


@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_momentum_and_weight_decay_by_their_equations(weight_decay: float) -> None:
    inner = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(0.05, momentum=0.9)
    )
    params = train(optim.sparse(inner, MASK), initial(), 20)
    keep = np.asarray(MASK["w"])
    w = np.float64(initial()["w"]) * keep
    velocity = np.zeros_like(w)
    for _ in range(20):
        gradient = 2 * (w - TARGET["w"]) + 0.04 * (w - TARGET["w"]) ** 3
        velocity = 0.9 * velocity + keep * (gradient + weight_decay * w)
        w = w - 0.05 * velocity
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_clipping_sees_the_norm_of_the_kept_gradient() -> None:
    optimizer = optim.sparse(optax.clip_by_global_norm(1.0), {"w": np.arange(3) < 2})
    params = {"w": jnp.zeros(3)}
    gradient = {"w": jnp.array([3.0, 4.0, 100.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [0.6, 0.8, 0.0], rtol=1e-6)


def test_lamb_sees_the_norm_of_the_kept_params() -> None:
    # The trust ratio scales the update, of norm sqrt(2) here, to the params' norm.
    optimizer = optim.sparse(optax.scale_by_trust_ratio(), {"w": np.arange(3) < 2})
    params = {"w": jnp.array([3.0, 4.0, 100.0])}
    updates, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [12.5**0.5, 12.5**0.5, -100], rtol=1e-6)


def test_gradients_of_pruned_entries_may_be_anything() -> None:
    optimizer = optim.sparse(optax.adam(0.1), {"w": np.arange(3) < 2})
    params = {"w": jnp.array([1.0, 1.0, 0.0])}
    gradient = {"w": jnp.array([1.0, 1.0, np.nan])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], [0.9, 0.9, 0.0], rtol=1e-5)


@pytest.mark.parametrize("update_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_first_step_prunes_in_every_mix_of_dtypes(
    dtype: Any, update_dtype: Any
) -> None:
    optimizer = optim.sparse(optax.sgd(0.5), {"w": np.arange(3) < 1})
    params = {"w": jnp.array([1.0, 2.3, -1e-3], dtype)}
    gradient = {"w": jnp.ones(3, update_dtype)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    assert params["w"].dtype == dtype
    np.testing.assert_array_equal(np.float64(params["w"]), [0.5, 0.0, 0.0])


def test_without_params_pruned_entries_are_not_moved() -> None:
    optimizer = optim.sparse(optax.sgd(0.5), {"w": np.arange(3) < 1})
    state = optimizer.init({"w": jnp.ones(3)})
    updates, _ = optimizer.update({"w": jnp.ones(3)}, state)
    np.testing.assert_array_equal(updates["w"], [-0.5, 0.0, 0.0])


def test_it_trains_every_kind_of_pytree(network: Network) -> None:
    mask = masks.global_topk(network.params, 0.6, masks.weights_and_biases)
    optimizer = optim.sparse(optax.adamw(0.05), mask)

    @jax.jit
    def step(params: chex.ArrayTree, state: Any) -> tuple:
        loss, gradient = jax.value_and_grad(network.loss_fn)(params, network.batch)
        updates, state = optimizer.update(gradient, state, params)
        return loss, optax.apply_updates(params, updates), state

    params, losses = network.params, []
    state = optimizer.init(params)
    for _ in range(20):
        loss, params, state = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < losses[1]
    chex.assert_trees_all_equal_structs(params, network.params)
    chex.assert_trees_all_equal(params, masks.apply(mask, params))


# What travels with the state.


def test_the_mask_survives_donation_of_the_state() -> None:
    mask = masks.ones({"w": jnp.ones((2, 2)), "b": jnp.ones(2), "c": jnp.ones(2)})
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2), "c": jnp.ones(2)}
    optimizer = optim.sparse(optax.sgd(0.1, 0.9), mask)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: chex.ArrayTree, state: Any) -> tuple:
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    for init in (optimizer.init, jax.jit(optimizer.init)):
        carry = jax.tree.map(jnp.copy, params), init(params)
        donated = jax.tree.leaves(carry)
        carry = step(*step(*carry))
        assert all(x.is_deleted() for x in donated)
        assert not any(x.is_deleted() for x in jax.tree.leaves(mask))


def test_the_mask_is_an_argument_of_the_step_and_no_constant() -> None:
    compiled = []

    def step(params: chex.ArrayTree, state: optim.SparseState) -> chex.ArrayTree:
        compiled.append(1)
        optimizer = optim.sparse(optax.sgd(0.5), state.mask)
        return optax.apply_updates(
            params, optimizer.update({"w": jnp.ones(2)}, state, params)[0]
        )

    step, params = jax.jit(step), {"w": jnp.ones(2)}
    for keep in ([True, False], [False, True], [True, True]):
        state = optim.sparse(optax.sgd(0.5), {"w": jnp.array(keep)}).init(params)
        expected = 0.5 * np.array(keep)
        np.testing.assert_array_equal(step(params, state)["w"], expected)
    assert len(compiled) == 1


class TransformationsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_vmap_over_masks(self) -> None:
        def one_step(keep: chex.Array) -> chex.Array:
            optimizer = optim.sparse(optax.adam(0.1), {"w": keep})
            params = {"w": jnp.ones(3)}
            updates, _ = optimizer.update(params, optimizer.init(params), params)
            return optax.apply_updates(params, updates)["w"]

        keep = np.array([[True, False, True], [False, False, True], [True] * 3])
        w = self.variant(jax.vmap(one_step))(keep)
        np.testing.assert_allclose(w, 0.9 * keep, rtol=1e-5)


def state_after_a_step() -> tuple[optax.GradientTransformation, chex.ArrayTree, Any]:
    optimizer = optim.sparse(optax.adamw(trapezoid), MASK)
    params = masks.apply(MASK, initial())
    updates, state = optimizer.update(params, optimizer.init(params), params)
    return optimizer, optax.apply_updates(params, updates), state


def test_the_state_survives_being_pickled_as_leaves() -> None:
    optimizer, params, state = state_after_a_step()
    leaves, treedef = jax.tree.flatten(state)
    stored = pickle.dumps([np.asarray(leaf) for leaf in leaves])
    restored = jax.tree.unflatten(treedef, pickle.loads(stored))
    chex.assert_trees_all_equal(
        optimizer.update(params, restored, params),
        optimizer.update(params, state, params),
    )


def test_the_state_survives_flax_serialization() -> None:
    optimizer, params, state = state_after_a_step()
    fresh = optimizer.init(params)
    restored = flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(
        optimizer.update(params, restored, params),
        optimizer.update(params, state, params),
    )


def test_functions_reach_the_state_as_that_of_the_inner_optimizer() -> None:
    optimizer, _, state = state_after_a_step()
    found = optax.tree.map_params(optimizer, lambda _: "like params", state)
    assert found.mask == {"b": "like params", "w": "like params"}
    inner = optax.tree.map_params(
        optax.adamw(trapezoid), lambda _: "like params", state.inner_state
    )
    assert jax.tree.leaves(found.inner_state) == jax.tree.leaves(inner)
    assert optax.tree.get(state, "mu")["w"].shape == (2, 3)


def test_an_optimizer_that_takes_gradients_itself_sees_the_pruned_network() -> None:
    def sam() -> optax.GradientTransformation:
        ascent = optax.chain(contrib.normalize(), optax.sgd(0.5))
        return contrib.sam(optax.sgd(0.05), ascent, sync_period=2, opaque_mode=True)

    def run(
        optimizer: Any, gradient: Callable[[chex.ArrayTree], chex.ArrayTree]
    ) -> chex.ArrayTree:
        params = by_hand(initial())
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(
                gradient(params), state, params, grad_fn=lambda p, _: gradient(p)
            )
            params = optax.apply_updates(params, updates)
        return params

    expected = run(sam(), jax.grad(lambda params: loss_fn(by_hand(params))))
    params = run(optim.sparse(sam(), MASK), jax.grad(loss_fn))
    chex.assert_trees_all_close(params, expected, rtol=1e-5)


# What bad input gets.


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        ({"w": MASK["w"]}, "mask does not have the structure of params.*missing.*b"),
        ({"w": MASK["w"].T, "b": True}, r"mask leaf 'w' has shape \(3, 2\)"),
        (
            {"w": jnp.ones((2, 3)), "b": True},
            "mask leaf 'w' has dtype float32, not bool",
        ),
    ],
)
def test_a_mask_that_does_not_fit_the_params(mask: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        optim.sparse(optax.sgd(0.1), mask).init(initial())


def test_gradients_that_do_not_fit_the_mask() -> None:
    optimizer = optim.sparse(optax.sgd(0.1), MASK)
    state = optimizer.init(initial())
    with pytest.raises(
        ValueError, match="gradient does not have the structure of the mask"
    ):
        optimizer.update({"w": initial()["w"]}, state, initial())


# Which transformation is around which.


def steps(
    optimizer: optax.GradientTransformationExtraArgs, params: Any, number: int
) -> Any:
    state = optimizer.init(params)
    for _ in range(number):
        at = params.fast if isinstance(params, optax.LookaheadParams) else params
        updates, state = optimizer.update(jax.grad(loss_fn)(at), state, params)
        params = optax.apply_updates(params, updates)
    return params


ascent = optax.chain(contrib.normalize(), optax.sgd(0.5))


@pytest.mark.parametrize(
    ("optimizer", "params", "problem"),
    [
        (
            optim.sparse(optax.lookahead(optax.sgd(0.1), 2, 0.5), MASK),
            optax.LookaheadParams.init_synced(initial()),
            r"be around sparse, as optax\.lookahead\(sparse",
        ),
        (
            optim.sparse(
                optax.chain(optax.lookahead(optax.sgd(0.1), 2, 0.5), optax.scale(1.0)),
                MASK,
            ),
            by_hand(initial()),
            r"lookahead is inside of sparse.*as optax\.lookahead\(sparse",
        ),
        (
            optax.masked(optim.sparse(optax.sgd(0.1), MASK), {"w": True, "b": False}),
            initial(),
            r"let sparse be around it, as sparse\(optax\.masked",
        ),
        (
            contrib.sam(optim.sparse(optax.sgd(0.1), MASK), ascent),
            by_hand(initial()),
            r"dtype int32 in 'b'.*as sparse\(sam",
        ),
    ],
    ids=["pairs inside", "lookahead inside", "masked around", "sam around"],
)
def test_a_wrong_place_is_told(optimizer: Any, params: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        steps(optimizer, params, 2)


@pytest.mark.parametrize(
    ("optimizer", "start"),
    [
        (optim.sparse(optax.masked(optax.sgd(0.1), {"w": True, "b": False}), MASK), 0),
        (optim.sparse(contrib.sam(optax.sgd(0.1), ascent), MASK), 0),
        (optax.lookahead(optim.sparse(optax.sgd(0.1), MASK), 2, 0.5), 1),
        # Of use to no one, and of no harm to params that are pruned.
        (optax.chain(optim.sparse(optax.sgd(0.1), MASK), optax.scale(0.5)), 0),
    ],
    ids=["masked", "sam", "lookahead", "chain"],
)
def test_in_another_place_pruned_entries_stay_zero(optimizer: Any, start: int) -> None:
    params = by_hand(initial())
    pair = optax.LookaheadParams.init_synced(params)
    found = steps(optimizer, pair if start else params, 3)
    for tree in found if start else [found]:
        assert not pruned_entries(tree).any()
        assert (tree["w"] != params["w"]).any()


def test_params_to_start_from_that_are_not_pruned_are_told_of() -> None:
    # Around sparse, scaling would leave a part of what the first update clears.
    optimizer = optax.chain(optim.sparse(optax.sgd(0.1), MASK), optax.scale(0.5))
    with pytest.warns(UserWarning, match=r"3 pruned entries .*masks\.apply\(mask"):
        optimizer.init(initial())
    with warnings.catch_warnings(action="error"):
        optimizer.init(by_hand(initial()))
