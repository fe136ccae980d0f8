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
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    brightest = 5 * labels[:, None, None, None] + 6
    images = rng.integers(0, brightest, size=(count, 4, 4, 1)).astype(np.uint8)
    return Batch(jnp.asarray(images), jnp.asarray(labels))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def initial(
    model: nn.Module, optimizer: Any, images: chex.Array, seed: int = 0
) -> training.TrainState:
    variables = model.init(jax.random.key(seed), preprocess(images[:1]))
    return training.init_state(variables, optimizer, jax.random.key(seed + 1))


class TestTrainStep:
    def test_is_masked_gradient_descent(self) -> None:
        """Many steps of a masked linear classifier against float64 NumPy."""
        data, rng = examples(20), np.random.default_rng(1)
        images = np.asarray(preprocess(data.images), np.float64).reshape(20, -1)
        labels = np.eye(CLASSES)[np.asarray(data.labels)]
        keep = {
            "Dense_0": {"kernel": rng.random((16, 3)) < 0.5, "bias": np.array(True)}
        }
        mask = jax.tree.map(jnp.asarray, keep)
        optimizer = optim.sparse(training.paper_optimizer(0.1), mask)
        state = initial(Linear(), optimizer, data.images)
        state = state._replace(params=masks.apply(mask, state.params))

        weights = jax.device_get(state.params)["Dense_0"]
        velocity = jax.tree.map(np.zeros_like, weights)
        step = jax.jit(
            functools.partial(training.train_step, model=Linear(), optimizer=optimizer)
        )
        for _ in range(30):
            state, metrics = step(state, Batch(preprocess(data.images), data.labels))

            logits = images @ weights["kernel"] + weights["bias"]
            error = (softmax(logits) - labels) / 20
            gradient = {"kernel": images.T @ error, "bias": error.sum(axis=0)}
            loss = -np.mean(np.log(np.sum(softmax(logits) * labels, axis=1)))
            wrong = np.mean(logits.argmax(axis=1) != labels.argmax(axis=1))
            for name, kept in keep["Dense_0"].items():
                decayed = kept * (gradient[name] + 5e-4 * weights[name])
                velocity[name] = 0.9 * velocity[name] + decayed
                weights[name] = weights[name] - 0.1 * velocity[name]
            assert metrics.loss == pytest.approx(loss, rel=1e-4)
            assert metrics.error == pytest.approx(wrong)
        params = jax.device_get(state.params)["Dense_0"]
        np.testing.assert_allclose(params["kernel"], weights["kernel"], rtol=1e-3)
        np.testing.assert_allclose(params["bias"], weights["bias"], rtol=1e-3)
        assert np.all(params["kernel"][~keep["Dense_0"]["kernel"]] == 0.0)
        assert int(state.step) == 30

    def test_moves_the_running_statistics_of_batch_norm(self) -> None:
        data, optimizer = examples(20), training.paper_optimizer(0.1)
        state = initial(Normalized(), optimizer, data.images)
        images = preprocess(data.images)
        layer = jax.device_get(state.params["Dense_0"])
        hidden = np.asarray(images).reshape(20, -1) @ layer["kernel"] + layer["bias"]
        step = functools.partial(
            training.train_step, model=Normalized(), optimizer=optimizer
        )
        state, _ = jax.jit(step)(state, Batch(images, data.labels))
        statistics = state.batch_stats["BatchNorm_0"]
        np.testing.assert_allclose(
            statistics["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            statistics["var"], 0.9 + 0.1 * hidden.var(axis=0), rtol=1e-4
        )


class TestLosses:
    @pytest.mark.parametrize("mode", ["inference", "batch"])
    def test_batch_norm_is_the_identity_at_first_or_over_the_batch(
        self, mode: str
    ) -> None:
        data = examples(20)
        variables = Normalized().init(jax.random.key(0), preprocess(data.images))
        batch = Batch(preprocess(data.images), data.labels)
        params = jax.device_get(variables["params"])
        hidden = np.asarray(batch.images).reshape(20, -1) @ params["Dense_0"]["kernel"]
        if mode == "batch":
            hidden -= hidden.mean(axis=0)
            hidden /= np.sqrt(hidden.var(axis=0) + 1e-5)
        logits = np.maximum(hidden, 0.0) @ params["Dense_1"]["kernel"]
        expected = -np.mean(np.log(softmax(logits)[np.arange(20), data.labels]))
        make_loss = getattr(training, f"{mode}_loss")
        loss_fn = make_loss(Normalized(), variables["batch_stats"])
        assert loss_fn(params, batch) == pytest.approx(expected, rel=1e-4)

    def test_cross_entropy_is_in_float32_whatever_the_logits(self) -> None:
        logits = jnp.array([[100.0, 0.0, -100.0]], jnp.bfloat16)
        loss = training.cross_entropy(logits, jnp.array([1]))
        assert loss.dtype == jnp.float32
        assert loss == pytest.approx(100.0)

    def test_another_loss_is_trained_on_and_evaluated(self) -> None:
        def squared(logits: chex.Array, labels: chex.Array) -> chex.Array:
            return jnp.mean((logits - jax.nn.one_hot(labels, CLASSES)) ** 2)

        data, optimizer = examples(20), optax.sgd(0.1)
        state = initial(Linear(), optimizer, data.images)
        batch = Batch(preprocess(data.images), data.labels)
        expected = squared(
            Linear().apply({"params": state.params}, *batch[:1]), *batch[1:]
        )
        step = functools.partial(training.train_step, optimizer=optimizer)
        _, metrics = step(state, batch, model=Linear(), loss=squared)
        assert metrics.loss == pytest.approx(float(expected), rel=1e-5)
        metrics = training.evaluate(
            state.params, {}, data, model=Linear(), preprocess=preprocess, loss=squared
        )
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
    def test_every_example_is_seen_once_in_an_epoch(self) -> None:
        epochs = images_seen(count=12, batch_size=4, steps=9).reshape(3, 12)
        for epoch in epochs:
            assert sorted(epoch) == list(range(12))
        assert len({tuple(epoch) for epoch in epochs}) == 3, "epochs differ in order"

    def test_what_does_not_fill_a_batch_is_left_out(self) -> None:
        epochs = images_seen(count=11, batch_size=4, steps=40).reshape(20, 8)
        for epoch in epochs:
            assert len(set(epoch)) == 8
        assert set(epochs.ravel()) == set(range(11)), "others are left out each time"

    def test_depends_on_the_key(self) -> None:
        first, other = (images_seen(12, 4, 3, seed=seed) for seed in (0, 1))
        assert np.any(first != other)

    def test_one_batch_may_be_the_whole_set(self) -> None:
        for step in images_seen(count=5, batch_size=5, steps=3):
            assert sorted(step) == list(range(5))

    def test_a_batch_larger_than_the_set_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"batch_size is 6, .* only 5 training"):
            images_seen(count=5, batch_size=6, steps=1)


