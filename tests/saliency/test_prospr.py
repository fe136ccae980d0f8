"""ProsPr against finite differences of the loss after some steps in NumPy."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snipjax import masks, pruning, saliency
from tests.conftest import batch_of, flatten, nested_dict, squared_error

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [(3, 4), (4, 2)]
SETTINGS = {"steps": 3, "learning_rate": 0.2, "momentum": 0.9}


def loss_fn(params: Any, batch: Any) -> chex.Array:
    hidden = jnp.tanh(batch["x"] @ params[0])
    return squared_error(hidden @ params[1], batch["y"])


def parameters() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def gradient_in_numpy(
    params: list[np.ndarray], x: np.ndarray, y: np.ndarray
) -> list[np.ndarray]:
    hidden = np.tanh(x @ params[0])
    error = 2 * (hidden @ params[1] - y) / y.size
    back = (error @ params[1].T) * (1 - hidden**2)
    return [x.T @ back, hidden.T @ error]


def trained(params: list[np.ndarray], batch: Any, number: int) -> list[np.ndarray]:
    """The parameters after all steps, one part of the batch after the other."""
    xs, ys = (
        np.float64(batch[name]).reshape(number + 1, -1, batch[name].shape[1])
        for name in ("x", "y")
    )
    velocity = [np.zeros_like(w) for w in params]
    for x, y in zip(xs[:-1], ys[:-1]):
        gradient = gradient_in_numpy(params, x, y)
        velocity = [SETTINGS["momentum"] * v + g for v, g in zip(velocity, gradient)]
        params = [w - SETTINGS["learning_rate"] * v for w, v in zip(params, velocity)]
    return params


def last_part(batch: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    size = len(batch["x"]) // (number + 1)
    return np.float64(batch["x"][-size:]), np.float64(batch["y"][-size:])


def loss_after(mask: np.ndarray, params: list[np.ndarray], batch: Any) -> float:
    number = SETTINGS["steps"]
    kernel, out = np.split(mask, [params[0].size])
    start = [
        kernel.reshape(SHAPES[0]) * np.float64(params[0]),
        out.reshape(SHAPES[1]) * np.float64(params[1]),
    ]
    end = trained(start, batch, number)
    x, y = last_part(batch, number)
    return np.mean((np.tanh(x @ end[0]) @ end[1] - y) ** 2)


def score(criterion: Any, params: Any, batch: Any, **settings: Any) -> Any:
    return jax.jit(functools.partial(criterion, loss_fn, **settings))(params, batch)


def normalized(derivative: np.ndarray) -> np.ndarray:
    return np.abs(derivative) / np.abs(derivative).sum()


def test_a_score_is_the_finite_difference_of_the_loss_after_all_steps() -> None:
    params, batch = parameters(), batch_of(20)
    ones = np.ones(sum(w.size for w in params))
    derivative = np.zeros_like(ones)
    for j in range(ones.size):
        more, less = ones.copy(), ones.copy()
        more[j], less[j] = 1 + 1e-5, 1 - 1e-5
        derivative[j] = (
            loss_after(more, params, batch) - loss_after(less, params, batch)
        ) / 2e-5
    scores = score(saliency.prospr, params, batch, **SETTINGS)
    np.testing.assert_allclose(flatten(scores), normalized(derivative), rtol=2e-3)


def test_of_first_order_the_steps_are_constants() -> None:
    params, batch = parameters(), batch_of(20)
    end = trained([np.float64(w) for w in params], batch, SETTINGS["steps"])
    gradient = gradient_in_numpy(end, *last_part(batch, SETTINGS["steps"]))
    scores = score(saliency.prospr_first_order, params, batch, **SETTINGS)
    expected = normalized(flatten(params) * flatten(gradient))
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "criterion",
    [saliency.prospr, saliency.prospr_first_order, saliency.grasp, saliency.snip],
)
def test_connections_that_were_pruned_before_do_not_train(
    criterion: saliency.Criterion,
) -> None:
    params, batch = parameters(), batch_of(20)
    mask = [np.arange(w.size).reshape(w.shape) % 3 > 0 for w in params]

    def loss_of_pruned(params: Any, batch: Any) -> chex.Array:
        return loss_fn(jax.tree.map(jnp.where, mask, params, [0.0, 0.0]), batch)

    scores, _ = pruning.score_and_mask(
        loss_fn, params, batch, 0.5, criterion=criterion, mask=mask
    )
    expected = criterion(loss_of_pruned, masks.apply(mask, params), batch)
    np.testing.assert_allclose(flatten(scores), flatten(expected), rtol=1e-5, atol=1e-7)


def test_connections_of_an_earlier_round_do_not_train() -> None:
    params, batch, found = parameters(), batch_of(20), []

    def select(scores: Any, sparsity: float, prunable: Any) -> masks.Mask:
        found.append(masks.global_topk(scores, sparsity, prunable))
        return found[-1]

    scores, _ = pruning.score_and_mask(
        loss_fn, params, batch, 0.6, criterion=saliency.prospr, select=select, rounds=2
    )
    expected, _ = pruning.score_and_mask(
        loss_fn, params, batch, 0.6, criterion=saliency.prospr, mask=found[0]
    )
    np.testing.assert_allclose(flatten(scores), flatten(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("criterion", [saliency.prospr, saliency.prospr_first_order])
def test_without_learning_it_is_the_sensitivity_of_the_last_part(
    criterion: saliency.Criterion,
) -> None:
    params, batch = parameters(), batch_of(12)
    x, y = last_part(batch, 3)
    expected = normalized(flatten(params) * flatten(gradient_in_numpy(params, x, y)))
    scores = score(criterion, params, batch, learning_rate=0.0)
    np.testing.assert_allclose(flatten(scores), expected, rtol=1e-4, atol=1e-7)


def test_several_batches_are_the_losses_of_the_steps() -> None:
    params, batch = parameters(), batch_of(24)
    batches = jax.tree.map(lambda x: x.reshape(8, 3, -1), batch)
    options = {"criterion": functools.partial(saliency.prospr, **SETTINGS)}
    scores, _ = pruning.score_and_mask(
        loss_fn, params, batches, 0.5, num_batches=8, **options
    )
    expected, _ = pruning.score_and_mask(loss_fn, params, batch, 0.5, **options)
    chex.assert_trees_all_close(scores, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"steps": 0}, "steps is 0; it must be an integer of at least 1"),
        ({"steps": 3}, r"10 entries .* steps \+ 1 = 4 equal parts; pass a multiple"),
        ({"steps": 20}, "10 entries"),
    ],
)
def test_a_batch_that_cannot_be_divided(settings: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        saliency.prospr(loss_fn, parameters(), batch_of(10), **settings)


def test_one_program_whatever_the_number_of_steps() -> None:
    loss, params, batch = nested_dict()
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4), batch)

    def equations(steps: int) -> int:
        score = functools.partial(saliency.prospr, loss, steps=steps)
        return len(jax.make_jaxpr(score)(params, batch).eqns)

    assert equations(19) <= equations(4)
