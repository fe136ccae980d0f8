"""Sparse optimizers against the inner optimizer driven by hand."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import chex
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
    "nesterov on a schedule": lambda: optax.sgd(trapezoid, 0.9, nesterov=True),
    "lamb": lambda: optax.lamb(0.1, weight_decay=0.1),
    "clipping": lambda: optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.clip_by_global_norm(1.0),
        optax.sgd(0.1, momentum=0.9),
    ),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "noise": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "injected hyperparameters": lambda: optax.inject_hyperparams(optax.adamw)(
        trapezoid
    ),
    "masked weight decay": lambda: optax.adamw(0.1, mask={"b": False, "w": True}),
    "two groups": lambda: optax.partition(
        {"slow": optax.sgd(0.01), "fast": optax.adam(0.1)}, {"b": "fast", "w": "slow"}
    ),
    "accumulated gradients": accumulating,
    # With extra arguments.
    "plateau": lambda: optax.chain(
        optax.adam(0.1), contrib.reduce_on_plateau(patience=1, cooldown=0)
    ),
    "backtracking line search": backtracking,
    "lbfgs": lambda: optax.lbfgs(
        memory_size=2, linesearch=optax.scale_by_backtracking_linesearch(5)
    ),
}


def train(
    inner: optax.GradientTransformation,
    restrict: Callable[[chex.ArrayTree], chex.ArrayTree] = lambda tree: tree,
) -> list[chex.ArrayTree]:
    """Params after each step; `restrict` is what one would do to trees by hand."""
    optimizer = optax.with_extra_args_support(inner)

    @jax.jit
    def step(params: chex.ArrayTree, state: chex.ArrayTree) -> tuple:
        value, gradient = jax.value_and_grad(loss_fn)(params)
        gradient = restrict(gradient)
        updates, state = optimizer.update(
            gradient,
            state,
            params,
            value=value,
            grad=gradient,
            value_fn=lambda params: loss_fn(restrict(params)),
        )
        return restrict(optax.apply_updates(params, updates)), state

    params, found = by_hand(initial()), []
    state = optimizer.init(params)
    for _ in range(5):
        params, state = step(params, state)
        found.append(params)
    return found


def by_hand(tree: chex.ArrayTree) -> chex.ArrayTree:
    keep = {"b": True, "w": np.asarray(MASK["w"])}
    return jax.tree.map(lambda k, x: jnp.where(k, x, jnp.zeros_like(x)), keep, tree)


def pruned_entries(params: chex.ArrayTree) -> np.ndarray:
    return np.float64(params["w"])[~np.asarray(MASK["w"])]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kept_entries_move_as_under_the_inner_optimizer_and_others_are_zero(
    name: str,
) -> None:
    inner = OPTIMIZERS[name]()
    found = train(optim.sparse(inner, MASK))
    for params, expected in zip(found, train(inner, by_hand)):
        chex.assert_trees_all_close(params, expected, rtol=1e-4, atol=1e-5)
        assert not pruned_entries(params).any()
        assert not np.signbit(pruned_entries(params)).any()
    assert np.abs(found[-1]["b"] - initial()["b"]).min() > 1e-3


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


@pytest.mark.parametrize(
    ("dtype", "update_dtype"),
    [
        (jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.float16, jnp.bfloat16),
    ],
)
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


def test_it_takes_every_kind_of_pytree(network: Network) -> None:
    mask = masks.global_topk(network.params, 0.6, masks.weights_and_biases)
    optimizer, gradient = optim.sparse(optax.sgd(0.5), mask), network.params
    updates, _ = jax.jit(optimizer.update)(
        gradient, optimizer.init(network.params), network.params
    )
    params = optax.apply_updates(network.params, updates)
    chex.assert_trees_all_equal_structs(params, network.params)
    expected = jax.tree.map(lambda w: w / 2, masks.apply(mask, network.params))
    chex.assert_trees_all_equal(params, expected)


# What travels with the state.


def test_the_mask_survives_donation_of_the_state() -> None:
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    mask = masks.ones(params)
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


def test_functions_reach_the_state_as_that_of_the_inner_optimizer() -> None:
    optimizer = optim.sparse(optax.adamw(trapezoid), MASK)
    state = optimizer.init(by_hand(initial()))
    found = optax.tree.map_params(optimizer, lambda _: "like params", state)
    assert found.mask == {"b": "like params", "w": "like params"}
    inner = optax.tree.map_params(
        optax.adamw(trapezoid), lambda _: "like params", state.inner_state
    )
    assert jax.tree.leaves(found.inner_state) == jax.tree.leaves(inner)
    assert optax.tree.get(state, "mu")["w"].shape == (2, 3)


def test_a_function_of_the_loss_sees_the_pruned_network() -> None:
    def update(updates: Any, state: Any, params: Any, value_fn: Any) -> Any:
        return {"w": value_fn({"w": jnp.ones(3)}) * updates["w"]}, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    optimizer = optim.sparse(inner, {"w": np.arange(3) < 2})
    params, gradient = {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}
    updates, _ = optimizer.update(
        gradient, optimizer.init(params), params, value_fn=lambda p: jnp.sum(p["w"])
    )
    np.testing.assert_array_equal(updates["w"], [2.0, 2.0, 0.0])


ascent = optax.chain(contrib.normalize(), optax.sgd(0.5))


def test_an_optimizer_that_takes_gradients_itself_sees_the_pruned_network() -> None:
    def sam() -> optax.GradientTransformation:
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

    expected = run(sam(), jax.jit(jax.grad(lambda p: loss_fn(by_hand(p)))))
    params = run(optim.sparse(sam(), MASK), jax.jit(jax.grad(loss_fn)))
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


def test_inside_of_lookahead_pruned_entries_stay_zero() -> None:
    optimizer = optax.lookahead(optim.sparse(optax.sgd(0.1), MASK), 2, 0.5)
    params = by_hand(initial())
    for tree in steps(optimizer, optax.LookaheadParams.init_synced(params), 3):
        assert not pruned_entries(tree).any()
        assert (tree["w"] != params["w"]).any()


def test_params_to_start_from_that_are_not_pruned_are_told_of() -> None:
    # Around sparse, scaling would leave a part of what the first update clears.
    optimizer = optax.chain(optim.sparse(optax.sgd(0.1), MASK), optax.scale(0.5))
    with pytest.warns(UserWarning, match=r"3 pruned entries .*masks\.apply\(mask"):
        optimizer.init(initial())
    with warnings.catch_warnings(action="error"):
        optimizer.init(by_hand(initial()))
