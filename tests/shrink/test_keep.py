"""Scores and selection of units."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import saliency, shrink
from tests.shrink.networks import Network, noise


def apply_fn(params: Any, x: chex.Array, gates: Any = (1.0, 1.0)) -> chex.Array:
    """Two hidden layers with a gate on each unit, the first of which is used twice."""
    y = gates[0] * jnp.tanh(x @ params["u"] + params["b"])
    z = gates[1] * jax.nn.softplus(y @ params["v"])
    return z @ params["w"] + y @ params["skip"]


SHAPES = {"b": (6,), "skip": (6, 2), "u": (3, 6), "v": (6, 8), "w": (8, 2)}
PARAMS = {name: noise(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
NETWORK = Network(apply_fn, PARAMS, noise((5, 3), seed=9))
UNITS = shrink.units(*NETWORK)


def loss_fn(params: Any, x: chex.Array, gates: Any = (1.0, 1.0)) -> chex.Array:
    return jnp.mean(jnp.sin(apply_fn(params, x, gates)))


def test_the_score_is_the_derivative_in_a_gate_by_finite_differences() -> None:
    sensitivity = jax.jit(functools.partial(saliency.sensitivity, loss_fn))
    scores = shrink.unit_scores(sensitivity(PARAMS, NETWORK.inputs), UNITS)
    # A row moves one of the gates, of six units and of eight.
    steps = 0.01 * np.eye(14, dtype=np.float32)

    @jax.jit
    @jax.vmap
    def loss(step: chex.Array) -> chex.Array:
        return loss_fn(PARAMS, NETWORK.inputs, (1 + step[:6], 1 + step[6:]))

    derivatives = np.abs(loss(steps) - loss(-steps)) / 0.02
    found = np.concatenate([scores["u"], scores["v"]])
    np.testing.assert_allclose(found, derivatives, atol=2e-3)


def test_scores_of_magnitude_add_up_over_connections_that_a_unit_feeds() -> None:
    scores = shrink.unit_scores(jax.tree.map(jnp.abs, PARAMS), UNITS)
    expected = np.abs(PARAMS["v"]).sum(1) + np.abs(PARAMS["skip"]).sum(1)
    np.testing.assert_allclose(scores["u"], expected, rtol=1e-6)
    np.testing.assert_allclose(scores["v"], np.abs(PARAMS["w"]).sum(1), rtol=1e-6)


def kept(mask: chex.ArrayTree) -> tuple[int, int]:
    return int(mask["b"].sum()), int(mask["w"][:, 0].sum())


SCORES = {
    "u": jnp.array([9.0, 1, 8, 2, 7, 3]),
    "v": jnp.array([4.0, 4, 5, 6, 0, 0, 0, 0]),
}


def test_the_largest_scores_of_all_layers_are_kept() -> None:
    mask = shrink.keep(SCORES, UNITS, 0.5)
    assert mask["b"].tolist() == [True, False, True, False, True, False]
    # Of two equal scores the first.
    assert mask["v"][0].tolist() == [True, True, True, True] + [False] * 4
    assert not mask["v"][1].any() and not mask["u"][:, 1].any()
    assert not mask["skip"][1].any()


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_budgets_are_met_as_nearly_as_units_come(density: float) -> None:
    def parameters(a: int, b: int) -> int:
        return 3 * a + a + 2 * a + a * b + 2 * b

    def operations(a: int, b: int) -> int:
        return 2 * 5 * (3 * a + a * b + 2 * b + 2 * a)

    for budget, cost in (("parameters", parameters), ("operations", operations)):
        mask = shrink.keep(SCORES, UNITS, density, budget=budget)  # type: ignore
        a, b = kept(mask)
        allowed = density * cost(6, 8)
        assert cost(a, b) <= allowed
        assert density == 1.0 or min(cost(a + 1, b), cost(a, b + 1)) > allowed


def test_a_least_number_and_multiples() -> None:
    scores = {"u": jnp.arange(6.0), "v": 10 + jnp.arange(8.0)}
    assert kept(shrink.keep(scores, UNITS, 9 / 14)) == (1, 8)
    assert kept(shrink.keep(scores, UNITS, 9 / 14, least=3)) == (3, 6)
    mask = shrink.keep(scores, UNITS, 9 / 14, multiple=4)
    # Four of the first layer are needed, and four of the second fit beside them.
    assert kept(mask) == (4, 4)
    assert mask["b"].tolist() == [False] * 2 + [True] * 4


def test_the_same_share_of_every_layer() -> None:
    scores = shrink.layerwise(SCORES)
    assert kept(shrink.keep(scores, UNITS, 0.5)) == (3, 4)


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(ValueError, match="least"):
        shrink.keep(SCORES, UNITS, 0.2, least=3)
    with pytest.raises(ValueError, match="density"):
        shrink.keep(SCORES, UNITS, 0.0)
    with pytest.raises(ValueError, match="no layer 'v'"):
        shrink.keep({"u": SCORES["u"]}, UNITS, 0.5)


def test_a_budget_that_is_met_exactly() -> None:
    params = {"u": noise((1, 50)), "w": noise((50, 1))}
    units = shrink.units(
        lambda p, x: jnp.tanh(x @ p["u"]) @ p["w"], params, noise((2, 1))
    )
    mask = shrink.keep({"u": jnp.arange(50.0)}, units, 0.58, budget="parameters")
    assert mask["u"].sum() == 29  # though 0.58 * 100 is less than 58 in floats
    with pytest.raises(ValueError, match="50 units"):
        shrink.keep({"u": jnp.arange(60.0)}, units, 0.5)
