"""Optimal brain damage: its curvature against jax.hessian, and a miniature run."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from snipjax import experiment, masks, training
from snipjax.methods import History, Outcome
from snipjax.methods.obd import (
    gauss_newton_diagonal,
    least_salient_removed,
    obd,
)
from tests.methods import softmax_regression

pytestmark = pytest.mark.filterwarnings("error", "ignore:no connection of")

KEY = jax.random.key(0)


class Small(nn.Module):
    """ReLU, max-pooling, and a weight that is used at several positions."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.max_pool(nn.Conv(2, (2, 2), padding="VALID")(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(3)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


def small() -> tuple[Small, chex.ArrayTree, training.Batch]:
    images = jax.random.normal(jax.random.key(1), (4, 5, 5, 1))
    params = Small().init(jax.random.key(2), images)["params"]
    return Small(), params, training.Batch(images, jnp.array([0, 1, 2, 1]))


class Tiny(nn.Module):
    """Compiles in no time."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def tiny(digits: experiment.Parts) -> tuple[experiment.Parts, Outcome]:
    """With a network that passes for trained."""
    digits = digits._replace(model=Tiny())
    images = digits.preprocess(digits.train.images[:1])
    params = Tiny().init(KEY, images)["params"]
    history = History(({"phase": "dense"},), steps=7, seconds=1.0)
    return digits, Outcome(params, masks.ones(params, digits.prunable), history)


def test_the_diagonal_is_the_hessians_of_a_piecewise_linear_network() -> None:
    model, params, batch = small()
    flat, unravel = ravel_pytree(params)
    loss_fn = training.inference_loss(model, {})
    matrix = jax.jit(jax.hessian(lambda w: loss_fn(unravel(w), batch)))(flat)
    expected = np.diag(matrix)
    samples = 20_000

    @jax.jit
    def moments(keys: chex.PRNGKey) -> tuple[chex.Array, chex.Array]:
        def one(key: chex.PRNGKey) -> chex.Array:
            diagonal = gauss_newton_diagonal(model, params, batch.images, key)
            return ravel_pytree(diagonal)[0]

        estimates = jax.lax.map(one, keys, batch_size=500)
        return estimates.mean(axis=0), estimates.std(axis=0)

    mean, std = moments(jax.random.split(KEY, samples))
    assert np.all(np.asarray(mean) >= 0)
    assert np.all(np.abs(mean - expected) <= 5 * std / np.sqrt(samples) + 1e-6)
    # The variance of the signs is at most twice the square of the mean.
    assert np.all(np.asarray(std) <= 1.1 * np.sqrt(2) * expected + 1e-6)


@pytest.mark.slow
def test_what_is_removed_is_least_salient_of_what_was_left(
    digits: experiment.Parts,
) -> None:
    digits, (params, _, _) = tiny(digits)
    mask = masks.ones(params, digits.prunable)
    mask["Dense_0"]["kernel"] = mask["Dense_0"]["kernel"].at[:, ::2].set(False)
    images = digits.preprocess(digits.train.images)
    kept = masks.apply(mask, params)

    @jax.jit
    def diagonals(keys: chex.PRNGKey) -> chex.ArrayTree:
        return jax.lax.map(
            lambda key: gauss_newton_diagonal(digits.model, kept, images, key), keys
        )

    total = jax.tree.map(
        lambda x: x.sum(axis=0), diagonals(jax.random.split(jax.random.key(5), 300))
    )
    expected = jax.tree.map(lambda h, w: h * w**2, total, kept)
    removed = least_salient_removed(
        digits, params, mask, KEY, sparsity=0.8, num_batches=300
    )
    assert masks.sparsity(removed) == pytest.approx(0.8, abs=1e-3)
    before, after, score = (ravel_pytree(tree)[0] for tree in (mask, removed, expected))
    assert not np.any(after & ~before)
    # Two estimates with different signs, of the same saliencies.
    order = np.argsort(np.where(before, -score, 1.0))[: int(after.sum())]
    assert np.mean(after[order]) > 0.9


def test_what_is_kept_is_a_matter_of_weights_and_curvature() -> None:
    # Of one example the estimate is h = x^2, up to a factor, and h w^2 is 0.25, 1 in
    # the first row and 2.25, 0.81 in the second. The first would keep its row by w^2
    # alone, and the second by h.
    parts = softmax_regression.parts(steps=1)
    parts.config.train.batch_size = 1
    image = jnp.array([0.5, 3.0]).reshape(1, 1, 2, 1)
    params = softmax_regression.params_of(np.array([[1.0, -2.0], [0.5, 0.3]]))
    kept = least_salient_removed(
        parts._replace(train=training.Batch(image, jnp.array([0]))),
        params,
        masks.ones(params, masks.kernels),
        KEY,
        sparsity=0.5,
        num_batches=1,
    )
    np.testing.assert_array_equal(
        kept["Dense_0"]["kernel"], [[False, True], [True, False]]
    )


def test_a_miniature_run(digits: experiment.Parts) -> None:
    digits, pretrained = tiny(digits)
    outcome = obd(digits, 0.9, pretrained=pretrained, rounds=2, num_batches=5)
    total = sum(x.size for x in jax.tree.leaves(outcome.params))
    kept = sum(int(x.sum()) for x in jax.tree.leaves(outcome.mask))
    assert kept == masks.kept_count(total, 0.9)
    chex.assert_trees_all_equal(
        outcome.params, masks.apply(outcome.mask, outcome.params)
    )
    rows = outcome.history.rows
    assert rows[: len(pretrained.history.rows)] == pretrained.history.rows
    assert [row["phase"] for row in rows[-2:]] == ["retrain 1", "retrain 2"]
    assert rows[-2]["sparsity"] == pytest.approx(1 - 0.1**0.5, abs=1e-3)
    assert outcome.history.prunes == 2
    assert outcome.history.steps == pretrained.history.steps + 2 * 15
    assert outcome.history.seconds > pretrained.history.seconds


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"target": 1.0}, "target is 1.0"),
        ({"rounds": 0}, "rounds is 0; it must be an integer of at least 1"),
        ({"rounds": 2.0}, "rounds is 2.0"),
        ({"num_batches": 0}, "num_batches is 0"),
        ({"retraining": 0.0}, "retraining is 0.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"decays": -1}, "decays is -1"),
    ],
)
def test_hyperparameters_out_of_range(
    digits: experiment.Parts, wrong: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        obd(digits, **{"target": 0.9, **wrong})
