"""Steps against NumPy, in any groups, and the evaluation of a network."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from snipjax import masks, optim, training
from snipjax.training import Batch

CLASSES = 3


class Linear(nn.Module):
    """A classifier whose gradient fits on one line of NumPy."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


class Normalized(nn.Module):
    """A classifier with batch norm."""

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(CLASSES)(nn.relu(x))


def preprocess(images: chex.Array) -> chex.Array:
    return images.astype(jnp.float32) / 16.0


def examples(count: int) -> Batch:
    """Stored images, brighter from class to class."""
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    brightest = 5 * labels[:, None, None, None] + 6
    images = rng.integers(0, brightest, size=(count, 4, 4, 1)).astype(np.uint8)
    return Batch(jnp.asarray(images), jnp.asarray(labels))


STORED = examples(20)
BATCH = Batch(preprocess(STORED.images), STORED.labels)
FLAT = np.asarray(BATCH.images, np.float64).reshape(20, -1)
LABELS = np.asarray(BATCH.labels)


def initial(model: nn.Module, optimizer: Any) -> training.TrainState:
    variables = jax.jit(model.init)(jax.random.key(0), BATCH.images[:1])
    return training.init_state(variables, optimizer, jax.random.key(1))


def cross_entropy(logits: np.ndarray) -> float:
    return -special.log_softmax(logits, axis=1)[np.arange(20), LABELS].mean()


class TestTrainStep:
    def test_is_masked_gradient_descent(self) -> None:
        """Many steps of a masked linear classifier against float64 NumPy."""
        rng = np.random.default_rng(1)
        keep = {"kernel": rng.random((16, 3)) < 0.5, "bias": np.array(True)}
        mask = {"Dense_0": jax.tree.map(jnp.asarray, keep)}
        optimizer = optim.sparse(training.sgd(0.1), mask)
        state = initial(Linear(), optimizer)
        state = state._replace(params=masks.apply(mask, state.params))

        weights = jax.device_get(state.params)["Dense_0"]
        velocity = jax.tree.map(np.zeros_like, weights)
        step = jax.jit(
            functools.partial(training.train_step, model=Linear(), optimizer=optimizer)
        )
        for _ in range(30):
            state, metrics = step(state, BATCH)
            logits = FLAT @ weights["kernel"] + weights["bias"]
            assert metrics.loss == pytest.approx(cross_entropy(logits), rel=1e-4)
            assert metrics.error == pytest.approx(np.mean(logits.argmax(1) != LABELS))
            error = (special.softmax(logits, axis=1) - np.eye(CLASSES)[LABELS]) / 20
            gradient = {"kernel": FLAT.T @ error, "bias": error.sum(axis=0)}
            for name, kept in keep.items():
                decayed = kept * (gradient[name] + 5e-4 * weights[name])
                velocity[name] = 0.9 * velocity[name] + decayed
                weights[name] = weights[name] - 0.1 * velocity[name]
        params = jax.device_get(state.params)["Dense_0"]
        for name in keep:
            np.testing.assert_allclose(params[name], weights[name], rtol=1e-3)
        assert np.all(params["kernel"][~keep["kernel"]] == 0.0)
        assert int(state.step) == 30

    def test_moves_the_running_statistics_of_batch_norm(self) -> None:
        optimizer = training.sgd(0.1)
        state = initial(Normalized(), optimizer)
        layer = jax.device_get(state.params["Dense_0"])
        hidden = FLAT @ layer["kernel"] + layer["bias"]
        step = functools.partial(
            training.train_step, model=Normalized(), optimizer=optimizer
        )
        state, _ = jax.jit(step)(state, BATCH)
        statistics = state.batch_stats["BatchNorm_0"]
        for name, expected in (
            ("mean", 0.1 * hidden.mean(axis=0)),
            ("var", 0.9 + 0.1 * hidden.var(axis=0)),
        ):
            np.testing.assert_allclose(statistics[name], expected, rtol=1e-4, atol=1e-6)