def bits(state: training.TrainState) -> list[bytes]:
    arrays = (state.params, state.batch_stats, state.opt_state)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]


@pytest.fixture(scope="module")
def train() -> Callable[..., tuple[training.TrainState, list[training.Metrics]]]:
    """Runs the steps, in calls of the numbers given: a masked network with batch
    norm, augmented, over batches that do not divide the set."""
    data = examples(50)
    augment = functools.partial(training.flip_and_translate, flip=True, translate=1)
    shapes = Normalized().init(jax.random.key(0), preprocess(data.images))["params"]
    mask = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape) % 3 > 0, shapes)
    optimizer = optim.sparse(
        training.paper_optimizer(0.1, decay_every=7, decay_factor=0.9), mask
    )

    @functools.partial(jax.jit, static_argnames="num_steps", donate_argnums=0)
    def steps(
        state: training.TrainState, *, num_steps: int
    ) -> tuple[training.TrainState, training.Metrics]:
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
        state, metrics = initial(Normalized(), optimizer, data.images), []
        for num_steps in calls:
            state, means = steps(state, num_steps=num_steps)
            metrics.append(means)
        return state, metrics

    return run


class TestTrainSteps:
    @pytest.mark.parametrize("calls", [(5, 5, 2), (11, 1)])
    def test_grouping_makes_no_difference(
        self, calls: tuple[int, ...], train: Callable
    ) -> None:
        state, _ = train(12)
        grouped, _ = train(*calls)
        assert int(grouped.step) == 12
        assert bits(grouped) == bits(state)

    def test_step_by_step_is_the_same(self, train: Callable) -> None:
        state, means = train(12)
        stepped, metrics = train(*(1,) * 12)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            (stepped.params, stepped.batch_stats, stepped.opt_state),
            (state.params, state.batch_stats, state.opt_state),
        )
        losses, errors = zip(*metrics)
        assert np.mean(losses) == pytest.approx(float(means[0].loss), rel=1e-4)
        assert np.mean(errors) == pytest.approx(float(means[0].error), rel=1e-4)

    def test_it_learns(self, train: Callable) -> None:
        _, (first, *_, last) = train(*(12,) * 15)
        assert last.loss < 0.8 * first.loss

    def test_the_key_of_a_step_depends_on_its_number(self) -> None:
        def add(total: chex.Array, batch: Any, key: Any) -> tuple[chex.Array, Any]:
            return total + jax.random.uniform(key), 0.0

        totals = []
        for calls in ([(0, 1), (1, 2)], [(0, 3)], [(1, 3)]):
            total = jnp.float32(0)
            for start, num_steps in calls:
                total, _ = training.over_batches(
                    add,
                    total,
                    jnp.arange(4),
                    start=start,
                    key=jax.random.key(0),
                    num_steps=num_steps,
                    batch_size=2,
                )
            totals.append(float(total))
        assert totals[0] == totals[1] != totals[2]

    def test_pruned_entries_are_zero(self, train: Callable) -> None:
        state, _ = train(12)
        mask = state.opt_state.mask
        for keep, param in zip(jax.tree.leaves(mask), jax.tree.leaves(state.params)):
            assert not np.any(np.asarray(param)[~np.asarray(keep)])


