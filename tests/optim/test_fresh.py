"""Connections that go or return have no past in any inner optimizer of optax."""

import functools
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

MASK = {
    "b": jnp.array(True),
    "w": jnp.array([[True, False, True, False], [False, True, True, False]]),
}
RATE = 0.01

# Every optimizer of optax that keeps something for each parameter, but L-BFGS, whose
# curvature is of all parameters together.
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "momentum": lambda: optax.sgd(RATE, 0.9),
    "nesterov": lambda: optax.sgd(RATE, 0.9, nesterov=True),
    "adabelief": lambda: optax.adabelief(RATE),
    "adadelta": lambda: optax.adadelta(RATE),
    "adafactor": lambda: optax.adafactor(RATE, momentum=0.9),
    "adagrad": lambda: optax.adagrad(RATE),
    "adam": lambda: optax.adam(RATE),
    "adamw": lambda: optax.adamw(RATE),
    "adamax": lambda: optax.adamax(RATE),
    "adamaxw": lambda: optax.adamaxw(RATE),
    "adan": lambda: optax.adan(RATE),
    "amsgrad": lambda: optax.amsgrad(RATE),
    "fromage": lambda: optax.fromage(RATE),
    "lamb": lambda: optax.lamb(RATE),
    "lars": lambda: optax.lars(RATE),
    "lion": lambda: optax.lion(RATE),
    "nadam": lambda: optax.nadam(RATE),
    "novograd": lambda: optax.novograd(RATE),
    "optimistic adam": lambda: optax.optimistic_adam_v2(RATE),
    "optimistic": lambda: optax.optimistic_gradient_descent(RATE),
    "radam": lambda: optax.radam(RATE),
    "rmsprop": lambda: optax.rmsprop(RATE, centered=True, momentum=0.9),
    "rprop": lambda: optax.rprop(RATE),
    "sign": lambda: optax.sign_sgd(RATE),
    "sm3": lambda: optax.sm3(RATE),
    "yogi": lambda: optax.yogi(RATE),
    "acprop": lambda: contrib.acprop(RATE),
    "ademamix": lambda: contrib.ademamix(RATE),
    "adopt": lambda: contrib.adopt(RATE),
    "cocob": lambda: contrib.cocob(),
    "dadapt": lambda: contrib.dadapt_adamw(),
    "dowg": lambda: contrib.dowg(),
    "dog": lambda: contrib.dog(),
    "madgrad": lambda: contrib.madgrad(RATE),
    "momo": lambda: contrib.momo(RATE),
    "momo adam": lambda: contrib.momo_adam(RATE),
    "muon": lambda: contrib.muon(RATE),
    "prodigy": lambda: contrib.prodigy(),
    "simplified ademamix": lambda: contrib.simplified_ademamix(RATE),
    # Transformations around others.
    "accumulated gradients": lambda: optax.MultiSteps(
        optax.adam(RATE), 3
    ).gradient_transformation(),
    "finite": lambda: optax.apply_if_finite(optax.adam(RATE), 3),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(RATE),
    "mechanize": lambda: contrib.mechanize(optax.adam(RATE)),
    "schedule free": lambda: contrib.schedule_free_adamw(RATE),
    "clipped and scheduled": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.ema(0.9),
        optax.scale_by_schedule(optax.constant_schedule(-RATE)),
    ),
    "masked": lambda: optax.masked(optax.adam(RATE), {"b": False, "w": True}),
    "partition": lambda: optax.partition(
        {"slow": optax.sgd(RATE, 0.9), "fast": optax.adam(RATE)},
        {"b": "fast", "w": "slow"},
    ),
    "plateau": lambda: optax.chain(optax.adam(RATE), contrib.reduce_on_plateau()),
}


def gradient_at(step: int) -> dict[str, chex.Array]:
    rng = np.random.default_rng(step)
    return {
        "b": jnp.asarray(rng.normal(size=2), jnp.float32),
        "w": jnp.asarray(rng.normal(size=(2, 4)), jnp.float32),
    }


# Moments, an accumulator at another start, slow weights, and states in a state.
FEW = ("adam", "adagrad", "rmsprop", "schedule free", "accumulated gradients", "masked")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_what_grows_or_is_dropped_is_as_at_the_start(name: str) -> None:
    inner = OPTIMIZERS[name]()
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
    of_no_connection = ("fromage", "sign", "sm3", "dog", "dowg")
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
    loss_fn = lambda params: jnp.sum(params["w"] ** 2)  # noqa: E731
    value, gradient = jax.value_and_grad(loss_fn)(params)
    extra = {"value": value, "grad": gradient, "value_fn": loss_fn}
    with pytest.raises(ValueError, match="inner does not tell which entries"):
        optimizer.update(gradient, state, params, **extra)


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