class TestLosses:
    @pytest.mark.parametrize("mode", ["inference", "batch"])
    def test_batch_norm_is_the_identity_at_first_or_over_the_batch(
        self, mode: str
    ) -> None:
        state = initial(Normalized(), optax.sgd(0.1))
        params = jax.device_get(state.params)
        hidden = FLAT @ params["Dense_0"]["kernel"]
        if mode == "batch":
            hidden -= hidden.mean(axis=0)
            hidden /= np.sqrt(hidden.var(axis=0) + 1e-5)
        logits = np.maximum(hidden, 0.0) @ params["Dense_1"]["kernel"]
        make_loss = getattr(training, f"{mode}_loss")
        loss = jax.jit(make_loss(Normalized(), state.batch_stats))(params, BATCH)
        assert loss == pytest.approx(cross_entropy(logits), rel=1e-4)

    def test_cross_entropy_is_in_float32_whatever_the_logits(self) -> None:
        logits = jnp.array([[100.0, 0.0, -100.0]], jnp.bfloat16)
        loss = training.cross_entropy(logits, jnp.array([1]))
        assert loss.dtype == jnp.float32
        assert loss == pytest.approx(100.0)

    def test_another_loss_is_trained_on_and_evaluated(self) -> None:
        def squared(logits: chex.Array, labels: chex.Array) -> chex.Array:
            return jnp.mean((logits - jax.nn.one_hot(labels, CLASSES)) ** 2)

        model, optimizer = Linear(), optax.sgd(0.1)
        state = initial(model, optimizer)
        expected = squared(
            model.apply({"params": state.params}, BATCH.images), BATCH.labels
        )
        options = {"model": model, "loss": squared}
        step = functools.partial(training.train_step, optimizer=optimizer, **options)
        _, trained = jax.jit(step)(state, BATCH)
        evaluated = training.evaluate(
            state.params, {}, STORED, preprocess=preprocess, **options
        )
        for metrics in (trained, evaluated):
            assert metrics.loss == pytest.approx(float(expected), rel=1e-5)


def images_seen(count: int, batch_size: int, steps: int, seed: int = 0) -> np.ndarray:
    """Indices of the examples that each step trains on: ``[steps, batch_size]``."""

    def note(seen: chex.Array, batch: chex.Array, key: Any) -> tuple[chex.Array, Any]:
        return jnp.concatenate([seen[1:], batch[None]]), 0.0

    seen, _ = training.over_batches(
        note,
        jnp.zeros((steps, batch_size), jnp.int32),
        jnp.arange(count),
        start=0,
        key=jax.random.key(seed),
        num_steps=steps,
        batch_size=batch_size,
    )
    return np.asarray(seen)


class TestOrderOfExamples:
    def test_every_example_is_seen_once_in_an_epoch_in_an_order_by_the_key(
        self,
    ) -> None:
        epochs = [
            epoch
            for seed in (0, 1)
            for epoch in images_seen(12, 4, 9, seed).reshape(3, 12)
        ]
        for epoch in epochs:
            assert sorted(epoch) == list(range(12))
        assert len({tuple(epoch) for epoch in epochs}) == 6

    def test_examples_that_do_not_fill_a_batch_are_left_out(self) -> None:
        epochs = images_seen(count=11, batch_size=4, steps=40).reshape(20, 8)
        for epoch in epochs:
            assert len(set(epoch)) == 8
        assert set(epochs.ravel()) == set(range(11)), "others are left out each time"

    def test_a_batch_is_the_whole_set_at_most(self) -> None:
        for step in images_seen(count=5, batch_size=5, steps=3):
            assert sorted(step) == list(range(5))
        with pytest.raises(ValueError, match=r"batch_size is 6, .* only 5 training"):
            images_seen(count=5, batch_size=6, steps=1)


