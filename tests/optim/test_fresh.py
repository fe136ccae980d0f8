"""Connections that go or return have no past in any inner optimizer of optax."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from snipjax import masks, optim

MASK = {
    "b": jnp.array(True),
    "w": jnp.array([[True, False, True, False], [False, True, True, False]]),
}
RATE = 0.01

# Moments, an accumulator at another start, slow weights, and states in a state.
FEW: dict[str, Any] = {
    "adam": optax.adam(RATE),
    "adagrad": optax.adagrad(RATE),
    "schedule free": contrib.schedule_free_adamw(RATE),
    "accumulated gradients": optax.MultiSteps(
        optax.adam(RATE), 3
    ).gradient_transformation(),
    "partition": optax.partition(
        {"slow": optax.sgd(RATE, 0.9), "fast": optax.adam(RATE)},
        {"b": "fast", "w": "slow"},
    ),
}
# Every other one of optax that keeps something for each parameter and takes the rate
# alone, but GaLore, whose moments are of projections.
OTHERS = """adabelief adadelta adafactor adamw adamax adamaxw adan amsgrad fromage lamb
lars lion nadam novograd optimistic_adam_v2 optimistic_gradient_descent radam rprop
sign_sgd sm3 yogi acprop ademamix adopt cocob dadapt_adamw dog dowg madgrad momo
momo_adam muon prodigy simplified_ademamix rmsprop"""


def inner_optimizer(name: str) -> Any:
    if name in FEW:
        return FEW[name]
    return getattr(optax, name, getattr(contrib, name, None))(RATE)


def gradient_at(step: int) -> dict[str, chex.Array]:
    rng = np.random.default_rng(step)
    return {
        "b": jnp.asarray(rng.normal(size=2), jnp.float32),
        "w": jnp.asarray(rng.normal(size=(2, 4)), jnp.float32),
    }


@pytest.mark.parametrize(
    "name",
    [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS.split())],
)
def test_what_grows_or_is_dropped_is_as_at_the_start(name: str) -> None:
    inner = inner_optimizer(name)
    fraction = optax.constant_schedule(0.9)
    optimizer = optim.rigl(inner, MASK, every=4, stop=9, fraction=fraction)
    params = masks.apply(MASK, gradient_at(99))
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(
            gradient, state, params, value=jnp.float32(1.0)
        )
        return optax.apply_updates(params, updates), state

    for number in range(4):
        params, state = step(params, state, gradient_at(number))
    after, moved = step(params, state, gradient_at(4))
    grown = np.asarray(moved.mask["w"] & ~state.mask["w"])
    changed = np.asarray(moved.mask["w"] != state.mask["w"])
    assert int(moved.info.grown) == grown.sum() > 0
    assert not np.asarray(after["w"])[grown].any()
    old, new = (jax.tree.leaves(x.inner_state) for x in (state, moved))
    start = jax.tree.leaves(inner.init(masks.apply(moved.mask, params)))
    likes = 0
    for before, now, first in zip(old, new, start, strict=True):
        if np.shape(before)[-2:] == (2, 4):
            likes += 1
            expected = np.where(changed, first, before)
            np.testing.assert_array_equal(now, expected)
        else:
            chex.assert_trees_all_equal(now, before)
    of_no_connection = ("fromage", "sign_sgd", "sm3", "dog", "dowg")
    assert likes or name in of_no_connection
    # And it goes on.
    for number in range(5, 12):
        after, moved = step(after, moved, gradient_at(number))
    assert np.isfinite(np.asarray(after["w"])).all()
    np.testing.assert_array_equal(after["w"] != 0, moved.mask["w"])


@pytest.mark.parametrize("inner", [optax.lbfgs(), optax.flatten(optax.adam(RATE))])
def test_a_state_that_does_not_tell_its_connections(inner: Any) -> None:
    params = masks.apply(MASK, gradient_at(99))
    optimizer = optim.rigl(inner, MASK, every=1, stop=9)
    state = optimizer.init(params)

    def loss_fn(params: Any) -> chex.Array:
        return jnp.sum(params["w"] ** 2)

    value, gradient = jax.eval_shape(jax.value_and_grad(loss_fn), params)
    with pytest.raises(ValueError, match="inner does not tell which entries"):
        jax.eval_shape(
            functools.partial(optimizer.update, value_fn=loss_fn),
            gradient,
            state,
            params,
            value=value,
            grad=gradient,
        )


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(optim.rigl, every=2, stop=9, fraction=0.9),
        functools.partial(optim.gradual_magnitude, sparsity=0.8, every=2, stop=5),
    ],
)
def test_weights_for_evaluation_are_pruned(make: Any) -> None:
    optimizer = make(contrib.schedule_free_sgd(0.1), MASK)
    params = masks.apply(MASK, gradient_at(99))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    dropped = 0
    for number in range(6):
        updates, state = update(gradient_at(number), state, params)
        params = optax.apply_updates(params, updates)
        dropped += int(state.info.dropped)
        found = contrib.schedule_free_eval_params(state.inner_state, params)["w"]
        assert found.any()
        assert not np.asarray(found)[~np.asarray(state.mask["w"])].any()
    assert dropped
