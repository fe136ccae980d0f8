"""Training in phases: which evaluation is chosen, and how fast is learned."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from snipjax import training
from snipjax.methods import phases
from tests.methods import softmax_regression

# The second class's part of the outputs; 2, 1, 1, 3 of the four examples are wrong.
DIRECTIONS = np.array([[1.0, -1.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])


def test_the_later_of_those_best_on_validation_is_chosen() -> None:
    def step(
        number: chex.Array, batch: chex.ArrayTree, key: chex.PRNGKey
    ) -> tuple[chex.Array, training.Metrics]:
        del batch, key
        return number + 1, training.Metrics(jnp.float32(0), jnp.float32(0))

    def deployed(number: chex.Array) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        # Hidden weights would turn the outputs around.
        directions = jnp.asarray(DIRECTIONS, jnp.float32)
        weights = jnp.stack([jnp.full(2, 9.0), directions[number - 1]], 1)
        return {"w": weights}, {"w": jnp.array([[False, True], [False, True]])}

    phase = phases.Phase(
        softmax_regression.problem(steps=1),  # between two evaluations
        step,
        deployed,
        lambda number: {"number": number, "tree": {"a": number}},
    )
    fitted = phase(jnp.int32(0), num_steps=4, key=jax.random.key(0), name="counting")
    rows = fitted.history.rows
    assert [row["phase"] for row in rows] == ["counting"] * 4
    assert [row["step"] for row in rows] == [row["number"] for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["val_error"] for row in rows] == [50, 25, 25, 75]
    assert {row["sparsity"] for row in rows} == {0.5}
    assert int(fitted.carry) == fitted.history.steps == 4
    assert int(fitted.measured["tree"]["a"]) == 3
    np.testing.assert_array_equal(fitted.params["w"], [[0, 0], [0, 1]])


def test_a_phase_has_its_share_of_the_learning_rate_and_its_own_decays() -> None:
    problem = softmax_regression.problem(
        steps=1, learning_rate=0.4, weight_decay=0.25
    )._replace(decay_factor=0.1)
    optimizer = phases.optimizer(problem, 5, 0.5, decays=1)
    weights = {"w": jnp.array([2.0])}
    state = optimizer.init(weights)
    # Five steps with one decay: three, and two at a tenth of the rate.
    w = 2.0
    for rate in 0.4 * 0.5 * np.array([1, 1, 1, 0.1, 0.1]):
        updates, state = optimizer.update({"w": jnp.array([3.0])}, state, weights)
        weights = optax.apply_updates(weights, updates)
        w -= rate * (3.0 + 0.25 * w)
        np.testing.assert_allclose(weights["w"], [w], atol=1e-5)


def test_equal_programs_are_compiled_once_and_timed_without_that() -> None:
    traced = []

    def double(x: chex.Array, *, times: int) -> chex.Array:
        traced.append(times)
        return x * 2**times

    watch = phases.Stopwatch()
    results = [
        float(watch(double, jnp.float32(x), times=n))
        for x, n in ((1, 1), (3, 1), (3, 2))
    ]
    assert results == [2.0, 6.0, 12.0]
    assert traced == [1, 2]
    assert watch.seconds > 0


def test_the_mean_over_batches_is_of_random_prepared_batches() -> None:
    problem = softmax_regression.problem(steps=1)._replace(
        train=jnp.arange(12.0), batch_size=3, prepare=lambda key, batch: batch + 1
    )
    found = phases.mean_over_batches(
        problem,
        lambda batch, key: (jnp.mean(batch), batch),
        problem.train,
        key=jax.random.key(0),
        num_batches=4,  # an epoch
    )
    assert float(found[0]) == 6.5
    assert found[1].tolist() != [5.5, 6.5, 7.5]  # of the order they have