Train = Callable[..., tuple[training.TrainState, list[training.Metrics]]]


@pytest.fixture(scope="module")
def train() -> Train:
    """Runs the steps, in calls of the numbers given: a masked network with batch
    norm, augmented, over batches that do not divide the set."""
    data = examples(50)
    augment = functools.partial(training.flip_and_translate, flip=True, translate=1)
    shapes = jax.eval_shape(lambda: initial(Normalized(), optax.sgd(0.1)).params)
    mask = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape) % 3 > 0, shapes)
    schedule = optax.exponential_decay(0.1, 7, 0.9, staircase=True)
    optimizer = optim.sparse(training.sgd(schedule), mask)

    @functools.partial(jax.jit, static_argnames="num_steps", donate_argnums=0)
    def steps(state: training.TrainState, *, num_steps: int) -> Any:
        return training.over_batches(
            lambda state, batch, key: training.train_step(
                state, batch, model=Normalized(), optimizer=optimizer
            ),
            state,
            data,
            start=state.step,
            key=state.key,
            num_steps=num_steps,
            batch_size=8,
            prepare=training.preparation(preprocess, augment),
        )

    def run(*calls: int) -> tuple[training.TrainState, list[training.Metrics]]:
        state, metrics = initial(Normalized(), optimizer), []
        for num_steps in calls:
            state, means = steps(state, num_steps=num_steps)
            metrics.append(means)
        return state, metrics

    return run


class TestTrainSteps:
    @pytest.mark.slow
    def test_grouping_makes_no_difference(self, train: Train) -> None:
        (state, (means,)), (grouped, _) = train(12), train(5, 5, 2)
        assert int(grouped.step) == 12
        chex.assert_trees_all_equal(grouped[1:4], state[1:4])
        stepped, metrics = train(*(1,) * 12)
        chex.assert_trees_all_close(stepped[1:4], state[1:4], rtol=1e-4, atol=1e-5)
        for name, values in zip(means._fields, zip(*metrics)):
            assert np.mean(values) == pytest.approx(
                float(getattr(means, name)), rel=1e-4
            )

    def test_it_learns_and_pruned_entries_stay_zero(self, train: Train) -> None:
        state, (first, *_, last) = train(*(12,) * 10)
        assert last.loss < 0.8 * first.loss
        masked = masks.apply(state.opt_state.mask, state.params)
        chex.assert_trees_all_equal(masked, state.params)

    def test_the_key_of_a_step_depends_on_its_number(self) -> None:
        @functools.partial(jax.jit, static_argnames="num_steps")
        def after(total: chex.Array, start: int, num_steps: int) -> chex.Array:
            total, _ = training.over_batches(
                lambda total, _, key: (total + jax.random.uniform(key), 0.0),
                total,
                jnp.arange(4),
                start=start,
                key=jax.random.key(0),
                num_steps=num_steps,
                batch_size=2,
            )
            return total

        zero = jnp.float32(0)
        first_two = after(zero, 0, num_steps=2)
        assert after(after(zero, 0, num_steps=1), 1, num_steps=1) == first_two
        assert after(zero, 1, num_steps=2) != first_two


class TestEvaluate:
    @pytest.mark.parametrize("batch_size", [7, 500])
    def test_is_the_mean_over_all_examples(self, batch_size: int) -> None:
        params = initial(Linear(), optax.sgd(0.1)).params
        layer = jax.device_get(params["Dense_0"])
        logits = FLAT @ layer["kernel"] + layer["bias"]
        metrics = training.evaluate(
            params,
            {},
            STORED,
            model=Linear(),
            preprocess=preprocess,
            batch_size=batch_size,
        )
        assert metrics.loss == pytest.approx(cross_entropy(logits), rel=1e-4)
        wrong = np.mean(logits.argmax(axis=1) != LABELS)
        assert metrics.error == pytest.approx(wrong, abs=1e-6)