class TestEvaluate:
    @pytest.mark.parametrize("count", [1, 7, 8, 9, 50])
    @pytest.mark.parametrize("batch_size", [8, 500])
    def test_is_the_mean_over_all_examples(self, count: int, batch_size: int) -> None:
        data = Batch(*(x[:count] for x in examples(50)))
        variables = Linear().init(jax.random.key(0), preprocess(data.images))
        layer = jax.device_get(variables["params"]["Dense_0"])
        images = np.asarray(preprocess(data.images)).reshape(count, -1)
        logits = images @ layer["kernel"] + layer["bias"]
        likelihoods = softmax(logits)[np.arange(count), np.asarray(data.labels)]

        metrics = training.evaluate(
            variables["params"],
            {},
            data,
            model=Linear(),
            preprocess=preprocess,
            batch_size=batch_size,
        )
        assert metrics.loss == pytest.approx(-np.mean(np.log(likelihoods)), rel=1e-4)
        wrong = np.mean(logits.argmax(axis=1) != np.asarray(data.labels))
        assert metrics.error == pytest.approx(wrong, abs=1e-6)

    def test_takes_batch_norm_in_inference(self) -> None:
        data = examples(20)
        variables = Normalized().init(jax.random.key(0), preprocess(data.images))
        evaluate = functools.partial(
            training.evaluate, model=Normalized(), preprocess=preprocess
        )
        statistics = jax.tree.map(lambda x: x + 1.0, variables["batch_stats"])
        loss_fn = training.inference_loss(Normalized(), statistics)
        expected = loss_fn(
            variables["params"], Batch(preprocess(data.images), data.labels)
        )
        metrics = evaluate(variables["params"], statistics, data)
        assert metrics.loss == pytest.approx(float(expected), rel=1e-5)
